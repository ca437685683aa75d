"""Parquet files of a source, read in batches of bounded size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefect_augment.errors import InputError, SchemaError
from prefect_augment.params import Source
from prefect_augment.shards.base import BATCH_BYTES, SourceRecords
from prefect_augment.shards.parquet_check import check_parquet, check_row_count

__all__ = [
    "plain_schema",
    "read_batches",
    "refuse_duplicates",
    "unreadable_as",
    "with_plain_types",
]

# What a footer says of sizes may be wrong by orders of magnitude: 200 kB can hold one long text many
# thousand times. So many rows are looked at first.
N_PROBED = 32
MAX_ROWS = 65_536
BUFFER_BYTES = 1 << 20


def read_batches(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
    """Yield the records of one Parquet file, with its types and schema metadata as they stand.

    Parameters
    ----------
    file : binary file
        Seekable.
    name : str
        The file's path, for messages.
    source : Source
        Not used by this format: a Parquet file says itself how it is to be read.

    Yields
    ------
    SourceRecords
        ``positions`` count rows from 1. A Parquet file is read as a whole or not at all, so nothing
        is rejected row by row.

    Raises
    ------
    InputError
        If the file is not whole, not Parquet, holds text that is not UTF-8, or is made to fill the memory.
    SchemaError
        If two columns have the same name.
    """
    with unreadable_as("Parquet", name):
        # With a buffer, a column of a row group is read a piece at a time and not at once.
        reader = pq.ParquetFile(file, buffer_size=BUFFER_BYTES)
        schema = reader.schema_arrow
        refuse_duplicates(schema.names, name)
        check_parquet(reader, file, name=name)
        if reader.metadata.num_rows == 0:
            yield SourceRecords(plain_schema(schema).empty_table(), np.zeros(0, dtype=np.int64))
        start = 1
        for batch in _batches(reader):
            table = pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata)
            table.validate(full=True)
            table = with_plain_types(table)
            end = start + table.num_rows
            yield SourceRecords(table, np.arange(start, end, dtype=np.int64))
            start = end
        check_row_count(reader, start - 1, name=name)


@contextmanager
def unreadable_as(format_name: str, name: str) -> Iterator[None]:
    """Turn what Arrow raises of a file into an :class:`InputError` that names it; a store's failures stay."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as exc:  # as Arrow has them
        if isinstance(exc, OSError) and exc.errno is not None:
            raise  # the store failed, not the format: Arrow's own errors carry no errno
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise InputError(
            f"{name} cannot be read as {format_name} ({reason}); it may be cut off or of another format. "
            "Write it again, or leave it out of the source.",
            path=name,
        ) from exc


def _batches(reader: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Batches of about the bytes that are wished, row group by row group."""
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
    """Bytes of the records; a dictionary is there once and does not grow with them."""
    columns = (c.indices if pa.types.is_dictionary(c.type) else c for c in batch.columns)
    return sum(c.nbytes for c in columns)


def refuse_duplicates(names: Sequence[str], where: str) -> None:
    """Raise where two columns have the same name: one of them would be lost."""
    repeated = sorted(name for name, n in Counter(names).items() if n > 1)
    if repeated:
        raise SchemaError(
            f"{where} has more than one column named {', '.join(map(repr, repeated))}; "
            "rename or drop all but one of each.",
            columns=repeated,
        )


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema with plain text and bytes for views.

    What other libraries write, Parquet has no form of its own for, and Arrow few functions.
    """
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
