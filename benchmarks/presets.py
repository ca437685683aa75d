"""What each preset does for a classifier: `python benchmarks/presets.py [--quick] [--sets …] [--json FILE]`.

On fashion_lt, bccd_cells, magnetic_tile (in squares of 64 px) and cifar10lt the package's own classifier, a
small convolutional network, learns the training file, and its balanced accuracy on the test file is
taken. Every strategy has the same steps, initial weights and seeds:

- as is: records as often as they come, nothing changed;
- oversampling: every class drawn equally often, nothing changed;
- a preset: oversampling, and half of the drawn images changed by it (`image_prob` 0.5, the default).

Nothing is chosen: steps, strengths and probabilities are the same everywhere, so that a preset that is
wrong for a set shows as it is. Differences are paired by record and seed (bootstrap, 95 %).
--quick: one small set, few steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from _goals import print_heading, print_row
from _image_scores import DATA, coded
from numpy.typing import NDArray

from prefect_augment.augmentation.image_policy import ImagePolicy
from prefect_augment.augmentation.image_presets import PRESETS
from prefect_augment.encoding.pixels import decode_image, fit_square, with_channels
from prefect_augment.evaluation.classifiers.base import balanced_weights
from prefect_augment.evaluation.classifiers.convnet import fit_image_classifier
from prefect_augment.evaluation.metrics.bootstrap import paired_bootstrap
from prefect_augment.params import Classic

SETS = {  # edge in pixels and channels
    "magnetic_tile": ("magnetic_tile_train", "magnetic_tile_test", 64, 1),
    "bccd_cells": ("bccd_cells_train", "bccd_cells_test", 32, 3),
    "fashion_lt": ("fashion_lt", "fashion_test", 28, 1),
    "cifar10lt": ("cifar10lt", "cifar10_test", 32, 3),
}
AS_IS, OVERSAMPLING = "as is", "oversampling"
STRATEGIES = (AS_IS, OVERSAMPLING, *(name for name in PRESETS if name != "none"))
PROB = 0.5
SEEDS = range(3)

Images = NDArray[np.uint8]
Int = NDArray[np.int64]


def read(name: str, side: int, channels: int) -> tuple[Images, list[str]]:
    """Return the images of a file in squares, and their labels."""
    path = DATA / f"{name}.parquet"
    if not path.is_file():
        raise SystemExit(f"no data at {path}; this benchmark reads images beside the repository.")
    table = pq.read_table(path, columns=["image", "label"])
    images = [
        with_channels(fit_square(decode_image(row["bytes"]), side), channels)
        for row in table["image"].to_pylist()
    ]
    return np.stack(images), table["label"].to_pylist()


def hits_of(
    strategy: str, train: tuple[Images, Int], test: tuple[Images, Int], *, steps: int, seed: int
) -> NDArray[np.float64]:
    """Return which test records the strategy's classifier is right about, (n_test,)."""
    X, y = train
    policy = (
        ImagePolicy.from_params(Classic(image=strategy, image_prob=PROB))
        if strategy in PRESETS
        else None
    )

    def change(images: Images, seeds: Int) -> Images:
        assert policy is not None
        pairs = zip(images, seeds.tolist(), strict=True)
        return np.stack([policy.apply(image, seed=s, prob=1.0) for image, s in pairs])

    estimator = fit_image_classifier(
        X,
        y,
        n_classes=int(y.max()) + 1,
        steps=steps,
        seed=seed,
        weights=None if strategy == AS_IS else balanced_weights(y),
        augment_prob=PROB if policy else 0.0,
        change=change if policy else None,
    )
    return (estimator.predict_proba(test[0]).argmax(axis=1) == test[1]).astype(np.float64)


def measure(name: str, *, steps: int, seeds: Sequence[int]) -> list[dict[str, object]]:
    """Print a set's table; return its rows."""
    of_train, of_test, side, channels = SETS[name]
    (X, labels), (X_test, labels_test) = (read(n, side, channels) for n in (of_train, of_test))
    classes = sorted(set(labels))
    y, y_test = coded(labels, classes), coded(labels_test, classes)
    started = time.process_time()
    hits = {
        strategy: np.stack(
            [hits_of(strategy, (X, y), (X_test, y_test), steps=steps, seed=s) for s in seeds]
        )
        for strategy in STRATEGIES
    }
    draws = paired_bootstrap(y_test, hits, compared=np.ones(len(classes), dtype=bool), seed=0)
    print(
        f"\n### {name}: {len(y):,} training and {len(y_test):,} test records, {len(classes)} classes, "
        f"{steps} steps, {len(seeds)} seeds, {time.process_time() - started:,.0f} CPU s\n"
    )
    print_heading(["strategy", "balanced accuracy", "less as is", "less oversampling"])
    rows: list[dict[str, object]] = []
    for strategy in STRATEGIES:
        own = draws.balanced_accuracy(strategy)
        less = [draws.difference(strategy, other) for other in (AS_IS, OVERSAMPLING)]
        shown = [f"{100 * d.estimate:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]" for d in less]
        print_row([strategy, f"{100 * own.estimate:.1f}", *shown])
        rows.append(
            {"set": name, "strategy": strategy, "balanced_accuracy": own.estimate}
            | {
                f"less {other}": [d.estimate, d.low, d.high]
                for other, d in zip((AS_IS, OVERSAMPLING), less, strict=True)
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small set, few steps")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name in args.sets[:1] if args.quick else args.sets:
        steps, seeds = (20, range(2)) if args.quick else (args.steps, SEEDS)
        rows += measure(name, steps=steps, seeds=seeds)
        if args.json:  # as far as it has come
            args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
