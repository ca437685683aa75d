"""What `shards.py` measures: the same records written and read by each library, in its own way.

Runs under two interpreters, ours and that of the peers which need an environment of their own. The
process loads its libraries once, and each operation then runs in a fork of it, which ends with it.
Input of all writers: the images as bytes and the labels as integers, in memory. Output of all readers:
each image's bytes and its label, one record at a time, without a worker process of ours. Every byte is
looked at while the clock runs, as a decoder would: litdata gives views of a mapped file, of which
nothing has been read until then; all others give bytes.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import resource
import sys
import time
import types
from collections.abc import Iterable, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

SHARD_BYTES = 64 << 20
BUFFER = 2000  # records that a library mixes where it asks how many
N_CLASSES = 10
# Imported by the peers, used by none of what is measured; torchvision would replace torch.
STUBBED = ("azure", "google", "oci", "torchvision", "transformers")
Records = Iterable[tuple[bytes, int]]


class Source:
    """The records, as every writer gets them."""

    def __init__(self, folder: Path) -> None:
        ends = np.load(folder / "ends.npy").tolist()
        data = (folder / "images.bin").read_bytes()
        self.images = [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        self.labels: list[int] = np.load(folder / "labels.npy").tolist()
        self.keys = [f"{i * 0x9E3779B97F4A7C15 % 2**64:032x}" for i in range(len(ends))]
        self.ending = "png" if self.images[0].startswith(b"\x89PNG") else "jpg"


# --- plain files ---


class Plain:
    """The same bytes one after the other, in files of the shards' size, each synced; no index."""

    def __init__(self, buffering: int = -1) -> None:
        self.buffering = buffering

    def load(self) -> None:
        """Import nothing."""

    def write(self, source: Source, folder: Path) -> None:
        """Write the bytes."""
        folder.mkdir(parents=True)
        start = size = 0
        for i, image in enumerate([*source.images, b""]):
            size += len(image)
            if size >= SHARD_BYTES or i == len(source.images):
                with (folder / f"{start:06d}.bin").open("wb", self.buffering) as file:
                    file.writelines(source.images[start : i + 1])
                    file.flush()
                    os.fsync(file.fileno())
                start, size = i + 1, 0

    def open(self, folder: Path, source: Source, *, shuffle: bool) -> Records:
        """Read the bytes, cut by what the source knows: the most that any reader could reach."""
        return self._cut(folder, list(map(len, source.images)), source.labels)

    def _cut(
        self, folder: Path, sizes: list[int], labels: list[int]
    ) -> Iterator[tuple[bytes, int]]:
        records = zip(sizes, labels, strict=True)
        for path in sorted(folder.iterdir()):
            left = path.stat().st_size
            with path.open("rb", buffering=1 << 20) as file:
                while left:
                    size, label = next(records)
                    left -= size
                    yield file.read(size), label


class Files(Plain):
    """A file per image in class folders, each synced."""

    def write(self, source: Source, folder: Path) -> None:
        """Write the files."""
        for k in range(N_CLASSES):
            (folder / str(k)).mkdir(parents=True)
        for key, image, label in zip(source.keys, source.images, source.labels, strict=True):
            with (folder / str(label) / f"{key}.{source.ending}").open("wb") as file:
                file.write(image)
                file.flush()
                os.fsync(file.fileno())


# --- ours ---


class Ours:
    """A published dataset: shards with the lineage columns, hashed and synced, then the manifest."""

    def __init__(self, shard_format: str) -> None:
        self.shard_format = shard_format

    def load(self) -> None:
        """Import."""
        # Loaded when first needed: none of the time that is measured.
        import fsspec.implementations.local  # noqa: F401
        import numpy.random  # noqa: F401
        import pandas as pd  # noqa: F401
        import pyarrow as pa
        import pyarrow.pandas_compat

        import prefect_augment.loading.torch
        import prefect_augment.schema.manifest
        import prefect_augment.shards.parquet
        import prefect_augment.shards.webdataset  # noqa: F401 - loaded before the clock runs

        self.image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def write(self, source: Source, folder: Path) -> None:
        """Build the table, write its shards, commit the version."""
        import pyarrow as pa

        from prefect_augment.shards.base import write_shards
        from prefect_augment.shards.parquet import with_lineage
        from prefect_augment.storage import commit, open_store

        store = open_store(folder)
        parts = [pa.array(source.images, pa.binary()), pa.nulls(len(source.images), pa.string())]
        images = pa.StructArray.from_arrays(parts, fields=list(self.image_type))
        table = pa.table({"image": images, "label": pa.array(source.labels, pa.int64())})
        table = with_lineage(table, origin="real", aug_id=source.keys)
        shards = write_shards(
            store,
            table,
            prefix="data",
            stem="train-real",
            split="train",
            origin="real",
            label="label",
            max_records=len(source.images),
            max_bytes=SHARD_BYTES,
            shard_format=self.shard_format,
            classes=[str(k) for k in range(N_CLASSES)],
        )
        commit(store, lambda *_: self._manifest(shards), dataset_key="benchmark")

    def _manifest(self, shards: Any) -> Any:
        from prefect_augment.schema import Manifest, Recipe, Strategy

        recipe = Recipe(
            strategy=Strategy(name="as_is", family="as_is"),
            class_weight={},
            synthetic={},
            classic={},
            copies={},
            sentence="",
        )
        counts = {str(k): {"real": 1} for k in range(N_CLASSES)}
        return Manifest(
            version=1, parent=None, dataset_key="benchmark", created_at="2026-01-01T00:00:00Z", label="label",
            label_type="int64", source_schema="", columns=(), class_counts={"train": counts}, shards=shards, plan=(),
            recipe=recipe, verdict=None, params={}, software={},
        )  # fmt: skip

    def open(self, folder: Path, source: Source, *, shuffle: bool) -> Records:
        """Open the dataset as a user does."""
        from prefect_augment import open_dataset

        return open_dataset(folder).to_torch(decode=False, shuffle=shuffle)


