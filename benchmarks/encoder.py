"""Does an encoder made on one set help on another? `python benchmarks/encoder.py [SET …] [--share 1] [--seeds 3]`.

The encoder is the comparison's own classifier, trained on --source (--steps, about three CPU minutes) and exported to
ONNX: mean and maximum of each of its four layers. build/encoder-SOURCE.onnx keeps it for the next time. Sources are
cifar10lt, and every other picture of cifar10_test: balanced pictures of the kind that cifar10lt has few of.

On each other set (magnetic_tile by default; pneumonia, bccd_cells, and cifar10lt with the other half of cifar10_test as
its test file) a linear probe on its features stands beside
resampling with classic augmentation, the best of today's strategies. Both learn from four fifths of the training file;
the last fifth tunes thresholds, and chooses amount and C of the probe. Balanced accuracy is on the test file, which
nothing else reads, with the 95 % interval of the difference over records and seeds. CPU seconds are those of one
setting: the training file's features and a head, or a network. The encoder's own training is not counted, since many
sets share it. --share thins the training file, each class alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _goals import Goal, print_goals, print_heading, print_row
from _image_scores import DATA
from torch import Tensor, nn

from prefect_augment.encoding.images import encode_column
from prefect_augment.evaluation.classifiers.base import balanced_weights
from prefect_augment.evaluation.classifiers.convnet import ConvNet, fit_image_classifier
from prefect_augment.evaluation.classifiers.linear_probe import fit_probe
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.metrics.bootstrap import paired_bootstrap
from prefect_augment.evaluation.metrics.thresholds import tune_multipliers
from prefect_augment.loading.encoder import FeatureEncoder
from prefect_augment.params import Classic
from prefect_augment.plan.estimate import classifier_steps
from prefect_augment.plan.search_space import settings
from prefect_augment.plan.strategies import PROBE
from prefect_augment.schema import BalancePlan, EncoderInfo

SIZES = {
    "magnetic_tile": (64, 1),
    "pneumonia": (28, 1),
    "bccd_cells": (64, 3),
    "cifar10lt": (32, 3),
}
PROBED, TODAY = "linear probe", "resampling + classic"


class Layers(nn.Module):
    """Mean and maximum over the image of each layer of a trained classifier."""

    def __init__(self, network: ConvNet) -> None:
        super().__init__()
        self.body = network.body

    def forward(self, x: Tensor) -> Tensor:
        """Return features, shape (n, n_features)."""
        found = []
        for layer in self.body[:-2]:  # without pooling and flattening
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found += [x.mean((2, 3)), x.amax((2, 3))]
        return torch.cat(found, dim=1)


def make_encoder(file: Path, source: str, n_steps: int) -> None:
    """Train on a set, and export the layers with the scale of their pixels."""
    images, y, _ = read(source, 32, 3, half=0)
    trained = fit_image_classifier(
        images, y, n_classes=int(y.max()) + 1, steps=n_steps, seed=0,
        weights=balanced_weights(y) ** 0.5, augment_prob=0.75,
    )  # fmt: skip
    assert isinstance(trained.network, ConvNet)
    axes = {"image": {0: "n", 2: "height", 3: "width"}, "features": {0: "n"}}
    with warnings.catch_warnings():  # this exporter is the one that needs no further library
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Layers(trained.network).eval(), (torch.zeros(1, 3, 32, 32),), str(file),
            input_names=["image"], output_names=["features"], dynamic_axes=axes,
            opset_version=17, dynamo=False,
        )  # fmt: skip
    scale = dict(zip(("mean", "std"), trained.scale, strict=True))
    file.with_suffix(".json").write_text(json.dumps(scale))


def open_file(file: Path, size: int) -> FeatureEncoder:
    """The exported encoder, as a run opens it."""
    scale = json.loads(file.with_suffix(".json").read_text())
    info = EncoderInfo(
        name=file.name, uri=str(file), sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        licence="Apache-2.0", mean=(scale["mean"],), std=(scale["std"],), size=size,
    )  # fmt: skip
    return FeatureEncoder.of(info, file.read_bytes())


def read(
    name: str, size: int, channels: int, half: int = 1
) -> tuple[np.ndarray, np.ndarray, pa.ChunkedArray]:
    """Images of a file at the comparison's size, class codes, and the column itself; of cifar10_test a half."""
    table = pq.read_table(DATA / f"{name}.parquet")
    if name == "cifar10_test":
        table = table.take(np.arange(half, len(table), 2))
    column, labels = table["image"], np.array(table["label"].to_pylist())
    codes = np.unique(labels, return_inverse=True)[1]
    return encode_column(column, size=size, channels=channels), codes, column


