"""Peak memory as records become more: `python benchmarks/memory.py [--quick] [--json FILE]`.

Images of 256 px go through ingest, classic augmentation and publishing by the command
``prefect-augment augment``; rows of a table through ingest, fitting of `trees`, sampling and
publishing by a flow of those tasks. Each run is a process of its own with an empty Prefect home, and
what Prefect starts for it, its server included, counts: the figure is the largest sum of resident
memory over the whole tree of processes, looked at every 20 ms. A peak between two looks is found by
the kernel's own high-water mark of each process, which is printed beside.

1 x is 2,000 images (about 40 MB of JPEG) and 100,000 rows of ten columns; 4 x and 16 x are as many
files more. Limits: 16 x within 10 % of 1 x, and under 1 GiB.

--quick: 1 x and 4 x of a quarter of the records.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

MIB = 2**20
LOOK_SECONDS = 0.02
N_IMAGES, N_ROWS, SIDE = 2_000, 100_000, 256
CLASSES = ("common", "medium", "rare")
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
MOST_GROWTH, MOST_MIB = 1.10, 1024


# --- the data ---


def write_images(path: Path, n: int, seed: int) -> None:
    """Write smooth random pictures with noise as JPEG of quality 90, in a Parquet file."""
    rng = np.random.default_rng(seed)
    schema = pa.schema([("image", IMAGE_TYPE), ("label", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, n, 250):
            rows = [_picture(rng, i) for i in range(start, min(n, start + 250))]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _picture(rng: np.random.Generator, i: int) -> dict[str, Any]:
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = np.clip(smooth + rng.integers(-12, 13, smooth.shape, dtype=np.int16), 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    label = str(rng.choice(CLASSES, p=[0.7, 0.22, 0.08]))
    return {"image": {"bytes": file.getvalue(), "path": f"{i:06d}.jpg"}, "label": label}


def write_rows(path: Path, n: int, seed: int) -> None:
    """Write ten columns of numbers, whole numbers, flags, categories and days, and a class."""
    rng = np.random.default_rng(seed)
    k = rng.choice(3, n, p=[0.8, 0.17, 0.03])
    columns: dict[str, Any] = {f"x{j}": rng.normal(0.3 * k * (j + 1), 1.0) for j in range(4)}
    columns |= {f"n{j}": rng.poisson(3 + k * j) for j in range(2)}
    columns["price"] = np.round(rng.gamma(2.0, 20 + 5 * k), 2)
    columns["flag"] = rng.random(n) < 0.3 + 0.2 * k
    columns["city"] = np.array([f"city {c}" for c in range(12)])[(rng.integers(0, 12, n) + k) % 12]
    columns["day"] = np.datetime64("2024-01-01") + rng.integers(0, 700, n)
    pq.write_table(pa.table({**columns, "label": np.array(CLASSES)[k]}), path)


# --- the child: a table through the tasks that make and publish synthetic records ---


def child(source: str, destination: str) -> None:
    """Publish a table with records of `trees`, as a flow of the user's own: neither filtered nor compared."""
    from prefect import flow

    from prefect_augment.params import Destination, RunParams, Source, TreesModel
    from prefect_augment.schema import ClassFilter, Experiment, FilterResult, Release
    from prefect_augment.shards.staged import load_info
    from prefect_augment.storage import open_store
    from prefect_augment.tasks.ingest import ingest_dataset
    from prefect_augment.tasks.plan import plan_balance
    from prefect_augment.tasks.publish import publish_dataset
    from prefect_augment.tasks.sample import sample_classes
    from prefect_augment.tasks.train import train_model

    @flow
    def with_trees() -> int:
        dataset = ingest_dataset(Source(uri=source, label="label"), Destination(uri=destination))
        params = RunParams(model=TreesModel())
        plan = plan_balance(dataset, params)
        experiment = Experiment(dataset=dataset, plan=plan, params=params)
        model = train_model(experiment)
        wanted = {c.name: c.n_synthetic for c in plan.classes if c.n_synthetic}
        drawn = sample_classes(dataset, model, wanted)
        candidates = FilterResult(  # as if all of them had passed
            root=drawn.root,
            path=drawn.path,
            key=drawn.key,
            purpose="faithful",
            classes=tuple(
                ClassFilter(name=name, n_candidates=n, n_passed=n, n_kept=n, reasons={}, metrics={})
                for name, n in drawn.class_counts.items()
            ),
            kept=load_info(drawn, open_store(destination)).shards,
            dropped=(),
            feature_space="",
            notes=(),
        )
        experiment = experiment.model_copy(update={"candidates": candidates})
        return publish_dataset(Release(experiment=experiment, models=(model,))).version

    if with_trees() != 1:
        raise SystemExit("the run did not publish a version 1")


# --- watching a tree of processes ---


