"""Known answers of the membership attack: how often it raises a false alarm, and what it misses.

Three classes of a heavy-tailed population (260, 75 and 38 real records, a fifth of them others), and records
that are fresh draws of it, or copies of members with noise of so many standard deviations. Prints per kind the
mean AUC and how often a leak or a gap was found, with Clopper and Pearson's interval.

    python benchmarks/privacy.py --cases 300 --json privacy.json      # about 3 CPU minutes
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.privacy.distances import Part, SideNames, privacy_side
from prefect_augment.schema import PrivacySide

N_COLUMNS = 5
SIZES = ((200, 60, 200), (60, 15, 120), (30, 8, 60))  # members, others, synthetic per class
KINDS = ("fresh", "0", "0.2", "0.5", "1")


def measured(kind: str, seed: int) -> PrivacySide:
    """One case: its records, attacked."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    sides: list[list[np.ndarray]] = [[], [], []]
    labels: list[list[np.ndarray]] = [[], [], []]
    for k, (n_members, n_others, n_synthetic) in enumerate(SIZES):
        members, others, fresh = (
            k + rng.standard_t(4, size=(n, N_COLUMNS)) for n in (n_members, n_others, n_synthetic)
        )
        made = fresh
        if kind != "fresh":
            copied = members[rng.integers(0, n_members, n_synthetic)]
            made = copied + float(kind) * rng.normal(size=copied.shape)
        for i, X in enumerate((members, others, made)):
            sides[i].append(X)
            labels[i].append(np.full(len(X), k))
    parts = [Part(np.vstack(X), np.concatenate(y)) for X, y in zip(sides, labels, strict=True)]
    real = np.vstack([parts[0].X, parts[1].X])
    return privacy_side(
        "drawn",
        *parts,
        classes=("large", "medium", "small"),
        space=FeatureSpace.of(real, np.zeros(N_COLUMNS, dtype=bool)),
        max_real=2000,
        max_synthetic=20_000,
        names=SideNames("members", "others"),
    )


def share(n: int, of: int) -> dict[str, float]:
    """A share with its exact 95 % interval."""
    low = float(beta.ppf(0.025, n, of - n + 1)) if n else 0.0
    high = float(beta.ppf(0.975, n + 1, of - n)) if n < of else 1.0
    return {"share": n / of, "low": low, "high": high}


def main() -> None:
    """Measure all kinds and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for kind in KINDS:
        cases = [measured(kind, seed) for seed in range(args.cases)]
        counts = Counter(case.finding for case in cases)
        aucs = [case.attack.auc.estimate for case in cases if case.attack]
        alarms = share(counts["leak"] + counts["gap"], args.cases)
        found[kind] = {"mean_auc": float(np.mean(aucs)), "found": alarms, "findings": dict(counts)}
        name = "fresh" if kind == "fresh" else f"copies, noise {kind}"
        print(
            f"{name:18} mean AUC {np.mean(aucs):.3f}, leak or gap found in {alarms['share']:.1%} "
            f"({alarms['low']:.1%} to {alarms['high']:.1%}): {dict(counts)}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"cases": args.cases, "kinds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
