"""Our shards beside other libraries' and plain files: `python benchmarks/shards.py [--quick] [--json FILE]`.

Sets: 20,000 PNG of 32 px and 2,000 JPEG (quality 90) of 256 px, smooth random pictures with noise, made
from a fixed seed. Operations, the library's own way each, in `_shard_libraries.py`:

- write: records in memory (bytes, integer) to shards of 64 MiB. Ours also hash, sync and commit them,
  and hold the lineage columns; of the others only the plain files are synced: the same bytes one after
  the other, written as Python buffers them (plain files) or in pieces of 1 MiB (plain copy).
- sequential: an epoch in order, every record's bytes and label; what opening takes is not counted. All
  readers' bytes are looked at in the same way, each of them, so that those who give views of a mapped
  file (litdata) have read it as well.
- shuffled: an epoch in a random order, as the library shuffles it.

Each (library, set, operation) is a process of its own, the libraries take turns within a repeat, and
disks are synced before each. Only the operation is timed. A repeat writes five times,
and the median of these is its time, since now and then the disk or the machine keeps one waiting. Every
reading counts records, bytes, and those that are not 0. A first round is not counted, of any library: programs
are in the page cache after it, as what is read always is, and in it a second reading compares every
record's checksum.
`ahead` means: the 95 % interval of the ratio of the medians, from a paired bootstrap over the repeats,
is above 1.

MosaicML's streaming and litdata cannot share an environment with us: theirs is made once, in
--cache (about 1.2 GB). --quick: a tenth of the records, two repeats; too small for a judgement.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MB = 1e6
OURS = ("ours, Parquet", "ours, WebDataset")
PLAIN, COPY, PER_IMAGE = "plain files, fsync", "plain copy, fsync", "a file per image, fsync"
HERE = (*OURS, PLAIN, COPY, PER_IMAGE, "webdataset", "datasets")
THERE = ("MDS", "litdata")
PEERS = ("webdataset", "datasets", *THERE)
OPERATIONS = ("write", "sequential", "shuffled")
MOST_FILES = 5000
# Per repeat: now and then a sync waits for the disk, or new memory for a virtual machine's host.
WRITES = 5
# Without their dependencies, which would replace torch; what they import is named here or stubbed.
PEER_PACKAGES = ("mosaicml-streaming==0.13.0", "litdata==0.2.76")
PEER_NEEDS = (
    "torch==2.13.0", "numpy==2.1.3", "boto3==1.43.117", "brotli==1.2.1", "catalogue==2.0.10", "filelock==4.2.11",
    "lightning-utilities==0.15.3", "matplotlib==3.11.2", "obstore==0.12.1", "paramiko==5.1.0", "python-snappy==0.7.3",
    "requests==2.34.2", "tifffile==2026.3.3", "tqdm==4.70.1", "xxhash==4.1.0", "zstd==1.5.7.2",
)  # fmt: skip


# --- records ---


def make_source(folder: Path, n: int, side: int, kind: str) -> float:
    """Write encoded pictures, smooth with noise, and labels to a folder; return their MB."""
    from PIL import Image

    rng = np.random.default_rng(side)
    options = {"quality": 90} if kind == "JPEG" else {}
    coarse = rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    images = []
    for i in range(n):
        smooth = Image.fromarray(coarse[i]).resize((side, side), Image.Resampling.BICUBIC)
        noise = rng.integers(-20, 21, (side, side, 3), dtype=np.int16)
        pixels = np.clip(np.asarray(smooth, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, kind, **options)
        images.append(sink.getvalue())
    folder.mkdir(parents=True)
    (folder / "images.bin").write_bytes(b"".join(images))
    np.save(folder / "ends.npy", np.cumsum([len(image) for image in images]))
    np.save(folder / "labels.npy", rng.integers(0, 10, n))
    return sum(map(len, images)) / MB


# --- the processes that do the work ---


def peer_python(cache: Path) -> str:
    """Return the interpreter of the peers' environment, made where it is not there; empty where that fails."""
    name = hashlib.sha256(repr((PEER_PACKAGES, PEER_NEEDS, sys.version_info[:2])).encode())
    home = cache / f"peers-{name.hexdigest()[:12]}"
    python = home / "bin" / "python"
    if (home / "whole").exists():
        return str(python)
    print(f"making the peers' environment in {home}", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [*pip, *PEER_NEEDS],
        [*pip, "--no-deps", *PEER_PACKAGES],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or "no reason given").splitlines()[-1]
            print(f"not measured: {', '.join(THERE)}; their environment cannot be made: {said}")
            return ""
    (home / "whole").touch()
    return str(python)


