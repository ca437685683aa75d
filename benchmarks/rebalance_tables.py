"""The main job on real tables, as a user runs it: `python benchmarks/rebalance_tables.py [--quick] [--json FILE]`.

Each data set goes through `prefect-augment rebalance … --json` in a process of its own, then through
`prefect-augment verify`. Printed per set: seconds, peak memory, records by origin, every arm on val,
the three arms on the hold-out with their intervals, verdict and recipe. The peer of each comparison
is in the same run: the real records as they are, and the best baseline.

The data are read from ../shared/data/tabular beside the repository.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "tabular"
LABELS = {
    "adult_income": "income",
    "mammography": "calcification",
    "hypothyroid": "diagnosis",
    "ecoli": "site",
    "german_credit": "credit_risk",
    "predictive_maintenance": "machine_failure",
}
QUICK = ("ecoli", "german_credit")
COMMAND = [sys.executable, "-m", "prefect_augment.cli"]


def run_set(name: str, folder: Path, options: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the run's result and the verification's."""
    destination = str(folder / name)
    source = str(DATA / f"{name}.parquet")
    run = [*COMMAND, "rebalance", source, destination, "--label", LABELS[name], *options, "--json"]
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
    print("arms on val (balanced accuracy / macro-F1 / AUPRC, per learner):")
    for score in result["arms"]:
        learners = "; ".join(
            f"{k} {x['balanced_accuracy']:.3f}/{x['macro_f1']:.3f}/{x['auprc']:.3f}"
            for k, x in score["learners"].items()
        )
        arm = f"{score['arm']['name']} (amount {score['arm']['amount']:g}, seed {score['seed']})"
        print(f"  {arm}: {score['score']:.3f}  [{learners}]")
    verdict = result["verdict"]
    print(f"hold-out ({verdict['n_holdout']} records, {verdict['n_seeds']} seeds):")
    for arm, interval in verdict["balanced_accuracy"].items():
        print(f"  {arm}: {_interval(interval)}")
    for difference in verdict["differences"]:
        print(
            f"  {difference['arm']} less {difference['against']}: {_interval(difference['interval'], '+.3f')}"
        )
    if verdict["without_twins"]:
        print(f"  without twins: { {k: round(v, 3) for k, v in verdict['without_twins'].items()} }")
    print(f"verdict: {verdict['decision']}. {' '.join(verdict['reasons'])}")
    print(f"recipe: {result['recipe']['arm']['name']}. {result['recipe']['sentence']}")


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
            scores[difference["arm"]]["estimate"],
            scores[difference["against"]]["estimate"],
        )
        rows.append(
            {
                "metric": f"{name}: {difference['arm']} on the hold-out",
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
    parser.add_argument("--quick", action="store_true", help="the two smallest sets only")
    parser.add_argument("--only", choices=LABELS, action="append", help="one set; repeatable")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--on-no-gain", default="recipe")
    args = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(
            f"no data at {DATA}; this benchmark reads the tables that lie beside the repository."
        )
    names = args.only or (QUICK if args.quick else tuple(LABELS))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            result, verified = run_set(
                name, Path(folder), ["--model", args.model, "--on-no-gain", args.on_no_gain]
            )
            show(name, result, verified)
            rows += metrics(name, result)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
