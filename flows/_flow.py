"""The decorator of our flows, which need no Prefect server where none is configured."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import Flow
from prefect.logging.loggers import disable_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import get_call_parameters

from prefect_augment.encoding.frames import Layout, kind_of
from prefect_augment.errors import ParameterError
from prefect_augment.params import Destination, Source
from prefect_augment.storage import Store
from prefect_augment.tasks._display import in_run, listening
from prefect_augment.tasks._runtime import open_block_store
from prefect_augment.text import suggestion

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
        known = signature(self.fn).parameters
        for name in kwargs.keys() - known.keys():  # Prefect's message has every default in full
            raise TypeError(f"{self.name} has no parameter {name!r}: {suggestion(name, known)}.")
        given = get_call_parameters(self.fn, args, kwargs)
        source = given.get("source")
        if hasattr(source, "__array_interface__"):
            raise ParameterError(
                "source is a numpy array, whose columns have no names; give a pandas, polars or Arrow table, a "
                "datasets.Dataset, or a path or URL."
            )
        # Records themselves: a pandas, polars or Arrow table, or a ``datasets.Dataset``.
        if any(hasattr(source, name) for name in ("iloc", "__arrow_c_stream__", "with_format")):
            given |= _staged(source, given["destination"])
        if in_run() or PREFECT_API_URL.value() or options:
            return super().__call__(**given, **options)
        function: Callable[..., Any] = self.fn
        # The exception says what is wrong: Prefect's log line beside it has pages of parameters.
        with disable_logger("prefect.flows"):
            given = self.validate_parameters(given)
        with _notebook_bar():
            return function(**given)


@contextmanager
def _notebook_bar() -> Iterator[None]:
    """Show the run's progress below the cell that started it; nothing outside a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        yield
        return
    page = import_module("IPython.display")
    below = page.display(page.HTML("starting"), display_id=True)

    def show(done: float, text: str) -> None:
        below.update(page.HTML(f"<progress value={done:.3f}></progress> {escape(text)}"))

    with listening(show):
        yield


def _staged(records: Any, destination: Any) -> dict[str, Any]:
    """Write records beside the destination, where tasks and later runs find them; return both."""
    to = Destination.model_validate(destination)
    if not to.uri:
        to = to.model_copy(update={"uri": str(Path.home() / "prefect-augment" / "table")})
    store = open_block_store(f"{to.uri.rstrip('/')}-source", to.storage_block)
    source = Source(uri=stage_table(records, store), storage_block=to.storage_block)
    return {"source": source, "destination": to}


def flow(name: str, run_name: Callable[[], str] | str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Return a decorator that makes a flow of a function; its results are in the destination, not in Prefect."""
    return lambda fn: _Flow(fn, name=name, flow_run_name=run_name, persist_result=False)


def named_by_source() -> str:
    """Return a run's name: the flow and its source."""
    source = flow_run.parameters.get("source") or ""
    uri = source if isinstance(source, str) else dict(source).get("uri")
    return f"{flow_run.flow_name} {uri or 'the example'}"


def stage_table(records: Any, store: Store) -> str:
    """Write records into a folder of their own, over those of an earlier run, and return their URI.

    Raises SchemaError for records that Arrow cannot hold: a column of mixed types, two columns of one name.
    """
    if hasattr(records, "with_format"):  # datasets.Dataset
        records = records.with_format("arrow")[:]
    elif kind_of(records) == "numpy":  # whatever else gives an Arrow stream
        records = pa.table(records)
    file = io.BytesIO()
    pq.write_table(Layout.of(records).to_arrow(records), file)
    store.put(RECORDS, file.getvalue())
    return f"{store.uri}/{RECORDS}"
