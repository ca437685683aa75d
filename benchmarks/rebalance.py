"""The main job on real datasets, as a user runs it: `python benchmarks/rebalance.py [--quick] [--json FILE]`.

Each set goes through `prefect-augment rebalance … --json` in a process of its own, with its test file
as hold-out where there is one, then through `prefect-augment verify`. Printed per set: seconds, peak
memory, records by origin, every strategy on validation records, the three strategies on the hold-out with
their intervals, verdict and recipe. The peer of each comparison is in the same run: the real records as they are, and
the best baseline.

The data are read from ../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@dataclass(frozen=True)
class Set:
    """One dataset: its files below DATA, and what the command is told of it."""

    source: str
    label: str
    options: tuple[str, ...] = ()
    holdout: str = ""
    quick: bool = False

    @property
    def kind(self) -> str:
        return {"tabular": "tables", "images": "images"}[self.source.split("/")[0]]

    def arguments(self, destination: str) -> list[str]:
        found = [str(DATA / self.source), destination, *self.options]
        if self.label:
            found += ["--label", self.label]
        if self.holdout:
            found += ["--holdout", str(DATA / self.holdout)]
        return found


SETS = {
    "adult_income": Set("tabular/adult_income.parquet", "income"),
    "mammography": Set("tabular/mammography.parquet", "calcification"),
    "hypothyroid": Set("tabular/hypothyroid.parquet", "diagnosis"),
    "ecoli": Set("tabular/ecoli.parquet", "site", quick=True),
    "german_credit": Set("tabular/german_credit.parquet", "credit_risk", quick=True),
    "predictive_maintenance": Set("tabular/predictive_maintenance.parquet", "machine_failure"),
    # A mask lies beside every defect.
    "magnetic_tile_folder": Set("images/magnetic_tile_folder", "", ("--exclude", "*.png")),
    "magnetic_tile": Set(
        "images/magnetic_tile_train.parquet", "label", holdout="images/magnetic_tile_test.parquet"
    ),
    "bccd_cells": Set(
        "images/bccd_cells_train.parquet", "label", holdout="images/bccd_cells_test.parquet"
    ),
    "pneumonia": Set(
        "images/pneumonia_train.parquet",
        "label",
        holdout="images/pneumonia_test.parquet",
    ),
    "fashion_lt": Set("images/fashion_lt.parquet", "label", holdout="images/fashion_test.parquet"),
}
COMMAND = [sys.executable, "-m", "prefect_augment.cli.app"]


def run_set(name: str, folder: Path, options: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the run's result and the verification's."""
    destination = str(folder / name)
    run = [*COMMAND, "rebalance", *SETS[name].arguments(destination), *options, "--json"]
    result = _last_json(run, check=True)
    return result, _last_json([*COMMAND, "verify", destination, "--json"], check=False)


def _last_json(command: list[str], *, check: bool) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def show(name: str, result: dict[str, Any], verified: dict[str, Any]) -> None:
    """Print one set's figures."""
    print(
        f"\n## {name}: {result['seconds']:.1f} s, peak {result['peak_rss_bytes'] / 2**20:.0f} MiB"
    )
    print(f"verify: {verified['n_objects']} objects, problems: {verified['problems'] or 'none'}")
    print(f"quarantined: {result['quarantined']}")
    for split, classes in result["counts"].items():
        print(f"{split}: " + "; ".join(f"{c} {_origins(o)}" for c, o in classes.items()))
    print("strategies on validation records (balanced accuracy / macro-F1 / AUPRC, per estimator):")
    for score in result["strategies"]:
        estimators = "; ".join(
            f"{k} {x['balanced_accuracy']:.3f}/{x['macro_f1']:.3f}/{x['auprc']:.3f}"
            for k, x in score["estimators"].items()
        )
        strategy = f"{score['strategy']['name']} (amount {score['strategy']['amount']:g}, seed {score['seed']})"
        print(f"  {strategy}: {score['score']:.3f}  [{estimators}]")
    verdict = result["verdict"]
    print(f"hold-out ({verdict['n_holdout']} records, {verdict['n_seeds']} seeds):")
    for strategy, interval in verdict["balanced_accuracy"].items():
        print(f"  {strategy}: {_interval(interval)}")
    for difference in verdict["differences"]:
        print(
            f"  {difference['strategy']} less {difference['against']}: {_interval(difference['interval'], '+.3f')}"
        )
    if verdict["without_twins"]:
        print(f"  without twins: { {k: round(v, 3) for k, v in verdict['without_twins'].items()} }")
    print(f"verdict: {verdict['decision']}. {' '.join(verdict['reasons'])}")
    print(f"recipe: {result['recipe']['strategy']['name']}. {result['recipe']['sentence']}")


def _origins(origins: dict[str, int]) -> str:
    return " + ".join(f"{n} {origin}" for origin, n in origins.items())


def _interval(interval: dict[str, float], form: str = ".3f") -> str:
    return f"{interval['estimate']:{form}} ({interval['low']:{form}} to {interval['high']:{form}})"


def metrics(name: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the hold-out's comparisons in the form that all benchmarks write."""
    scores = result["verdict"]["balanced_accuracy"]
    rows = []
    for difference in result["verdict"]["differences"]:
        ours, peer = (
            scores[difference["strategy"]]["estimate"],
            scores[difference["against"]]["estimate"],
        )
        rows.append(
            {
                "metric": f"{name}: {difference['strategy']} on the hold-out",
                "unit": "balanced accuracy",
                "ours": ours,
                "peer": peer,
                "peer_name": difference["against"],
                "ratio": ours / peer,
                "goal": "interval of the difference above 0",
                "met": difference["interval"]["low"] > 0,
            }
        )
    return rows


def main() -> None:
    """Run the sets asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=("tables", "images"), help="of these only")
    parser.add_argument("--quick", action="store_true", help="the two smallest tables only")
    parser.add_argument("--only", choices=SETS, action="append", help="one set; repeatable")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--keep", type=Path, help="publish below this folder and leave it there")
    parser.add_argument("--minutes", default="", help="budget of each run; its default otherwise")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--on-no-gain", default="recipe")
    args = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(
            f"no data at {DATA}; this benchmark reads the datasets that lie beside the repository."
        )
    names = args.only or [
        name
        for name, a_set in SETS.items()
        if args.kind in (None, a_set.kind) and (a_set.quick or not args.quick)
    ]
    options = ["--model", args.model, "--on-no-gain", args.on_no_gain]
    if args.minutes:
        options += ["--minutes", args.minutes]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            result, verified = run_set(name, args.keep or Path(folder), options)
            show(name, result, verified)
            rows += metrics(name, result)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
