"""Strategies that make no record beside the older ones: `python benchmarks/strategies.py [--quick] [--sets …]`.

Every strategy without a generative model, or each of --strategies, is trained in full by itself: its amount (half of
the way to balance or all of it), or with --settings its first settings of the search, is chosen on validation records
or folds, and its thresholds are tuned there. All are trained on training and
validation with the same estimators, or networks of the same number of steps, under several seeds, and scored on the
same hold-out. Under each split's seed another 30 % of a table are held out; images have a test file.

*Gain* is the balanced accuracy of the new strategy that validation finds best less that of the best older one, which
validation chooses as well: no choice has seen the hold-out. Its 95 % interval is paired by record and seed, over
records and splits. *With hindsight* both are those that are best on the hold-outs. CPU seconds are those of training
for the hold-out and predicting it, over all seeds; bags are ten estimators in the place of one.

--quick: one small table, one split, one seed. --keep FOLDER keeps finished splits. --json FILE writes the figures.
The data are read from ../shared/data beside the repository.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _goals import print_heading, print_row
from _single_strategies import SETS, Float, Set, require_data, right_on_holdout, score_in_full

from prefect_augment.evaluation.metrics.bootstrap import paired_bootstrap
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.params import Budget, Classic, Destination, NoModel, RunParams
from prefect_augment.plan.search_space import settings
from prefect_augment.plan.strategies import CLEAN, IMAGE_STRATEGIES, make_strategies
from prefect_augment.schema import Experiment
from prefect_augment.shards.staged import read_part
from prefect_augment.storage import open_store
from prefect_augment.tasks.ingest import ingest_dataset
from prefect_augment.tasks.plan import plan_balance

TABLES = (
    "ecoli", "german_credit", "hypothyroid", "predictive_maintenance", "mammography", "adult_income",
)  # fmt: skip
IMAGES = ("cifar10lt", "magnetic_tile", "fashion_lt", "pneumonia")
NEW = ("balanced bagging", CLEAN.name, *IMAGE_STRATEGIES)


@dataclass(frozen=True)
class Split:
    """The strategies' figures on one split; arrays are in the order of ``names``."""

    names: list[str]
    validation: Float  # (n_strategies,) balanced accuracy
    holdout: Float  # (n_strategies,)
    draws: Float  # (n_bootstrap, n_strategies) of the hold-out's records
    seconds: Float  # (n_strategies,) CPU


def run_split(
    a_set: Set, destination: str, *, seed: int, n_seeds: int, only: Sequence[str], n_settings: int
) -> Split:
    """Train every strategy on one split, or ``only`` these."""
    classic = Classic.model_validate({"image_strategies": [*IMAGE_STRATEGIES]})
    # The classifier's steps are those of a run that is not short of time.
    params = RunParams(model=NoModel(), classic=classic, budget=Budget(steps=1), seed=seed)
    dataset = ingest_dataset.fn(a_set.read_as(seed), Destination(uri=destination), seed=seed)
    plan = plan_balance.fn(dataset, params, searched=True)
    experiment = Experiment(dataset=dataset, plan=plan, params=params)
    store = open_store(destination)
    evaluator = open_evaluator(store, experiment)
    held = evaluator.read(read_part(store, evaluator.info, ["holdout"]))
    made = make_strategies(
        dataset.modality,
        model=None,
        classic=classic,
        own_estimators=dataset.modality == "table",
        clean=True,
    )
    scores = {
        strategy.name: score_in_full(
            experiment,
            strategy,
            store,
            tried=settings(strategy, plan=plan, classic=classic, most=n_settings)
            if n_settings
            else (),
        )
        for strategy in made
        if not only or strategy.name in only
    }
    found = {name: (scored.strategy, scored.thresholds) for name, scored in scores.items()}
    right, seconds = right_on_holdout(evaluator, found, held, None, n_seeds=n_seeds, seed=seed)
    compared = evaluator.records.compared
    draws = paired_bootstrap(held.y, right, compared=compared, groups=held.groups, seed=seed)
    return Split(
        names=[*draws.strategies],
        validation=np.array([scores[name].score for name in draws.strategies]),
        holdout=draws.recall.mean(axis=1),
        draws=draws.draws.mean(axis=2),
        seconds=np.array([seconds[name] for name in draws.strategies]),
    )


