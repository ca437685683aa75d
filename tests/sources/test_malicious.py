"""Sources made to harm, through the real ingest: refused or in quarantine, nothing outside, memory bounded."""

import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import InputError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Source
from prefect_augment.schema import DatasetInfo
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.sources import archives, archives as packed
from prefect_augment.storage import open_store

MIB = 1 << 20


@pytest.fixture
def class_files(messy_images: ModuleType) -> dict[str, bytes]:
    """Twenty images in two class folders."""
    return {
        f"{label}/{i:02d}.png": messy_images.encode(messy_images.picture(100 * k + i))
        for k, (label, n) in enumerate((("head", 12), ("tail", 8)))
        for i in range(n)
    }


def staged(tmp_path: Path, source: Path) -> tuple[DatasetInfo, pa.Table, list[dict[str, Any]]]:
    """Info, all staged records, and the quarantine."""
    store = open_store(str(tmp_path / "out"))
    info = load_info(ingest(Source(uri=str(source)), store=store, seed=0), store)
    table = read_part(store, info, ["training", "validation", "holdout"])
    out = [
        row
        for shard in info.quarantine
        for row in pq.read_table(io.BytesIO(store.read(shard.path))).to_pylist()
    ]
    return info, table, out


def images(table: pa.Table) -> Counter[tuple[str, bytes]]:
    return Counter((image["path"], image["bytes"]) for image in table["image"].to_pylist())


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time, but for what ingest may write."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.is_relative_to(folder / "out") and path.is_file()
    }


# --- members that are not what they seem ------------------------------------------------------


