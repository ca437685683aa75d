"""What other tasks do for ingest: it finds it, does the rest, and gives the bytes that it gives alone."""

import json
import tarfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.ingest import scan, validate_images
from prefect_augment.ingest.ingest import ingest, ingest_part, near_part
from prefect_augment.params import Source
from prefect_augment.schema import DatasetInfo
from prefect_augment.shards.staged import load_info
from prefect_augment.sources.discovery import Listing
from prefect_augment.split.near_duplicates import Thumbs
from prefect_augment.storage import Store, open_store

KINDS = ("folder", "archive", "one file", "twenty files", "hold-out")


@pytest.fixture
def others() -> Store:
    """Where parts are done."""
    return open_store(f"memory://{uuid4().hex}")


def write_table(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(files)
    images = [{"bytes": files[name], "path": name} for name in names]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [name.partition("/")[0] for name in names]
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": labels}), path)


def source_of(kind: str, folder: Path, messy_images: ModuleType) -> Source:
    """Images of two classes, some of which no decoder reads."""
    if kind == "folder":
        return Source(uri=str(messy_images.make_messy_folder(folder / "in").root))
    files = {
        f"{label}/{i:02d}.png": messy_images.encode(messy_images.picture(100 * k + i))
        for k, (label, n) in enumerate((("head", 26), ("tail", 14)))
        for i in range(n)
    }
    files |= {"head/bad.png": b"no picture", "tail/cut.png": files["tail/00.png"][:-20]}
    files |= {"head/again.png": files["head/00.png"], "tail/empty.png": b""}
    if kind == "archive":
        folder.mkdir(exist_ok=True)
        with tarfile.open(folder / "in.tar", "w") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, BytesIO(data))
        return Source(uri=str(folder / "in.tar"))
    if kind == "hold-out":
        write_table(folder / "in.parquet", dict(list(files.items())[::2]))
        write_table(folder / "held.parquet", dict(list(files.items())[1::2]))
        return Source(uri=str(folder / "in.parquet"), holdout_uri=str(folder / "held.parquet"))
    n = 20 if kind == "twenty files" else 1
    for i in range(n):
        write_table(folder / "in" / f"{i:02d}.parquet", dict(list(files.items())[i::n]))
    return Source(uri=str(folder / "in"))


