"""The footer of a Parquet file as its bytes say it, each number as it stands.

Arrow reads footers too, but a made-up one ends the whole process when a column's facts are looked at
(an uncaught error in its C++), which no test of the facts can come before. So what is checked of a
file from outside is read here: Thrift's compact protocol, without a schema, bounds first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO, Any

__all__ = ["ColumnChunk", "Footer", "RowGroup", "read_footer"]

MAGIC = b"PAR1"
TAIL_BYTES = 8  # length of the footer, and the magic
MAX_DEPTH = 16
# Compact type numbers.
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


@dataclass(frozen=True)
class ColumnChunk:
    """One column of one row group; sizes and offsets in bytes."""

    path: str
    physical_type: int
    n_values: int
    unpacked_bytes: int
    packed_bytes: int
    first_page: int
    last_page: int  # of the offsets that are given
    has_dictionary: bool


@dataclass(frozen=True)
class RowGroup:
    """One row group."""

    n_rows: int
    columns: tuple[ColumnChunk, ...]


@dataclass(frozen=True)
class Footer:
    """What a footer says."""

    n_rows: int
    groups: tuple[RowGroup, ...]


def read_footer(file: IO[bytes], n_bytes: int, max_bytes: int) -> Footer | None:
    """Return the footer of a file of ``n_bytes``; None where it is larger than ``max_bytes``.

    Raises
    ------
    ValueError
        If it is none.
    """
    file.seek(max(0, n_bytes - TAIL_BYTES))
    tail = file.read(TAIL_BYTES)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length + TAIL_BYTES + len(MAGIC) > n_bytes:
        raise ValueError("no footer at the end")
    if length > max_bytes:
        return None
    file.seek(n_bytes - TAIL_BYTES - length)
    try:
        found = _Compact(file.read(length)).struct(0)
        return Footer(int(found[3]), tuple(_group(group) for group in found.get(4, [])))
    except (KeyError, IndexError, TypeError, AttributeError, struct.error) as exc:
        raise ValueError("a footer that cannot be read") from exc


def _group(fields: dict[int, Any]) -> RowGroup:
    return RowGroup(int(fields[3]), tuple(_column(chunk[3]) for chunk in fields[1]))


def _column(fields: dict[int, Any]) -> ColumnChunk:
    # Writers that have no dictionary leave its offset out, or say 0.
    offsets = [int(fields[9]), *([int(fields[11])] if fields.get(11) else [])]
    return ColumnChunk(
        path=".".join(part.decode("utf-8", "replace") for part in fields[3]),
        physical_type=int(fields[1]),
        n_values=int(fields[5]),
        unpacked_bytes=int(fields[6]),
        packed_bytes=int(fields[7]),
        first_page=min(offsets),
        last_page=max(offsets),
        has_dictionary=len(offsets) > 1,
    )


class _Compact:
    """Thrift's compact protocol: structs become dicts by field number, lists lists, text bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > MAX_DEPTH:
            raise ValueError("a footer nested too deeply")
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self._signed()
            found[number] = (kind == TRUE) if kind in (TRUE, FALSE) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (TRUE, FALSE, BYTE):  # in lists a truth value is a byte
            return self._byte()
        if kind in (I16, I32, I64):
            return self._signed()
        if kind == DOUBLE:
            return struct.unpack("<d", self._take(8))[0]
        if kind == BINARY:
            return self._take(self._unsigned())
        if kind in (LIST, SET):
            return self._list(depth)
        if kind == STRUCT:
            return self.struct(depth + 1)
        raise ValueError(f"a footer with an unknown type {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        n = head >> 4 if head >> 4 < 15 else self._unsigned()
        if n > len(self._data) - self._at:  # every item has a byte at least
            raise ValueError("a footer with a list longer than itself")
        return [self._value(head & 15, depth + 1) for _ in range(n)]

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _take(self, n: int) -> bytes:
        if n > len(self._data) - self._at:
            raise ValueError("a footer that ends in the middle")
        self._at += n
        return self._data[self._at - n : self._at]

    def _unsigned(self) -> int:
        found = shift = 0
        while True:
            byte = self._byte()
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found
            if shift > 63:
                raise ValueError("a footer with a number beyond 64 bits")

    def _signed(self) -> int:
        found = self._unsigned()
        return (found >> 1) ^ -(found & 1)
