"""What a pretrained encoder of images adds beside the linear probe: copies that are recognised, and a known fidelity.

`audit`: copies of 100 pictures are planted among 2,000, one kind of change at a time. Printed is the share of them that
the audit lists as near-duplicates by pixels, and with the pairs that are alike in the encoder's features; then how many
of the pictures without a planted copy are listed, all of which count as false. `filter`: copies of training pictures
among candidates; the share dropped as near copies, without an encoder (the space is a classifier's) and with one, and
that of fresh real pictures, which count as false. `fidelity`: the Fréchet distance of candidates of a known kind over
the mean of as many real pictures, and how often it is above the largest of 19 of these.

Encoders: `classifier` is the comparison's own network as in encoder.py, `contrastive` one that learnt to recognise
changed pictures (Chen et al. 2020, "A Simple Framework for Contrastive Learning", SimCLR) in 500 steps, about five CPU
minutes. Both learn from cifar10lt; build/ keeps them. The rule of `audit` was chosen on all sets but mnist10k_train,
with these encoders.

    python benchmarks/copies.py [audit|filter|fidelity] [--encoders NAME …] [--sets NAME …] [--seeds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from _goals import print_heading, print_row
from _image_scores import DATA
from encoder import make_encoder, open_file, read
from PIL import Image, ImageEnhance
from torch import Tensor, nn

from prefect_augment.encoding.arrays import FilterRequest, Labelled
from prefect_augment.evaluation.classifiers.batch_transforms import ClassicRanges, classic_batch
from prefect_augment.evaluation.classifiers.convnet import ConvNet
from prefect_augment.evaluation.quality.image_filter import image_measures
from prefect_augment.evaluation.quality.label_audit import alike
from prefect_augment.evaluation.quality.likeness import frechet_metrics
from prefect_augment.evaluation.quality.record_filter import filter_records
from prefect_augment.experiment.audit import MOST_ALIKE
from prefect_augment.experiment.image_evaluator import _EncodesOnce
from prefect_augment.sources.images.validation import _thumb
from prefect_augment.split.near_duplicates import cluster_images, cluster_limit

SETS = ("cifar10_test", "fashion_lt", "bccd_cells_train", "pneumonia_train", "magnetic_tile_train",
        "mnist10k_train")  # fmt: skip
SIZES = {"magnetic_tile_train": (64, 1), "bccd_cells_train": (64, 3), "cifar10_test": (32, 3)}
N_RECORDS, N_COPIES = 2000, 100
N_TRAINING, N_VALIDATION, N_FRESH = 300, 100, 100  # of a class, of the filter; at most 5 : 3 : 2
MOST_CLASSES = 4
FILTER_STEPS = 200
N_KEPT = (25, 50, 100, 200)


def crop(image: Image.Image, share: float) -> Image.Image:
    """A cutout of this share of each side, off the centre, at the old size."""
    (w, h), rest = image.size, (1 - share) / 2
    box = (w * rest / 2, h * rest * 1.5, w * (rest / 2 + share), h * (rest * 1.5 + share))
    return image.resize((w, h), Image.Resampling.BILINEAR, box=box)


def shift(image: Image.Image, share: float) -> Image.Image:
    """Moved to the right and down; the edge is repeated."""
    pixels = np.asarray(image)
    down, right = (max(1, round(share * side)) for side in pixels.shape[:2])
    pad = ((down, 0), (right, 0), *((0, 0),) * (pixels.ndim - 2))
    return Image.fromarray(np.pad(pixels, pad, mode="edge")[: -down or None, : -right or None])


def jpeg(image: Image.Image) -> Image.Image:
    """Encoded anew at quality 40."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert(image.mode)


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "cropped to 90 %": lambda i: crop(i, 0.9),
    "cropped to 75 %": lambda i: crop(i, 0.75),
    "moved by 5 %": lambda i: shift(i, 0.05),
    "moved by 12 %": lambda i: shift(i, 0.12),
    "turned by 5 degrees": lambda i: i.rotate(5, Image.Resampling.BILINEAR),
    "brighter by a quarter": lambda i: ImageEnhance.Brightness(i).enhance(1.25),
    "encoded anew": jpeg,
}


