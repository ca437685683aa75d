"""WebDataset shards: one tar per shard, with the images as files that any tar loader reads.

A record is ``<aug_id>.cls`` (class number), ``<aug_id>.jpg`` or another image ending, and ``<aug_id>.json`` (other
columns without nulls); more images are ``<aug_id>.<column>.png``. The first member, ``__columns__``, is Parquet: all
columns, with the images' positions in the tar. We read through it, which restores types; other readers skip it.
Headers are built for many records at once, as :mod:`tarfile` is slower than the disk.
"""

import io
import itertools
import json
import math
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefect_augment.errors import SchemaError
from prefect_augment.shards.base import ROW_GROUP_BYTES, label_names, row_groups
from prefect_augment.shards.image_columns import IMAGE_TYPE, image_columns, image_slices, main_image
from prefect_augment.shards.parquet import write_parquet

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
        # The index is the table with the images' positions in place of them.
        for name, place in members.places.items():
            column = table.column_names.index(name)
            table = table.set_column(column, table.schema.field(name).with_type(PLACE_TYPE), place)
        index = io.BytesIO()
        write_parquet(row_groups(table, INDEX_ROWS_PER_GROUP), index)
        data = index.getvalue()
        header = tar_headers([INDEX], np.array([len(data)])).tobytes()
        start = header + data + bytes(-len(data) % BLOCK)
        sink.write(start)
        for piece in members.pieces():
            sink.write(piece)
        n_bytes = len(start) + members.n_bytes + 2 * BLOCK  # two empty blocks are the end of a tar
        sink.write(bytes(2 * BLOCK + -n_bytes % tarfile.RECORDSIZE))

    def open(self, file: Any) -> "_WebDatasetReader":
        """Read the index, and no image."""
        return _WebDatasetReader(file)


def is_published_tar(file: Any) -> bool:
    """Tell whether a tar is one of our shards; the file is then back at its start."""
    file.seek(0)
    start = bytes(file.read(len(INDEX) + 1))
    file.seek(0)
    return start == INDEX.encode() + b"\0"


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
        """Return offset and size of each column's images, size -1 for null."""
        columns = self._index.read(columns=self._images, use_threads=False)
        places = {}
        for name in self._images:
            parts = [pc.struct_field(columns[name], part) for part in ("offset", "size")]
            there = pc.and_(parts[0].is_valid(), parts[1].is_valid()).to_numpy()
            offsets, sizes = (pc.fill_null(p, 0).to_numpy().astype(np.int64) for p in parts)
            if min(part.min(initial=0) for part in (offsets, sizes, offsets + sizes)) < 0:
                raise pa.ArrowInvalid("its index names places outside of it")
            places[name] = offsets, np.where(there, sizes, -1)
        return places

    def _bounds(self) -> NDArray[np.int64]:
        """Return the group bounds: each group has at most ``ROW_GROUP_BYTES`` of images, or one record."""
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
        views = {name: self._images_of(name, group) for name in images}
        return self.read(columns, groups=[group]), views

    def _images_of(self, column: str, group: int) -> list[memoryview | None]:
        """Return the images of a group, read at once, as its members are adjacent."""
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
    bounds = np.cumsum([0, *(0 if image is None else len(image) for image in images)])
    if bounds[-1] > np.iinfo(np.int32).max:
        raise pa.ArrowInvalid("its index names more bytes than Arrow counts in one chunk")
    data = pa.allocate_buffer(int(bounds[-1]))  # of Arrow's pool, which uses memory again
    view = memoryview(data).cast("B")
    for image, (low, high) in zip(images, itertools.pairwise(bounds.tolist()), strict=True):
        if image is not None:
            view[low:high] = image
    there = [image is not None for image in images]
    data_column = pa.Array.from_buffers(
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
        [data_column, paths], fields=list(IMAGE_TYPE), mask=one_chunk(places.is_null())
    )


def _read(file: Any, n_bytes: int) -> memoryview:
    """Read the next bytes; a view where the file is mapped."""
    read = getattr(file, "read_buffer", file.read)
    data = memoryview(read(n_bytes)).cast("B")
    if len(data) < n_bytes:
        raise pa.ArrowInvalid(f"cut off, {n_bytes - len(data)} bytes are missing")
    return data


BLOCK = tarfile.BLOCKSIZE
# In the index an image is where its bytes lie, counted from the end of the index.
PLACE_TYPE = pa.struct([("offset", pa.int64()), ("size", pa.int64()), ("path", pa.string())])
NAME_BYTES = 100  # that a tar's header has for a name
MAX_COLUMN_NAME = 40  # of these
# Members are made and written in pieces of about this size.
PIECE_BYTES = 2 << 20
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)

# First bytes of a file, and the ending by which loaders know what to do with it.
SIGNATURES = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)


