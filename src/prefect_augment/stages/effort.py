"""How hard a model is trained: a budget as steps, batch, device, precision and threads."""

from __future__ import annotations

import logging
from typing import Any

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Calibrates, FitContext, ImageData, TableData
from prefect_augment.params import Budget
from prefect_augment.training.budget import Calibration, steps_within

__all__ = [
    "TRAINING_SHARE",
    "calibrate",
    "calibrated_context",
    "check_budget",
    "effort",
    "plain_context",
]

logger = logging.getLogger(__name__)

# Of budget.minutes: judging takes at most half, sampling and the gate the rest.
TRAINING_SHARE = 0.4


def effort(budget: Budget) -> list[Any]:
    """Return what of the budget changes the bytes: steps, or minutes where there are none."""
    if budget.steps:
        return [budget.steps, budget.batch_size]
    return ["minutes", budget.minutes, budget.batch_size]


def check_budget(model_class: Any, budget: Budget, kind: str | None) -> None:
    """Refuse a budget in minutes where the model cannot say how long a step takes."""
    if model_class.trained_in_steps and budget.steps < 1 and not hasattr(model_class, "calibrate"):
        raise ParameterError(
            f"model {kind!r} is trained in steps, cannot say how long one takes, and budget.steps "
            "is 0, too little for one step; give budget.steps, or choose model kind 'trees'."
        )


def calibrate(
    model: Calibrates, data: TableData | ImageData, budget: Budget, seed: int
) -> Calibration:
    """Return steps, batch, device, precision and threads of a run; steps from minutes by a trial."""
    found = model.calibrate(data, plain_context(budget, seed))
    if not budget.steps:
        seconds = budget.minutes * 60 * TRAINING_SHARE
        steps = steps_within(seconds, found.seconds_per_step)
        found = found.model_copy(update={"steps": steps})
        logger.info(
            "Training takes %d steps of %d records (%.3f s each) in %.0f s, %.0f %% of the %g minutes.",
            steps, found.batch_size, found.seconds_per_step, seconds, 100 * TRAINING_SHARE,
            budget.minutes,
        )  # fmt: skip
    return found


def plain_context(budget: Budget, seed: int) -> FitContext:
    """Return how to train as the budget says, nothing measured."""
    return FitContext(
        seed=seed, steps=budget.steps, device=budget.device, batch_size=budget.batch_size
    )


def calibrated_context(calibration: Calibration, seed: int) -> FitContext:
    """Return how to train as the receipt says."""
    return FitContext(
        seed=seed,
        steps=calibration.steps,
        device=calibration.device,
        batch_size=calibration.batch_size,
        threads=calibration.threads,
        precision=calibration.precision,
    )
