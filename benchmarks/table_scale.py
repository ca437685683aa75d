"""Wide and long tables: `python benchmarks/table_scale.py [--quick] [--json FILE]`.

*Wide*: a model is fitted on a table of many columns (numbers, decimals, a quarter categories, nulls)
and drawn from, each in a process of its own: CPU seconds, records per second, and what its memory
grew by. Beside each stands the same at a quarter of the columns: what is linear takes a quarter.

*Long*: records of 10 columns are drawn, encoded and staged as shards, as `sample` does. Beside it
stands a tenth of them: memory has a bound, so it is about the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GOAL_RATE = 100_000  # records per CPU second, drawn and staged
WIDE, WIDE_ROWS, FLOW_STEPS = 1000, 20_000, 300
LONG = 10_000_000


def rss_mb() -> float:
    """Return the largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def wide(kind: str, n_columns: int, n_rows: int) -> dict[str, float]:
    """Fit and draw once."""
    import numpy as np

    from prefect_augment.genmodels.base import TableData, TableSpec
    from prefect_augment.genmodels.counter_rng import seeds_from
    from prefect_augment.params import Budget, FlowModel, TreesModel
    from prefect_augment.synthesis.train import fit_model

    if kind == "flow":
        import torch  # noqa: F401 - its own memory is not the table's
    rng = np.random.default_rng(0)
    y = (rng.random(n_rows) < 0.1).astype(np.int64)
    common = rng.normal(size=(n_rows, 10)) + y[:, None]
    X = common @ rng.normal(size=(10, n_columns)) / 3 + rng.normal(size=(n_rows, n_columns))
    is_category = np.arange(n_columns) % 4 == 0
    X[:, is_category] = np.clip(np.floor(X[:, is_category] * 2) + 5, 0, 9)
    X[:, 1::4] = np.round(X[:, 1::4], 1)
    X[:, 2::8][rng.random(X[:, 2::8].shape) < 0.1] = np.nan
    spec = TableSpec(
        names=tuple(f"c{j}" for j in range(n_columns)),
        is_category=tuple(is_category.tolist()),
        n_levels=tuple((10 * is_category).tolist()),
        classes=("a", "b"),
        class_counts=tuple(np.bincount(y, minlength=2).tolist()),
    )
    params = TreesModel() if kind == "trees" else FlowModel()
    before, started = rss_mb(), time.process_time()
    budget = Budget(steps=FLOW_STEPS, device="cpu")
    model = fit_model(TableData(X, y), spec, params, 0, budget=budget)
    training = time.process_time() - started
    n = 16_384 if kind == "trees" else 512
    started = time.process_time()
    model.sample(np.zeros(n, dtype=np.int64), seeds=seeds_from(1, 0, n))
    return {
        "training": training,
        "rate": n / (time.process_time() - started),
        "memory": rss_mb() - before,
    }


def long(n_rows: int, *, folder: str) -> dict[str, float]:
    """Stage a small table, train on it, and draw many records."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from prefect_augment.ingest.ingest import ingest
    from prefect_augment.params import RunParams, Source, TreesModel
    from prefect_augment.plan.plan import plan
    from prefect_augment.schema import Experiment
    from prefect_augment.storage import open_store
    from prefect_augment.synthesis.sample import sample
    from prefect_augment.synthesis.train import train

    rng = np.random.default_rng(0)
    n = 20_000
    y = rng.random(n) < 0.1
    numbers = {f"x{j}": rng.normal(size=n) + y for j in range(6)}
    columns = numbers | {
        "count": rng.poisson(3 + y),
        "site": rng.choice(list("abcd"), n),
        "kind": rng.choice(list("xyz"), n),
    }
    Path(folder, "in").mkdir()
    label = np.where(y, "rare", "head")
    pq.write_table(pa.table(columns | {"label": label}), Path(folder, "in", "a.parquet"))
    store = open_store(str(Path(folder, "out")))
    dataset = ingest(Source(uri=str(Path(folder, "in")), label="label"), store=store, seed=0)
    params = RunParams(model=TreesModel())
    planned = plan(dataset, params, store, compares=False)
    model = train(Experiment(dataset=dataset, plan=planned, params=params), store)
    sample(model, counts={"rare": 200_000}, seed=1, store=store, dataset=dataset)  # warm
    before, started = rss_mb(), time.process_time()
    drawn = sample(model, counts={"rare": n_rows}, seed=0, store=store, dataset=dataset)
    assert drawn.n_records == n_rows
    return {"rate": n_rows / (time.process_time() - started), "memory": rss_mb() - before}


def measured(*asked: Any) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps([*asked, folder])],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    found: dict[str, float] = json.loads(made.stdout.splitlines()[-1])
    return found


def row(
    metric: str, unit: str, ours: float, peer: float, peer_name: str, goal: str, met: bool
) -> dict[str, Any]:
    """Print a figure and return it as every benchmark writes it."""
    print(f"{metric:58} {ours:12,.1f} {unit:10} {peer:12,.1f}  {peer_name:24} {goal}")
    return {
        "metric": metric, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name,
        "ratio": ours / peer if peer else 0.0, "goal": goal, "met": met,
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        what, *asked, folder = json.loads(args.one)
        print(json.dumps(wide(*asked) if what == "wide" else long(*asked, folder=folder)))
        return
    n_columns, n_rows, n_long = (200, 2000, 400_000) if args.quick else (WIDE, WIDE_ROWS, LONG)
    rows = []
    for kind in ("trees", "flow") if find_spec("torch") else ("trees",):
        large, small = (measured("wide", kind, n, n_rows) for n in (n_columns, n_columns // 4))
        name, other = (
            f"{kind}, {n_columns:,} columns x {n_rows:,} rows",
            f"{n_columns // 4:,} columns",
        )
        steps = f" ({FLOW_STEPS} steps)" if kind == "flow" else ""
        ratio = large["training"] / max(small["training"], 1e-9)
        rows.append(
            row(f"{name}: fit{steps}", "CPU s", large["training"], small["training"], other,
                "at most 6 times a quarter's", ratio <= 6)
        )  # fmt: skip
        ratio = small["rate"] / large["rate"]
        rows.append(
            row(f"{name}: draw", "rows/CPU s", large["rate"], small["rate"], other,
                "at least a sixth of a quarter's", ratio <= 6)
        )  # fmt: skip
        ratio = large["memory"] / max(small["memory"], 1.0)
        rows.append(
            row(f"{name}: memory", "MB", large["memory"], small["memory"], other,
                "at most 6 times a quarter's", ratio <= 6)
        )  # fmt: skip
    large, small = (measured("long", n) for n in (n_long, n_long // 10))
    name, other = (
        f"trees, {n_long:,} rows of 10 columns: drawn and staged",
        f"{n_long // 10:,} rows",
    )
    rows.append(
        row(name, "rows/CPU s", large["rate"], small["rate"], other,
            f"at least {GOAL_RATE:,}", large["rate"] >= GOAL_RATE)
    )  # fmt: skip
    rows.append(
        row(f"{name}, memory", "MB", large["memory"], small["memory"], other,
            "at most 100 MB more", large["memory"] <= small["memory"] + 100)
    )  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
