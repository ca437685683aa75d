"""Images of a mapped or in-memory Parquet file as views of their bytes, without a copy.

A page written by :func:`~prefect_augment.shards.parquet.write_parquet` is its definition levels (null or not), then
4 bytes of length and the value per image. Arrow's copy costs as much as the rest of an epoch. Any other
layout, or inconsistent sizes, gives None: Arrow then reads the column, or reports the fault.
"""

import struct
from collections.abc import Iterator
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_augment.shards.parquet_footer import (
    MAX_FOOTER_BYTES,
    ColumnChunk,
    read_footer,
    read_page_header,
)

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
        """Return the images of a group as views of the file's bytes.

        None if one is null, the column is compressed, has a dictionary or another page version, a page or image
        exceeds its bounds, or there are not ``n_rows``.
        """
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
