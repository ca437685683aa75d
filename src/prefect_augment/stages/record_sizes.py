"""How large records are, so that shards can be cut to size without having them in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["record_bytes"]


def record_bytes(table: pa.Table) -> NDArray[np.int32]:
    """Return about how many bytes of Arrow data each record is, however the table is chunked."""
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
