"""What can be checked from the parameters alone, in a run's first second."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from prefect_augment.errors import InputError, ParameterError
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
from prefect_augment.storage import contains

__all__ = ["as_json", "check_parameters", "check_seed"]

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
    judged: Balance | None = None,
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
    if judged is not None and judged.unit == "object":
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
    """Return wishes as JSON, by the name of their class in lower case; blocks by name, no secrets."""
    return {type(p).__name__.lower(): p.model_dump(mode="json") for p in params}