def outcome(source: Source, store: Store) -> DatasetInfo:
    return load_info(ingest(source, store=store, seed=0), store)


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of images that are decoded from now on."""
    sizes: list[int] = []
    check = validate_images.check_image

    def noted(data: bytes, **options: Any) -> Any:
        sizes.append(len(data))
        return check(data, **options)

    monkeypatch.setattr(validate_images, "check_image", noted)
    return sizes


@pytest.mark.parametrize("kind", KINDS)
def test_ingest_finds_the_checks_of_all_parts_and_decodes_nothing(
    kind: str,
    tmp_path: Path,
    store: Store,
    others: Store,
    messy_images: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = source_of(kind, tmp_path, messy_images)
    whole = outcome(source, store)
    counts = [ingest_part(source, store=others, seed=0, part=part, n_parts=3) for part in range(3)]
    assert all(counts), counts
    with monkeypatch.context() as patch:
        sizes = decoded(patch)
        assert outcome(source, others) == whole
    assert whole.n_quarantined > 0
    # Files without an image's ending are tried as images too, but not by a part.
    assert len(sizes) == (1 if kind == "folder" else 0)
    assert ingest_part(source, store=others, seed=0, part=0, n_parts=3) == 0, "all is done"


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_lost_part_lacks_is_done_by_ingest(
    kind: str,
    tmp_path: Path,
    store: Store,
    others: Store,
    messy_images: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = source_of(kind, tmp_path, messy_images)
    sizes = decoded(monkeypatch)
    whole = outcome(source, store)
    n_images = len(sizes)
    assert ingest_part(source, store=others, seed=0, part=1, n_parts=2) > 0
    sizes.clear()
    assert outcome(source, others) == whole
    assert 0 < len(sizes) < 0.7 * n_images


def test_a_part_that_is_done_again_goes_on_from_what_it_staged(
    tmp_path: Path, others: Store, messy_images: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of("twenty files", tmp_path, messy_images)
    n = ingest_part(source, store=others, seed=0, part=0, n_parts=2)
    staged = [path for path in others.list() if "/checks-" in path]
    others.delete(staged[-1])
    sizes = decoded(monkeypatch)
    assert ingest_part(source, store=others, seed=0, part=0, n_parts=2) == n
    assert 0 < len(sizes) <= n // 5, "of ten files one"
    assert [path for path in others.list() if "/checks-" in path] == staged


def test_a_part_of_a_source_that_grew_reads_only_what_is_new(
    tmp_path: Path, store: Store, messy_images: ModuleType, publish_as_is: Callable[..., None]
) -> None:
    source = source_of("one file", tmp_path, messy_images)
    publish_as_is(store, ingest(source, store=store, seed=0))
    more = messy_images.encode(messy_images.picture(999))
    write_table(tmp_path / "in" / "99.parquet", {"tail/99.png": more})
    assert ingest_part(source, store=store, seed=0, part=0, n_parts=1) == 1


@pytest.mark.parametrize("n_done", [1, 2])
def test_near_duplicates_are_those_of_ingest_alone_however_many_parts_compared_them(
    n_done: int,
    tmp_path: Path,
    store: Store,
    others: Store,
    messy_images: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {f"{'ab'[i % 4 == 0]}/{i:03d}.png": messy_images.picture(i) for i in range(120)}
    for i in range(0, 120, 10):  # brighter twins
        files[f"a/twin{i}.png"] = files[f"{'ab'[i % 4 == 0]}/{i:03d}.png"].point(lambda v: v + 9)
    write_table(tmp_path / "in.parquet", {n: messy_images.encode(i) for n, i in files.items()})
    source = Source(uri=str(tmp_path / "in.parquet"))
    whole = outcome(source, store)
    assert whole.image is not None
    assert whole.image.n_clustered > 10
    for part in range(2):
        ingest_part(source, store=others, seed=0, part=part, n_parts=2)
    done = [near_part(source, store=others, seed=0, part=part, n_parts=2) for part in range(n_done)]
    assert done == [132] * n_done
    compared: list[int] = []
    likeliest = validate_images.likeliest

    def noted(thumbs: Thumbs, *, part: int = 0, n_parts: int = 1) -> Any:
        compared.append(part)
        return likeliest(thumbs, part=part, n_parts=n_parts)

    monkeypatch.setattr(validate_images, "likeliest", noted)
    assert outcome(source, others) == whole
    assert compared == [1][: 2 - n_done], "what no part has compared"
    assert near_part(source, store=others, seed=0, part=0, n_parts=2) == 0, "all is done"


def test_pairs_of_other_images_are_not_used(
    tmp_path: Path, store: Store, others: Store, messy_images: ModuleType
) -> None:
    """A label that is missing is seen by ingest alone."""
    source = source_of("one file", tmp_path, messy_images)
    path = next((tmp_path / "in").iterdir())
    table = pq.read_table(path)
    labels = table["label"].to_pylist()
    labels[3] = None
    pq.write_table(table.set_column(1, "label", pa.array(labels)), path)
    ingest_part(source, store=others, seed=0, part=0, n_parts=1)
    assert near_part(source, store=others, seed=0, part=0, n_parts=1) == 41
    assert outcome(source, others) == outcome(source, store)


# --- text files -------------------------------------------------------------------------------


def texts_of(kind: str, folder: Path) -> Source:
    """Five files whose types differ, with lines that are no records; one file is empty."""
    folder.mkdir()
    for i in range(5):
        rows = [
            {"x": k / 2 if i == 3 else k, "day": f"2026-01-{1 + k % 28:02d}", "y": "ab"[k % 3 == 0]}
            for k in range(40 * i, 40 * (i + 1))
        ]
        if kind == "csv":
            lines = ["x,day,y", *(",".join(map(str, row.values())) for row in rows), "1,2,3,4,5"]
        else:
            lines = [*map(json.dumps, rows), '{"x": 1, "y"']
        (folder / f"{i}.{kind}").write_text("\n".join(lines) + "\n")
    (folder / f"9.{kind}").write_text("")
    return Source(uri=str(folder), label="y")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("n_done", [0, 1, 2])
def test_ingest_parses_the_text_files_that_no_part_has_parsed(
    kind: str,
    n_done: int,
    tmp_path: Path,
    store: Store,
    others: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = texts_of(kind, tmp_path / "in")
    whole = outcome(source, store)
    done = [ingest_part(source, store=others, seed=0, part=i, n_parts=2) for i in range(n_done)]
    assert done == [3, 3][:n_done]
    parsed: list[str] = []
    reader_of = scan.reader_of

    def noted(listing: Listing) -> Any:
        read = reader_of(listing)
        return lambda file, *, name, source: (
            parsed.append(name),
            read(file, name=name, source=source),
        )[1]

    monkeypatch.setattr(scan, "reader_of", noted)
    assert outcome(source, others) == whole
    assert whole.n_quarantined == 5
    # An empty file is in no part: what it means depends on the others.
    assert len(parsed) == {0: 6, 1: 3, 2: 1}[n_done]
    assert f"9.{kind}" in parsed


def test_parts_of_a_hold_out_in_text_files_are_its_own(
    tmp_path: Path, store: Store, others: Store
) -> None:
    source = texts_of("csv", tmp_path / "in")
    held = texts_of("csv", tmp_path / "held")
    source = source.model_copy(update={"holdout_uri": held.uri, "on_overlap": "drop"})
    (tmp_path / "in" / "0.csv").write_text(
        "x,day,y\n" + "".join(f"{k},2025-01-01,{'ab'[k % 2]}\n" for k in range(500, 540))
    )
    whole = outcome(source, store)
    assert [ingest_part(source, store=others, seed=0, part=i, n_parts=2) for i in (0, 1)] == [6, 6]
    assert outcome(source, others) == whole


def test_a_file_alone_is_parsed_by_ingest(tmp_path: Path, others: Store) -> None:
    (tmp_path / "in.csv").write_text("x,y\n1,a\n2,b\n")
    source = Source(uri=str(tmp_path / "in.csv"), label="y")
    assert ingest_part(source, store=others, seed=0, part=0, n_parts=2) == 0


# --- neither ----------------------------------------------------------------------------------


def test_a_part_of_a_table_checks_nothing(tmp_path: Path, others: Store) -> None:
    pq.write_table(pa.table({"x": [1.0, 2.0] * 20, "y": ["a", "b"] * 20}), tmp_path / "in.parquet")
    source = Source(uri=str(tmp_path / "in.parquet"), label="y")
    assert ingest_part(source, store=others, seed=0, part=0, n_parts=2) == 0
    assert others.list() == []


def test_a_part_leaves_it_to_ingest_to_say_what_is_wrong(tmp_path: Path, others: Store) -> None:
    (tmp_path / "in.parquet").write_bytes(b"PAR1 and no more")
    source = Source(uri=str(tmp_path / "in.parquet"), label="y")
    assert ingest_part(source, store=others, seed=0, part=0, n_parts=2) == 0