class Pooled(nn.Module):
    """The features before a classifier's head."""

    def __init__(self, network: ConvNet) -> None:
        super().__init__()
        self.body = network.body

    def forward(self, x: Tensor) -> Tensor:
        """Return features, shape (n, n_features)."""
        features: Tensor = self.body(x)
        return features


def changed(x: Tensor, rng: torch.Generator) -> Tensor:
    """A batch moved, turned, scaled, and partly mirrored, turned upside down or gray."""
    ranges = ClassicRanges(12.0, (0.8, 1.35), 0.12, 0.25, 0.35)
    x = classic_batch(x, rng, prob=0.9, ranges=ranges)
    mirrored, gray, upset = (
        torch.rand(len(x), generator=rng)[:, None, None, None] for _ in range(3)
    )
    x = torch.where(mirrored < 0.5, x.flip(3), x)
    x = torch.where(gray < 0.3, x.mean(1, keepdim=True).expand_as(x), x)
    return torch.where(upset < 0.15, x.flip(2), x)


def make_contrastive(file: Path, n_steps: int = 500, n_batch: int = 160) -> None:
    """Learn which two of many changed pictures are of one, and export the features."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    images = torch.from_numpy(read("cifar10lt", 32, 3)[0]).permute(0, 3, 1, 2)
    network = ConvNet(3, 128, side=32, width=1.0).to(memory_format=torch.channels_last)
    head = nn.Sequential(nn.Linear(network.n_features, 128), nn.ReLU(), nn.Linear(128, 64))
    optimizer = torch.optim.AdamW(
        [*network.body.parameters(), *head.parameters()], weight_decay=0.02
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=n_steps)
    other = torch.arange(2 * n_batch).roll(n_batch)
    for _ in range(n_steps):
        x = images[torch.randint(0, len(images), (n_batch,), generator=rng)].float() / 255
        both = (torch.cat([changed(x, rng), changed(x, rng)]) - 0.48) / 0.25
        z = F.normalize(head(network.body(both.contiguous(memory_format=torch.channels_last))))
        loss = F.cross_entropy((z @ z.T / 0.15).fill_diagonal_(-1e9), other)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    axes = {"image": {0: "n", 2: "height", 3: "width"}, "features": {0: "n"}}
    with warnings.catch_warnings():  # this exporter is the one that needs no further library
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Pooled(network).eval(), (torch.zeros(1, 3, 32, 32),), str(file), input_names=["image"],
            output_names=["features"], dynamic_axes=axes, opset_version=17, dynamo=False,
        )  # fmt: skip
    file.with_suffix(".json").write_text(json.dumps({"mean": 0.48, "std": 0.25}))


def encoder_file(kind: str) -> Path:
    """The file of an encoder, which is made once."""
    name = {"classifier": "encoder-cifar10lt", "contrastive": "encoder-contrastive"}[kind]
    file = Path(f"build/{name}.onnx")
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        started = time.process_time()
        if kind == "contrastive":
            make_contrastive(file)
        else:
            make_encoder(file, "cifar10lt", 1000)
        print(f"{kind}: {time.process_time() - started:.0f} CPU seconds", flush=True)
    return file


def pictures(name: str, seed: int) -> list[Image.Image]:
    """Up to 2,000 pictures of a set, gray or in colour."""
    column = pq.read_table(DATA / f"{name}.parquet", columns=["image"])["image"]
    rows = np.random.default_rng(seed).permutation(len(column))[:N_RECORDS]
    opened = [Image.open(io.BytesIO(r["bytes"])) for r in column.take(np.sort(rows)).to_pylist()]
    return [i if i.mode == "L" else i.convert("RGB") for i in opened]


def audited(name: str, kinds: list[str], seed: int) -> dict[str, Any]:
    """Shares of the planted copies that are listed, by pixels and with each encoder; and what is listed without any."""
    images = pictures(name, seed)
    n, size = len(images), max(32, SIZES.get(name, (32, 1))[0])
    rows = np.random.default_rng([seed, 1]).permutation(n)[:N_COPIES]
    encoders = {kind: open_file(encoder_file(kind), size) for kind in kinds}

    def features(some: list[Image.Image]) -> dict[str, np.ndarray]:
        return {k: e.features([np.asarray(i) for i in some]) for k, e in encoders.items()}

    def clusters(some: list[Image.Image]) -> np.ndarray:
        thumbs = np.stack([_thumb(i, 1) for i in some])
        return cluster_images(thumbs, limit=cluster_limit(len(some)))[0]

    started = time.process_time()
    of_real = features(images)
    seconds = time.process_time() - started
    real = clusters(images)
    size_of = np.bincount(real)[real]
    result: dict[str, Any] = {"set": name, "n": n, "encoding seconds": seconds}
    false = {"pixels": int(((size_of > 1) & (size_of <= MOST_ALIKE)).sum())}
    started = time.process_time()
    codes = {k: alike(f, real) for k, f in of_real.items()}
    result["comparing seconds"] = (time.process_time() - started) / max(1, len(kinds))
    result["listed"] = false | {k: 2 * int((c != np.arange(n)).sum()) for k, c in codes.items()}
    result["recall"] = {}
    for what, change in KINDS.items():
        copies = [change(images[i]) for i in rows]
        both = clusters([*images, *copies])
        by_pixels = (both[n:] == both[rows]) & (np.bincount(both)[both[n:]] <= MOST_ALIKE)
        result["recall"][what] = {"pixels": float(by_pixels.mean())}
        for k, f in features(copies).items():
            code = alike(np.concatenate([of_real[k], f]), both)
            # The original itself, or one that its pixels already tie to it.
            original = np.where(code[n:] < n, code[n:], 0)
            is_found = (code[n:] < n) & (both[original] == both[rows])
            result["recall"][what][k] = float((by_pixels | is_found).mean())
    return result


class World:
    """Squares of up to four classes in three parts, and the pictures of the training part."""

    def __init__(self, name: str, seed: int) -> None:
        X, y, _ = read(name, *SIZES.get(name, (32, 1)))
        rng = np.random.default_rng([seed, 2])
        parts: list[list[np.ndarray]] = [[], [], []]
        classes = np.argsort(-np.bincount(y), kind="stable")[:MOST_CLASSES]
        for k in classes:
            rows = rng.permutation(np.flatnonzero(y == k))
            n = len(rows)
            ends = np.cumsum([min(N_TRAINING, n // 2), min(N_VALIDATION, n // 4)])
            for part, of in zip(parts, np.split(rows, ends), strict=True):
                part.append(of)
        parts[2] = [of[: max(N_KEPT)] for of in parts[2]]
        codes = {int(k): i for i, k in enumerate(classes)}
        self.training, self.validation, self.fresh = (
            Labelled(X[r], np.array([codes[int(k)] for k in y[r]]))
            for r in map(np.concatenate, parts)
        )
        self.n_classes = len(classes)

    def copies(self, change: Callable[[Image.Image], Image.Image], n: int) -> Labelled:
        """Changed copies of training squares."""
        rows = np.random.default_rng(3).permutation(len(self.training))[:n]
        squares = [x[..., 0] if x.shape[2] == 1 else x for x in self.training.X[rows]]
        X = np.stack([np.asarray(change(Image.fromarray(x))) for x in squares])
        return Labelled(X.reshape(len(X), *self.training.X.shape[1:]), self.training.stratum[rows])


def filtered(name: str, kinds: list[str], seed: int) -> dict[str, Any]:
    """Shares of copies, and of fresh pictures, that are dropped as near copies."""
    world = World(name, seed)
    blocks = {"fresh": Labelled(world.fresh.X, world.fresh.stratum)}
    blocks |= {what: world.copies(change, N_COPIES) for what, change in KINDS.items()}
    both = Labelled(
        np.concatenate([b.X for b in blocks.values()]),
        np.concatenate([b.stratum for b in blocks.values()]),
    )
    block = np.repeat(list(blocks), [len(b) for b in blocks.values()])
    request = FilterRequest(
        strata=[str(k) for k in range(world.n_classes)], stratum_class=np.arange(world.n_classes),
        wanted=np.full(world.n_classes, 100), ordinals=np.arange(len(both)), metrics=False, seed=seed,
        training_keys=[str(i) for i in range(len(world.training))], purpose="faithful",
    )  # fmt: skip
    size = max(32, SIZES.get(name, (32, 1))[0])
    result: dict[str, Any] = {"set": name, "near copies": {what: {} for what in blocks}}
    for kind in ("none", *kinds):
        encoder = None if kind == "none" else open_file(encoder_file(kind), size)
        measures = image_measures(
            world.training, stratum_class=request.stratum_class, steps=FILTER_STEPS,
            seed=request.seed, encoder=encoder,
        )  # fmt: skip
        outcome = filter_records(world.training, world.validation, both, request, measures=measures)
        for what in blocks:
            share = float((outcome.reason[block == what] == "near copy").mean())
            result["near copies"][what][kind] = share
    return result


FAULTS: dict[str, Callable[[World], np.ndarray]] = {
    "fresh real pictures": lambda w: w.fresh.X,
    "noise of 10 of 255": lambda w: (
        w.fresh.X + np.random.default_rng(0).normal(0, 10, w.fresh.X.shape)
    ).clip(0, 255).astype(np.uint8),
    "half the resolution": lambda w: w.fresh.X[:, ::2, ::2].repeat(2, 1).repeat(2, 2),
    "ten pictures again and again": lambda w: w.fresh.X[
        np.concatenate([np.resize(np.flatnonzero(w.fresh.stratum == k)[:10], n)
                        for k, n in enumerate(np.bincount(w.fresh.stratum))])
    ],
}  # fmt: skip


def fidelity(name: str, kinds: list[str], seed: int) -> dict[str, Any]:
    """Fréchet distance of candidates over that of as many training pictures, of each class, by their number."""
    world = World(name, seed)
    size = max(32, SIZES.get(name, (32, 1))[0])
    result: dict[str, Any] = {"set": name, "ratios": {}}
    for kind in kinds:
        encoder = _EncodesOnce(open_file(encoder_file(kind), size), {})
        for fault, make in FAULTS.items():
            X = make(world)
            for n in N_KEPT:
                y = np.sort(world.fresh.stratum)
                rows = np.concatenate([np.flatnonzero(y == k)[:n] for k in range(world.n_classes)])
                kept = Labelled(X[rows], y[rows])
                by_class, _ = frechet_metrics(
                    encoder.features, kept=(kept, np.ones(len(kept), dtype=bool)), seed=seed,
                    validation=(world.validation, np.ones(len(world.validation), dtype=bool)),
                    training=(world.training, np.ones(len(world.training), dtype=bool)),
                )  # fmt: skip
                counts = np.bincount(kept.stratum)
                ratios = [
                    [
                        m["frechet_distance"] / m[f"real_frechet_{o}"]
                        for o in ("distance", "largest")
                    ]
                    for k, m in by_class.items()
                    if m and counts[k] == n
                ]
                result["ratios"].setdefault(f"{kind}/{fault}/{n}", []).extend(ratios)
    return result


def show(what: str, results: list[dict[str, Any]], kinds: list[str]) -> None:
    """Print a table of each set, or of all."""
    if what == "fidelity":
        print_heading(
            ["encoder", "candidates", "of a class", "n", "median ratio", "5 %", "95 %", "above all"]
        )
        merged: dict[str, list[list[float]]] = {}
        for result in results:
            for key, ratios in result["ratios"].items():
                merged.setdefault(key, []).extend(ratios)
        for key, ratios in merged.items():
            if ratios:
                of_mean, of_largest = np.array(ratios).T
                cells = [f"{q:.2f}" for q in np.quantile(of_mean, [0.5, 0.05, 0.95])]
                above = f"{np.mean(of_largest > 1):.0%}"
                print_row([*key.split("/"), str(len(ratios)), *cells, above])
        return
    part = "recall" if what == "audit" else "near copies"
    for name in dict.fromkeys(r["set"] for r in results):
        of = [r for r in results if r["set"] == name]
        columns = list(of[0][part]["mirrored"])
        print_heading([name, *columns])
        for row in of[0][part]:
            means = [np.mean([r[part][row][c] for r in of]) for c in columns]
            print_row([row, *(f"{m:.2f}" for m in means)])
        if what == "audit":
            means = [np.mean([r["listed"][c] for r in of]) for c in columns]
            print_row([f"listed of {of[0]['n']:,}", *(f"{m:.1f}" for m in means)])
        print(flush=True)


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    measures = {"audit": audited, "filter": filtered, "fidelity": fidelity}
    parser.add_argument("what", nargs="?", choices=measures, default="audit")
    parser.add_argument("--encoders", nargs="+", default=["classifier", "contrastive"])
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    measure = measures[args.what]
    results = [measure(n, args.encoders, seed) for n in args.sets for seed in range(args.seeds)]
    show(args.what, results, args.encoders)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