@dataclass
class Peak:
    """What a tree of processes used at most, in bytes."""

    tree: int = 0
    at_seconds: float = 0.0
    processes: dict[str, int] = field(default_factory=dict)  # at that moment
    marks: dict[int, int] = field(default_factory=dict)  # process -> the kernel's high-water mark
    seconds: float = 0.0

    def look(self, root: psutil.Process, seconds: float) -> None:
        """Take the tree in as it is now."""
        found = {}
        for process in _tree(root):
            try:
                if _is_fork(process):
                    continue
                found[f"{process.pid} {_name(process)}"] = process.memory_info().rss
                status = Path(f"/proc/{process.pid}/status").read_text()
            except (psutil.Error, OSError):
                continue  # it ended meanwhile
            mark = next((line for line in status.splitlines() if line.startswith("VmHWM")), "")
            if mark:
                self.marks[process.pid] = 1024 * int(mark.split()[1])
        if sum(found.values()) > self.tree:
            self.tree, self.processes, self.at_seconds = sum(found.values()), found, seconds


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _is_fork(process: psutil.Process) -> bool:
    """Tell whether a process is about to become another: until then it shares its parent's memory."""
    parent = process.parent()
    return parent is not None and process.cmdline() == parent.cmdline()


def _name(process: psutil.Process) -> str:
    words = [Path(word).name for word in process.cmdline()[1:] if not word.startswith("-")]
    return words[0] if words else process.name()


def watched(words: list[str], folder: Path) -> Peak:
    """Run a command to its end and return what its processes used."""
    home = folder / "prefect"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    peak, started = Peak(), time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        root = psutil.Process(process.pid)
        while process.poll() is None:
            peak.look(root, time.monotonic() - started)
            time.sleep(LOOK_SECONDS)
    peak.seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(
            f"a run ended with {process.returncode}:\n{(folder / 'log').read_text()[-3000:]}"
        )
    return peak


# --- what is measured ---


def measure(kind: str, n: int, times: int) -> Peak:
    """Measure one run over ``times`` files of ``n`` records each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, destination = folder / "source", folder / "out"
        source.mkdir()
        write = write_images if kind == "images" else write_rows
        for i in range(times):
            write(source / f"{i:03d}.parquet", n, seed=i)
        words = [
            "-m",
            "prefect_augment.cli.app",
            "augment",
            str(source),
            str(destination),
            "--label",
        ]
        if kind == "images":
            words.append("label")
        else:
            words = [__file__, "--child", str(source), str(destination)]
        peak = watched([sys.executable, *words], folder)
        manifest = json.loads((destination / "_manifests" / "v00000001.json").read_text())
        _check(manifest, n * times)
    return peak


def _check(manifest: dict[str, Any], n: int) -> None:
    """A run that lost records would need little memory."""
    counts = manifest["class_counts"].values()
    n_real = sum(origins.get("real", 0) for classes in counts for origins in classes.values())
    n_made = sum(origins.get(kind, 0) for classes in manifest["class_counts"].values()
                 for origins in classes.values() for kind in ("classic", "synthetic"))  # fmt: skip
    if n_real + manifest["n_quarantined"] != n or not n_made:
        raise SystemExit(f"{n} records went in, {n_real} real and {n_made} made ones came out")


def main() -> None:
    """Measure, print a table, and write the figures where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of the records, to 4 x")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", choices=("images", "rows"), help="one of the two kinds")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    share, factors = (4, (1, 4)) if args.quick else (1, (1, 4, 16))
    rows = []
    for kind, n in (("images", N_IMAGES // share), ("rows", N_ROWS // share)):
        if args.only in (None, kind):
            rows += _rows(kind, n, factors)
    print(f"\n{'metric':44} {'unit':>5} {'ours':>8} {'limit':>8} {'ratio':>6}  met  goal")
    for r in rows:
        print(
            f"{r['metric']:44} {r['unit']:>5} {r['ours']:8.2f} {r['peer']:8.2f} {r['ratio']:6.2f}  "
            f"{'yes' if r['met'] else 'NO':3}  {r['goal']}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def _rows(kind: str, n: int, factors: tuple[int, ...]) -> list[dict[str, Any]]:
    peaks = {}
    for times in factors:
        peak = peaks[times] = measure(kind, n, times)
        parts = ", ".join(f"{name} {used / MIB:.0f}" for name, used in peak.processes.items())
        marks = sum(peak.marks.values()) / MIB
        print(
            f"{kind} {times} x {n:,}: peak {peak.tree / MIB:.0f} MiB after {peak.at_seconds:.0f} of "
            f"{peak.seconds:.0f} s ({parts}); high-water marks of all its processes {marks:.0f} MiB",
            flush=True,
        )
    first, last = peaks[factors[0]].tree / MIB, peaks[factors[-1]].tree / MIB
    found = [
        _row(f"{kind}: peak of {times} x {n:,}", peak.tree / MIB, MOST_MIB, "under 1 GiB")
        for times, peak in peaks.items()
    ]
    growth = f"{kind}: {factors[-1]} x over {factors[0]} x"
    return [*found, _row(growth, last / first, MOST_GROWTH, "within 10 %", unit="ratio")]


def _row(metric: str, ours: float, limit: float, goal: str, *, unit: str = "MiB") -> dict[str, Any]:
    """Return one figure in the form that all benchmarks write."""
    return {
        "metric": metric,
        "unit": unit,
        "ours": round(ours, 3),
        "peer": limit,
        "peer_name": "limit",
        "ratio": round(ours / limit, 4),
        "goal": goal,
        "met": ours <= limit,
    }


if __name__ == "__main__":
    main()
