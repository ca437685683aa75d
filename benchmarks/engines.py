"""Workers that share a run's steps: `python benchmarks/engines.py [--quick] [--engine NAME] [--json FILE]`.

Each step is done by the run's own tasks with one and with two workers of an engine, in a process of its own. Workers
have done a small run before, so that imports are not counted. Measured, medians of interleaved repeats:

- records per second of ingest (a table in Parquet and CSV, small images and photographs), sampling, changed copies of
  images and the comparison with its hold-out;
- efficiency: the time with one worker over twice the time with two. Threads are shown beside, and as the limit what two
  processes reach that do the whole work each at the same time and share nothing but the machine;
- the cost of a piece that does nothing, and its share of a mean piece of the comparison.

Ingest of typed files is one task: a second worker brings it nothing, and its efficiency says so. Of CSV the files are
parsed by all workers, of images the checks are shared; the rest is one task.
--records: of the table, 60,000 if it is left out; the others follow. --repeats: three if it is left out. --ingest:
nothing but that. --quick: threads and processes alone, of 1,000 records, once, with one strategy's setting and seed:
that everything runs, in a minute or two; its figures say nothing about speed, so it has no goals.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from _goals import Goal, print_goals, print_heading, print_row
from scale_images import write_source

ENGINES = ("threads", "processes", "dask", "ray")
WANTED = {"threads": 0.0, "processes": 0.9, "dask": 0.85, "ray": 0.85}
INGESTS = (
    "ingest of Parquet",
    "ingest of CSV",
    "ingest of small images",
    "ingest of photographs",
)
STEPS = (*INGESTS, "sampling", "augmentation", "comparison")
N_PIECES = 40  # that do nothing
IMAGE_SIDE, PHOTO_SIDE = 64, 433
N_FILES = 8
CSV_ROWS, PHOTOS = 10, 1 / 20  # per record of the table
MOST_OVERHEAD = 0.05


def make_table(path: Path, n: int, seed: int = 0) -> None:
    """Write a table of two classes, 15 % in the rare one, with eight numbers and a category."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.15
    numbers = {f"x{i}": rng.normal(y * (0.2 * i), 1.0) for i in range(8)}
    kind = rng.choice(["a", "b", "c"], n)
    pq.write_table(pa.table({**numbers, "kind": kind, "y": np.where(y, "rare", "usual")}), path)


