"""Parquet files of a source, read in bounded batches after a check of their footers.

A footer may lie about rows, positions and sizes. True sizes protect no better: repeated text is stored once
and expands a thousandfold (500 bytes can hold 2 GB), so the dictionaries are read and counted.
"""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_augment.errors import InputError
from prefect_augment.params import Source
from prefect_augment.shards.parquet_footer import (
    MAX_FOOTER_BYTES,
    ColumnChunk,
    Footer,
    RowGroup,
    read_footer,
)
from prefect_augment.sources.archives import refuse_bomb, size_of
from prefect_augment.sources.base import (
    BATCH_BYTES,
    SourceRecords,
    numbered,
    refuse_duplicates,
    untrusted,
)

# What a footer says of sizes may be wrong by orders of magnitude: 200 kB can hold one long text many
# thousand times. So many rows are looked at first.
N_PROBED = 32
MAX_ROWS = 65_536
BUFFER_BYTES = 1 << 20


def read_batches(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
    """Yield the records of one Parquet file, with its types and schema metadata.

    Raises InputError if it is damaged, has text that is not UTF-8, or is built to fill the memory; SchemaError for
    duplicate column names.
    """
    with untrusted(name, "Parquet"):
        # With a buffer, a column of a row group is read a piece at a time and not at once.
        reader = pq.ParquetFile(file, buffer_size=BUFFER_BYTES)
        refuse_duplicates(reader.schema_arrow.names, name)
        check_parquet(reader, file, name=name)
        yield from numbered(_tables(reader, name))


def _tables(reader: pq.ParquetFile, name: str) -> Iterator[pa.Table]:
    schema, n_rows = reader.schema_arrow, 0
    if reader.metadata.num_rows == 0:
        yield plain_schema(schema).empty_table()
    for batch in _batches(reader):
        table = pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata)
        table.validate(full=True)
        n_rows += table.num_rows
        yield with_plain_types(table)
    if reader.metadata.num_rows != n_rows:
        raise _lie(name, f"{reader.metadata.num_rows} rows, and {n_rows} are there")


def _batches(reader: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Yield batches of about ``BATCH_BYTES``, row group by row group."""
    for i in range(reader.metadata.num_row_groups):
        group = reader.metadata.row_group(i)
        if group.num_rows == 0:
            continue
        n_bytes = group.total_byte_size / group.num_rows
        if group.num_rows > N_PROBED:
            first = next(reader.iter_batches(batch_size=N_PROBED, row_groups=[i]))
            n_bytes = max(n_bytes, _n_bytes(first) / first.num_rows)
        n_rows = max(1, min(MAX_ROWS, int(BATCH_BYTES / max(n_bytes, 1))))
        yield from reader.iter_batches(batch_size=n_rows, row_groups=[i])


def _n_bytes(batch: pa.RecordBatch) -> int:
    """Return the bytes of the records, dictionaries excluded, as they do not grow with them."""
    columns = (c.indices if pa.types.is_dictionary(c.type) else c for c in batch.columns)
    return sum(c.nbytes for c in columns)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema with plain text and bytes for views, which Parquet lacks and Arrow hardly supports."""
    fields = [field.with_type(_plain_type(field.type)) for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def with_plain_types(table: pa.Table) -> pa.Table:
    """Return the records in their :func:`plain_schema`."""
    schema = plain_schema(table.schema)
    return table if schema == table.schema else table.cast(schema)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _plain_type(kind.value_type), ordered=kind.ordered)
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)


# Bytes of a value of each fixed physical type, by its number in the format.
WIDTHS = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8}
BYTE_ARRAY = 6
# A larger file costs too much to look through twice; what it unpacks to is more, too.
MAX_SCANNED_BYTES = 64 << 20


def check_parquet(reader: pq.ParquetFile, file: IO[bytes], *, name: str) -> None:
    """Raise InputError if the footer cannot be true, or the file unpacks to far more than its size."""
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


def _lie(name: str, what: str) -> InputError:
    return InputError(
        f"{name} cannot be read as Parquet (its footer says {what}); it was damaged or made up. Write it again, or "
        "leave it out of the source.",
        path=name,
    )


def _untruth(column: ColumnChunk, group: RowGroup, *, n_bytes: int, is_flat: bool) -> str:
    """Return what is impossible in a column's footer; empty for nothing."""
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
    """Count the unpacked bytes of text and binary columns, without unpacking them."""
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
    """Return the dictionary arrays of a table, also those inside structs and lists."""
    waiting = [chunk for column in table.columns for chunk in column.chunks]
    dictionaries = []
    while waiting:
        array = waiting.pop()
        if pa.types.is_dictionary(array.type):
            dictionaries.append(array)
        elif pa.types.is_struct(array.type):
            waiting += array.flatten()
        elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            waiting.append(array.flatten())
        elif pa.types.is_map(array.type):
            waiting += [array.keys, array.items]
    return dictionaries


def _unpacked_bytes(array: pa.DictionaryArray) -> int:
    values = array.dictionary
    if not (pa.types.is_string(values.type) or pa.types.is_binary(values.type)):
        return 0
    return int(pc.sum(pc.take(pc.binary_length(values), array.indices)).as_py() or 0)
