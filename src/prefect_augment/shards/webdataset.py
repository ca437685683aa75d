"""WebDataset shards: one tar per shard, with the images as files that any loader of tars reads.

A record is ``<aug_id>.cls`` (the number of its class), ``<aug_id>.jpg`` or what else its bytes are,
and ``<aug_id>.json`` (all other columns; a field that is null is left out). Further image columns are
``<aug_id>.<column>.png``. The first member, ``__columns__``, is Parquet: every column but the images'
bytes, and where these lie in the tar. Readers of tars pass it over; we read the records through it,
so that they come back with their types, and a column of text costs a few kilobytes.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefect_augment.errors import SchemaError
from prefect_augment.shards.formats import label_names
from prefect_augment.shards.image_files import IMAGE_TYPE, image_columns, main_image
from prefect_augment.shards.parquet import ROW_GROUP_BYTES, encode_parquet

__all__ = ["WebDatasetShards", "is_published_tar"]

INDEX = "__columns__"
BLOCK = tarfile.BLOCKSIZE
# In the index an image is where its bytes lie, counted from the end of the index.
PLACE_TYPE = pa.struct([("offset", pa.int64()), ("size", pa.int64()), ("path", pa.string())])
INDEX_ROWS_PER_GROUP = 100_000
MAX_COLUMN_NAME = 40  # of the 100 characters that a tar's header has for a name

# First bytes of a file, and the ending by which loaders know what to do with it.
SIGNATURES = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)


class WebDatasetShards:
    """See :class:`~prefect_augment.shards.base.ShardFormat`."""

    ending = ".tar"

    def encode(self, table: pa.Table, *, label: str, classes: Sequence[str]) -> bytes:
        """Return the records as one tar."""
        images = image_columns(table.schema)
        if not images or "aug_id" not in table.column_names or not label:
            raise SchemaError(
                "WebDataset shards hold images with a label, and there is no image column; use format 'parquet'."
            )
        members = io.BytesIO()
        places: dict[str, list[dict[str, Any] | None]] = {name: [] for name in images}
        suffixes = _suffixes(images, main_image(table.schema))
        rest = table.drop_columns(images)
        number = {name: str(k) for k, name in enumerate(classes)}
        for i, (record, name) in enumerate(
            zip(rest.to_pylist(), label_names(table[label]), strict=True)
        ):
            key = record["aug_id"]
            _add(members, f"{key}.cls", number[name].encode())
            for column in images:
                image = table[column][i].as_py()
                place = None
                if image is not None and image["bytes"] is not None:
                    ending = _ending(image["bytes"])
                    offset = _add(members, f"{key}.{suffixes[column]}{ending}", image["bytes"])
                    place = {"offset": offset, "size": len(image["bytes"]), "path": image["path"]}
                elif image is not None:
                    place = {"offset": None, "size": None, "path": image["path"]}
                places[column].append(place)
            _add(members, f"{key}.json", _as_json(record))
        index = _index(table, places)
        whole = io.BytesIO()
        _add(whole, INDEX, encode_parquet(index, n_rows_per_group=INDEX_ROWS_PER_GROUP))
        whole.write(members.getbuffer())
        whole.write(bytes(2 * BLOCK))  # the end of a tar
        whole.write(bytes(-whole.tell() % tarfile.RECORDSIZE))
        return whole.getvalue()

    def open(self, file: Any) -> _WebDatasetReader:
        """Read the index, and no image."""
        return _WebDatasetReader(file)


def is_published_tar(file: Any) -> bool:
    """Tell whether a tar is one of our shards; the file is read from its start again afterwards."""
    file.seek(0)
    start = bytes(file.read(len(INDEX) + 1))
    file.seek(0)
    return start == INDEX.encode() + b"\0"


# --- writing ----------------------------------------------------------------------------------


def _add(tar: io.BytesIO, name: str, data: bytes) -> int:
    """Append a member, with nothing in its header that another day or machine would write differently."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.write(info.tobuf(tarfile.USTAR_FORMAT))
    offset = tar.tell()
    tar.write(data)
    tar.write(bytes(-len(data) % BLOCK))
    return offset


def _suffixes(images: Sequence[str], main: str) -> dict[str, str]:
    """What stands before the ending: nothing for the picture itself, the column's name for others."""
    suffixes: dict[str, str] = {main: ""}
    for name in images:
        if name != main:
            plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:MAX_COLUMN_NAME]
            taken = set(suffixes.values())
            number = next(
                f"{n}" for n in ("", *range(2, 10_000)) if f"{plain}{n}.".lower() not in taken
            )
            suffixes[name] = f"{plain}{number}.".lower()  # loaders compare in lower case
    return suffixes


