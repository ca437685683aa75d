"""The decorator of our flows, which need no Prefect server where none is configured."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import Flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import get_call_parameters

from prefect_augment.errors import InputError
from prefect_augment.params import Destination, Source
from prefect_augment.storage import Store
from prefect_augment.tasks._display import in_run
from prefect_augment.tasks._runtime import open_block_store

__all__ = ["DestinationLike", "SourceLike", "flow", "named_by_source"]

if TYPE_CHECKING:
    # Python also takes a location, and for a source a table in memory; both are params once the flow runs.
    DestinationLike: TypeAlias = Any
    SourceLike: TypeAlias = Any
else:
    DestinationLike = Destination
    SourceLike = Source

RECORDS = "records.parquet"  # of a table in memory

P = ParamSpec("P")
R = TypeVar("R")


class _Flow(Flow[P, R]):
    """A flow that is called as a plain function outside a run, unless Prefect's API is configured.

    Its source may be a table in memory, which is staged beside the destination.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow; without an API nothing is recorded, and no temporary server has to start."""
        options = {
            name: kwargs.pop(name) for name in ("return_state", "wait_for") if name in kwargs
        }
        given = get_call_parameters(self.fn, args, kwargs)
        if _is_table(given.get("source")):
            given["source"] = _staged(given["source"], given["destination"])
        if in_run() or PREFECT_API_URL.value() or options:
            return super().__call__(**given, **options)
        function: Callable[..., Any] = self.fn
        return function(**self.validate_parameters(given))


def _staged(records: Any, destination: Any) -> Source:
    """Write records beside the destination, where tasks and later runs find them."""
    to = Destination.model_validate(destination)
    uri = to.uri or str(Path.home() / "prefect-augment" / "table")
    store = open_block_store(f"{uri.rstrip('/')}-source", to.storage_block)
    return Source(uri=stage_table(records, store))


def flow(name: str, run_name: Callable[[], str] | str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Return a decorator that makes a flow of a function; its results are in the destination, not in Prefect."""
    return lambda fn: _Flow(fn, name=name, flow_run_name=run_name, persist_result=False)


def named_by_source() -> str:
    """Return a run's name: the flow and its source."""
    source = flow_run.parameters.get("source") or ""
    uri = source if isinstance(source, str) else dict(source).get("uri")
    return f"{flow_run.flow_name} {uri or 'the example'}"


# --- tables in memory ---------------------------------------------------------------------------


def _is_table(value: Any) -> bool:
    """Whether ``value`` holds records itself: a pandas, polars or Arrow table, or a ``datasets.Dataset``."""
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
    store.put(RECORDS, sink.getvalue().to_pybytes())
    return f"{store.uri}/{RECORDS}"


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