def member_of(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


HARM_TAR = {
    "a link in an archive is not followed": [
        member_of("head/up.png", tarfile.SYMTYPE, "../../secret.png"),
        member_of("head/abs.png", tarfile.SYMTYPE, "/etc/hostname"),
        member_of("head/hard.png", tarfile.LNKTYPE, "head/00.png"),
        member_of("head/hard-up.png", tarfile.LNKTYPE, "../secret.png"),
        member_of("folder", tarfile.SYMTYPE, ".."),
    ],
    "not a regular file": [
        member_of("head/null.png", tarfile.CHRTYPE),
        member_of("head/disk.png", tarfile.BLKTYPE),
        member_of("head/pipe.png", tarfile.FIFOTYPE),
    ],
}
NAMES = {
    "unsafe name: leaves the archive's folder": ["../up.png", "head/../../up.png", "..\\up.png", "folder/../../up.png"],
    "unsafe name: an absolute path": ["/up.png", "//server/up.png", "C:\\up.png", "c:/up.png", "\\up.png"],
}  # fmt: skip


def write_tar(
    path: Path, files: dict[str, bytes], extra: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in files.items():
            extra = [*extra, (member_of(name), data)]
        for member, data in extra:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("name", ["in.tar", "in.tar.gz"])
def test_a_tar_made_to_write_outside_gives_its_honest_files_and_says_the_rest(
    name: str, tmp_path: Path, class_files: dict[str, bytes]
) -> None:
    picture = class_files["head/00.png"]
    (tmp_path / "secret.png").write_bytes(picture)
    extra = [(member, b"") for members in HARM_TAR.values() for member in members]
    extra += [(member_of(unsafe), picture) for names in NAMES.values() for unsafe in names]
    write_tar(tmp_path / name, class_files, extra)
    before = tree(tmp_path)
    info, table, out = staged(tmp_path, tmp_path / name)
    assert images(table) == Counter(class_files.items())
    assert Counter(row["reason"] for row in out) == {
        reason: len(members) for reason, members in {**HARM_TAR, **NAMES}.items()
    }
    assert sum(f.n_records + f.n_quarantined for f in info.sources) == len(class_files) + len(extra)
    assert tree(tmp_path) == before


def test_a_zip_made_to_write_outside_gives_its_honest_files_and_says_the_rest(
    tmp_path: Path, class_files: dict[str, bytes]
) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, data in class_files.items():
            archive.writestr(name, data)
        for names in NAMES.values():
            for name in names:
                archive.writestr(name, class_files["head/00.png"])
        link = zipfile.ZipInfo("head/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../../secret.png")
    before = tree(tmp_path)
    _, table, out = staged(tmp_path, tmp_path / "in.zip")
    assert images(table) == Counter(class_files.items())
    assert Counter(row["reason"] for row in out) == {
        **{reason: len(names) for reason, names in NAMES.items()},
        "a link in an archive is not followed": 1,
    }
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["in.tar", "in.zip"])
def test_names_that_clash_lose_no_record(
    name: str, tmp_path: Path, class_files: dict[str, bytes], messy_images: ModuleType
) -> None:
    """On a disk the second would overwrite the first, or a file would stand where a folder has to be."""
    other = messy_images.encode(messy_images.picture(999))
    clashing = [("head/00.png", other), ("./head//00.png", other), ("head/01.png/02.png", other)]
    if name.endswith("tar"):
        write_tar(
            tmp_path / name, class_files, [(member_of(path), data) for path, data in clashing]
        )
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for path, data in class_files.items():
                archive.writestr(path, data)
            for path, data in clashing:
                with pytest.warns(UserWarning, match="Duplicate") if path in class_files else _nothing():  # fmt: skip
                    archive.writestr(path, data)
    _, table, out = staged(tmp_path, tmp_path / name)
    assert out == []
    expected = Counter(class_files.items())
    expected.update({("head/00.png", other): 2, ("head/01.png/02.png", other): 1})
    assert images(table) == expected
    assert len(set(table["aug_id"].to_pylist())) == table.num_rows


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_an_archive_of_too_many_members_is_refused(
    tmp_path: Path, class_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 15)
    write_tar(tmp_path / "in.tar", class_files, [])
    with pytest.raises(InputError, match="has more than 15 members, as decompression bombs do"):
        staged(tmp_path, tmp_path / "in.tar")


def test_what_a_tar_passes_over_counts_too(
    tmp_path: Path, class_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device or a hidden file is unpacked to get past it: gigabytes of nothing are hours of work."""
    monkeypatch.setattr(archives, "MIN_TOTAL_BYTES", 4 * MIB)
    write_tar(tmp_path / "in.tgz", class_files, [(member_of(".hidden"), bytes(64 * MIB))])
    with pytest.raises(InputError, match="unpacks to more than"):
        staged(tmp_path, tmp_path / "in.tgz")


# --- bombs, with the memory they take ----------------------------------------------------------


PROGRAM = """
import resource, sys
from prefect_augment.errors import InputError
from prefect_augment.params import Source
from prefect_augment.ingest.ingest import ingest
from prefect_augment.storage.store import Store, open_store

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
first, bomb, out = sys.argv[1:]
ingest(Source(uri=first, label="label"), store=open_store(out + "/first"), seed=0)  # all imports
before = peak()
try:
    ref = ingest(Source(uri=bomb, label="label"), store=open_store(out + "/bomb"), seed=0)
    print(f"{ref.n_records} records, {ref.n_quarantined} in quarantine")
except InputError as exc:
    print(exc.message)
print(peak() - before)
"""


def ingest_apart(first: Path, bomb: Path, tmp_path: Path) -> tuple[str, int]:
    """What ingest says of a bomb in a process of its own, and by how many MiB its peak grew."""
    words = [sys.executable, "-c", PROGRAM, str(first), str(bomb), str(tmp_path / "out")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    said, grown = done.stdout.splitlines()
    return said, int(grown)


def zeros(n_mib: int) -> bytes:
    """A gzip stream of so many MiB of zeros; gzip members may stand one after the other."""
    return gzip.compress(bytes(8 * MIB)) * (n_mib // 8)


def tar_with(head: bytes, n_mib: int) -> bytes:
    return gzip.compress(head) + zeros(n_mib)


def header(member: tarfile.TarInfo, size: int) -> bytes:
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


BOMBS: dict[str, tuple[Any, str]] = {
    "name.tar.gz": (
        lambda: tar_with(header(member_of("././@LongLink", tarfile.GNUTYPE_LONGNAME), 2000 * MIB), 2000),
        "says 2,097,152,000 bytes of one member beside its content",
    ),
    "attributes.tar.gz": (
        lambda: tar_with(header(member_of("pax", tarfile.XHDTYPE), 2000 * MIB), 2000),
        "says 2,097,152,000 bytes of one member beside its content",
    ),
    "member.tar.gz": (
        lambda: tar_with(header(member_of("head/a.png"), 6000 * MIB), 6000),
        "unpacks to more than",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_tar_bomb_is_refused_and_takes_no_memory(
    name: str, tmp_path: Path, class_files: dict[str, bytes]
) -> None:
    write_tar(tmp_path / "first.tar", class_files, [])
    make, says = BOMBS[name]
    data = make()
    assert len(data) < 8 * MIB
    (tmp_path / name).write_bytes(data)
    said, grown = ingest_apart(tmp_path / "first.tar", tmp_path / name, tmp_path)
    assert says in said
    assert grown < 128


@pytest.mark.slow
def test_image_bombs_are_in_quarantine_and_take_no_memory(
    tmp_path: Path, class_files: dict[str, bytes], messy_images: ModuleType
) -> None:
    """A megabyte of PNG that is 100 megapixels; a header that promises 4 gigapixels and has none."""
    large = messy_images.bomb()
    ihdr = struct.pack(">IIBBBBB", 65_000, 65_000, 8, 2, 0, 0, 0)
    huge = large[:16] + ihdr + large[29:]
    write_tar(tmp_path / "first.tar", class_files, [])
    bombs = [(member_of(f"tail/{i}.png"), data) for i, data in enumerate([large, huge] * 4)]
    write_tar(tmp_path / "in.tar", class_files, bombs)
    said, grown = ingest_apart(tmp_path / "first.tar", tmp_path / "in.tar", tmp_path)
    assert said == "20 records, 8 in quarantine"
    assert grown < 128


@pytest.mark.slow
def test_a_parquet_bomb_is_refused_and_takes_no_memory(tmp_path: Path) -> None:
    """A file of 300 kB that holds 2 GB of text."""
    rows = pa.table({"x": ["a" * MIB] * 8, "label": ["a", "b"] * 4})
    honest = pa.table({"x": [f"t{i % 7}" for i in range(60)], "label": ["a", "b"] * 30})
    pq.write_table(honest, tmp_path / "first.parquet")
    with pq.ParquetWriter(tmp_path / "bomb.parquet", rows.schema, compression="zstd") as writer:
        for _ in range(256):
            writer.write_table(rows)
    assert (tmp_path / "bomb.parquet").stat().st_size < 400_000
    said, grown = ingest_apart(tmp_path / "first.parquet", tmp_path / "bomb.parquet", tmp_path)
    assert "unpacks to more than 1,073,741,824 bytes, as decompression bombs do" in said
    assert grown < 256


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in.csv.gz", "in.jsonl.gz"])
def test_text_that_unpacks_to_far_too_much_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MIN_TOTAL_BYTES", 4 * MIB)
    monkeypatch.setattr(packed, "MAX_EXPANSION", 100)
    line = b"{" + b" " * 1000 + b"}\n" if "json" in name else b"1" * 1000 + b",a\n"
    (tmp_path / name).write_bytes(gzip.compress(line * 50_000))
    with pytest.raises(InputError, match="unpacks to more than .* decompression bombs"):
        staged(tmp_path, tmp_path / name)
