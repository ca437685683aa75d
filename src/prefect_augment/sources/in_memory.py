"""Records that a program holds, staged as a file: runs pass references, never rows."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_augment.errors import InputError
from prefect_augment.storage import Store

__all__ = ["is_table", "stage_table"]

FILE = "records.parquet"


def is_table(value: Any) -> bool:
    """Whether ``value`` holds records itself: a pandas, polars or Arrow table, or a ``datasets.Dataset``.

    Examples
    --------
    >>> is_table(pa.table({"x": [1]})), is_table("records.parquet")
    (True, False)
    """
    return hasattr(value, "__arrow_c_stream__") or _is_hugging_face(value)


def stage_table(records: Any, store: Store) -> str:
    """Write records into a folder of their own, over those of an earlier run, and return their URI.

    Raises InputError for records that Arrow cannot hold, e.g. a column of mixed types.
    """
    try:
        table = _as_arrow(records)
    except (pa.ArrowException, TypeError, ValueError) as exc:
        raise InputError(
            f"the records given as {type(records).__name__} cannot be read: {exc}. Expected columns of one type each."
        ) from exc
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.put(FILE, sink.getvalue().to_pybytes())
    return f"{store.uri}/{FILE}"


def _as_arrow(records: Any) -> pa.Table:
    if _is_hugging_face(records):
        return records.with_format("arrow")[:]
    if hasattr(records, "iloc"):  # pandas: with its own metadata, which readers give back
        return pa.Table.from_pandas(records)
    if hasattr(records, "to_arrow"):  # polars: its newest types are not those of Parquet files
        import polars as pl

        return records.to_arrow(compat_level=pl.CompatLevel.oldest())
    return pa.table(records)


def _is_hugging_face(value: Any) -> bool:
    return hasattr(value, "with_format") and hasattr(value, "features")