def _ending(data: bytes) -> str:
    """The ending of an image's own kind: loaders choose the decoder by it."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((ending for start, ending in SIGNATURES if data.startswith(start)), "img")


def _as_json(record: Mapping[str, Any]) -> bytes:
    fields = {name: _plain(value) for name, value in record.items()}
    there = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(there, ensure_ascii=False, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    """Return what JSON can say of a value: None for a number that is none, and for bytes."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _index(table: pa.Table, places: Mapping[str, list[dict[str, Any] | None]]) -> pa.Table:
    """The table with places instead of images, its metadata untouched."""
    for name, found in places.items():
        column = table.column_names.index(name)
        field = table.schema.field(name).with_type(PLACE_TYPE)
        table = table.set_column(column, field, pa.array(found, PLACE_TYPE))
    return table


# --- reading ----------------------------------------------------------------------------------


class _WebDatasetReader:
    """See :class:`~prefect_augment.shards.base.ShardReader`."""

    def __init__(self, file: Any) -> None:
        self._file = file
        file.seek(0)
        try:
            header = tarfile.TarInfo.frombuf(bytes(file.read(BLOCK)), "utf-8", "strict")
        except tarfile.TarError as exc:
            raise pa.ArrowInvalid(f"no tar ({exc})") from exc
        if header.name != INDEX:
            raise pa.ArrowInvalid(f"its first member is {header.name!r} and not {INDEX!r}")
        self._index = pq.ParquetFile(pa.BufferReader(_read(file, header.size)))
        self._start = BLOCK + header.size + -header.size % BLOCK
        index = self._index.schema_arrow
        self._images = [f.name for f in index if f.type == PLACE_TYPE]
        fields = [f.with_type(IMAGE_TYPE) if f.name in self._images else f for f in index]
        self.schema = pa.schema(fields, metadata=index.metadata)
        self._groups = self._bounds()
        self._read_last: tuple[list[str], pa.Table] | None = None
        self.group_rows = tuple(int(n) for n in np.diff(self._groups))

    def _bounds(self) -> NDArray[np.int64]:
        """Where groups begin and end: at most so many bytes of images lie in one, or a single record."""
        columns = self._index.read(columns=self._images, use_threads=False)
        sizes = np.zeros(columns.num_rows, dtype=np.int64)
        for name in self._images:
            sizes += pc.fill_null(pc.struct_field(columns[name], "size"), 0).to_numpy()
        group = np.cumsum(sizes) // ROW_GROUP_BYTES
        starts = np.flatnonzero(np.diff(group)) + 1
        return np.concatenate([[0], starts, [len(sizes)] if len(sizes) else []]).astype(np.int64)

    def read(
        self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None
    ) -> pa.Table:
        """Return records; images are read group by group, each in one piece of the tar."""
        names = self.schema.names if columns is None else list(columns)
        if self._read_last is None or self._read_last[0] != names:
            read = self._index.read(columns=names, use_threads=False).select(names)
            self._read_last = (names, read)  # small, and groups ask for the same again
        index = self._read_last[1]
        wanted = range(len(self.group_rows)) if groups is None else groups
        if groups is not None:
            parts = [index.slice(self._groups[g], self.group_rows[g]) for g in wanted]
            index = pa.concat_tables(parts) if parts else index.slice(0, 0)
        for name in (n for n in self._images if n in names):
            places = index[name]
            chunks, at = [], 0
            for g in wanted:
                part = places.slice(at, self.group_rows[g])
                chunks.append(self._images_at(part.to_pylist()))
                at += self.group_rows[g]
            field = self.schema.field(name)
            images = pa.chunked_array(chunks, IMAGE_TYPE)
            index = index.set_column(names.index(name), field, images)
        return index

    def _images_at(self, places: Sequence[Mapping[str, Any] | None]) -> pa.Array:
        """The images at these places, read in one go: a group's members lie together."""
        there = [p for p in places if p is not None and p["offset"] is not None]
        first = min((p["offset"] for p in there), default=0)
        last = max((p["offset"] + p["size"] for p in there), default=0)
        self._file.seek(self._start + first)
        data = memoryview(_read(self._file, last - first))
        found: list[dict[str, Any] | None] = []
        for place in places:
            if place is None:
                found.append(None)
                continue
            offset = place["offset"]
            at = None if offset is None else data[offset - first :][: place["size"]].tobytes()
            found.append({"bytes": at, "path": place["path"]})
        return pa.array(found, IMAGE_TYPE)


def _read(file: Any, n_bytes: int) -> bytes:
    data = bytes(file.read(n_bytes))
    if len(data) < n_bytes:
        raise pa.ArrowInvalid(f"cut off, {n_bytes - len(data)} bytes are missing")
    return data