# --- peers of our environment ---


class WebDataset:
    """webdataset's ShardWriter, and its reader without decoding."""

    def load(self) -> None:
        """Import."""
        import webdataset  # noqa: F401

    def write(self, source: Source, folder: Path) -> None:
        """Write tars."""
        import webdataset

        folder.mkdir(parents=True)
        pattern = str(folder / "%06d.tar")
        with webdataset.ShardWriter(
            pattern, maxsize=SHARD_BYTES, maxcount=10**9, verbose=0
        ) as sink:
            for key, image, label in zip(source.keys, source.images, source.labels, strict=True):
                sink.write({"__key__": key, source.ending: image, "cls": label})

    def open(self, folder: Path, source: Source, *, shuffle: bool) -> Records:
        """Open the tars."""
        import webdataset

        paths = [str(p) for p in sorted(folder.glob("*.tar"))]
        found = webdataset.WebDataset(
            paths, shardshuffle=len(paths) if shuffle else False, empty_check=False
        )
        if shuffle:
            found = found.shuffle(BUFFER)
        return ((r[source.ending], int(r["cls"])) for r in found)


class Datasets:
    """datasets' to_parquet, and load_dataset without decoding; its Arrow cache is made before the clock runs."""

    def load(self) -> None:
        """Import."""
        import datasets

        datasets.disable_progress_bars()

    def write(self, source: Source, folder: Path) -> None:
        """Build the dataset and write it."""
        import datasets

        folder.mkdir(parents=True)
        images = [{"bytes": image, "path": None} for image in source.images]
        names = [str(k) for k in range(N_CLASSES)]
        features = datasets.Features(
            image=datasets.Image(decode=False), label=datasets.ClassLabel(names=names)
        )
        made = datasets.Dataset.from_dict({"image": images, "label": source.labels}, features)
        made.to_parquet(str(folder / "train.parquet"))

    def open(self, folder: Path, source: Source, *, shuffle: bool) -> Records:
        """Load it; an epoch is shuffled by its streams' way, which is faster than by its indices."""
        import datasets

        found = datasets.load_dataset(
            "parquet", data_files=str(folder / "*.parquet"), cache_dir=str(folder / "cache"), split="train"
        )  # fmt: skip
        found = found.cast_column("image", datasets.Image(decode=False))
        if shuffle:
            found = found.to_iterable_dataset(num_shards=16).shuffle(seed=0, buffer_size=BUFFER)
        return ((r["image"]["bytes"], r["label"]) for r in found)


# --- peers of an environment of their own ---


class Mds:
    """MosaicML's MDSWriter and StreamingDataset."""

    def load(self) -> None:
        """Import."""
        import streaming  # noqa: F401

    def write(self, source: Source, folder: Path) -> None:
        """Write MDS shards."""
        from streaming import MDSWriter

        columns = {"image": "bytes", "label": "int"}
        with MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as sink:
            for image, label in zip(source.images, source.labels, strict=True):
                sink.write({"image": image, "label": label})

    def open(self, folder: Path, source: Source, *, shuffle: bool) -> Records:
        """Open the shards."""
        from streaming import StreamingDataset

        found = StreamingDataset(local=str(folder), shuffle=shuffle, batch_size=64)
        return ((r["image"], r["label"]) for r in found)


_GIVEN: Source | None = None


