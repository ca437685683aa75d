"""What `model: auto` costs against the best single strategy: `python benchmarks/auto.py [--quick] [--sets …]
[--json FILE]`.

Each set goes through `prefect-augment rebalance … --model auto --minutes 5` in a process of its own, under several
seeds; of tables each seed also splits off another hold-out (30 %), images have a test file. Beside it every
strategy is run in full by itself, as somebody would who has decided for it beforehand: its amount (half of
the way or all of it) chosen on validation records with all steps and folds, thresholds tuned where it tunes
them. All are trained on training and validation and scored on the same hold-out, under the same estimators and seeds.

The *regret* of a set is the balanced accuracy of the single strategy that is best there (by its mean over
the splits, on the hold-outs themselves: with hindsight over all strategies at once) less that of what `auto`
published. Intervals are paired by record and seed, over splits and records (bootstrap, 95 %). Two more are
reported: the regret of the strategy that validation chose, which is not published where it has a model and
the hold-out does not show that it helps; and what the published one has less than the best strategy without
synthetic records.

cifar10lt and magnetic_tile are reported and not held against the goals. --quick: one small table, one split, one seed.
The data are read from ../shared/data beside the repository. All of it takes hours: with --keep FOLDER
finished splits are put there and not run again, so that it can be done in parts; use another folder where the code has
changed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _goals import Goal, print_goals, print_heading, print_row
from _single_strategies import (
    SETS,
    Float,
    Set,
    draw_candidates,
    require_data,
    right_on_holdout,
    score_in_full,
)

from prefect_augment.evaluation.metrics.bootstrap import Bootstrap, paired_bootstrap
from prefect_augment.experiment.evaluator import kept_synthetic
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.params import AutoModel, Budget, Destination, RunParams
from prefect_augment.plan.strategies import make_strategies
from prefect_augment.registry import resolve_model
from prefect_augment.schema import Experiment, Strategy, StrategyScore
from prefect_augment.shards.staged import read_part
from prefect_augment.storage import open_store
from prefect_augment.tasks.ingest import ingest_dataset
from prefect_augment.tasks.plan import plan_balance

REPORTED = ("cifar10lt", "magnetic_tile")  # and not held against the goals
MOST_REGRET, MOST_LOSS, MOST_SECONDS = 0.5, 0.5, 300.0
COMMAND = [sys.executable, "-m", "prefect_augment.cli.app", "rebalance"]
AUTO = "auto"
CHOSEN = "auto, as validation chose"

# --- one split --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """What was found on one split of a set."""

    accuracy: dict[str, float]  # balanced, of auto and of every single strategy
    less: dict[str, Float]  # by strategy, what auto has less in every draw of the bootstrap
    baselines: list[str]  # single strategies without synthetic records
    seconds: float  # of auto, by the clock
    published: str
    chosen: str  # on validation records

    @classmethod
    def of(cls, draws: Bootstrap, **known: Any) -> Split:
        """Take from the draws what is summed up."""
        accuracy = {
            strategy: draws.balanced_accuracy(strategy).estimate for strategy in draws.strategies
        }
        mean = dict(zip(draws.strategies, draws.draws.mean(axis=2).T, strict=True))
        less = {
            strategy: mean[AUTO] - of_strategy
            for strategy, of_strategy in mean.items()
            if strategy != AUTO
        }
        return cls(accuracy, less, **known)

    def write(self, path: Path) -> None:
        """Write a file that :meth:`read` understands, whole or not at all."""
        said = {**vars(self), "less": list(self.less)}
        unfinished = path.with_suffix(".unfinished.npz")
        np.savez_compressed(
            unfinished, words=np.array(json.dumps(said)), less=np.stack([*self.less.values()])
        )
        unfinished.replace(path)

    @classmethod
    def read(cls, path: Path) -> Split:
        """Read a finished split."""
        with np.load(path, allow_pickle=False) as file:
            said = json.loads(str(file["words"]))
            return cls(**{**said, "less": dict(zip(said["less"], file["less"], strict=True))})


def run_auto(
    a_set: Set, destination: str, *, seed: int, minutes: float
) -> tuple[dict[str, Any], float]:
    """Run the command; return its result and its seconds."""
    source = a_set.read_as(seed)
    held = source.holdout_uri or str(source.holdout_fraction)
    options = ["--label", a_set.label, "--holdout", held, "--model", "auto", "--json"]
    options += ["--minutes", str(minutes), "--seed", str(seed)]
    started = time.monotonic()
    done = subprocess.run(
        [*COMMAND, source.uri, destination, *options], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{source.uri} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result, time.monotonic() - started


def run_split(a_set: Set, destination: str, *, seed: int, minutes: float, n_seeds: int) -> Split:
    """Run auto and every single strategy on one split."""
    result, seconds = run_auto(a_set, destination, seed=seed, minutes=minutes)
    # What the command has staged is found again by its receipts.
    params = RunParams(model=AutoModel(), budget=Budget(minutes=minutes), seed=seed)
    dataset = ingest_dataset.fn(a_set.read_as(seed), Destination(uri=destination), seed=seed)
    plan = plan_balance.fn(dataset, params, searched=True)
    experiment = Experiment(dataset=dataset, plan=plan, params=params)
    candidates = draw_candidates(experiment)
    experiment = experiment.model_copy(update={"candidates": candidates})
    store = open_store(destination)
    evaluator = open_evaluator(store, experiment)
    given = kept_synthetic(evaluator, store)
    held = evaluator.read(read_part(store, evaluator.info, ["holdout"]))
    recipe, chosen = result["recipe"], _chosen(result)
    found = {
        AUTO: (Strategy.model_validate(recipe["strategy"]), recipe["thresholds"]),
        CHOSEN: (chosen.strategy, chosen.thresholds),
    }
    kind = resolve_model(AutoModel(), modality=dataset.modality) if candidates else None
    made = make_strategies(
        dataset.modality,
        model=kind,
        classic=params.classic,
        soft_labels=plan.soft_labels,
        clean=any(score["strategy"]["family"] == "clean" for score in result["strategies"]),
    )
    strategies = [strategy for strategy in made if not strategy.is_control]  # never published
    for strategy in strategies:
        scored = score_in_full(experiment, strategy, store)
        found[strategy.name] = (scored.strategy, scored.thresholds)
    right, _ = right_on_holdout(evaluator, found, held, given, n_seeds=n_seeds, seed=seed)
    compared = evaluator.records.compared
    draws = paired_bootstrap(held.y, right, compared=compared, groups=held.groups, seed=seed)
    return Split.of(
        draws,
        baselines=[strategy.name for strategy in strategies if not strategy.has_model],
        seconds=seconds,
        published=recipe["strategy"]["name"],
        chosen=chosen.strategy.name,
    )


def _chosen(result: dict[str, Any]) -> StrategyScore:
    """Return the strategy that validation chose, as first scored with all steps: its thresholds are published."""
    scores = (StrategyScore.model_validate(score) for score in result["strategies"])
    return next(score for score in scores if score.strategy.name == result["verdict"]["chosen"])


# --- all splits -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A set's figures, in points of balanced accuracy."""

    best: str
    regret: float
    low: float  # of auto less the best strategy
    high: float
    of_chosen: float  # regret of what validation chose
    of_baseline: float  # of auto, against the best strategy without synthetic records
    seconds: float  # the longest
    rows: list[dict[str, Any]]


