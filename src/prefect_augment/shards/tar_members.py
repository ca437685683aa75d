"""The members of a tar shard: what a record becomes, and how many of them are made at once.

Making a tar by :mod:`tarfile` costs more than the disk; here headers are filled in for all records of
a piece together, and sizes and places are known before a byte is written.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.shards.formats import label_names
from prefect_augment.shards.image_files import image_slices, main_image

__all__ = ["BLOCK", "PLACE_TYPE", "TarMembers", "one_chunk", "tar_headers", "whole_member"]

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
    """The members of all records: where each is to stand is known before one is made.

    A record's members are its class, its images in the order of their columns, and its JSON.
    """

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
        """Where the bytes of each image column's images will be, counted from the first member."""
        found = {}
        for j, name in enumerate(self._images.column_names, 1):
            column = self._images[name]
            none = self._sizes[:, j] < 0
            parts = [
                pa.array((self._headers[:, j] + 1) * BLOCK, pa.int64(), mask=none),
                pa.array(self._sizes[:, j], pa.int64(), mask=none),
                one_chunk(pc.struct_field(column, "path")),
            ]
            found[name] = pa.StructArray.from_arrays(
                parts, fields=list(PLACE_TYPE), mask=one_chunk(column.is_null())
            )
        return found

    def pieces(self) -> Iterator[bytearray]:
        """Yield the members, a few MiB at once."""
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
    """Return the headers of members, with nothing in them that another day or machine would write differently.

    Returns
    -------
    ndarray of uint8, shape (n_members, 512)
        As :mod:`tarfile` makes them, one by one, in the format ustar.
    """
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
    """The numbers in octal digits, shape (n, n_digits)."""
    shifts = 3 * np.arange(n_digits - 1, -1, -1)
    return ((numbers[:, None] >> shifts & 7) + ord("0")).astype(np.uint8)


def whole_member(name: str, data: Any) -> bytes:
    """Return one member: header, data, and what fills the last block."""
    header = tar_headers([name], np.array([len(data)]))
    return header.tobytes() + bytes(data) + bytes(-len(data) % BLOCK)


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Return the column in one chunk."""
    found = column.combine_chunks()
    return found.chunk(0) if isinstance(found, pa.ChunkedArray) else found


def _sizes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Bytes of each image, -1 where there is none."""
    sizes = pc.binary_length(pc.struct_field(column, "bytes"))
    found: NDArray[np.int64] = pc.fill_null(sizes, -1).to_numpy().astype(np.int64)
    return found


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


def _json_lines(table: pa.Table) -> list[bytes]:
    """Each record as JSON: a column at a time, since most of the work is the same for all records."""
    fields = [_json_fields(name, table[name]) for name in table.column_names]
    there = [field for field in fields if field is not None]
    return [
        f"{{{', '.join(filter(None, record))}}}".encode() for record in zip(*there, strict=True)
    ]


def _json_fields(name: str, column: pa.ChunkedArray) -> list[str] | None:
    """``"name": value`` of each record, empty where JSON cannot say it; None where it never can."""
    if column.null_count == len(column):
        return None
    start = f"{_JSON.encode(name)}: "
    made: dict[Any, str] = {}
    fields = []
    for value in column.to_pylist():
        field = made.get(value) if isinstance(value, str) else None
        if field is None:
            said = _plain(value)
            field = "" if said is None else start + _JSON.encode(said)
            if isinstance(value, str):
                made[value] = field
        fields.append(field)
    return fields


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