class Worker:
    """An interpreter with libraries loaded, which forks for each operation."""

    def __init__(self, python: str, names: Sequence[str], log: Path, *, stubbed: bool) -> None:
        script = Path(__file__).with_name("_shard_libraries.py")
        words = [python, str(script), "stubbed" if stubbed else "plain", *names]
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )
        missing = self._answer()
        for name, reason in missing.items():
            print(f"not measured: {name}; it cannot be imported: {reason}")
        self.names = [name for name in names if name not in missing]

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """Do one operation in a new process; ``failed`` is in the answer where it ended badly."""
        assert self.process.stdin is not None
        os.sync()  # what another has left to be written is not this one's work
        print(json.dumps(task), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended:\n{self.log.read_text()[-3000:]}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def worth(name: str, operation: str, n: int) -> bool:
    """Tell whether plain files are asked for this: they do not shuffle, and one each takes milliseconds."""
    if name == PLAIN:
        return operation != "shuffled"
    if name in (COPY, PER_IMAGE):
        return operation == "write" and (name == COPY or n <= MOST_FILES)
    return True


def in_turn(worker: Worker, task: dict[str, Any]) -> dict[str, Any]:
    """Do an operation; a write several times over, of which the one with the median time counts."""
    n_more = WRITES - 1 if task["operation"] == "write" else 0
    more = [worker(task | {"folder": f"{task['folder']} {i}"}) for i in range(n_more)]
    answers = [*more, worker(task)]  # the last is what is read
    failed = [used for used in answers if "failed" in used]
    return failed[0] if failed else sorted(answers, key=lambda used: used["seconds"])[n_more // 2]


def measure(
    folder: Path, workers: Sequence[Worker], sets: dict[str, int], n_repeats: int
) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Return what each (set, operation, library) used, per repeat; a library that failed is left out."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    orders: dict[tuple[str, str, str], dict[str, Any]] = {}
    failed: set[tuple[str, str]] = set()
    turns = [(worker, name) for worker in workers for name in worker.names]
    for repeat in range(n_repeats + 1):
        order = turns[repeat % len(turns) :] + turns[: repeat % len(turns)]
        for of_set, operation in itertools.product(sets, OPERATIONS):
            for worker, name in order:
                if (of_set, name) in failed or not worth(name, operation, sets[of_set]):
                    continue
                task = {
                    "library": name,
                    "operation": operation,
                    "source": str(folder / of_set),
                    "folder": str(folder / "written" / of_set / f"{name} {repeat}"),
                    "check": 0 if repeat else OPERATIONS.index(operation),
                }
                used = in_turn(worker, task)
                if "failed" in used:
                    said = worker.log.read_text().strip().splitlines()[-1:]
                    print(f"not measured: {name}, {of_set}, {operation} failed: {said}")
                    failed.add((of_set, name))
                elif repeat:
                    found.setdefault((of_set, operation, name), []).append(
                        orders.get((of_set, operation, name), {}) | used
                    )
                else:
                    orders[of_set, operation, name] = {k: used[k] for k in used if k == "order"}
        subprocess.run(["rm", "-rf", str(folder / "written")], check=True)
        print(f"repeat {repeat} of {n_repeats} is done, load {os.getloadavg()[0]:.1f}", flush=True)
    return found


# --- what it says ---


def interval(ours: NDArray[np.float64], peer: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of peer's median time over ours: every resampling of the repeats, paired."""
    n = len(ours)
    rows = np.array(list(itertools.product(range(n), repeat=n)))
    ratios = np.median(peer[rows], axis=1) / np.median(ours[rows], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def compare(
    found: dict[tuple[str, str, str], list[dict[str, Any]]],
    key: tuple[str, str],
    ours: str,
    peer: str,
    n: int,
    least: float = 1.0,
) -> dict[str, Any] | None:
    """Return one figure in the form that all benchmarks write; None where one was not measured."""
    times = [[r["seconds"] for r in found.get((*key, name), [])] for name in (ours, peer)]
    n_pairs = min(map(len, times))
    if n_pairs == 0:
        return None
    a, b = (np.array(t[:n_pairs]) for t in times)
    low, high = interval(a, b)
    ratio = statistics.median(b) / statistics.median(a)
    strict = least == 1.0
    return {
        "metric": f"{key[0]}, {key[1]}: {ours}",
        "unit": "images/s",
        "ours": round(n / statistics.median(a)),
        "peer": round(n / statistics.median(b)),
        "peer_name": peer,
        "ratio": round(ratio, 3),
        "interval": [round(low, 3), round(high, 3)],
        "goal": "ahead (interval above 1)" if strict else f"at least {least}",
        "met": bool(low > 1 if strict else ratio >= least),
    }


def goals(
    found: dict[tuple[str, str, str], list[dict[str, Any]]], sets: dict[str, int]
) -> list[dict[str, Any]]:
    """Return all comparisons that have a goal."""
    rows = []
    for key in itertools.product(sets, OPERATIONS):
        for peer in PEERS:
            rows.append(compare(found, key, OURS[0], peer, sets[key[0]]))
        rows.append(compare(found, key, OURS[1], "webdataset", sets[key[0]]))
    large = list(sets)[-1]
    for name in (PLAIN, PER_IMAGE):
        rows.append(compare(found, (large, "write"), OURS[0], name, sets[large], least=0.8))
    return [row for row in rows if row is not None]


def table(
    found: dict[tuple[str, str, str], list[dict[str, Any]]],
    sets: dict[str, int],
    mb: dict[str, float],
) -> None:
    """Print all that was measured."""
    for of_set, operation in itertools.product(sets, OPERATIONS):
        print(f"\n{of_set}, {operation}")
        names = f"{'images/s':>10} {'MB/s':>7} {'CPU s':>6} {'size':>6} {'order':>6}"
        print(f"{'':26} {names} {'Parquet / it':>21} {'WebDataset / it':>21}")
        for name in (*HERE, *THERE):
            runs = found.get((of_set, operation, name))
            if not runs:
                continue
            seconds = statistics.median(r["seconds"] for r in runs)
            cpu = statistics.median(r["cpu_seconds"] for r in runs)
            size = f"{runs[0]['n_bytes'] / MB / mb[of_set]:.3f}" if operation == "write" else ""
            order = f"{runs[0]['order']:.2f}" if "order" in runs[0] else ""
            against = ""
            for mine in OURS:
                row = compare(found, (of_set, operation), mine, name, sets[of_set])
                text = (
                    f"{row['ratio']:.2f} [{row['interval'][0]:.2f}, {row['interval'][1]:.2f}]"
                    if row
                    else ""
                )
                against += f"  {'' if mine == name else text:>20}"
            speed = f"{sets[of_set] / seconds:10,.0f} {mb[of_set] / seconds:7.0f}"
            print(f"  {name:24} {speed} {cpu:6.2f} {size:>6} {order:>6}{against}")


def main() -> None:
    """Measure, print the tables, and write the figures where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the records, two repeats")
    parser.add_argument("--json", type=Path, help="write the figures here")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "prefect-augment"
    parser.add_argument("--cache", type=Path, default=cache, help="where the peers' environment is")
    args = parser.parse_args()

    started = time.perf_counter()
    share, n_repeats = (10, 2) if args.quick else (1, 5)
    kinds = {
        "32 px PNG": (20_000 // share, 32, "PNG"),
        "256 px JPEG": (2_000 // share, 256, "JPEG"),
    }
    sets = {name: n for name, (n, _, _) in kinds.items()}
    python = peer_python(args.cache.resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mb = {name: make_source(folder / name, *kind) for name, kind in kinds.items()}
        print(
            ", ".join(f"{n:,} {name} ({mb[name]:.0f} MB)" for name, n in sets.items()), flush=True
        )
        workers = [Worker(sys.executable, HERE, folder / "here.log", stubbed=False)]
        if python:
            workers.append(Worker(python, THERE, folder / "there.log", stubbed=True))
        try:
            found = measure(folder, workers, sets, n_repeats)
        finally:
            for worker in workers:
                worker.close()
    table(found, sets, mb)
    rows = goals(found, sets)
    print(f"\n{'goal':46} {'ours':>10} {'peer':>10} {'ratio':>6} {'interval':>16}  met  (peer)")
    for r in rows:
        met = "yes" if r["met"] else "NO"
        low, high = r["interval"]
        print(
            f"{r['metric']:46} {r['ours']:10,} {r['peer']:10,} {r['ratio']:6.2f} [{low:6.2f}, {high:6.2f}]  {met:3}  "
            f"{r['goal']} ({r['peer_name']})"
        )
    print(f"\n{time.perf_counter() - started:.0f} s in all")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
