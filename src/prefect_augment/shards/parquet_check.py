"""Whether a Parquet file from outside is what its footer says, before its records fill the memory.

A footer may lie: about rows, about where columns lie, about sizes. Sizes that are true protect no
better, because text that repeats is stored once and comes out a thousand times: a file of 500 bytes
can hold 2 GB. So its dictionaries are read, which are as small as the file, and counted.
"""

from __future__ import annotations

from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_augment.errors import InputError
from prefect_augment.shards.packed import refuse_bomb, size_of
from prefect_augment.shards.parquet_footer import (
    MAX_FOOTER_BYTES,
    ColumnChunk,
    Footer,
    RowGroup,
    read_footer,
)

__all__ = ["check_parquet", "check_row_count"]

# Bytes of a value of each fixed physical type, by its number in the format.
WIDTHS = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8}
BYTE_ARRAY = 6
# A larger file costs too much to look through twice; what it unpacks to is more, too.
MAX_SCANNED_BYTES = 64 << 20


def check_parquet(reader: pq.ParquetFile, file: IO[bytes], *, name: str) -> None:
    """Refuse a file whose footer cannot be true, or that unpacks to far more than its size.

    Parameters
    ----------
    reader : pyarrow.parquet.ParquetFile
        The file, open.
    file : binary file
        The same, seekable; read once more where columns have dictionaries.
    name : str
        Its path, for messages.

    Raises
    ------
    InputError
        Which of both it is.
    """
    n_bytes = size_of(file)
    try:
        footer = read_footer(file, n_bytes, MAX_FOOTER_BYTES)
    except ValueError as exc:
        raise _lie(name, f"nothing that can be true: {exc}") from exc
    if footer is None:
        return
    n_rows = sum(group.n_rows for group in footer.groups)
    if footer.n_rows != n_rows:
        raise _lie(name, f"{footer.n_rows} rows in all and {n_rows} in its row groups")
    is_flat = [
        reader.schema.column(j).max_repetition_level == 0 for j in range(len(reader.schema.names))
    ]
    n_unpacked = 0
    for i, group in enumerate(footer.groups):
        if group.n_rows < 0 or len(group.columns) != len(is_flat):
            raise _lie(name, f"{len(group.columns)} columns in row group {i} of {len(is_flat)}")
        for column, flat in zip(group.columns, is_flat, strict=True):
            what = _untruth(column, group, n_bytes=n_bytes, is_flat=flat)
            if what:
                raise _lie(name, f"{what} in column {column.path!r} of row group {i}")
            width = WIDTHS.get(column.physical_type, 0)
            n_unpacked += max(column.unpacked_bytes, width * column.n_values)
        refuse_bomb(name, n_bytes, n_unpacked)
    if n_bytes <= MAX_SCANNED_BYTES:
        _scan_dictionaries(file, footer, name=name, n_bytes=n_bytes, n_unpacked=n_unpacked)


def check_row_count(reader: pq.ParquetFile, n_rows: int, *, name: str) -> None:
    """Refuse a file that had fewer rows than its footer says; to be called when all are read.

    Raises
    ------
    InputError
        If the counts differ.
    """
    if reader.metadata.num_rows != n_rows:
        raise _lie(name, f"{reader.metadata.num_rows} rows, and {n_rows} are there")


def _lie(name: str, what: str) -> InputError:
    return InputError(
        f"{name} cannot be read as Parquet (its footer says {what}); it was damaged or made up. Write it again, or "
        "leave it out of the source.",
        path=name,
    )


def _untruth(column: ColumnChunk, group: RowGroup, *, n_bytes: int, is_flat: bool) -> str:
    """Return what cannot be true of a column; empty where all can."""
    if column.n_values < 0 or (is_flat and column.n_values != group.n_rows):
        return f"{column.n_values} values for {group.n_rows} rows"
    if column.n_values == 0:
        return ""  # without a page there is no place
    end = column.first_page + column.packed_bytes
    if column.first_page < 4 or column.packed_bytes < 0 or max(end, column.last_page) > n_bytes:
        return f"pages at bytes {column.first_page} to {end} of {n_bytes}"
    return ""


def _scan_dictionaries(
    file: IO[bytes], footer: Footer, *, name: str, n_bytes: int, n_unpacked: int
) -> None:
    """Count what text and binary columns unpack to, without unpacking them."""
    leaves = {
        column.path
        for group in footer.groups
        for column in group.columns
        if column.physical_type == BYTE_ARRAY and column.has_dictionary
    }
    if not leaves:
        return
    reader = pq.ParquetFile(file, read_dictionary=sorted(leaves))
    for i in range(len(footer.groups)):
        for leaf in sorted(leaves):
            # A thread of Arrow that lets go of a Python file while the interpreter ends aborts the process.
            table = reader.read_row_group(i, columns=[leaf], use_threads=False)
            for array in _dictionaries(table):
                n_unpacked += _unpacked_bytes(array)
                refuse_bomb(name, n_bytes, n_unpacked)


def _dictionaries(table: pa.Table) -> list[pa.DictionaryArray]:
    """The dictionary arrays in a table, also those inside structs and lists."""
    waiting = [chunk for column in table.columns for chunk in column.chunks]
    found = []
    while waiting:
        array = waiting.pop()
        if pa.types.is_dictionary(array.type):
            found.append(array)
        elif pa.types.is_struct(array.type):
            waiting += array.flatten()
        elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            waiting.append(array.flatten())
        elif pa.types.is_map(array.type):
            waiting += [array.keys, array.items]
    return found


def _unpacked_bytes(array: pa.DictionaryArray) -> int:
    values = array.dictionary
    if not (pa.types.is_string(values.type) or pa.types.is_binary(values.type)):
        return 0
    return int(pc.sum(pc.take(pc.binary_length(values), array.indices)).as_py() or 0)