def best_of(names: Sequence[str], values: Float, *, new: bool) -> int:
    """Index of the best of the new strategies, or of the others."""
    among = [i for i, name in enumerate(names) if (name in NEW) is new]
    return max(among, key=lambda i: values[i])


def sum_up(name: str, splits: Sequence[Split]) -> dict[str, Any]:
    """Print a set's strategies; return the gain of the best new one, in points, with its interval."""
    names = splits[0].names
    holdout = np.stack([split.holdout for split in splits])
    print(f"\n### {name}: {len(splits)} splits\n")
    print_heading(["strategy", "validation", "hold-out", "splits", "CPU s"])
    for i in np.argsort(-holdout.mean(axis=0)):
        print_row(
            [
                names[i] + (" (new)" if names[i] in NEW else ""),
                f"{100 * np.mean([split.validation[i] for split in splits]):.1f}",
                f"{100 * holdout[:, i].mean():.1f}",
                ", ".join(f"{100 * x:.1f}" for x in holdout[:, i]),
                f"{np.mean([split.seconds[i] for split in splits]):.1f}",
            ]
        )
    chosen = [
        tuple(best_of(names, split.validation, new=new) for new in (True, False))
        for split in splits
    ]
    gain = [
        split.holdout[a] - split.holdout[b] for split, (a, b) in zip(splits, chosen, strict=True)
    ]
    draws = np.stack(
        [
            split.draws[:, a] - split.draws[:, b]
            for split, (a, b) in zip(splits, chosen, strict=True)
        ]
    )  # (n_splits, n_bootstrap)
    drawn = np.random.default_rng(0).integers(len(splits), size=draws.shape)
    low, high = np.quantile(np.take_along_axis(draws, drawn, axis=0).mean(axis=0), [0.025, 0.975])
    mean = holdout.mean(axis=0)
    hindsight = mean[best_of(names, mean, new=True)] - mean[best_of(names, mean, new=False)]
    row = {
        "set": name,
        "new": ", ".join(dict.fromkeys(names[a] for a, _ in chosen)),
        "older": ", ".join(dict.fromkeys(names[b] for _, b in chosen)),
        "gain": round(100 * float(np.mean(gain)), 2),
        "low": round(100 * float(low), 2),
        "high": round(100 * float(high), 2),
        "hindsight": round(100 * float(hindsight), 2),
    }
    print(
        f"\nthe new strategy that validation finds best less the best older one: {row['gain']:+.1f} points "
        f"[{row['low']:+.1f}, {row['high']:+.1f}]; with hindsight {row['hindsight']:+.1f}"
    )
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sets asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small table, one split and seed")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=[*TABLES, *IMAGES])
    parser.add_argument("--splits", type=int, default=3, help="of a table; of images, runs")
    parser.add_argument("--seeds", type=int, default=3, help="of the estimators on the hold-out")
    parser.add_argument("--strategies", nargs="+", default=[], help="of these names only")
    parser.add_argument("--settings", type=int, default=0, help="of the search; 0: two amounts")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--keep", type=Path, help="put finished splits here, and use those there")
    args = parser.parse_args(arguments)
    require_data()
    names = args.sets[:1] if args.quick else args.sets
    n_splits, n_seeds = (1, 1) if args.quick else (args.splits, args.seeds)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        keep = args.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        for name in names:
            splits = []
            for seed in range(n_splits):
                asked = "-".join([f"{n_seeds}-seeds", *args.strategies, f"{args.settings or ''}"])
                kept = keep / f"{name}-{seed}-{asked.strip('-')}.npz"
                if not kept.exists():
                    split = run_split(
                        SETS[name],
                        f"{folder}/{name}-{seed}",
                        seed=seed,
                        n_seeds=n_seeds,
                        only=args.strategies,
                        n_settings=args.settings,
                    )
                    unfinished = kept.with_suffix(".unfinished.npz")
                    np.savez_compressed(unfinished, **vars(split))
                    unfinished.replace(kept)
                with np.load(kept, allow_pickle=False) as file:
                    splits.append(Split(**{**file, "names": file["names"].tolist()}))
            rows.append(sum_up(name, splits))
            if args.json:  # as far as it has come
                args.json.write_text(json.dumps(rows, indent=1))
    for kind, of_kind in (("tables", TABLES), ("images", IMAGES)):
        if gains := [row["gain"] for row in rows if row["set"] in of_kind]:
            print(f"\nmean gain over {len(gains)} sets of {kind}: {np.mean(gains):+.2f} points")


if __name__ == "__main__":
    main()