def make_csv(folder: Path, n: int) -> None:
    """Write such a table as files."""
    folder.mkdir()
    for i in range(N_FILES):
        make_table(folder / "in.parquet", n // N_FILES, seed=i)
        pacsv.write_csv(pq.read_table(folder / "in.parquet"), folder / f"{i}.csv")
    (folder / "in.parquet").unlink()


# --- the child: every step with one engine ------------------------------------------------------


def child(given: dict[str, Any]) -> None:
    """Do the steps with an engine, first small and then as wanted; print the seconds of each."""
    from prefect_augment.params import Compute
    from prefect_augment.tasks._engines import open_engine

    compute = Compute.model_validate(given["compute"])
    folder = Path(given["folder"])
    with open_engine(compute) as workers:
        # As many at a time as there are workers, so that each has imported what it needs.
        small, source = Path(given["small"]), Path(given["source"])
        if not given["quick"]:
            ingests(folder / "warm", small)
        seconds = ingests(folder / "out", source)
        if given["ingest"] and given["compute"] == {"engine": "threads", "workers": 1}:
            seconds |= in_parts(folder / "parts", source)
        if not given["ingest"]:
            if not given["quick"]:
                steps(folder / "warm", small, workers, n_batches=2 * workers)
            n_seeds = 1 if given["quick"] else 3
            seconds |= steps(
                folder / "out", source, workers, n_batches=given["batches"], n_seeds=n_seeds
            )
        seconds["nothing"] = timed(lambda: nothing(workers)) / N_PIECES
    print(json.dumps(seconds))


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def nothing(workers: int) -> None:
    """Run pieces that do nothing."""
    from prefect_augment.tasks._runtime import call, run_each, step

    @step("nothing")
    def nothing_at_all(i: int) -> int:
        return i

    run_each([call(nothing_at_all, i) for i in range(N_PIECES)], workers=workers, step="nothing")


def sources_of(source: Path) -> dict[str, Any]:
    """What the ingests read."""
    from prefect_augment.params import Source

    uris = (
        source,
        source.with_suffix(".text"),
        source.with_suffix(""),
        source.with_suffix(".photos"),
    )
    labels = ("y", "y", "label", "label")
    return {
        name: Source(uri=str(uri), label=label)
        for name, uri, label in zip(INGESTS, uris, labels, strict=True)
    }


def ingests(folder: Path, source: Path) -> dict[str, float]:
    """Seconds of each ingest."""
    from prefect_augment.flows._inputs import ingested
    from prefect_augment.params import Destination

    took = {}
    for i, (name, one) in enumerate(sources_of(source).items()):
        there = Destination(uri=str(folder) if i == 0 else f"{folder}-ingest-{i}")
        took[name] = timed(partial(ingested, one, there, seed=0))
    return took


def in_parts(folder: Path, source: Path) -> dict[str, float]:
    """Processor seconds of each ingest, alone and as two workers would wait for it: the longer parts and the rest."""
    from prefect_augment.ingest.ingest import ingest, ingest_part, near_part
    from prefect_augment.storage import open_store

    def used(call: Callable[[], Any]) -> float:
        started = time.process_time()
        call()
        return time.process_time() - started

    took = {}
    for name, one in sources_of(source).items():
        alone, shared = (open_store(f"{folder}-{name}-{kind}") for kind in ("alone", "shared"))
        took[f"{name}, alone"] = used(partial(ingest, one, store=alone, seed=0))
        waited = 0.0
        for work in (ingest_part, near_part):
            parts = [partial(work, one, store=shared, seed=0, part=i, n_parts=2) for i in (0, 1)]
            waited += max(map(used, parts))
        took[f"{name}, in parts"] = waited + used(partial(ingest, one, store=shared, seed=0))
    return took


def steps(
    folder: Path, source: Path, workers: int, *, n_batches: int, n_seeds: int = 3
) -> dict[str, float]:
    """Seconds of each step, and pieces of the comparison."""
    from prefect_augment.flows._classic import with_classic
    from prefect_augment.flows._compare import confirm, search_strategies
    from prefect_augment.params import (
        Balance,
        Budget,
        Destination,
        Evaluation,
        NoModel,
        RunParams,
        Source,
        TreesModel,
    )
    from prefect_augment.plan.strategies import classic_recipe, make_strategies
    from prefect_augment.schema import Experiment, Release
    from prefect_augment.tasks._runtime import call, run, run_each
    from prefect_augment.tasks.compare import choose_strategy
    from prefect_augment.tasks.ingest import ingest_dataset
    from prefect_augment.tasks.plan import plan_balance
    from prefect_augment.tasks.sample import draw_part
    from prefect_augment.tasks.train import train_model

    took: dict[str, float] = {}

    def clock(name: str, started: float) -> None:
        took[name] = time.perf_counter() - started

    params = RunParams(
        balance=Balance(target="majority"),
        model=TreesModel(),
        budget=Budget(steps=50),
        evaluation=Evaluation(n_seeds=n_seeds, n_settings=min(2, n_seeds), n_bootstrap=200),
    )
    where = Destination(uri=str(folder))
    dataset = run(ingest_dataset, Source(uri=str(source), label="y"), where, seed=0)
    plan = run(plan_balance, dataset, params, searched=True)
    experiment = Experiment(dataset=dataset, plan=plan, params=params)
    model = run(train_model, experiment)
    counts = {"rare": n_batches * 100_000}  # a batch each
    parts = [
        call(draw_part, dataset, model, counts, seed=0, part=i, n_parts=workers)
        for i in range(workers)
    ]
    started = time.perf_counter()
    run_each(parts, workers=workers, step="sample")
    clock("sampling", started)
    images = Source(uri=str(source.with_suffix("")), label="label")
    pictures = run(ingest_dataset, images, Destination(uri=f"{folder}-images"), seed=0)
    plan = run(plan_balance, pictures, params, compares=False)
    recipe = classic_recipe(plan, "image", params.classic)
    release = Release(
        experiment=Experiment(dataset=pictures, plan=plan, params=params), recipe=recipe
    )
    started = time.perf_counter()
    with_classic(release)
    clock("augmentation", started)

    alone = experiment.with_model(NoModel())
    strategies = make_strategies("table", model=None, classic=params.classic)
    started = time.perf_counter()
    search = search_strategies(alone, strategies, workers=workers)
    choice = run(choose_strategy, search.scores)
    confirm(alone.with_seeds(search.n_seeds), choice, search.scores, workers=workers)
    clock("comparison", started)
    pieces = len(search.scores) + len({s.strategy.name for s in search.scores}) + workers
    return took | {"pieces": pieces}


# --- all of them --------------------------------------------------------------------------------


def measure(
    engine: str, workers: int, small: Path, source: Path, batches: int, args: argparse.Namespace
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "compute": {"engine": engine, "workers": workers},
            "folder": folder,
            "small": str(small),
            "source": str(source),
            "batches": batches,
            "ingest": args.ingest,
            "quick": args.quick,
        }
        done = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(given)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ingest", action="store_true")
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child))
        return
    n, repeats = (1_000, 1) if args.quick else (args.records, args.repeats)
    batches = 2 + n // 10_000
    engines = tuple(dict.fromkeys(("threads", *(args.engine or ENGINES[: 2 if args.quick else 4]))))
    taken: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        small, source = Path(folder, "small.parquet"), Path(folder, "in.parquet")
        make_table(small, 2000)
        make_table(source, n)
        for path, rows in ((small, 2000), (source, n)):
            make_csv(path.with_suffix(".text"), CSV_ROWS * rows)
            write_source(path.with_suffix(".photos"), int(PHOTOS * rows), PHOTO_SIDE)
        write_source(small.with_suffix(""), 500, IMAGE_SIDE)
        write_source(source.with_suffix(""), n // 2, IMAGE_SIDE)
        for _ in range(repeats):
            for engine in engines:
                for workers in (1, 2):
                    took = measure(engine, workers, small, source, batches, args)
                    taken.setdefault((engine, workers), []).append(took)
            with ThreadPoolExecutor(2) as pool:
                both = [
                    pool.submit(measure, "threads", 1, small, source, batches, args)
                    for _ in range(2)
                ]
                taken.setdefault(("both", 1), []).extend(one.result() for one in both)
    median = {
        key: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for key, runs in taken.items()
    }
    done: dict[str, float] = dict(zip(INGESTS, (n, CSV_ROWS * n, n // 2, PHOTOS * n), strict=True))
    done["sampling"] = batches * 100_000
    measured = INGESTS if args.ingest else STEPS
    rows: list[dict[str, Any]] = []
    goals: list[Goal] = []
    print(f"{n} records, {repeats} repeats\n")
    print_heading(["engine", "step", "records/s, 1 worker", "2 workers", "efficiency", "limit"])
    for engine in engines:
        one, two = median[engine, 1], median[engine, 2]
        for step in measured:
            records = done.get(step, n)
            efficiency = one[step] / (2 * two[step])
            limit = median["threads", 1][step] / median["both", 1][step]
            seconds = {"one": one[step], "two": two[step], "apart": median["both", 1][step]}
            rows.append({"engine": engine, "step": step, **seconds})
            cells = [f"{records / t:,.0f}" for t in (one[step], two[step])]
            print_row([engine, step, *cells, f"{efficiency:.2f}", f"{limit:.2f}"])
            if (wanted := WANTED[engine]) and not args.quick:
                name = f"{engine}: efficiency of {step} at two workers"
                met = efficiency >= wanted
                goal = f"at least {wanted}"
                goals.append(Goal(name, "", efficiency, limit, "two processes apart", goal, met))
        if args.ingest:
            continue
        piece = one["comparison"] / one["pieces"]
        share = one["nothing"] / piece
        print_row([engine, f"a piece: {1000 * one['nothing']:.1f} ms", f"{share:.1%}", "", "", ""])
        if WANTED[engine] and not args.quick:
            name = f"{engine}: overhead of a piece"
            met = share <= MOST_OVERHEAD
            goal = f"at most {MOST_OVERHEAD}"
            goals.append(Goal(name, "", share, piece, "a mean piece, s", goal, met))
    if args.ingest:
        print(
            "\nProcessor seconds, which other work on the machine changes less than the clock's\n"
        )
        print_heading(["step", "alone", "the longer parts, and the rest", "efficiency"])
        for step in INGESTS:
            alone, shared = (median["threads", 1][f"{step}, {of}"] for of in ("alone", "in parts"))
            print_row([step, f"{alone:.1f}", f"{shared:.1f}", f"{alone / (2 * shared):.2f}"])
    if not args.quick:
        print_goals(goals)
    if args.json:
        args.json.write_text(
            json.dumps({"rows": rows, "goals": [g.row() for g in goals]}, indent=1)
        )


if __name__ == "__main__":
    main()
