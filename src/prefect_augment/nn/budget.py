"""How a model is trained: what it gets besides the records, and minutes converted to steps."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_augment.array_types import Array
from prefect_augment.errors import ParameterError
from prefect_augment.schema import Result

WARM_STEPS = 2
TIMED_STEPS = 5
MAX_SECONDS = 30.0  # of a calibration; a step slower than this is timed once


Config = dict[str, Any]
Arrays = dict[str, Array]
Checkpoint = tuple[Config, Arrays]  # plain JSON and named arrays


@dataclass(frozen=True)
class FitContext:
    """How to train: everything a model gets besides the data."""

    seed: int  # of everything random in training
    steps: int = 0  # models that are not trained in steps ignore it
    device: str = "cpu"  # or cuda, or auto for a GPU if there is one
    # Called with the step and named scalars, for progress and curves.
    report: Callable[[int, Mapping[str, float]], None] = lambda step, scalars: None
    batch_size: int = 0  # records per step; 0 lets the model choose
    threads: int = 0  # of one operation; 0 takes the available cores
    precision: str = ""  # float32 or bfloat16; empty lets the hardware decide
    # Called from time to time with the state that a resume needs.
    checkpoint: Callable[[Checkpoint], None] | None = None
    restored: Checkpoint | None = None  # of an interrupted run with the same seed and steps
    checkpoint_seconds: float = 60.0  # between checkpoints; 0 saves after every step


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


def calibrate(step_fn: Callable[[], object]) -> float:
    """Seconds of one training step, which ``step_fn`` takes and waits for: the median of a few warm ones."""
    start = time.perf_counter()
    for _ in range(WARM_STEPS):
        step_fn()
    times: list[float] = []
    while len(times) < TIMED_STEPS and (not times or time.perf_counter() - start < MAX_SECONDS):
        before = time.perf_counter()
        step_fn()
        times.append(time.perf_counter() - before)
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