def tuned(proba: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Multipliers for validation records."""
    return tune_multipliers(y, proba, compared=np.ones(proba.shape[1], dtype=bool))


def balanced_accuracy(y: np.ndarray, said: np.ndarray) -> float:
    """Mean recall over the classes."""
    return float(np.mean([(said[y == k] == k).mean() for k in np.unique(y)]))


class Set:
    """One set with its folds: what both strategies learn from, are tuned on, and are scored on."""

    def __init__(self, name: str, share: float) -> None:
        self.size, channels = SIZES[name]
        train, test = f"{name}_train", f"{name}_test"
        if name == "cifar10lt":
            train, test = name, "cifar10_test"
        self.X, self.y, self.column = read(train, self.size, channels)
        if share < 1:
            rows = np.random.default_rng(0).permutation(len(self.y))
            kept = [rows[self.y[rows] == k] for k in np.unique(self.y)]
            rows = np.sort(np.concatenate([of[: round(share * len(of))] for of in kept]))
            self.X, self.y, self.column = self.X[rows], self.y[rows], self.column.take(rows)
        self.test_X, self.test_y, self.test_column = read(test, self.size, channels)
        self.n_classes = int(self.y.max()) + 1
        keys = [hashlib.sha256(x.tobytes()).hexdigest() for x in self.X]
        self.folds = [stratified_folds(self.y, None, 5, seed, keys) == 0 for seed in range(99)]

    def hits(self, proba: np.ndarray, of_validation: np.ndarray, seed: int) -> np.ndarray:
        """Whether each test record's class is predicted, by thresholds of validation."""
        multipliers = tuned(of_validation, self.y[self.folds[seed]])
        right: np.ndarray = (proba * multipliers).argmax(1) == self.test_y
        return right

    def by_network(self, seed: int) -> np.ndarray:
        """Resampling with classic augmentation, by the classifier of the comparison."""
        validation = self.folds[seed]
        X, y = self.X[~validation], self.y[~validation]
        model = fit_image_classifier(
            X, y, n_classes=self.n_classes, steps=classifier_steps(len(y)), seed=seed,
            weights=balanced_weights(y), augment_prob=0.5,
        )  # fmt: skip
        return self.hits(
            model.predict_proba(self.test_X), model.predict_proba(self.X[validation]), seed
        )

    def by_probe(self, seed: int, features: np.ndarray, of_test: np.ndarray) -> np.ndarray:
        """The probe with the setting that is best on validation."""
        validation = self.folds[seed]
        y, plan = self.y[~validation], BalancePlan.without_amounts()
        best, found = -1.0, np.zeros(0)
        for one in settings(PROBE, plan=plan, classic=Classic()):
            probe = fit_probe(
                features[~validation], y, C=one.C, weights=balanced_weights(y) ** one.amount,
                n_classes=self.n_classes,
            )  # fmt: skip
            proba = probe.predict_proba(features[validation].astype(np.float64))
            said = (proba * tuned(proba, self.y[validation])).argmax(1)
            score = balanced_accuracy(self.y[validation], said)
            if score > best:
                best = score
                found = self.hits(probe.predict_proba(of_test.astype(np.float64)), proba, seed)
        return found


def compare(name: str, file: Path, share: float, n_seeds: int) -> dict[str, Any]:
    """Both strategies on one set."""
    data = Set(name, share)
    seconds = dict.fromkeys((PROBED, TODAY), 0.0)
    hits: dict[str, list[np.ndarray]] = {PROBED: [], TODAY: []}
    started = time.process_time()
    encoder = open_file(file, max(32, data.size))
    features = encoder.features(data.column)
    once = time.process_time() - started  # for all seeds and settings
    of_test = encoder.features(data.test_column)
    n_settings = len(settings(PROBE, plan=BalancePlan.without_amounts(), classic=Classic()))
    for seed in range(n_seeds):
        started = time.process_time()
        hits[PROBED].append(data.by_probe(seed, features, of_test))
        seconds[PROBED] += time.process_time() - started
        started = time.process_time()
        hits[TODAY].append(data.by_network(seed))
        seconds[TODAY] += time.process_time() - started
    stacked = {strategy: np.stack(found).astype(np.float64) for strategy, found in hits.items()}
    boot = paired_bootstrap(data.test_y, stacked, compared=np.ones(data.n_classes, dtype=bool))
    gap = boot.difference(PROBED, TODAY)
    return {
        "set": f"{name}, {len(data.y):,} records",
        "probe": boot.balanced_accuracy(PROBED).estimate,
        "today": boot.balanced_accuracy(TODAY).estimate,
        "gain": [gap.estimate, gap.low, gap.high],
        "probe seconds": once + seconds[PROBED] / n_seeds / n_settings,
        "today seconds": seconds[TODAY] / n_seeds,
    }


def main() -> None:
    """Make the encoder, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="*", default=["magnetic_tile"], metavar="SET")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--source", choices=["cifar10lt", "cifar10_test"], default="cifar10lt")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    file = Path(f"build/encoder-{args.source}.onnx")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if not file.exists():
        started = time.process_time()
        make_encoder(file, args.source, args.steps)
        print(f"encoder: {time.process_time() - started:.0f} CPU seconds", flush=True)
    rows = [compare(name, file, args.share, args.seeds) for name in args.sets]
    print_heading(["set", PROBED, TODAY, "difference, 95 %", "CPU seconds", "of today's"])
    for row in rows:
        gain, low, high = (100 * x for x in row["gain"])
        cells = [f"{100 * row['probe']:.1f}", f"{100 * row['today']:.1f}"]
        cells += [f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]", f"{row['probe seconds']:.1f}"]
        print_row([row["set"], *cells, f"{row['today seconds']:.1f}"])
    goals = []
    for row in rows:
        goals += [
            Goal(f"balanced accuracy, {row['set']}", "share", row["probe"], row["today"], TODAY,
                 "higher", row["gain"][0] > 0),
            Goal(f"CPU seconds, {row['set']}", "s", row["probe seconds"], row["today seconds"],
                 TODAY, "at most a tenth", row["probe seconds"] <= row["today seconds"] / 10),
        ]  # fmt: skip
    print_goals(goals)
    if args.json:
        found = {"sets": rows, "goals": [goal.row() for goal in goals]}
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
