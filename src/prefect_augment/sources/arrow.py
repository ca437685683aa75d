"""Arrow IPC as a source: files and streams, Feather of both versions, what `datasets` keeps on disk.

Nothing is guessed. Every value is validated before use, as Arrow follows offsets without a check.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import IO, Any

import pyarrow as pa
import pyarrow.feather as feather

from prefect_augment.errors import SchemaError
from prefect_augment.params import Source
from prefect_augment.shards.base import row_groups
from prefect_augment.shards.parquet import is_writable
from prefect_augment.sources.archives import refuse_bomb, size_of
from prefect_augment.sources.base import SourceRecords, numbered, refuse_duplicates, untrusted
from prefect_augment.sources.parquet import plain_schema, with_plain_types

BYTES_AT_ONCE = 8 << 20
FILE_MAGIC = b"ARROW1"
FEATHER_1_MAGIC = b"FEA1"


def read_batches(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
    """Yield the records of one Arrow file or stream in small batches, with its types and schema metadata.

    Raises InputError if it is damaged or unpacks to far more than its size, SchemaError for duplicate columns or types
    that Parquet cannot hold.
    """
    n_bytes = size_of(file)
    with untrusted(name, "Arrow IPC or Feather"):
        yield from numbered(_parts(_tables(file, name), lambda n: refuse_bomb(name, n_bytes, n)))


def read_table(reader: pa.RecordBatchReader, *, name: str) -> Iterator[SourceRecords]:
    """Yield the records of a table that is no file, as :func:`read_batches` does those of one."""
    empty = _checked(reader.schema.empty_table(), name)
    tables = (pa.Table.from_batches([batch]) for batch in reader)
    yield from numbered(_parts(chain((empty,), tables), lambda n: None))


def _parts(tables: Iterable[pa.Table], check_unpacked: Callable[[int], None]) -> Iterator[pa.Table]:
    """Yield tables, which are validated, in pieces of bounded size."""
    n_unpacked = 0
    for table in tables:
        table.validate(full=True)
        n_unpacked += _n_bytes(table)
        check_unpacked(n_unpacked)
        table = with_plain_types(table)
        n_rows = math.ceil(table.num_rows * BYTES_AT_ONCE / max(1, _n_bytes(table)))
        yield from row_groups(table, max(1, n_rows))


def _n_bytes(table: pa.Table) -> int:
    """Return the bytes of the records, with those of their positions: nulls alone take none themselves."""
    return int(max(table.nbytes, 8 * table.num_rows))


def _tables(file: IO[bytes], name: str) -> Iterator[pa.Table]:
    """Yield the schema's empty table, then each batch."""
    magic = file.read(len(FILE_MAGIC))
    file.seek(0)
    if magic.startswith(FEATHER_1_MAGIC):
        with warnings.catch_warnings():
            # Arrow will drop it one day; until then whoever has such files can bring them along.
            warnings.simplefilter("ignore", DeprecationWarning)
            table = feather.read_table(io.BytesIO(file.read()))
        yield _checked(table, name)
        return
    if magic == FILE_MAGIC:
        reader: Any = pa.ipc.open_file(file)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        reader = batches = pa.ipc.open_stream(file)
    yield _checked(reader.schema.empty_table(), name)
    for batch in batches:
        yield pa.Table.from_batches([batch])


def _checked(table: pa.Table, name: str) -> pa.Table:
    """Refuse duplicate columns and types that cannot be published."""
    refuse_duplicates(table.column_names, name)
    for field in plain_schema(table.schema):
        if not is_writable(field.type):
            raise SchemaError(
                f"column {field.name!r} of {name} is of type {field.type}, which Parquet cannot hold; convert it.",
                path=name,
                column=field.name,
            )
    return table