class TarMembers:
    """The tar members of all records: a class, images in column order, and JSON; positions come before data."""

    def __init__(
        self, table: pa.Table, images: Sequence[str], *, label: str, classes: Sequence[str]
    ) -> None:
        number = {name: str(k).encode() for k, name in enumerate(classes)}
        self._images = table.select(images)
        self._classes = [number[name] for name in label_names(table[label])]
        self._json = _json_lines(table.drop_columns(images))
        self._keys = table["aug_id"].to_pylist()
        self._suffixes = _suffixes(images, main_image(table.schema))
        sizes = [
            [len(data) for data in self._classes],
            *(_sizes(self._images[name]) for name in images),
            [len(data) for data in self._json],
        ]
        #: (n_records, n_members), bytes; -1 where a record has no such image.
        self._sizes = np.array(sizes, dtype=np.int64).T
        n_blocks = np.where(self._sizes < 0, 0, 1 + -(-self._sizes // BLOCK))
        ends = np.cumsum(n_blocks).reshape(n_blocks.shape)
        self._headers = ends - n_blocks  # the block of each header
        self._ends = ends[:, -1]
        self.n_bytes = int(self._ends[-1]) * BLOCK

    @property
    def places(self) -> dict[str, pa.StructArray]:
        """The position of each image's bytes, from the first member on."""
        places = {}
        for j, name in enumerate(self._images.column_names, 1):
            column = self._images[name]
            none = self._sizes[:, j] < 0
            parts = [
                pa.array((self._headers[:, j] + 1) * BLOCK, pa.int64(), mask=none),
                pa.array(self._sizes[:, j], pa.int64(), mask=none),
                one_chunk(pc.struct_field(column, "path")),
            ]
            places[name] = pa.StructArray.from_arrays(
                parts, fields=list(PLACE_TYPE), mask=one_chunk(column.is_null())
            )
        return places

    def pieces(self) -> Iterator[bytearray]:
        """Yield the members, a few MiB at a time."""
        turn = self._ends * BLOCK // PIECE_BYTES
        bounds = [0, *(np.flatnonzero(np.diff(turn)) + 1).tolist(), len(turn)]
        for start, stop in itertools.pairwise(bounds):
            yield self._piece(start, stop)

    def _piece(self, start: int, stop: int) -> bytearray:
        first = int(self._headers[start, 0])
        piece = bytearray((int(self._ends[stop - 1]) - first) * BLOCK)
        at, blocks = memoryview(piece), np.frombuffer(piece, np.uint8).reshape(-1, BLOCK)
        datas: list[Sequence[Any]] = [self._classes[start:stop]]
        datas += [
            image_slices(self._images[n].slice(start, stop - start))
            for n in self._images.column_names
        ]
        datas += [self._json[start:stop]]
        keys = self._keys[start:stop]
        for j, data in enumerate(datas):
            there = self._sizes[start:stop, j] >= 0
            header = self._headers[start:stop, j] - first
            names = [f"{k}.{e}" for k, e in zip(keys, self._endings(j, data), strict=True)]
            rows = np.flatnonzero(there)
            blocks[header[rows]] = tar_headers(
                [names[i] for i in rows], self._sizes[start:stop, j][rows]
            )
            offsets = ((header + 1) * BLOCK).tolist()
            for i in rows.tolist():
                at[offsets[i] : offsets[i] + len(data[i])] = data[i]
        return piece

    def _endings(self, j: int, data: Sequence[Any]) -> Sequence[str]:
        if j == 0 or j == len(self._suffixes) + 1:
            return ["json" if j else "cls"] * len(data)
        suffix = self._suffixes[self._images.column_names[j - 1]]
        return [suffix + _ending(bytes(image[:12]) if image else b"") for image in data]


def tar_headers(names: Sequence[str], sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the headers of members, shape (n_members, 512), as :mod:`tarfile` writes ustar, equal on every day."""
    plain = tarfile.TarInfo("")
    plain.mode = 0o644
    headers = np.tile(np.frombuffer(plain.tobuf(tarfile.USTAR_FORMAT), np.uint8), (len(names), 1))
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    padded = b"".join([name.ljust(NAME_BYTES, b"\0")[:NAME_BYTES] for name in encoded])
    headers[:, :NAME_BYTES] = np.frombuffer(padded, np.uint8).reshape(-1, NAME_BYTES)
    headers[:, 124:135] = _octal(sizes, 11)
    headers[:, 148:156] = ord(" ")  # what the sum counts the place of the sum as
    headers[:, 148:154] = _octal(headers.sum(axis=1, dtype=np.int64), 6)
    headers[:, 154] = 0
    for i, name in enumerate(encoded):
        if len(name) > NAME_BYTES:  # split at a slash, or refused
            info = tarfile.TarInfo(names[i])
            info.mode, info.size = plain.mode, int(sizes[i])
            headers[i] = np.frombuffer(info.tobuf(tarfile.USTAR_FORMAT), np.uint8)
    return headers


def _octal(numbers: NDArray[np.int64], n_digits: int) -> NDArray[np.uint8]:
    """Return numbers as octal digits, shape (n, n_digits)."""
    shifts = 3 * np.arange(n_digits - 1, -1, -1)
    return ((numbers[:, None] >> shifts & 7) + ord("0")).astype(np.uint8)


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Return the column as one chunk."""
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _sizes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the bytes of each image, -1 for null."""
    sizes = pc.binary_length(pc.struct_field(column, "bytes"))
    n_bytes: NDArray[np.int64] = pc.fill_null(sizes, -1).to_numpy().astype(np.int64)
    return n_bytes


def _suffixes(images: Sequence[str], main: str) -> dict[str, str]:
    """Return what precedes the ending: nothing for the main image, the column's name for others."""
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
    """Return the ending of an image's format, by which loaders choose the decoder."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((ending for start, ending in SIGNATURES if data.startswith(start)), "img")


def _json_lines(table: pa.Table) -> list[bytes]:
    """Return each record as JSON, without what JSON has no form for."""
    lines = []
    for record in table.to_pylist():
        values = {name: _plain(value) for name, value in record.items()}
        lines.append(_JSON.encode({k: v for k, v in values.items() if v is not None}).encode())
    return lines


def _plain(value: Any) -> Any:
    """Return a value in JSON types; None for NaN, infinities and bytes."""
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
