"""The footer and page headers of a Parquet file, parsed from their bytes (Thrift compact protocol).

Arrow aborts the process on a forged footer when a column's metadata are read (an uncaught C++ error), so no
check through Arrow can come first.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = b"PAR1"
TAIL_BYTES = 8  # length of the footer, and the magic
MAX_FOOTER_BYTES = 4 << 20  # a larger one costs too much to be read twice
MAX_DEPTH = 16
# Compact type numbers.
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
INTEGERS = frozenset((I16, I32, I64))
WIDTHS = {TRUE: 1, FALSE: 1, BYTE: 1, DOUBLE: 8}  # in lists a truth value is a byte


@dataclass(frozen=True)
class ColumnChunk:
    """One column of one row group; sizes and offsets in bytes."""

    path: str
    physical_type: int
    codec: int
    n_values: int
    unpacked_bytes: int
    packed_bytes: int
    first_page: int
    last_page: int  # of the offsets that are given
    has_dictionary: bool


@dataclass(frozen=True)
class PageHeader:
    """The header of a data page of version 1; sizes in bytes, encodings by their numbers in the format."""

    n_bytes: int  # of the header itself
    unpacked_bytes: int
    packed_bytes: int
    n_values: int
    encoding: int
    level_encoding: int


@dataclass(frozen=True)
class RowGroup:
    """One row group."""

    n_rows: int
    columns: tuple[ColumnChunk, ...]


@dataclass(frozen=True)
class Footer:
    """The row groups of a file."""

    n_rows: int
    groups: tuple[RowGroup, ...]


def read_footer(
    file: IO[bytes], n_bytes: int, max_bytes: int, *, column: int | None = None
) -> Footer | None:
    """Return a file's footer, or ``column`` alone; None if larger than ``max_bytes``, ValueError for none."""
    file.seek(max(0, n_bytes - TAIL_BYTES))
    tail = file.read(TAIL_BYTES)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length + TAIL_BYTES + len(MAGIC) > n_bytes:
        raise ValueError("no footer at the end")
    if length > max_bytes:
        return None
    file.seek(n_bytes - TAIL_BYTES - length)
    with _refused():
        fields = _ThriftReader(file.read(length)).struct()
        return Footer(_integer(fields[3]), tuple(_group(g, column) for g in fields.get(4, [])))


def read_page_header(data: bytes) -> PageHeader:
    """Return the header that these bytes begin with; raises ValueError for none, or another kind of page."""
    reader = _ThriftReader(data)
    with _refused():
        fields = reader.struct()
        numbers = (fields[2], fields[3], *(fields[5][i] for i in (1, 2, 3)))
        return PageHeader(reader.at, *map(_integer, numbers))


@contextmanager
def _refused() -> Iterator[None]:
    """Turn what fields that are missing or of another type raise into ValueError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as exc:
        raise ValueError("a footer or page header that cannot be read") from exc


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("a footer with a field of another type")
    return value


def _group(fields: dict[int, Any], column: int | None) -> RowGroup:
    chunks = fields[1] if column is None else fields[1][column : column + 1]
    return RowGroup(_integer(fields[3]), tuple(_column(chunk[3]) for chunk in chunks))


def _column(fields: dict[int, Any]) -> ColumnChunk:
    # Writers that have no dictionary leave its offset out, or say 0.
    offsets = [_integer(fields[i]) for i in (9, 11) if i == 9 or fields.get(i)]
    return ColumnChunk(
        path=".".join(part.decode("utf-8", "replace") for part in fields[3]),
        physical_type=_integer(fields[1]),
        codec=_integer(fields[4]),
        n_values=_integer(fields[5]),
        unpacked_bytes=_integer(fields[6]),
        packed_bytes=_integer(fields[7]),
        first_page=min(offsets),
        last_page=max(offsets),
        has_dictionary=len(offsets) > 1,
    )


class _ThriftReader:
    """Thrift's compact protocol: structs become dicts by field number, lists lists, text bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            # The field's number is written out where it is not near the one before.
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields[number] = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in INTEGERS:
            return self._integer()
        if kind == BINARY:
            return self._take(self._number())
        if kind in WIDTHS:
            return self._take(WIDTHS[kind])
        if depth > MAX_DEPTH:
            raise ValueError("a footer nested too deeply")
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind not in (LIST, SET):
            raise ValueError(f"a footer with an unknown type {kind}")
        head = self._byte()
        n = head >> 4 if head < 240 else self._number()
        if n > len(self._data) - self.at:  # every item has a byte at least
            raise ValueError("a footer with a list longer than itself")
        return [self._value(head & 15, depth + 1) for _ in range(n)]

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _take(self, n: int) -> bytes:
        if n > len(self._data) - self.at:
            raise ValueError("a footer that ends in the middle")
        self.at += n
        return self._data[self.at - n : self.at]

    def _number(self) -> int:
        data, at = self._data, self.at
        byte = data[at]
        number, shift = byte & 127, 7
        while byte > 127:
            if shift > 63:
                raise ValueError("a footer with a number beyond 64 bits")
            at += 1
            byte = data[at]
            number |= (byte & 127) << shift
            shift += 7
        self.at = at + 1
        return number

    def _integer(self) -> int:
        number = self._number()
        return (number >> 1) ^ -(number & 1)


