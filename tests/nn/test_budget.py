"""Minutes into steps, with a clock of our own."""

import time
from collections.abc import Iterator

import pytest

from prefect_augment.errors import ParameterError
from prefect_augment.nn.budget import MAX_SECONDS, Calibration, calibrate, steps_within


class Schedule:
    """Stands still but for the steps, which take the seconds given and then the last of them."""

    def __init__(self, *seconds: float) -> None:
        self.now = 0.0
        self.n_steps = 0
        self._seconds: Iterator[float] = iter(seconds)
        self._last = seconds[-1]

    def step(self) -> None:
        self._last = next(self._seconds, self._last)
        self.now += self._last
        self.n_steps += 1

    def __call__(self) -> float:
        return self.now


def test_a_step_is_the_median_of_warm_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Schedule(9.0, 5.0, 0.5, 0.5, 3.0, 0.5, 0.5)
    monkeypatch.setattr(time, "perf_counter", clock)
    assert calibrate(clock.step) == 0.5


def test_slow_steps_are_timed_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Schedule(MAX_SECONDS)
    monkeypatch.setattr(time, "perf_counter", clock)
    assert calibrate(clock.step) == MAX_SECONDS
    assert clock.n_steps == 3


def test_only_whole_steps_that_fit_are_taken() -> None:
    assert steps_within(60.0, 0.25) == 240
    assert steps_within(1.0, 0.9) == 1


def test_a_budget_without_room_for_one_step_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"0.90 s here.*too little for one step"):
        steps_within(0.5, 0.9)


def test_a_calibration_survives_storage() -> None:
    found = Calibration(
        steps=10, batch_size=4, device="cpu", precision="float32", threads=2, seconds_per_step=0.5
    )
    assert Calibration.model_validate_json(found.to_json()) == found
    assert (found.n_images, found.seconds) == (40, 5.0)
