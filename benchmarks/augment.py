"""Classic copies of images, encoded to encoded: `python benchmarks/augment.py [--quick] [--json FILE]`.

JPEGs of 32, 256 and 512 px (seeded smooth noise with discs and a little grain) are decoded, changed
and encoded again (quality 90, 4:2:0, in all columns). The policy: a resized crop of 0.6 to 1 of the
area, a mirror, colour jitter, a turn of up to 15 degrees, a blur in three of ten. Beside one another:

- ours: a copy under its own seed, by the fused path, in the portions of the step;
- ours by albumentations: the same, operation by operation;
- plain loop: albumentations and OpenCV as most scripts have it, nothing seeded;
- plain loop, seeded: every node of the pipeline with generators of its own per record, without which
  copies repeat themselves (albumentations 2.0.8);
- limit: decode and encode alone, by the codec that we use.

CPU seconds of one process with one thread, best of interleaved repeats: nothing else on the machine
counts. Two processes: images/s of both at once, in wall seconds, so that only an idle machine of two
cores tells. The step: `augment` on staged records of 256 px, shard writing and all (JPEG of quality 95,
as published), and once more with the codec's share at that quality beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import albumentations
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from _goals import Goal, print_goals, print_heading, print_row
from numpy.typing import NDArray

from prefect_augment.augmentation.base import augment
from prefect_augment.augmentation.image_pipeline import Operation, Pipeline
from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed
from prefect_augment.augmentation.write_images import PORTION_BYTES, portions
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Classic, NoModel, RunParams, Source
from prefect_augment.plan.plan import plan
from prefect_augment.schema import Experiment
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import open_store

QUALITY = 90
SIZES = {32: 512, 256: 96, 512: 32}  # images of each
REFLECT_101 = 4
Pixels = NDArray[np.uint8]
Work = Callable[[int, Sequence[bytes]], list[bytes]]  # a first number, and encoded images


def operations(side: int) -> tuple[Operation, ...]:
    """The policy, as this package says it."""
    jitter = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05, "p": 1.0}
    crop = {"size": (side, side), "scale": (0.6, 1.0), "ratio": (0.9, 1.1), "p": 1.0}
    return (
        Operation("RandomResizedCrop", crop),
        Operation("HorizontalFlip", {"p": 0.5}),
        Operation("ColorJitter", jitter),
        Operation("Rotate", {"limit": (-15.0, 15.0), "border_mode": REFLECT_101, "p": 1.0}),
        Operation("GaussianBlur", {"blur_limit": (3, 5), "p": 0.3}),
    )


def pictures(side: int, n: int) -> list[bytes]:
    """Return JPEGs of smooth noise with some discs and a little grain."""
    rng = np.random.default_rng(side)
    found = []
    for _ in range(n):
        coarse = rng.integers(30, 220, (6, 6, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        for _ in range(4):
            x, y, r = rng.integers(0, side, 3).tolist()
            cv2.circle(image, (x, y), max(2, r // 6), rng.integers(0, 256, 3).tolist(), -1)
        grainy = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
        found.append(encoded(grainy))
    return found


def encoded(image: Pixels) -> bytes:
    """Return a JPEG, by the codec that we use."""
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=QUALITY, colorsubsampling="420"
    )
    return data


def decoded(data: bytes) -> Pixels:
    """Return its pixels."""
    image: Pixels = simplejpeg.decode_jpeg(data)
    return image


# --- ways of making a copy ---


def ours(side: int) -> Work:
    """By the fused path, in the portions of `augment`."""
    policy = ImagePolicy(operations(side), prob=1.0)
    policy.check()

    def work(first: int, images: Sequence[bytes]) -> list[bytes]:
        made: list[bytes] = []
        for part in portions([len(data) for data in images], PORTION_BYTES):
            seeds = [record_seed(0, f"{first + i:032x}", 0) for i in range(part.start, part.stop)]
            pixels = [decoded(data) for data in images[part]]
            made += [encoded(image) for image in policy.batch(pixels, seeds)]
        return made

    return work


def one_by_one(make: Callable[[int], Callable[[int, bytes], bytes]]) -> Callable[[int], Work]:
    """Return a way for images that come one at a time."""

    def way(side: int) -> Work:
        one = make(side)
        return lambda first, images: [one(first + i, data) for i, data in enumerate(images)]

    return way


@one_by_one
def ours_by_albumentations(side: int) -> Callable[[int, bytes], bytes]:
    """By the same pipeline, operation by operation."""
    pipeline = Pipeline(operations(side), size=(side, side))

    def work(i: int, data: bytes) -> bytes:
        words = np.random.SeedSequence(record_seed(0, f"{i:032x}", 0))
        state = words.generate_state(pipeline.n_words, np.uint64)
        return encoded(pipeline.apply(decoded(data), state)[0])

    return work


@one_by_one
def plain(side: int) -> Callable[[int, bytes], bytes]:
    """As most scripts have it."""
    pipeline = _plain_pipeline(side)
    return lambda i, data: _plain_encoded(pipeline(image=_plain_decoded(data))["image"])


@one_by_one
def plain_seeded(side: int) -> Callable[[int, bytes], bytes]:
    """The same with generators of its own for every node and record."""
    pipeline = _plain_pipeline(side)
    nodes = [pipeline, *pipeline.transforms]

    def work(i: int, data: bytes) -> bytes:
        state = np.random.SeedSequence((0, i)).generate_state(2 * len(nodes), np.uint64).tolist()
        for node, a, b in zip(nodes, state[::2], state[1::2], strict=True):
            node.random_generator = np.random.Generator(np.random.PCG64(a))
            node.py_random = random.Random(b)
        return _plain_encoded(pipeline(image=_plain_decoded(data))["image"])

    return work


@one_by_one
def limit(side: int) -> Callable[[int, bytes], bytes]:
    """Nothing but the codec."""
    return lambda i, data: encoded(decoded(data))


def _plain_pipeline(side: int) -> Any:
    a = albumentations
    return a.Compose(
        [
            a.RandomResizedCrop((side, side), scale=(0.6, 1.0), ratio=(0.9, 1.1), p=1.0),
            a.HorizontalFlip(p=0.5),
            a.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, p=1.0),
            a.Rotate((-15, 15), border_mode=REFLECT_101, p=1.0),
            a.GaussianBlur(blur_limit=(3, 5), p=0.3),
        ]
    )


def _plain_decoded(data: bytes) -> Pixels:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _plain_encoded(image: Pixels) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])


WAYS: dict[str, Callable[[int], Work]] = {
    "ours": ours,
    "ours by albumentations": ours_by_albumentations,
    "plain loop": plain,
    "plain loop, seeded": plain_seeded,
    "limit": limit,
}


# --- one process ---


def rates(side: int, n: int, repeats: int) -> dict[str, float]:
    """Return images per CPU second of each way: the best of repeats in which they take turns."""
    images = pictures(side, n)
    ways = {name: make(side) for name, make in WAYS.items()}
    best = dict.fromkeys(ways, math.inf)
    for repeat in range(repeats + 1):
        for name, work in ways.items():
            started = time.process_time()
            work(repeat * n, images)
            if repeat:  # the first one warms up
                best[name] = min(best[name], time.process_time() - started)
    return {name: n / seconds for name, seconds in best.items()}


# --- two processes ---


def _share(job: tuple[int, int, int]) -> int:
    side, n, first = job
    cv2.setNumThreads(1)
    work, images = ours(side), pictures(side, min(n, SIZES[side]))
    work(first, [images[i % len(images)] for i in range(n)])
    return n


def scaling(side: int, n: int) -> tuple[float, float]:
    """Return images per wall second of one process and of two, images and pipelines made beforehand."""
    found = []
    for workers in (1, 2):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            warm = [(side, SIZES[side], 0)] * (4 * workers)
            list(pool.map(_share, warm))
            best = math.inf
            for _ in range(3):
                started = time.perf_counter()
                list(pool.map(_share, [(side, n, k * n) for k in range(workers)]))
                best = min(best, time.perf_counter() - started)
        found.append(workers * n / best)
    return found[0], found[1]


# --- the step ---


def step(folder: Path, n_copies: int) -> dict[str, float]:
    """Return images per CPU second of the whole step, and of its codec alone at its own quality."""
    side, n = 256, 120
    images = pictures(side, n)
    labels = ["rare" if i < n // 4 else "plenty" for i in range(n)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)]
    pq.write_table(
        pa.table({"image": pa.array(rows, kind), "label": labels}), folder / "in.parquet"
    )
    store = open_store(str(folder / "out"))
    dataset = ingest(Source(uri=str(folder / "in.parquet"), label="label"), store=store, seed=0)
    planned = plan(dataset, RunParams(model=NoModel()), store, compares=False)
    pipeline = json.dumps([{op.name: dict(op.arguments)} for op in operations(side)])
    classic = Classic(policy=pipeline, image_prob=1.0)
    best = math.inf
    for seed in range(3):
        started = time.process_time()
        params = RunParams(classic=classic, seed=seed)
        experiment = Experiment(dataset=dataset, plan=planned, params=params)
        made = augment(experiment, {"rare": n_copies}, store)
        best = min(best, time.process_time() - started)
        assert sum(load_info(made, store).part_counts["classic"].values()) == n_copies
    pixels = [decoded(data) for data in images]
    started = time.process_time()
    for data, image in zip(images, pixels, strict=True):
        decoded(data)
        simplejpeg.encode_jpeg(image, quality=95, colorsubsampling="420")
    codec = (time.process_time() - started) / n
    return {"step": n_copies / best, "limit at quality 95": 1 / codec}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two repeats, small sizes")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    goals: list[Goal] = []
    by_side: dict[int, dict[str, float]] = {}
    print("### images per CPU second, one process\n")
    print_heading(["px", *WAYS])
    for side, n in SIZES.items():
        by_side[side] = rates(side, n // (4 if args.quick else 1), 2 if args.quick else 7)
        print_row([str(side), *(f"{rate:,.0f}" for rate in by_side[side].values())])
    for side, least in ((32, 4.0), (256, 1.5)):
        goals.append(
            _ratio(
                f"{side} px",
                by_side[side]["ours"],
                by_side[side]["plain loop"],
                "plain loop",
                least,
            )
        )
    goals.append(_ratio("256 px", by_side[256]["ours"], by_side[256]["limit"], "limit", 0.45))
    with tempfile.TemporaryDirectory() as folder:
        found = step(Path(folder), 200 if args.quick else 1500)
    print("\n### the whole step at 256 px, images per CPU second\n")
    print_heading([*found, "plain loop"])
    print_row([*(f"{rate:,.0f}" for rate in found.values()), f"{by_side[256]['plain loop']:,.0f}"])
    goals.append(
        _ratio(
            "the step with shards, 256 px",
            found["step"],
            by_side[256]["plain loop"],
            "plain loop",
            1100 / 853,
        )
    )
    if not args.quick:
        print("\n### images per second, one process and two\n")
        print_heading(["px", "one", "two"])
        for side, n in ((256, 1200), (512, 400)):
            one, two = scaling(side, n)
            print_row([str(side), f"{one:,.0f}", f"{two:,.0f}"])
            goals.append(_ratio(f"two processes, {side} px", two, one, "one process", 1.8))
    print_goals(goals)
    if args.json:
        args.json.write_text(json.dumps([goal.row() for goal in goals], indent=1))


def _ratio(metric: str, ours: float, peer: float, name: str, least: float) -> Goal:
    return Goal(
        metric, "images/s", ours, peer, name, f"at least {least:.3g} × {name}", ours >= least * peer
    )


if __name__ == "__main__":
    main()