def _litdata_record(i: int) -> dict[str, Any]:
    assert _GIVEN is not None
    return {"image": _GIVEN.images[i], "label": _GIVEN.labels[i]}


class Litdata:
    """litdata's optimize, which starts workers, and its StreamingDataset."""

    def load(self) -> None:
        """Import."""
        import litdata  # noqa: F401

    def write(self, source: Source, folder: Path) -> None:
        """Write chunks; the workers are forks and have the records."""
        import litdata

        global _GIVEN
        _GIVEN = source
        litdata.optimize(
            fn=_litdata_record,
            inputs=list(range(len(source.images))),
            output_dir=str(folder),
            chunk_bytes=SHARD_BYTES,
            start_method="fork",
            verbose=False,
        )

    def open(self, folder: Path, source: Source, *, shuffle: bool) -> Records:
        """Open the chunks."""
        import litdata

        found = litdata.StreamingDataset(str(folder), shuffle=shuffle)
        return ((r["image"], r["label"]) for r in found)


LIBRARIES: dict[str, Any] = {
    "ours, Parquet": Ours("parquet"),
    "ours, WebDataset": Ours("webdataset"),
    "plain files, fsync": Plain(),
    "plain copy, fsync": Plain(buffering=1 << 20),
    "a file per image, fsync": Files(),
    "webdataset": WebDataset(),
    "datasets": Datasets(),
    "MDS": Mds(),
    "litdata": Litdata(),
}


# --- one operation ---


def operate(task: dict[str, Any]) -> dict[str, Any]:
    """Do one operation; seconds are its own, with neither imports nor checks."""
    source = Source(Path(task["source"]))
    library, folder = LIBRARIES[task["library"]], Path(task["folder"])
    if task["operation"] == "write":
        with clock() as used:
            library.write(source, folder)
        used["n_bytes"] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        return used
    found = library.open(folder, source, shuffle=task["operation"] == "shuffled")
    with clock() as used:
        n = sums(found)
    expected = sums(zip(source.images, source.labels, strict=True))
    if n != expected:
        raise SystemExit(f"{task}: read {n}, expected {expected}")
    if task["check"]:
        used["order"] = check(library.open(folder, source, shuffle=bool(task["check"] > 1)), source)
    return used


def sums(found: Records) -> tuple[int, ...]:
    """Look at every byte of every record; return records, bytes, bytes that are not 0, and the labels' sum."""
    n = n_bytes = n_set = total = 0
    for image, label in found:
        n += 1
        n_bytes += len(image)
        n_set += np.count_nonzero(np.frombuffer(image, np.uint8))  # no copy, of views neither
        total += label
    return n, n_bytes, n_set, total


def check(found: Records, source: Source) -> float:
    """Compare every record with the source by checksum; return how much of its order is left."""
    records = zip(source.images, source.labels, strict=True)
    place = {_checksum(*record): i for i, record in enumerate(records)}
    order = [place.pop(_checksum(*record)) for record in found]
    if place:
        raise SystemExit(f"{len(place)} records did not come back")
    return float(np.corrcoef(order, np.arange(len(order)))[0, 1])


def _checksum(image: bytes, label: int) -> bytes:
    return hashlib.blake2b(image, digest_size=16, salt=bytes([label])).digest()


@contextlib.contextmanager
def clock() -> Iterator[dict[str, Any]]:
    """Measure wall and CPU seconds, those of children that have ended included."""
    used: dict[str, Any] = {}
    cpu, wall = _cpu(), time.perf_counter()
    yield used
    used["seconds"] = time.perf_counter() - wall
    used["cpu_seconds"] = _cpu() - cpu


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


# --- the process ---


class _Stubs(MetaPathFinder, Loader):
    """Packages that are imported and not used."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        known = name.partition(".")[0] in STUBBED
        return ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave it empty."""


class _Stub(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def main() -> None:
    """Load the named libraries, say which there are, then fork for each operation asked for."""
    names = sys.argv[2:]
    if sys.argv[1] == "stubbed":
        sys.meta_path.append(_Stubs())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    missing = {}
    for name in names:
        try:
            LIBRARIES[name].load()
        except ImportError as exc:
            missing[name] = str(exc)
    print(json.dumps(missing), file=answers, flush=True)
    gc.freeze()  # or the first collection in each fork would copy all that is loaded
    for line in sys.stdin:
        answer, end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(end, json.dumps(operate(json.loads(line))).encode())
            return  # by way of exit: libraries clean up there
        os.close(end)
        with os.fdopen(answer) as file:
            said = file.read()
        status = os.waitpid(pid, 0)[1]
        print(said or json.dumps({"failed": status}), file=answers, flush=True)


if __name__ == "__main__":
    main()