def sum_up(splits: Sequence[Split]) -> Found:
    """Compare auto with the strategy that is best over the splits."""
    shown = [n for n in splits[0].accuracy if all(n in split.accuracy for split in splits)]
    mean = {n: 100 * float(np.mean([s.accuracy[n] for s in splits])) for n in shown}
    single = [n for n in shown if n not in (AUTO, CHOSEN)]
    best = max(single, key=lambda n: mean[n])
    baseline = max(mean[n] for n in single if all(n in split.baselines for split in splits))
    rng = np.random.default_rng(0)
    less = np.stack([split.less[best] for split in splits])  # (n_splits, n_draws)
    chosen = rng.integers(len(splits), size=less.shape)
    pooled = np.take_along_axis(less, chosen, axis=0).mean(axis=0)
    low, high = 100 * np.quantile(pooled, [0.025, 0.975])
    rows = [
        {"strategy": n, "balanced_accuracy": mean[n], "splits": [s.accuracy[n] for s in splits]}
        for n in sorted(mean, key=lambda n: -mean[n])
    ]
    longest = max(split.seconds for split in splits)
    return Found(
        best=best,
        regret=mean[best] - mean[AUTO],
        low=float(low),
        high=float(high),
        of_chosen=mean[best] - mean[CHOSEN],
        of_baseline=baseline - mean[AUTO],
        seconds=longest,
        rows=rows,
    )


