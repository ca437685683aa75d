"""Known answers of the attacks on privacy: how often they raise a false alarm, and what they miss.

Three classes of a heavy-tailed population (260, 75 and 38 real records, a fifth of them others), and records
that are fresh draws of it, or members that were changed: by noise, by a rule that can be undone, or by glueing
halves. Also records of a small network that was trained too long. Prints per kind the mean AUC of the attack by
distance, how often the suite of attacks named a leak or a gap, with Clopper and Pearson's interval, and which
attacks were found.

    python benchmarks/privacy.py --cases 100 --json privacy.json      # about 6 CPU minutes
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy.stats import beta

from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.privacy.distances import Part, SideNames, privacy_side
from prefect_augment.schema import PrivacySide

N_COLUMNS = 5
SIZES = ((200, 60, 200), (60, 15, 120), (30, 8, 60))  # members, others, synthetic per class
HALF = 2  # columns of one member, the others of another
KINDS = {
    "fresh": "fresh draws of the population",
    "copies": "copies of members",
    "copies, noise 0.2": "copies with noise of 0.2 standard deviations",
    "copies, noise 0.5": "of 0.5",
    "copies, noise 1": "of 1",
    "shift": "copies, all shifted by one vector",
    "scales": "copies, each column shifted and scaled",
    "rotation": "copies, all rotated and shifted",
    "halves": "two columns of one member, three of another",
    "over-trained": "flow matching, 1,000 steps on 100 members without a look at others",
    "trained": "the same network as `rebalance` trains it, with early stopping",
    "copies, noise 2": "copies with noise of 2",
    "tenth": "fresh draws, of which a tenth are copies",
}


def measured(kind: str, seed: int, times: int = 1) -> PrivacySide:
    """One case: its records, attacked. ``times`` multiplies the numbers of records."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    if kind.endswith("trained"):
        return attacked(network(times, seed, rng, validates=kind == "trained"), ("one", "other"))
    sides: list[list[np.ndarray]] = [[], [], []]
    labels: list[list[np.ndarray]] = [[], [], []]
    change = affine(kind, rng)
    for k, sizes in enumerate(SIZES):
        n_members, n_others, n_synthetic = (times * n for n in sizes)
        members, others, fresh = (
            k + rng.standard_t(4, size=(n, N_COLUMNS)) for n in (n_members, n_others, n_synthetic)
        )
        made = fresh if kind == "fresh" else change(leak(kind, members, n_synthetic, rng))
        if kind == "tenth":
            made = np.vstack([made[: n_synthetic // 10], fresh[n_synthetic // 10 :]])
        for i, X in enumerate((members, others, made)):
            sides[i].append(X)
            labels[i].append(np.full(len(X), k))
    parts = [Part(np.vstack(X), np.concatenate(y)) for X, y in zip(sides, labels, strict=True)]
    return attacked(parts, ("large", "medium", "small"))


def leak(kind: str, members: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Records made from members."""
    copied = members[rng.integers(0, len(members), n)]
    if kind == "halves":
        copied[:, HALF:] = members[rng.integers(0, len(members), n), HALF:]
    noise = float(kind.split()[-1]) if kind.startswith("copies, noise") else 0.0
    return copied + noise * rng.normal(size=copied.shape)


def affine(kind: str, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A change of all records that can be undone."""
    shift, scale = 3 * rng.normal(size=N_COLUMNS), np.exp(rng.normal(size=N_COLUMNS))
    turn = np.linalg.qr(rng.normal(size=(N_COLUMNS, N_COLUMNS)))[0]
    if kind == "shift":
        return lambda X: X + shift
    if kind == "scales":
        return lambda X: X * scale + shift
    if kind == "rotation":
        return lambda X: X @ turn + shift
    return lambda X: X


def network(times: int, seed: int, rng: np.random.Generator, *, validates: bool) -> list[Part]:
    """Members and others of two classes, 50 records each, and 100 drawn by a network of the package."""
    import prefect_augment.genmodels.tables.training as training
    from prefect_augment.genmodels.base import FitContext, TableData, TableSpec
    from prefect_augment.genmodels.tables.flow import TableFlow
    from prefect_augment.params import FlowModel

    n = 50 * times
    y = np.repeat([0, 1], n)
    members, others = (y[:, None] + rng.standard_t(4, size=(2 * n, N_COLUMNS)) for _ in range(2))
    spec = TableSpec(
        tuple(f"x{j}" for j in range(N_COLUMNS)), (False,) * N_COLUMNS, (0,) * N_COLUMNS, ("one", "other"), (n, n)
    )  # fmt: skip
    params = FlowModel() if validates else FlowModel(epochs=100_000, weight_decay=0.0)
    model = TableFlow.build(params, spec)
    # With too few records to hold any out, nothing stops the training.
    spare = training.MIN_TO_SPARE if validates else sys.maxsize
    with mock.patch.object(training, "MIN_TO_SPARE", spare):
        model.fit(
            TableData(members, y), FitContext(seed=seed, steps=1000, threads=1, batch_size=64)
        )
    wanted = np.repeat([0, 1], 2 * n)
    made = model.sample(wanted, seeds=np.arange(len(wanted)))
    return [Part(members, y), Part(others, y), Part(made, wanted)]


def attacked(parts: list[Part], classes: tuple[str, ...]) -> PrivacySide:
    """Members, others and synthetic records of tables of numbers, attacked."""
    real = np.vstack([parts[0].X, parts[1].X])
    return privacy_side(
        "drawn",
        *parts,
        classes=classes,
        space=FeatureSpace.of(real, np.zeros(real.shape[1], dtype=bool)),
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
    """Measure the kinds and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--times", type=int, default=1, help="multiplies the numbers of records")
    parser.add_argument("--json", type=Path, help="results of other kinds in it are kept")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for kind in args.kinds:
        cases = [
            measured(kind, seed, args.times) for seed in range(args.first, args.first + args.cases)
        ]
        counts = Counter(case.finding for case in cases)
        attacks = Counter(a.name for case in cases for a in case.attacks if a.detected)
        aucs = [case.attack.auc.estimate for case in cases if case.attack]
        alarms = share(counts["leak"] + counts["gap"], args.cases)
        found[f"{kind}, times {args.times}, from {args.first}"] = {
            "cases": args.cases,
            "mean_auc": float(np.mean(aucs)),
            "found": alarms,
            "findings": dict(counts),
            "attacks": dict(attacks),
        }
        print(
            f"{kind:18} mean AUC {np.mean(aucs):.3f}, found in {alarms['share']:.1%} "
            f"({alarms['low']:.1%} to {alarms['high']:.1%}): {dict(counts)} by {dict(attacks)}",
            flush=True,
        )
    if args.json:
        before = json.loads(args.json.read_text()) if args.json.exists() else {}
        args.json.write_text(json.dumps(before | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
