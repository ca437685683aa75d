"""Training budget: steps, batch size, device, precision and threads of a run."""

import logging
import math
from typing import Any

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Calibrates, FitContext, ImageData, TableData
from prefect_augment.nn.budget import Calibration, steps_within
from prefect_augment.params import Budget
from prefect_augment.text import duration

logger = logging.getLogger(__name__)

# Share of budget.minutes; the comparison takes at most half, sampling and the filter the rest.
TRAINING_SHARE = 0.4
# Least share of that for the steps, whatever else training takes.
STEPS_SHARE = 0.5

_RECORD_BYTES = 300  # ids and text of a record before encoding
_TREES_VALUE_SECONDS = 6e-6  # per value of the matrix
_TREES_BYTES, _NETWORK_BYTES = 400e6, 450e6  # of a process after the imports
_TREES_COPIES, _NETWORK_COPIES = 10, 12  # of the matrix


def effective_budget(budget: Budget) -> Budget:
    """The part of the budget that changes bytes: steps, or minutes without them, and the batch size."""
    if budget.steps:
        return Budget(steps=budget.steps, batch_size=budget.batch_size)
    return Budget(minutes=budget.minutes, batch_size=budget.batch_size)


def check_budget(model_class: Any, budget: Budget, kind: str | None) -> None:
    """Refuse a budget in minutes where the model cannot measure a step."""
    if model_class.trained_in_steps and budget.steps < 1 and not hasattr(model_class, "calibrate"):
        raise ParameterError(
            f"model {kind!r} is trained in steps, cannot say how long one takes, and budget.steps "
            "is 0, too little for one step; give budget.steps, or choose model kind 'trees'."
        )


def calibrate(
    model: Calibrates,
    data: TableData | ImageData,
    budget: Budget,
    seed: int,
    *,
    share: float = 1.0,  # of the steps after which the model only memorises
) -> Calibration:
    """Steps, batch size, device, precision and threads of a run; measures a step for minutes."""
    calibration = model.calibrate(data, context_of(budget, seed))
    steps = budget.steps
    if not steps:
        whole = budget.minutes * 60 * TRAINING_SHARE
        seconds = max(whole - calibration.fixed_seconds, STEPS_SHARE * whole)
        steps = steps_within(seconds, calibration.seconds_per_step)
    most = math.ceil(share * calibration.most_steps) or steps
    return calibration.model_copy(update={"steps": min(steps, most)})


def announce(
    kind: str, data: TableData | ImageData, budget: Budget, calibration: Calibration | None
) -> None:
    """Log what training will take before it starts."""
    n, parts, seconds = len(data.y), [], 0.0
    if calibration is not None:
        parts.append(f"at most {calibration.steps:,} steps of {calibration.batch_size}")
        seconds = calibration.seconds
    elif isinstance(data, TableData):
        seconds = trees_seconds(*data.X.shape)
    if seconds:
        parts.append(f"about {duration(max(0.1, seconds))}")
    if calibration is not None and not budget.steps:
        whole = budget.minutes * 60 * TRAINING_SHARE
        parts[-1] += f" (it may take {duration(whole)} of the {budget.minutes:g} minutes)"
    if isinstance(data, TableData):
        memory = training_bytes(*data.X.shape, network=calibration is not None)
        parts.append(f"about {memory / 1e9:.1f} GB of memory in all")
        what = f"{n:,} records of {data.X.shape[1]} columns"
    else:
        what = f"{n:,} images of {data.images.shape[1]} pixels"
    logger.info("Training %s on %s takes %s.", kind, what, ", ".join(parts))


def context_of(budget: Budget, seed: int, calibration: Calibration | None = None) -> FitContext:
    """Training context from a calibration, or from the budget where nothing was measured."""
    if calibration is None:
        return FitContext(seed, budget.steps, budget.device, batch_size=budget.batch_size)
    fixed = {"steps", "device", "batch_size", "threads", "precision"}
    return FitContext(seed=seed, **calibration.model_dump(include=fixed))


def training_bytes(n_records: int, n_columns: int, *, network: bool) -> int:
    """Rough peak memory of a process that trains a model of tables, with torch if ``network``."""
    start, copies = (_NETWORK_BYTES, _NETWORK_COPIES) if network else (_TREES_BYTES, _TREES_COPIES)
    return round(start + n_records * (_RECORD_BYTES + 8 * copies * n_columns))


def trees_seconds(n_records: int, n_columns: int) -> float:
    """Rough seconds of fitting trees on one thread."""
    return _TREES_VALUE_SECONDS * n_records * n_columns
