"""Small images as they become more: `python benchmarks/scale_images.py [--quick] [--json FILE]`.

Pictures of 32 px in ten classes (30 % to 1 %), a hundredth of them near copies of another, go
through the command ``prefect-augment augment`` or, with ``--flow rebalance``, ``rebalance --quick``,
which compares strategies without a model. Each run is a process of its own with an empty Prefect
home. A step lasts from the line that announces it to the next one. Its processor seconds, which
other processes of the machine change less than the clock's, and what a process holds are looked at
every 200 ms; a step's peak is the largest resident memory of one process while the step runs.
Publishing is followed by ``prefect-augment verify``.

Limits: under 2 GiB for each process, and no step that grows faster than linearly. The exponent is
that of a straight line through the logarithms of processor seconds and of images, over the sizes at
which the step takes at least ``MIN_SECONDS``.

``--n 2000 20000 200000`` names the sizes, ``--folder`` where sources and destinations stay: staged
work is found there again. ``--side 433`` makes photographs, as JPEG, for the rates of docs/scaling.md. --quick:
1,000 and 4,000 images.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from _goals import Goal, print_goals, print_heading, print_row
from PIL import Image

MIB = 2**20
LOOK_SECONDS = 0.2
SIDE, CELLS = 32, 6
LARGEST_PNG = 64  # larger images are photographs, which come as JPEG
SHARES = (0.30, 0.22, 0.15, 0.11, 0.08, 0.05, 0.04, 0.025, 0.015, 0.01)
COPIES = 0.01  # of the images are a shifted, brightened copy of the one before
FILE_RECORDS = 10_000
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("image", IMAGE_TYPE), ("label", pa.string())])
MOST_MIB, MOST_EXPONENT = 2048, 1.05
STEP_LINE = re.compile(r"(?:\[[^]]*\])?\s*(.+?) · .* so far")
MIN_SECONDS = 2.0  # a step's fixed cost is small beside more than that


# --- the data ---


def write_source(folder: Path, n: int, side: int) -> None:
    """Write ``n`` images in Parquet files."""
    folder.mkdir(parents=True)
    at_once = max(100, 1000 * SIDE**2 // side**2)
    for i, start in enumerate(range(0, n, FILE_RECORDS)):
        with pq.ParquetWriter(folder / f"{i:04d}.parquet", SCHEMA, compression="none") as writer:
            rng = np.random.default_rng(i)
            end = min(n, start + FILE_RECORDS)
            for first in range(start, end, at_once):
                rows = _rows(rng, first, min(at_once, end - first), side)
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))


def _rows(rng: np.random.Generator, start: int, n: int, side: int) -> list[dict[str, Any]]:
    """Return smooth random colours under waves whose direction is the class's, with noise."""
    k = rng.choice(len(SHARES), n, p=SHARES)
    cells = rng.uniform(-80, 80, (n, 3, CELLS, CELLS)).astype(np.float32)
    across = (np.arange(side) + 0.5) * CELLS / side - 0.5
    weights = np.clip(1 - np.abs(across[:, None] - np.arange(CELLS)), 0, None).astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    at = np.arange(side) / side
    angle = (np.pi * k / len(SHARES))[:, None, None]
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    along = np.cos(angle) * at[:, None] + np.sin(angle) * at
    wave = 30 * np.sin(2 * np.pi * 3 * along + phase)[:, None]
    images = 128 + weights @ cells @ weights.T + wave + rng.normal(0, 4, (n, 3, side, side))
    pixels = np.clip(images, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for i in np.flatnonzero(rng.random(n) < COPIES)[1:]:
        pixels[i] = np.clip(np.roll(pixels[i - 1], 1, axis=0).astype(np.int16) + 6, 0, 255)
        k[i] = k[i - 1]
    ending = "jpg" if side > LARGEST_PNG else "png"
    return [
        {"image": {"bytes": _file(image), "path": f"{i:07d}.{ending}"}, "label": f"class {c}"}
        for i, (image, c) in enumerate(zip(pixels, k.tolist(), strict=True), start=start)
    ]


def _file(pixels: np.ndarray[Any, Any]) -> bytes:
    file, image = io.BytesIO(), Image.fromarray(pixels)
    if len(pixels) > LARGEST_PNG:
        image.save(file, "JPEG", quality=93)
    else:
        image.save(file, "PNG", compress_level=1)
    return file.getvalue()


# --- one run, watched ---


@dataclass
class Step:
    """Seconds of a step, of them the processor's, and the largest resident memory of one process, in bytes."""

    seconds: float = 0.0
    busy: float = 0.0
    peak: int = 0


@dataclass
class Run:
    """What a command took in all and step by step."""

    n: int
    seconds: float = 0.0
    peak: int = 0  # by the kernel's high-water mark of each process
    steps: dict[str, Step] = field(default_factory=dict)


def run(words: Sequence[str], folder: Path, n: int) -> Run:
    """Run a command of the package and return what its steps took."""
    home = folder / "prefect"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    looks: list[tuple[float, int, float]] = []
    lines: list[tuple[float, str]] = []
    found, started = Run(n), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "prefect_augment.cli.app", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    reader = Thread(target=_read, args=(process, lines, folder / "log"))
    reader.start()
    root = psutil.Process(process.pid)
    while process.poll() is None:
        resident, mark, busy = _look(root)
        looks.append((time.monotonic(), resident, busy))
        found.peak = max(found.peak, mark)
        time.sleep(LOOK_SECONDS)
    reader.join()
    ended = time.monotonic()
    found.seconds = ended - started
    if process.returncode:
        text = "".join(line for _, line in lines)[-3000:]
        raise SystemExit(f"{words[0]} of {n} images ended with {process.returncode}:\n{text}")
    announced = [(at, match[1]) for at, line in lines if (match := STEP_LINE.match(line))]
    starts = [(started, "start"), *announced, (ended, "")]
    for (start, name), (end, _) in pairwise(starts):
        step = found.steps.setdefault(name, Step())
        step.seconds += end - start
        step.peak = max([step.peak, *(size for at, size, _ in looks if start <= at <= end)])
        at = np.array([look[0] for look in looks])
        # A process that has ended is no longer counted.
        busy = np.maximum.accumulate([look[2] for look in looks])
        step.busy += float(np.diff(np.interp([start, end], at, busy))[0])
    return found


def _read(process: subprocess.Popen[str], lines: list[tuple[float, str]], path: Path) -> None:
    """Keep what a command prints with the time of each line."""
    assert process.stdout is not None
    with path.open("a") as log:
        for line in process.stdout:
            lines.append((time.monotonic(), line))
            log.write(line)
            log.flush()


def _look(root: psutil.Process) -> tuple[int, int, float]:
    """Return resident memory and high-water mark of the largest process of a tree, and the processor seconds of all."""
    resident = mark = 0
    busy = 0.0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0, 0, 0.0
    for process in processes:
        try:
            resident = max(resident, process.memory_info().rss)
            busy += sum(process.cpu_times()[:2])
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (psutil.Error, OSError):
            continue  # it ended meanwhile
        if line := re.search(r"VmHWM:\s+(\d+)", status):
            mark = max(mark, 1024 * int(line[1]))
    return resident, mark, busy


def measure(flow: str, n: int, folder: Path, side: int) -> Run:
    """Run a flow over ``n`` images, check what came out, and verify it."""
    source, destination = folder / f"source-{n}", folder / f"{flow}-{n}"
    if not source.exists():
        write_source(source, n, side)
    folder = folder / f"{flow}-{n}-run"
    folder.mkdir(exist_ok=True)
    words = [flow, str(source), str(destination), "--label", "label"]
    if flow == "rebalance":
        words.append("--quick")
    whole = run(words, folder, n)
    _check(json.loads((destination / "_manifests" / "v00000001.json").read_text()), n)
    verified = run(["verify", str(destination)], folder, n)
    whole.steps["verify"] = verified.steps["start"]
    whole.peak = max(whole.peak, verified.peak)
    return whole


def _check(manifest: dict[str, Any], n: int) -> None:
    """A run that lost records would need little."""
    counts = manifest["class_counts"].values()
    real = sum(origins.get("real", 0) for classes in counts for origins in classes.values())
    if real + manifest["n_quarantined"] != n:
        raise SystemExit(f"{n} images went in, {real} came out")


# --- what is reported ---


def exponent(runs: Sequence[Run], step: str) -> float:
    """Return the power of the number of images with which a step's processor seconds grow."""
    points = [(r.n, r.steps[step].busy) for r in runs if step in r.steps]
    points = [(n, seconds) for n, seconds in points if seconds >= MIN_SECONDS]
    if len(points) < 2:
        return math.nan
    n, seconds = np.log(np.array(points, dtype=np.float64)).T
    return float(np.polyfit(n, seconds, 1)[0])


def goals(flow: str, runs: Sequence[Run]) -> list[Goal]:
    """Return the figures against their limits."""
    found = [
        Goal(
            f"{flow} of {r.n:,} images: peak of a process",
            "MiB",
            r.peak / MIB,
            MOST_MIB,
            "limit",
            "< 2 GiB",
            r.peak / MIB < MOST_MIB,
        )
        for r in runs
    ]
    for step in dict.fromkeys(name for r in runs for name in r.steps):
        power = exponent(runs, step)
        if math.isfinite(power):
            metric = f"{flow}, {step}: exponent"
            met = power <= MOST_EXPONENT
            found.append(Goal(metric, "", power, MOST_EXPONENT, "limit", "<= 1.05", met))
    return found


def report(flow: str, r: Run) -> None:
    """Print what a run took."""
    print(f"\n### {flow}, {r.n:,} images: {r.seconds:.0f} s, {r.n / r.seconds:.0f} images/s\n")
    print_heading(["step", "seconds", "of the processor", "images/s", "peak MiB"])
    for name, step in r.steps.items():
        rate = r.n / step.busy if step.busy else 0.0
        times = [f"{step.seconds:.1f}", f"{step.busy:.1f}"]
        print_row([name, *times, f"{rate:,.0f}", f"{step.peak / MIB:.0f}"])
    busy = sum(step.busy for step in r.steps.values())
    times = [f"{r.seconds:.1f}", f"{busy:.1f}"]
    print_row(["whole", *times, f"{r.n / max(busy, 1e-9):,.0f}", f"{r.peak / MIB:.0f}"])


def main() -> None:
    """Measure, print tables, and write the figures where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1,000 and 4,000 images")
    parser.add_argument("--n", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--side", type=int, default=SIDE, help="pixels")
    parser.add_argument("--flow", choices=("augment", "rebalance"), default="augment")
    parser.add_argument("--folder", type=Path, help="keep sources and destinations here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        runs = []
        for n in [1_000, 4_000] if args.quick else args.n:
            runs.append(measure(args.flow, n, folder, args.side))
            report(args.flow, runs[-1])
    found = goals(args.flow, runs)
    print_goals(found)
    if args.json:
        args.json.write_text(json.dumps([goal.row() for goal in found], indent=1))


if __name__ == "__main__":
    main()
