"""What flows do with their source and destination before anything else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prefect_augment.params import Destination, Source
from prefect_augment.stages.example import example_source
from prefect_augment.tasks._limits import check_crashes, destination_lease
from prefect_augment.tasks._runtime import dataset_slug, run_log

__all__ = ["default_destination", "default_source", "running"]


def default_destination(
    destination: Destination, source: Source, *, suffix: str = "balanced"
) -> Destination:
    """Return the destination, or a folder in the home folder: a worker's own folder is temporary."""
    if destination.uri:
        return destination
    name = dataset_slug(source.uri) if source.uri else "example"
    return Destination(uri=str(Path.home() / "prefect-augment" / f"{name}-{suffix}"))


def default_source(source: Source, destination: Destination) -> Source:
    """Return the source, or the built-in example beside the destination."""
    return source if source.uri else example_source(f"{destination.uri}-example", seed=0)


@contextmanager
def running(destination: Destination, *, publishes: bool = True) -> Iterator[None]:
    """Show our log lines in the run, start no run for ever, and hold the destination.

    Parameters
    ----------
    destination : Destination
        With its URI.
    publishes : bool
        False for a run that only looks or stages; it waits for nobody.
    """
    with run_log(), ExitStack() as stack:
        check_crashes()
        if publishes:
            stack.enter_context(destination_lease(destination.uri))
        yield
