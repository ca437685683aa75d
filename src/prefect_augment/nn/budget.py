"""Convert a budget in minutes to steps: calibrated once, and reused by reruns."""

import statistics
import time
from collections.abc import Callable

from prefect_augment.errors import ParameterError
from prefect_augment.schema import Result

WARM_STEPS = 2
TIMED_STEPS = 5
MAX_SECONDS = 30.0  # of a calibration; a step slower than this is timed once


class Calibration(Result):
    """How this machine trains: the receipt that fixes the bytes of a run budgeted in minutes."""

    steps: int
    batch_size: int
    device: str
    precision: str
    threads: int
    seconds_per_step: float  # 0 where the steps were set
    most_steps: int = 0  # the model's own limit; 0: none
    fixed_seconds: float = 0.0  # besides the steps: validation, fitting densities

    @property
    def n_images(self) -> int:
        """Images (or rows) that training will see."""
        return self.steps * self.batch_size

    @property
    def seconds(self) -> float:
        """Expected duration of training; 0 where the steps were set."""
        return self.steps * self.seconds_per_step + self.fixed_seconds


def calibrate(
    step_fn: Callable[[], object], *, timer: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one training step: the median of a few warm ones.

    ``step_fn`` takes one step and waits for it. ``timer`` returns seconds; tests replace it.
    """
    start = timer()
    for _ in range(WARM_STEPS):
        step_fn()
    times: list[float] = []
    while len(times) < TIMED_STEPS and (not times or timer() - start < MAX_SECONDS):
        before = timer()
        step_fn()
        times.append(timer() - before)
    return statistics.median(times)


def steps_within(seconds: float, seconds_per_step: float) -> int:
    """Whole steps that fit into ``seconds``; raises ParameterError if not even one does.

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
