"""WebDataset shards: tars that loaders read, and from which our own records come back as they were."""

import io
import json
import tarfile
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import IntegrityError, SchemaError
from prefect_augment.shards import webdataset, webdataset as tar_members
from prefect_augment.shards.base import open_shard, read_shard, write_shards
from prefect_augment.shards.parquet import with_lineage
from prefect_augment.shards.webdataset import tar_headers
from prefect_augment.storage import Store

CLASSES = ("a", "b", "c/<b>|'")


@pytest.fixture
def records(releases: ModuleType, messy_images: ModuleType) -> pa.Table:
    """Images with everything that may stand beside them."""
    table = releases.image_table(messy_images)
    n = table.num_rows
    boxes = [
        {"bbox": [[1.5, 2.0, 3.0, 4.0]], "category": ["x"]} if i % 2 else None for i in range(n)
    ]
    box = pa.struct(
        [("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.string()))]
    )
    when = [datetime(2026, 1, 1 + i % 28, tzinfo=UTC) for i in range(n)]
    table = table.append_column("objects", pa.array(boxes, box))
    table = table.append_column("when", pa.array(when, pa.timestamp("us", "UTC")))
    table = table.append_column("ratio", pa.array([float("nan"), 0.1, None] * (n // 3)))
    table = table.append_column("raw", pa.array([b"\x00\xff"] * n))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    table = pq.read_table(sink)  # as it comes out of a file: that is what ingest sees
    return with_lineage(table, origin="real", aug_id=[f"{i:032x}" for i in range(n)])


def write(store: Store, table: pa.Table, **changes: Any) -> str:
    asked = {"max_records": 1000, "max_bytes": 1 << 30, "classes": CLASSES, "label": "label"}
    (result,) = write_shards(
        store, table, prefix="data", stem="train-real", split="train", origin="real",
        shard_format="webdataset", **{**asked, **changes},
    )  # fmt: skip
    return result.path


def members(store: Store, path: str) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(store.read(path))) as tar:
        return {i.name: tar.extractfile(i).read() for i in tar}  # type: ignore[union-attr]


def test_records_come_back_as_they_were(store: Store, records: pa.Table) -> None:
    found = read_shard(store, write(store, records))
    assert found.schema.equals(records.schema, check_metadata=True)
    assert found.drop_columns("ratio").equals(records.drop_columns("ratio"))
    assert repr(found["ratio"].to_pylist()) == repr(records["ratio"].to_pylist())  # NaN
    assert read_shard(store, write(store, records), ["tile", "mask"]).equals(
        records.select(["tile", "mask"])
    )


def test_a_record_is_a_class_an_image_and_its_columns(store: Store, records: pa.Table) -> None:
    found = members(store, write(store, records))
    key = f"{3:032x}"
    assert [name for name in found if name.startswith(key)] == [
        f"{key}.cls",
        f"{key}.png",
        f"{key}.mask.png",
        f"{key}.json",
    ]
    assert found[f"{key}.png"] == records["image"][3].as_py()["bytes"]
    assert f"{0:032x}.jpg" in found
    assert [found[f"{i:032x}.cls"] for i in (0, 2, 6)] == [b"0", b"1", b"2"]
    assert json.loads(found[f"{key}.json"]) == {
        "tile": 1,
        "site": "süd",
        "label": "a",
        "objects": {"bbox": [[1.5, 2.0, 3.0, 4.0]], "category": ["x"]},
        "when": "2026-01-04T00:00:00+00:00",
        "aug_id": key,
        "aug_origin": "real",
        "aug_weight": 1.0,
    }  # neither nulls nor NaN nor bytes


def test_equal_records_give_equal_bytes(store: Store, records: pa.Table) -> None:
    path = write(store, records)
    first = store.read(path)
    store.delete(path)
    chunks = pa.concat_tables([records.slice(0, 7), records.slice(7)])
    assert write(store, chunks) == path
    assert store.read(path) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
            assert (info.mode, info.type) == (0o644, tarfile.REGTYPE)
    assert len(first) % tarfile.RECORDSIZE == 0


def test_headers_are_those_of_tarfile() -> None:
    names = ["a.cls", "x" * 100, "ä.json", f"{'d' * 90}/{'n' * 20}.png", ""]
    sizes = [0, 1, 511, 2**31, 8**11 - 1]
    for name, size, header in zip(names, sizes, tar_headers(names, np.array(sizes)), strict=True):
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        assert header.tobytes() == info.tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(ValueError, match="name is too long"):
        tar_headers(["x" * 101], np.array([0]))


@pytest.mark.parametrize("piece", [1, 3000])
def test_the_pieces_of_a_tar_change_no_byte(
    store: Store, records: pa.Table, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    images = records["image"].to_pylist()
    images[3], images[5], images[9] = None, {"bytes": None, "path": "x"}, {"bytes": b"", "path": ""}
    kind = records.schema.field("mask").type
    column = records.column_names.index("mask")
    records = records.set_column(column, "mask", pa.array(images, kind)).drop_columns("ratio")
    path = write(store, records)
    monkeypatch.setattr(tar_members, "PIECE_BYTES", piece)
    assert write(store, records) == path
    assert read_shard(store, path).equals(records)


def test_an_index_that_points_outside_of_its_tar_is_said(store: Store) -> None:
    for places in ([-600, 10], [10**9, 10], [0, 10**9]):
        index = pa.table(
            {"image": pa.array([{"offset": places[0], "size": places[1]}], webdataset.PLACE_TYPE)}
        )
        sink = io.BytesIO()
        pq.write_table(index, sink)
        with io.BytesIO() as tar:
            with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as made:
                info = tarfile.TarInfo(webdataset.INDEX)
                info.size = len(sink.getvalue())
                made.addfile(info, io.BytesIO(sink.getvalue()))
            store.put("lies.tar", tar.getvalue())
        with pytest.raises(IntegrityError, match=r"lies\.tar is damaged"):
            read_shard(store, "lies.tar")


def test_groups_are_read_by_themselves(
    store: Store, records: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "ROW_GROUP_BYTES", 5000)
    records = records.drop_columns("ratio")
    with open_shard(store, write(store, records)) as shard:
        assert 3 < len(shard.group_rows) < 60
        assert sum(shard.group_rows) == 60
        start = 0
        for g, n in enumerate(shard.group_rows):
            assert shard.read(groups=[g]).equals(records.slice(start, n))
            start += n
        some = shard.read(["label", "image"], groups=[2, 0])
        assert some.num_rows == shard.group_rows[2] + shard.group_rows[0]
        assert some.slice(shard.group_rows[2]).equals(
            records.select(["label", "image"]).slice(0, shard.group_rows[0])
        )
        assert shard.read(groups=[]).equals(records.slice(0, 0))


class Counting(io.BytesIO):
    n_read = 0

    def read(self, n: int | None = -1) -> bytes:
        data = super().read(n)
        self.n_read += len(data)
        return data


def test_columns_without_images_are_read_without_the_images(
    store: Store, records: pa.Table
) -> None:
    data = store.read(write(store, records))
    file = Counting(data)
    read = webdataset.WebDatasetShards().open(file).read(["label", "aug_weight"])
    assert read.equals(records.select(["label", "aug_weight"]))
    assert file.n_read < len(data) / 5


def test_endings_say_what_the_bytes_are(store: Store, records: pa.Table) -> None:
    kinds = {
        b"GIF89a": "gif", b"BM": "bmp", b"II*\x00": "tif", b"RIFF\x00\x00\x00\x00WEBP": "webp", b"P6 ": "img",
    }  # fmt: skip
    kind = records.schema.field("image").type
    images = pa.array([{"bytes": data, "path": None} for data in kinds], kind)
    table = records.slice(0, len(kinds)).drop_columns("mask").set_column(0, "image", images)
    names = list(members(store, write(store, table)))
    for i, ending in enumerate(kinds.values()):
        assert f"{i:032x}.{ending}" in names


def test_image_columns_whose_names_fall_together_stay_apart(
    store: Store, records: pa.Table
) -> None:
    names = ["Mask.1", "mask 1", "x" * 200]
    table = records.select(["image", "label", "aug_id"])
    for name in names:
        table = table.append_column(name, records["image"])
    path = write(store, table)
    assert read_shard(store, path).equals(table)
    assert len(members(store, path)) == 1 + 60 * (2 + 1 + len(names))


def test_shards_are_cut_by_records_and_by_bytes(store: Store, records: pa.Table) -> None:
    asked = {"prefix": "data", "stem": "s", "split": "train", "origin": "real", "label": "label"}
    by_records = {"max_records": 25, "max_bytes": 1 << 30}
    by_bytes = {"max_records": 1000, "max_bytes": records.nbytes // 3 + 1}
    for sizes in (by_records, by_bytes):
        info = write_shards(
            store, records, classes=CLASSES, shard_format="webdataset", **asked, **sizes
        )  # type: ignore[arg-type]
        assert [f.n_records for f in info] == [20, 20, 20]
        found = pa.concat_tables([read_shard(store, f.path) for f in info])
        assert found["aug_id"].to_pylist() == records["aug_id"].to_pylist()


def test_what_is_not_whole_is_said(store: Store, records: pa.Table) -> None:
    path = write(store, records)
    data = store.read(path)
    for cut in (100, 600, len(data) // 2):
        store.put(path, data[:cut])
        with pytest.raises(IntegrityError, match=f"{path} is damaged"):
            read_shard(store, path)
    store.put(path, b"no tar" * 1000)
    with pytest.raises(IntegrityError, match="no tar"):
        read_shard(store, path)
    store.delete(path)
    with pytest.raises(IntegrityError, match="missing"):
        read_shard(store, path)


def test_another_tar_is_not_taken_for_ours(store: Store) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.cls"), io.BytesIO(b""))
    assert not webdataset.is_published_tar(sink)
    store.put("x.tar", sink.getvalue())
    with pytest.raises(IntegrityError, match="first member is 'a.cls'"):
        read_shard(store, "x.tar")


def test_a_table_without_images_is_refused(store: Store, releases: ModuleType) -> None:
    with pytest.raises(SchemaError, match="no image column; use format 'parquet'"):
        write(store, releases.source_table())


def test_a_shard_of_an_unknown_ending_asks_for_another_release(store: Store) -> None:
    store.put("x.lance", b"")
    with pytest.raises(IntegrityError, match="upgrade prefect-augment"):
        read_shard(store, "x.lance")
