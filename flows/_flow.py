"""The decorator of our flows, which need no Prefect server where none is configured."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import get_call_parameters

from prefect_augment.tasks._display import in_run

__all__ = ["flow", "named_by_source"]

P = ParamSpec("P")
R = TypeVar("R")


class _Flow(Flow[P, R]):
    """A flow that is called as a plain function outside a run, unless Prefect's API is configured."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow; without an API nothing is recorded, and no temporary server has to start."""
        if in_run() or PREFECT_API_URL.value() or {"return_state", "wait_for"} & set(kwargs):
            return super().__call__(*args, **kwargs)
        function: Callable[..., Any] = self.fn
        return function(**self.validate_parameters(get_call_parameters(self.fn, args, kwargs)))


def flow(name: str, run_name: Callable[[], str] | str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Return a decorator that makes a flow of a function; its results are in the destination, not in Prefect."""
    return lambda fn: _Flow(fn, name=name, flow_run_name=run_name, persist_result=False)


def named_by_source() -> str:
    """Return a run's name: the flow and its source."""
    source = flow_run.parameters.get("source") or ""
    uri = source if isinstance(source, str) else dict(source).get("uri")
    return f"{flow_run.flow_name} {uri or 'the example'}"