def show(name: str, found: Found, splits: Sequence[Split]) -> None:
    """Print a set's table."""
    published = ", ".join(
        s.published if s.published == s.chosen else f"{s.published} (validation chose {s.chosen})"
        for s in splits
    )
    seconds = ", ".join(f"{s.seconds:.0f}" for s in splits)
    print(f"\n### {name}: {len(splits)} splits in {seconds} s, published: {published}\n")
    print_heading(["strategy", "balanced accuracy", "splits"])
    for row in found.rows:
        of_splits = ", ".join(f"{100 * x:.1f}" for x in row["splits"])
        print_row([row["strategy"], f"{row['balanced_accuracy']:.1f}", of_splits])
    print(
        f"\nauto less {found.best}, the best single strategy: {-found.regret:+.2f} "
        f"[{found.low:+.2f}, {found.high:+.2f}]; what validation chose less it: {-found.of_chosen:+.2f}"
    )


def goals(found: dict[str, Found]) -> list[Goal]:
    """Return what is held against the limits, and the sets that are only reported."""
    held = {name: one for name, one in found.items() if name not in REPORTED}
    rows = []
    if held:
        regret = float(np.mean([one.regret for one in held.values()]))
        worst = min(held, key=lambda name: held[name].high)
        slowest = max(held, key=lambda name: held[name].seconds)
        rows = [
            _goal("mean regret", "points", regret, f"<= {MOST_REGRET}", regret <= MOST_REGRET),
            _goal(
                f"upper end of auto less the best strategy, lowest ({worst})",
                "points",
                held[worst].high,
                f">= -{MOST_LOSS}",
                held[worst].high >= -MOST_LOSS,
            ),
            _goal(
                f"longest run ({slowest})",
                "seconds",
                held[slowest].seconds,
                f"<= {MOST_SECONDS:.0f}",
                held[slowest].seconds <= MOST_SECONDS,
            ),
        ]
        for metric, values in (
            ("mean regret of what validation chose", [one.of_chosen for one in held.values()]),
            ("mean of auto less the best baseline", [-one.of_baseline for one in held.values()]),
        ):
            rows.append(_goal(metric, "points", float(np.mean(values)), "reported", met=True))
    for name, one in found.items():
        rows.append(
            _goal(f"regret, {name}", "points", one.regret, "reported", met=True, peer_name=one.best)
        )
    return rows


def _goal(metric: str, unit: str, ours: float, goal: str, met: bool, peer_name: str = "") -> Goal:
    return Goal(metric, unit, ours, math.nan, peer_name, goal, met)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sets asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small table, one split and seed")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="of the estimators on the hold-out")
    parser.add_argument("--minutes", type=float, default=5.0, help="budget of each run")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--keep", type=Path, help="put finished splits here, and use those there")
    args = parser.parse_args(arguments)
    require_data()
    names = args.sets[:1] if args.quick else args.sets
    n_splits, n_seeds = (1, 1) if args.quick else (args.splits, args.seeds)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            splits = []
            for seed in range(n_splits):
                kept = (args.keep or Path(folder)) / (
                    f"{name}-{seed}-{args.minutes:g}-minutes-{n_seeds}-seeds.npz"
                )
                if not kept.exists():
                    destination = f"{folder}/{name}-{seed}"
                    how = {"seed": seed, "minutes": args.minutes, "n_seeds": n_seeds}
                    run_split(SETS[name], destination, **how).write(kept)
                splits.append(Split.read(kept))
            found[name] = sum_up(splits)
            show(name, found[name], splits)
            if args.json:  # as far as it has come
                args.json.write_text(json.dumps([goal.row() for goal in goals(found)], indent=1))
    print_goals(goals(found))


if __name__ == "__main__":
    main()
