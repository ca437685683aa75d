"""Models of tables beside CTGAN, TVAE and the SMOTE family: `python benchmarks/tables.py [--quick] [--json FILE]`.

Six sets under three seeds, split into training (60 %), validation (10 %) and test (30 %); `_table_data.py` says how.
Every method gets the same training rows:

- *nothing*, *class weights*, *oversampling* (random, with copies) and *SMOTE* (SMOTE, SMOTENC or
  SMOTEN, as fits the columns, with imputed nulls);
- CTGAN and TVAE of the `ctgan` package at their defaults (300 epochs), in an environment of their own;
- each of our models by `GenerativeSampler` at its defaults, `faithful` and, where named so, for
  `utility`; *weighted* is its `fit_weighted`: rows of every class with soft labels and weights;
  *trees, not near* passes over rows too near to a training row in every class (`max_near=0.05`).

Measured are, with test's rows: the AUC of boosted trees that tell drawn rows from them (C2ST; 0.5 is
perfect; five folds, up to 2,500 rows a side), column shapes and pair trends (sdmetrics' figures), all
rows and those of the smaller classes (`min`); the share nearer to training than to as many test rows
(`near`); the share nearer to training than the nearest 5 % of test's rows (`memo`), exact copies of training rows
beside test's own, and the share of rows with valid values throughout. Downstream, gradient boosting
and logistic regression are trained on training rows with what brings every class up to the largest; every
strategy's thresholds are tuned on validation records, and test is scored once.

Every cell (set, seed, method) is a process of its own with one thread; seconds are CPU seconds of training
and of sampling, memory is what the peak grew by. Finished cells are kept in --cache and are made anew
only when what they were made of has changed, so an interrupted run goes on where it was; the peers'
environment (about 1 GB) is there too. CTGAN takes two minutes a cell on the larger sets.
--quick: the smallest set under one seed, without the slower half of the methods.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _table_data
from _table_cache import HERE, fresh, made_of, write_json
from _table_cost import THREADS
from _table_goals import MOST_FIT_CPU, all_goals
from _table_report import (
    Results,
    print_differences,
    print_downstream,
    print_goals,
    print_likeness,
    print_speed,
)
from _table_score import NOTHING, WEIGHTS, read_outcomes

from prefect_augment.registry import MODELS

PEERS = ("CTGAN", "TVAE")
BASELINES = (NOTHING, WEIGHTS, "oversampling", "SMOTE")
# Of ours, those that are there; the order of the tables.
KINDS = [
    k for k in ("trees", "flow", "vae", "gan", "autoencoder") if k in MODELS
]  # fmt: skip
USES = {
    "trees": (", utility", ", weighted", ", not near"),
    "flow": (", utility",),
    "vae": (", weighted",),
    "gan": (", weighted",),
}
OURS = [k + use for k in KINDS for use in ("", *USES.get(k, ()))]
METHODS = [*BASELINES, *PEERS, *OURS]
QUICK = [*BASELINES, "TVAE", "trees", "trees, utility", "flow"]
SPEED_ROWS = 8000
SPEED_SETS = ("mammography", "adult_income")
# Pinned: what ctgan takes beside the torch that our own environment has.
PEER_PACKAGES = (
    "ctgan==0.12.1", "torch==2.13.0", "rdt==2.0.0", "numpy==2.4.6", "pandas==2.3.3", "scikit-learn==1.9.1",
    "pyarrow==26.0.1",
)  # fmt: skip


def peer_python(cache: Path) -> str:
    """Return the interpreter of the peers' environment, made where it is not there; empty where that fails."""
    name = hashlib.sha256(repr((PEER_PACKAGES, sys.version_info[:2])).encode())
    home = cache / f"peers-{name.hexdigest()[:12]}"
    python = home / "bin" / "python"
    if (home / "whole").exists():
        return str(python)
    print(f"making the peers' environment in {home}", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for step in ([sys.executable, "-m", "venv", "--clear", str(home)], [*pip, *PEER_PACKAGES]):
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or "no reason given").splitlines()[-1]
            print(f"not measured: {', '.join(PEERS)}; their environment cannot be made: {said}")
            return ""
    (home / "whole").touch()
    return str(python)


