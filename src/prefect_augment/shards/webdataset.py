"""WebDataset shards: one tar per shard, with the images as files that any loader of tars reads.

A record is ``<aug_id>.cls`` (the number of its class), ``<aug_id>.jpg`` or what else its bytes are,
and ``<aug_id>.json`` (all other columns; a field that is null is left out). Further image columns are
``<aug_id>.<column>.png``. The first member, ``__columns__``, is Parquet: every column but the images'
bytes, and where these lie in the tar. Readers of tars pass it over; we read the records through it,
so that they come back with their types, and a column of text costs a few kilobytes.
"""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefect_augment.errors import SchemaError
from prefect_augment.shards.groups import ROW_GROUP_BYTES, row_groups
from prefect_augment.shards.image_files import IMAGE_TYPE, image_columns
from prefect_augment.shards.parquet import write_parquet
from prefect_augment.shards.tar_members import (
    BLOCK,
    PLACE_TYPE,
    TarMembers,
    one_chunk,
    whole_member,
)

__all__ = ["WebDatasetShards", "is_published_tar"]

INDEX = "__columns__"
INDEX_ROWS_PER_GROUP = 100_000


class WebDatasetShards:
    """See :class:`~prefect_augment.shards.base.ShardFormat`."""

    ending = ".tar"

    def write(
        self, groups: Iterable[pa.Table], sink: Any, *, label: str, classes: Sequence[str]
    ) -> None:
        """Write one tar; its index comes first, so that all of its records are in memory once."""
        table = pa.concat_tables(groups).unify_dictionaries()
        images = image_columns(table.schema)
        if not images or "aug_id" not in table.column_names or not label:
            raise SchemaError(
                "WebDataset shards hold images with a label, and there is no image column; use format 'parquet'."
            )
        members = TarMembers(table, images, label=label, classes=classes)
        index = io.BytesIO()
        places = _index(table, members.places)
        write_parquet(row_groups(places, INDEX_ROWS_PER_GROUP), index)
        start = whole_member(INDEX, index.getbuffer())
        sink.write(start)
        for piece in members.pieces():
            sink.write(piece)
        n_bytes = len(start) + members.n_bytes + 2 * BLOCK  # two empty blocks are the end of a tar
        sink.write(bytes(2 * BLOCK + -n_bytes % tarfile.RECORDSIZE))

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


def _index(table: pa.Table, places: Mapping[str, pa.StructArray]) -> pa.Table:
    """The table with places instead of images, its metadata untouched."""
    for name, found in places.items():
        column = table.column_names.index(name)
        table = table.set_column(column, table.schema.field(name).with_type(PLACE_TYPE), found)
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
        index = pa.BufferReader(pa.py_buffer(_read(file, header.size)))
        self._index = pq.ParquetFile(index, pre_buffer=False)
        self._start = BLOCK + header.size + -header.size % BLOCK
        schema = self._index.schema_arrow
        self._images = [f.name for f in schema if f.type == PLACE_TYPE]
        fields = [f.with_type(IMAGE_TYPE) if f.name in self._images else f for f in schema]
        self.schema = pa.schema(fields, metadata=schema.metadata)
        self._places = self._read_places()
        self._groups = self._bounds()
        self._read_last: tuple[list[str], pa.Table] | None = None
        self.group_rows = tuple(int(n) for n in np.diff(self._groups))

    def _read_places(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Offset and size of the images of each column, the size -1 where there is none."""
        columns = self._index.read(columns=self._images, use_threads=False)
        found = {}
        for name in self._images:
            parts = [pc.struct_field(columns[name], part) for part in ("offset", "size")]
            there = pc.and_(parts[0].is_valid(), parts[1].is_valid()).to_numpy()
            offsets, sizes = (pc.fill_null(p, 0).to_numpy().astype(np.int64) for p in parts)
            if min(part.min(initial=0) for part in (offsets, sizes, offsets + sizes)) < 0:
                raise pa.ArrowInvalid("its index names places outside of it")
            found[name] = offsets, np.where(there, sizes, -1)
        return found

    def _bounds(self) -> NDArray[np.int64]:
        """Where groups begin and end: at most so many bytes of images lie in one, or a single record."""
        total = np.zeros(self._index.metadata.num_rows, dtype=np.int64)
        for _, sizes in self._places.values():
            total += np.maximum(sizes, 0)
        group = np.cumsum(total) // ROW_GROUP_BYTES
        starts = np.flatnonzero(np.diff(group)) + 1
        return np.concatenate([[0], starts, [len(total)] if len(total) else []]).astype(np.int64)

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
            chunks, at = [], 0
            for g in wanted:
                places = index[name].slice(at, self.group_rows[g])
                chunks.append(_image_array(self._images_of(name, g), places))
                at += self.group_rows[g]
            field = self.schema.field(name)
            images = pa.chunked_array(chunks, IMAGE_TYPE)
            index = index.set_column(names.index(name), field, images)
        return index

    def read_apart(
        self, columns: Sequence[str], images: Sequence[str], *, group: int
    ) -> tuple[pa.Table, dict[str, list[memoryview | None]]]:
        """Return a group's columns, and its images as views of the tar."""
        found = {name: self._images_of(name, group) for name in images}
        return self.read(columns, groups=[group]), found

    def _images_of(self, column: str, group: int) -> list[memoryview | None]:
        """The images of a group, read in one go: its members lie together."""
        rows = slice(self._groups[group], self._groups[group + 1])
        offsets, sizes = (part[rows] for part in self._places[column])
        there = sizes >= 0
        if not there.any():
            return [None] * len(sizes)
        first = int(offsets[there].min())
        self._file.seek(self._start + first)
        data = _read(self._file, int((offsets + sizes)[there].max()) - first)
        starts = (offsets - first).tolist()
        ends = (offsets - first + sizes).tolist()
        return [
            data[start:end] if is_there else None
            for start, end, is_there in zip(starts, ends, there.tolist(), strict=True)
        ]


def _image_array(images: Sequence[memoryview | None], places: pa.ChunkedArray) -> pa.Array:
    """The images as a column of them."""
    bounds = np.cumsum([0, *(0 if image is None else len(image) for image in images)])
    if bounds[-1] > np.iinfo(np.int32).max:
        raise pa.ArrowInvalid("its index names more bytes than Arrow counts in one chunk")
    data = pa.allocate_buffer(int(bounds[-1]))  # of Arrow's pool, which uses memory again
    view = memoryview(data).cast("B")
    for image, (low, high) in zip(images, itertools.pairwise(bounds.tolist()), strict=True):
        if image is not None:
            view[low:high] = image
    there = [image is not None for image in images]
    found = pa.Array.from_buffers(
        pa.binary(),
        len(images),
        [
            None if all(there) else pa.array(there).buffers()[1],
            pa.py_buffer(bounds.astype(np.int32)),
            data,
        ],
    )
    paths = one_chunk(pc.struct_field(places, "path"))
    return pa.StructArray.from_arrays(
        [found, paths], fields=list(IMAGE_TYPE), mask=one_chunk(places.is_null())
    )


def _read(file: Any, n_bytes: int) -> memoryview:
    """The next bytes; not copied where the file is mapped."""
    read = getattr(file, "read_buffer", file.read)
    data = memoryview(read(n_bytes)).cast("B")
    if len(data) < n_bytes:
        raise pa.ArrowInvalid(f"cut off, {n_bytes - len(data)} bytes are missing")
    return data
