"""Tables larger than memory: `python benchmarks/scale.py [--rows 10000 100000 1000000] [--trees] [--json FILE]`.

A table of ten columns and three classes (80, 17 and 3 %) in Parquet goes through a whole `rebalance`, by
default or (`--trees`) with a model by name whose synthetic records are published whatever the verdict.
Each run is a process of its own with one thread and one worker. Per step: CPU seconds, records per CPU
second, and the largest resident memory of the process, by the kernel's high-water mark, which is set
back before each step. The exponent of a step's CPU seconds is that of a power law between the two
largest tables: 1 is linear. What memory grows by per record is taken between the same two.

Limits: exponent at most 1.05, 2 GiB per process. Steps below two CPU seconds have no exponent.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from _goals import Goal, print_goals, print_heading, print_row
from memory import write_rows

MIB = 2**20
MOST_MIB, MOST_EXPONENT = 2048, 1.05
LEAST_SECONDS = 2.0  # of a step whose exponent is told
FILE_ROWS = 1_000_000
# Task -> step; tasks of one step are added up.
STEPS = {
    "ingest_dataset": "ingest",
    "plan_balance": "plan",
    "train_model": "train",
    "sample_classes": "sample",
    "filter_candidates": "filter",
    "measure_privacy": "privacy",
    "pilot_strategy": "search",
    "choose_strategy": "search",
    "confirm_choice": "confirm",
    "write_report": "report",
    "augment_records": "augment",
    "publish_dataset": "publish",
}


def child(source: str, destination: str, kind: str, minutes: float) -> None:
    """Run `rebalance` and `verify`, and print a line of JSON per step."""
    from prefect_augment import rebalance
    from prefect_augment.maintenance.verify import verify
    from prefect_augment.params import Budget, Compute, Evaluation, TreesModel
    from prefect_augment.storage import open_store
    from prefect_augment.tasks import augment, compare, ingest, plan, publish, sample, train

    process = psutil.Process()
    searched = False

    def measured(step: str, work: Any) -> Any:
        before = [time.monotonic(), time.process_time()]
        Path("/proc/self/clear_refs").write_text("5")
        try:
            return work()
        finally:
            status = Path("/proc/self/status").read_text()
            mark = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            found = {
                "step": step,
                "seconds": time.monotonic() - before[0],
                "cpu": time.process_time() - before[1],
                "mib": int(mark.split()[1]) / 1024,
                "after": process.memory_info().rss / MIB,
            }
            print(json.dumps(found), flush=True)

    def watch(task: Any, step: str) -> None:
        work = task.fn

        def fn(*args: Any, **kwargs: Any) -> Any:
            nonlocal searched
            searched = searched or task.name == "pilot_strategy"
            name = step or ("search" if searched else "first comparison")
            return measured(name, lambda: work(*args, **kwargs))

        task.fn = fn

    for module in (augment, compare, ingest, plan, publish, sample, train):
        for name, step in (STEPS | {"score_strategy": ""}).items():
            if hasattr(module, name):
                watch(getattr(module, name), step)
    given: dict[str, Any] = {"budget": Budget(minutes=minutes), "compute": Compute(workers=1)}
    if kind == "trees":
        given |= {"model": TreesModel(), "evaluation": Evaluation(on_no_gain="publish")}
    measured("in all", lambda: rebalance(source, destination, label="label", **given))
    measured("verify", lambda: verify(open_store(destination)))


def measure(n: int, kind: str, minutes: float, folder: Path) -> list[dict[str, Any]]:
    """Run once over ``n`` rows; return its steps."""
    source, destination = folder / "source", folder / "out"
    source.mkdir()
    for i, start in enumerate(range(0, n, FILE_ROWS)):
        write_rows(source / f"{i:03d}.parquet", min(FILE_ROWS, n - start), seed=i)
    words = [__file__, "--child", str(source), str(destination), kind, str(minutes)]
    # A Prefect run also lets Arrow allocate from the C library.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    lines = []
    with (folder / "log").open("wb") as log:
        run = subprocess.Popen(
            [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert run.stdout is not None
        for line in run.stdout:
            lines.append(json.loads(line))
            print(line.rstrip(), file=sys.stderr, flush=True)
    if run.wait():
        print_steps(n, together(lines))
        raise SystemExit(
            f"a run ended with {run.returncode}:\n{(folder / 'log').read_text()[-3000:]}"
        )
    return together(lines)


def together(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add up what belongs to one step; memory is the largest."""
    steps: dict[str, dict[str, Any]] = {}
    for line in lines:
        known = steps.setdefault(line["step"], line | {"seconds": 0.0, "cpu": 0.0})
        known |= {key: known[key] + line[key] for key in ("seconds", "cpu")}
        known |= {key: max(known[key], line[key]) for key in ("mib", "after")}
    # The last line of the whole run has its last step's memory.
    steps.get("in all", {})["mib"] = max(s["mib"] for s in steps.values())
    return list(steps.values())


def print_steps(n: int, steps: list[dict[str, Any]]) -> None:
    """Print what each step took."""
    print(f"\n### {n:,} rows\n")
    print_heading(
        ["step", "seconds", "CPU seconds", "rows per CPU second", "peak MiB", "MiB after"]
    )
    for s in steps:
        rate = f"{n / s['cpu']:,.0f}" if s["cpu"] > 0 else ""
        numbers = [f"{s['seconds']:.1f}", f"{s['cpu']:.1f}", rate]
        print_row([s["step"], *numbers, f"{s['mib']:.0f}", f"{s['after']:.0f}"])


def growth(runs: dict[int, list[dict[str, Any]]], kind: str) -> list[Goal]:
    """How steps grow between the two largest tables, held against the limits."""
    (n, few), (m, many) = sorted(runs.items())[-2:]
    of_few, goals = {s["step"]: s for s in few}, []
    print(f"\n### from {n:,} to {m:,} rows\n")
    print_heading(["step", "exponent of CPU seconds", "bytes of memory per row"])
    for s in many:
        if s["step"] not in of_few:
            continue
        before = of_few[s["step"]]
        exponent = math.nan
        if s["cpu"] >= LEAST_SECONDS and before["cpu"] > 0:
            exponent = math.log(s["cpu"] / before["cpu"]) / math.log(m / n)
            metric = f"{kind}: exponent of {s['step']}"
            goals.append(_goal(metric, "", exponent, MOST_EXPONENT))
        per_row = (s["mib"] - before["mib"]) * MIB / (m - n)
        print_row([s["step"], "" if math.isnan(exponent) else f"{exponent:.2f}", f"{per_row:.0f}"])
    return goals


def _goal(metric: str, unit: str, ours: float, most: float) -> Goal:
    return Goal(metric, unit, ours, most, "limit", f"at most {most:,}", ours <= most)


def main() -> None:
    """Measure, print tables, and write the figures where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--trees", action="store_true", help="with synthetic records of `trees`")
    parser.add_argument("--minutes", type=float, default=0.1, help="budget.minutes")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child[:3], float(args.child[3]))
        return
    kind = "trees" if args.trees else "default"
    runs, goals = {}, []
    for n in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            runs[n] = measure(n, kind, args.minutes, Path(folder))
        print_steps(n, runs[n])
        peak = max(s["mib"] for s in runs[n])
        goals.append(_goal(f"{kind}: peak at {n:,} rows", "MiB", peak, MOST_MIB))
    if len(runs) > 1:
        goals += growth(runs, kind)
    print_goals(goals)
    if args.json:
        args.json.write_text(json.dumps([goal.row() for goal in goals], indent=1))


if __name__ == "__main__":
    main()