@dataclass(frozen=True)
class Cell:
    """One set, seed and method, and its folder in the cache."""

    cache: Path
    of_set: str
    seed: int
    method: str

    @property
    def folder(self) -> Path:
        """Where its rows and scores are."""
        name = self.method.replace(" ", "_").replace(",", "")
        return self.cache / "tables" / f"{self.of_set}-{self.seed}" / name

    def make(self, peer_python: str) -> str:
        """Draw and score what is not there yet; returns why that failed, or nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        failed = "" if self.method in (NOTHING, WEIGHTS) else self.draw(peer_python)
        return failed or self.score()

    def draw(self, peer_python: str) -> str:
        """Fit the method and draw its rows."""
        path = self.folder / "drawn.json"
        if fresh(path):
            return ""
        split = _table_data.split(self.of_set, self.seed)
        for name in ("all.parquet", "drawn.json", "scores.json"):  # of what it was before
            (self.folder / name).unlink(missing_ok=True)
        split.training.to_parquet(self.folder / "training.parquet")
        self._write_task(label=split.label, lacking=split.lacking)
        is_peer = self.method in PEERS
        words = [sys.executable, str(HERE / "_table_draw.py")]
        if is_peer:
            words = [peer_python, str(HERE / "_table_peers.py")]
        failed = run([*words, str(self.folder / "task.json")])
        if failed:
            path.unlink(missing_ok=True)
            return failed
        found = json.loads(path.read_text())
        if is_peer:
            made = made_of(["_table_data.py", "_table_peers.py"], self.of_set, PEER_PACKAGES)
        else:
            made = made_of(["_table_data.py", *found.pop("modules")], self.of_set)
        write_json(path, found | {"made_of": made})
        return ""

    def score(self) -> str:
        """Score what was drawn."""
        path, drawn = self.folder / "scores.json", self.folder / "drawn.json"
        last = hashlib.sha256(drawn.read_bytes()).hexdigest() if drawn.exists() else ""
        known = fresh(path)
        if known and known["drawn"] == last:
            return ""
        self._write_task()
        failed = run(
            [sys.executable, str(HERE / "_table_score.py"), str(self.folder / "task.json")]
        )
        if failed:
            path.unlink(missing_ok=True)
            return failed
        found = json.loads(path.read_text())
        made = made_of(["_table_data.py", *found.pop("modules")], self.of_set)
        write_json(path, found | {"drawn": last, "made_of": made})
        return ""

    def _write_task(self, **more: Any) -> None:
        task = {
            "folder": str(self.folder), "set": self.of_set, "seed": self.seed, "method": self.method,
        }  # fmt: skip
        write_json(self.folder / "task.json", task | more)

    def figures(self) -> dict[str, Any]:
        """Return everything that is known of a finished cell."""
        drawn = self.folder / "drawn.json"
        found: dict[str, Any] = json.loads((self.folder / "scores.json").read_text())
        return found | {"cost": json.loads(drawn.read_text()) if drawn.exists() else {}}


def speed(cache: Path, of_set: str, method: str) -> dict[str, Any]:
    """Return fit seconds on a fixed number of rows and rows per second, measured or from the cache."""
    folder = cache / "tables" / f"{of_set}-speed" / method
    path = folder / "drawn.json"
    known = fresh(path)
    if known:
        return known
    folder.mkdir(parents=True, exist_ok=True)
    _table_data.load(of_set).sample(frac=1.0, random_state=0).to_parquet(
        folder / "training.parquet"
    )
    task = {
        "folder": str(folder), "method": method, "label": _table_data.LABELS[of_set], "rows": SPEED_ROWS,
    }  # fmt: skip
    write_json(folder / "task.json", task)
    failed = run([sys.executable, str(HERE / "_table_draw.py"), str(folder / "task.json")])
    if failed:
        raise SystemExit(f"{method} on {of_set}: {failed}")
    found = json.loads(path.read_text())
    made = made_of(["_table_data.py", *found.pop("modules")], of_set)
    write_json(path, found | {"made_of": made})
    return dict(found)


def run(words: Sequence[str]) -> str:
    """Run a process with one thread; returns its last words where it failed."""
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **THREADS})
    if done.returncode == 0:
        return ""
    return (done.stderr.strip() or "no reason given").splitlines()[-1]


def make_all(cells: Sequence[Cell], python: str, jobs: int) -> Results:
    """Make all cells and return those that are there."""
    made: list[Cell] = []

    def make(cell: Cell) -> None:
        started = time.perf_counter()
        failed = cell.make(python)
        seconds = time.perf_counter() - started
        name = f"{cell.of_set}, seed {cell.seed}, {cell.method}"
        if failed:
            print(f"not measured: {name}: {failed}", flush=True)
        else:
            made.append(cell)
            if seconds > 1:
                print(f"{name}: {seconds:.0f} s", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(make, cells))
    made.sort(key=cells.index)
    keys = {cell: (cell.of_set, cell.seed, cell.method) for cell in made}
    return Results(
        figures={keys[cell]: cell.figures() for cell in made},
        outcomes={keys[cell]: read_outcomes(cell.folder / "test.npz") for cell in made},
        speed={},
    )


def main() -> None:
    """Measure, print the tables, and write the figures where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small set, one seed")
    parser.add_argument("--json", type=Path, help="write the figures here")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "prefect-augment"
    parser.add_argument("--cache", type=Path, default=cache, help="finished cells and environments")
    parser.add_argument("--data", nargs="+", choices=list(_table_data.LABELS), metavar="SET")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"of: {METHODS}"
    )
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="cells made at once")
    args = parser.parse_args()

    started, cache = time.perf_counter(), args.cache.expanduser().resolve()
    sets = args.data or list(_table_data.LABELS)[: 1 if args.quick else None]
    methods = args.methods or (QUICK if args.quick else METHODS)
    # Nothing is what the others are compared with.
    methods = [m for m in METHODS if m in {NOTHING, *methods}]
    seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    python = peer_python(cache) if set(methods) & set(PEERS) else ""
    cells = [
        Cell(cache, of_set, seed, method)
        for seed in seeds
        for of_set in sets
        for method in methods
        if python or method not in PEERS
    ]
    results = make_all(cells, python, args.jobs)
    for of_set in SPEED_SETS:
        for kind in MOST_FIT_CPU:
            if of_set in sets and kind in methods:
                results.speed[of_set, kind] = speed(cache, of_set, kind)
    print_likeness(results)
    print_downstream(results)
    print_differences(results)
    print_speed(results)
    goals = all_goals(results)
    print_goals(goals)
    print(f"\n{time.perf_counter() - started:.0f} s in all")
    if args.json:
        args.json.write_text(json.dumps([goal.row() for goal in goals], indent=1))


if __name__ == "__main__":
    main()