# A page written by :func:`~prefect_augment.shards.parquet.write_parquet` is its definition levels (null or not), then
# 4 bytes of length and the value per image, which are views of the file's bytes here: Arrow's copy costs as much as
# the rest of an epoch. Any other layout, or inconsistent sizes, gives None: Arrow then reads the column, or reports
# the fault.
BYTE_ARRAY, UNCOMPRESSED, PLAIN, RLE = 6, 0, 0, 3  # by their numbers in the format
MAX_HEADER_BYTES = 1 << 10  # statistics, which a header may hold, are not written of images
MAX_LEVEL = 127  # definition levels are a byte each, and two in an image column
_LENGTH = struct.Struct("<I")


class ImagePages:
    """The images of a file, located by its footer."""

    def __init__(self, file: pa.NativeFile, schema: pq.ParquetSchema) -> None:
        file.seek(0)
        self._file = file
        self._bytes = memoryview(file.read_buffer()).cast("B")  # outlives the file's closing
        self._schema = schema
        self._columns: dict[str, tuple[list[ColumnChunk], int]] = {}

    def views(self, column: str, group: int, n_rows: int) -> list[memoryview | None] | None:
        """Return the images of a group as views of the file's bytes; None for another layout or number."""
        if column not in self._columns:
            self._columns[column] = self._find(column)
        chunks, level = self._columns[column]
        return _views(self._bytes, chunks[group], n_rows, level) if group < len(chunks) else None

    def _find(self, column: str) -> tuple[list[ColumnChunk], int]:
        """Return a column's chunk in each group and its definition level; no chunks if that is ambiguous."""
        n_columns = len(self._schema.names)
        path = f"{column}.bytes"
        leaves = [i for i in range(n_columns) if self._schema.column(i).path == path]
        if len(leaves) != 1:  # a name with a dot may be that of another's part
            return [], 0
        leaf = self._schema.column(leaves[0])
        try:
            footer = read_footer(self._file, len(self._bytes), MAX_FOOTER_BYTES, column=leaves[0])
        except ValueError:
            footer = None
        chunks = [chunk for group in footer.groups for chunk in group.columns] if footer else []
        is_known = leaf.max_repetition_level == 0 and leaf.max_definition_level <= MAX_LEVEL
        is_whole = footer is not None and len(chunks) == len(footer.groups)
        return (chunks, leaf.max_definition_level) if is_known and is_whole else ([], 0)


def _views(
    file: memoryview, chunk: ColumnChunk, n_rows: int, level: int
) -> list[memoryview | None] | None:
    if chunk.physical_type != BYTE_ARRAY or chunk.codec != UNCOMPRESSED or chunk.has_dictionary:
        return None
    start, end = chunk.first_page, chunk.first_page + chunk.packed_bytes
    if not 0 <= start <= end <= len(file):
        return None
    views: list[memoryview | None] = []
    try:
        for page, n_values in _pages(file[start:end]):
            _append_values(views, page, n_values, level)
    except (ValueError, struct.error):
        return None
    return views if len(views) == n_rows == chunk.n_values else None


def _pages(chunk: memoryview) -> Iterator[tuple[memoryview, int]]:
    """Yield the chunk's pages and how many values each holds."""
    at = 0
    while at < len(chunk):
        header = read_page_header(bytes(chunk[at : at + MAX_HEADER_BYTES]))
        if (header.encoding, header.level_encoding) != (PLAIN, RLE):
            raise ValueError("a page of another kind")
        start = at + header.n_bytes
        at = start + header.packed_bytes
        if not start <= at <= len(chunk) or header.packed_bytes != header.unpacked_bytes:
            raise ValueError("a page that goes beyond its chunk")
        yield chunk[start:at], header.n_values


def _append_values(
    views: list[memoryview | None], page: memoryview, n_values: int, level: int
) -> None:
    end = 0
    if level:
        end = 4 + _LENGTH.unpack_from(page)[0]
        if bytes(page[4:end]) not in _levels_without_null(n_values, level):
            raise ValueError("a page with a value that is null")
    length_at, append = _LENGTH.unpack_from, views.append
    for _ in range(n_values):
        start = end + 4
        end = start + length_at(page, end)[0]
        append(page[start:end])
    if end != len(page):  # also where a value went beyond it: after such a one there is no length
        raise ValueError("values that do not fill their page")


@lru_cache
def _levels_without_null(n_values: int, level: int) -> tuple[bytes, ...]:
    """Return the encodings of so many equal levels: as one run, and for few of them bit-packed."""
    head, run = n_values << 1, bytearray()
    while head > 127:
        run.append(head & 127 | 128)
        head >>= 7
    run += bytes((head, level))
    if n_values > 8:
        return (bytes(run),)
    width = level.bit_length()
    packed = sum(level << width * i for i in range(n_values))
    return bytes(run), b"\x03" + packed.to_bytes(width, "little")
