"""Minutes into steps, once: a short calibration whose outcome is kept and obeyed by reruns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from prefect_augment.errors import ParameterError
from prefect_augment.schema.base import Result

__all__ = ["Calibration", "calibrate", "steps_within"]

WARM_STEPS = 2
TIMED_STEPS = 5
MAX_SECONDS = 30.0  # of a calibration; a step slower than this is timed once


class Calibration(Result):
    """How training was set on this machine: the receipt that fixes the bytes of a run by minutes."""

    steps: int
    batch_size: int
    device: str
    precision: str
    threads: int
    seconds_per_step: float  # 0 where steps were given
    most_steps: int = 0  # beyond which the model does not go by itself; 0: as far as it is told
    fixed_seconds: float = 0.0  # that training takes beside its steps: judging, fitting densities

    @property
    def n_images(self) -> int:
        """Images (or rows) that training will see."""
        return self.steps * self.batch_size

    @property
    def seconds(self) -> float:
        """How long training should take; 0 where steps were given."""
        return self.steps * self.seconds_per_step + self.fixed_seconds


def calibrate(
    step_fn: Callable[[], object], *, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of one training step: the median of a few warm ones.

    Parameters
    ----------
    step_fn : callable
        Takes one step and waits until it is done. What it trains is thrown away.
    clock : callable
        Seconds, for tests.
    """
    start = clock()
    for _ in range(WARM_STEPS):
        step_fn()
    times: list[float] = []
    while len(times) < TIMED_STEPS and (not times or clock() - start < MAX_SECONDS):
        before = clock()
        step_fn()
        times.append(clock() - before)
    return statistics.median(times)


def steps_within(seconds: float, seconds_per_step: float) -> int:
    """Return the whole steps that fit.

    Raises
    ------
    ParameterError
        If not even one does.

    Examples
    --------
    >>> steps_within(60.0, 0.25)
    240
    """
    steps = int(seconds / seconds_per_step)
    if steps < 1:
        raise ParameterError(
            f"one training step takes {seconds_per_step:.2f} s here and training may take "
            f"{seconds:.2f} s, too little for one step; raise budget.minutes, or give budget.steps."
        )
    return steps
