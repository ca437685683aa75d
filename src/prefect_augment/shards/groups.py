"""Groups of records: what is read together of a shard, a few MiB."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

__all__ = ["ROW_GROUP_BYTES", "row_groups", "rows_per_group"]

# 2 to 4 MB: larger row groups cost 13 times in random access (shared/research/storage.md, section 3).
ROW_GROUP_BYTES = 3 << 20


def rows_per_group(n_records: int, n_bytes: float) -> int:
    """Return how many records of so many bytes of Arrow data a row group holds."""
    return max(1, int(ROW_GROUP_BYTES * n_records / max(1, n_bytes)))


def row_groups(table: pa.Table, n_rows: int) -> Iterator[pa.Table]:
    """Yield the table in groups of so many rows, the last one smaller; of no row where it has none."""
    for start in range(0, max(1, table.num_rows), n_rows):
        yield table.slice(start, n_rows)
