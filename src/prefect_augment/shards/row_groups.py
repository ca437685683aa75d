"""Row groups: a few MiB of a shard that are read together, cut by the size of their records."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Int32

# 2 to 4 MB: larger row groups cost 13 times in random access (shared/research/storage.md, section 3).
ROW_GROUP_BYTES = 3 << 20


def rows_per_group(n_records: int, n_bytes: float) -> int:
    """Return the number of records per row group, given their bytes of Arrow data."""
    return max(1, int(ROW_GROUP_BYTES * n_records / max(1, n_bytes)))


def row_groups(table: pa.Table, n_rows: int) -> Iterator[pa.Table]:
    """Yield the table in groups of ``n_rows``; one empty group for an empty table."""
    for start in range(0, max(1, table.num_rows), n_rows):
        yield table.slice(start, n_rows)


def record_bytes(table: pa.Table) -> Int32:
    """Return the approximate bytes of Arrow data per record, independent of chunks."""
    total = np.zeros(table.num_rows, dtype=np.int64)
    for field in table.schema:
        total += _bytes(table[field.name].combine_chunks())
    return np.minimum(total, np.iinfo(np.int32).max).astype(np.int32)


def _bytes(column: pa.Array) -> Any:
    kind, t = column.type, pa.types
    if isinstance(column, pa.ChunkedArray):
        return np.concatenate([_bytes(chunk) for chunk in column.chunks])
    if t.is_struct(kind):
        return sum((_bytes(pc.struct_field(column, [i])) for i in range(kind.num_fields)), 0)
    if t.is_string(kind) or t.is_binary(kind) or t.is_large_string(kind) or t.is_large_binary(kind):
        lengths = pc.binary_length(column).fill_null(0)
        return lengths.to_numpy(zero_copy_only=False).astype(np.int64) + 4
    if t.is_list(kind) or t.is_large_list(kind):
        lengths = pc.list_value_length(column).fill_null(0)
        return lengths.to_numpy(zero_copy_only=False).astype(np.int64) * 8 + 4
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:
        return 16
