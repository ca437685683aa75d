"""The decorator of our flows, which need no Prefect server where none is configured."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from prefect import Flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import get_call_parameters

from prefect_augment.params import Destination, Source
from prefect_augment.sources.in_memory import is_table, stage_table
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
        if is_table(given.get("source")):
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
