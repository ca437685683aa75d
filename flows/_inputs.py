"""What flows do with their source and destination before anything else.

What can be checked from the parameters alone, in a run's first second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prefect_augment.errors import InputError, ParameterError
from prefect_augment.examples import example_source
from prefect_augment.params import (
    AutoModel,
    Balance,
    Budget,
    Destination,
    ModelParams,
    NoModel,
    Source,
)
from prefect_augment.registry import load_model_class
from prefect_augment.storage.store import contains
from prefect_augment.tasks._limits import check_crashes, destination_lease
from prefect_augment.tasks._runtime import dataset_slug, run_log

__all__ = [
    "as_json",
    "check_parameters",
    "check_seed",
    "default_destination",
    "default_source",
    "running",
]


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


# The fastest fit of the fastest model on a small table takes about this long.
MINIMUM_SECONDS = 0.2
LARGEST_SEED = 2**32 - 1  # numpy's and scikit-learn's


def check_parameters(
    *,
    source: Source,
    destination: Destination,
    budget: Budget,
    model: ModelParams,
    seed: int,
    compared: Balance | None = None,
) -> None:
    """Refuse what cannot work before anything is read.

    Raises
    ------
    ParameterError
        If the model is unknown, the budget is too small for one step of anything, the seed is none, or a balance of
        boxes is to be judged.
    InputError
        If source and destination lie inside one another.
    """
    check_seed(seed)
    if not budget.steps and budget.minutes * 60 < MINIMUM_SECONDS:
        raise ParameterError(
            f"budget.minutes={budget.minutes:g} is {budget.minutes * 60:.2g} seconds, too little for one step of "
            f"any model; give at least {MINIMUM_SECONDS / 60:.2g}, or budget.steps instead."
        )
    if compared is not None and compared.unit == "object":
        raise ParameterError(
            "balance.unit is 'object', and what judges images tells classes of whole images apart, not boxes; balance "
            "boxes with the flow augment, or records with balance.unit 'record'."
        )
    if not isinstance(model, AutoModel | NoModel):  # what auto is depends on the data
        load_model_class(model)
    if source.uri and destination.uri:
        source_root = source.uri.split("*")[0].rstrip("/")
        if contains(source_root, destination.uri) and source_root:
            raise InputError(
                f"destination {destination.uri!r} lies inside the source {source.uri!r}, so the next run would read "
                "its own output; choose a destination outside the source."
            )


def check_seed(seed: int) -> None:
    """Refuse what no library takes for a seed.

    Raises
    ------
    ParameterError
        If it is negative or too large.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ParameterError(f"seed is {seed}; expected a whole number from 0 to {LARGEST_SEED}.")


def as_json(*params: BaseModel) -> dict[str, Any]:
    """Return params as JSON, by the name of their class in lower case; blocks by name, no secrets."""
    return {type(p).__name__.lower(): p.model_dump(mode="json") for p in params}
