"""The footer and page headers of a Parquet file, parsed from their bytes (Thrift compact protocol).

Arrow aborts the process on a forged footer when a column's metadata are read (an uncaught C++ error), so no
check through Arrow can come first. Only the needed fields are built; skipping the others halves the time.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

MAGIC = b"PAR1"
TAIL_BYTES = 8  # length of the footer, and the magic
MAX_FOOTER_BYTES = 4 << 20  # a larger one costs too much to be read twice
MAX_DEPTH = 16
# Compact type numbers.
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
BOOLEANS, INTEGERS = frozenset((TRUE, FALSE)), frozenset((I16, I32, I64))
WIDTHS = {TRUE: 1, FALSE: 1, BYTE: 1, DOUBLE: 8}  # in lists a truth value is a byte

# Fields to read, by their numbers in the format: None for a plain field, a mapping for a struct or each struct of
# a list, (index, mapping) for one item of a list.
Wanted = Mapping[int, Any]
_COLUMN: Wanted = dict.fromkeys((1, 3, 4, 5, 6, 7, 9, 11))
_PAGE: Wanted = {2: None, 3: None, 5: dict.fromkeys((1, 2, 3))}


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
    """Return the footer of a file of ``n_bytes``; None if it is larger than ``max_bytes``.

    With ``column``, only this one of each group, in a third of the time. Raises ValueError for no footer.
    """
    file.seek(max(0, n_bytes - TAIL_BYTES))
    tail = file.read(TAIL_BYTES)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length + TAIL_BYTES + len(MAGIC) > n_bytes:
        raise ValueError("no footer at the end")
    if length > max_bytes:
        return None
    file.seek(n_bytes - TAIL_BYTES - length)
    chunk = {3: _COLUMN}
    group = {1: chunk if column is None else (column, chunk), 3: None}
    try:
        fields = _ThriftReader(file.read(length)).struct({3: None, 4: group})
        return Footer(int(fields[3]), tuple(_group(group) for group in fields.get(4, [])))
    except (KeyError, IndexError, TypeError, AttributeError, struct.error) as exc:
        raise ValueError("a footer that cannot be read") from exc


def read_page_header(data: bytes) -> PageHeader:
    """Return the header that these bytes begin with; raises ValueError for none, or another kind of page."""
    reader = _ThriftReader(data)
    try:
        fields = reader.struct(_PAGE)
        numbers = (fields[2], fields[3], *(fields[5][i] for i in (1, 2, 3)))
        return PageHeader(reader.at, *map(int, numbers))
    except (KeyError, IndexError, TypeError, AttributeError, struct.error) as exc:
        raise ValueError("a page's header that cannot be read") from exc


def _group(fields: dict[int, Any]) -> RowGroup:
    return RowGroup(int(fields[3]), tuple(_column(chunk[3]) for chunk in fields[1]))


def _column(fields: dict[int, Any]) -> ColumnChunk:
    # Writers that have no dictionary leave its offset out, or say 0.
    offsets = [int(fields[9]), *([int(fields[11])] if fields.get(11) else [])]
    return ColumnChunk(
        path=".".join(part.decode("utf-8", "replace") for part in fields[3]),
        physical_type=int(fields[1]),
        codec=int(fields[4]),
        n_values=int(fields[5]),
        unpacked_bytes=int(fields[6]),
        packed_bytes=int(fields[7]),
        first_page=min(offsets),
        last_page=max(offsets),
        has_dictionary=len(offsets) > 1,
    )


class _ThriftReader:
    """Thrift's compact protocol: structs become dicts by field number, lists lists, text bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, wanted: Wanted) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self._signed()
            if number in wanted:
                fields[number] = self._value(kind, wanted[number])
            elif kind not in BOOLEANS:
                self.at = _end(self._data, self.at, kind)
        return fields

    def _value(self, kind: int, wanted: Any) -> Any:
        if kind in INTEGERS:
            return self._signed()
        if kind == BINARY and not wanted:
            return self._take(self._unsigned())
        if kind in (LIST, SET):
            return self._list(wanted)
        if kind == STRUCT and wanted:
            return self.struct(wanted)
        raise ValueError(f"a footer with a field of another type ({kind})")

    def _list(self, wanted: Any) -> list[Any]:
        kind, n, self.at = _list_head(self._data, self.at)
        if kind in (LIST, SET):
            raise ValueError("a footer with a list of lists, which no field of it is")
        if not isinstance(wanted, tuple):
            return [self._value(kind, wanted) for _ in range(n)]
        values = []
        for i in range(n):
            if i == wanted[0]:
                values.append(self._value(kind, wanted[1]))
            else:
                self.at = _end(self._data, self.at, kind)
        return values

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _take(self, n: int) -> bytes:
        if n > len(self._data) - self.at:
            raise ValueError("a footer that ends in the middle")
        self.at += n
        return self._data[self.at - n : self.at]

    def _unsigned(self) -> int:
        number, self.at = _number(self._data, self.at)
        return number

    def _signed(self) -> int:
        number = self._unsigned()
        return (number >> 1) ^ -(number & 1)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return the variable-length number at this position, and its end."""
    byte = data[at]
    number, shift = byte & 127, 7
    while byte > 127:
        if shift > 63:
            raise ValueError("a footer with a number beyond 64 bits")
        at += 1
        byte = data[at]
        number |= (byte & 127) << shift
        shift += 7
    return number, at + 1


def _list_head(data: bytes, at: int) -> tuple[int, int, int]:
    """Return the type of a list's values, their number, and the position of the first."""
    head = data[at]
    n, at = (head >> 4, at + 1) if head < 240 else _number(data, at + 1)
    if n > len(data) - at:  # every item has a byte at least
        raise ValueError("a footer with a list longer than itself")
    return head & 15, n, at


def _end(data: bytes, at: int, kind: int, depth: int = 0) -> int:
    """Return the end of a field of this type; faster than reading, as nothing is built."""
    if kind in INTEGERS:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind in WIDTHS:
        return at + WIDTHS[kind]
    if kind == BINARY:
        n, at = _number(data, at)
        return at + n
    if depth > MAX_DEPTH:
        raise ValueError("a footer nested too deeply")
    if kind in (LIST, SET):
        kind, n, at = _list_head(data, at)
        for _ in range(n):
            at = _end(data, at, kind, depth + 1)
        return at
    if kind != STRUCT:
        raise ValueError(f"a footer with an unknown type {kind}")
    while head := data[at]:
        at += 1
        if head < 16:  # the field's number, where it is not near the one before
            _, at = _number(data, at)
        kind = head & 15
        if kind in INTEGERS:  # nearly all are of these three
            while data[at] > 127:
                at += 1
            at += 1
        elif kind == BINARY and data[at] < 128:
            at += 1 + data[at]
        elif kind not in BOOLEANS:
            at = _end(data, at, kind, depth + 1)
    return at + 1
