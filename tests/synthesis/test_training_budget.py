"""What training will take, as it is said before it starts."""

import logging

import numpy as np
import pytest

from prefect_augment.genmodels.base import FitContext, ImageData, TableData
from prefect_augment.nn.budget import Calibration
from prefect_augment.params import Budget
from prefect_augment.synthesis.training_budget import TRAINING_SHARE, announce, calibrate

TABLE = TableData(np.zeros((5000, 4)), np.zeros(5000, dtype=np.int64))
IMAGES = ImageData(np.zeros((300, 12, 12, 1), dtype=np.uint8), np.zeros(300, dtype=np.int64))


class Slow:
    """Half a second a step; does not go beyond so many."""

    def __init__(self, most_steps: int, fixed_seconds: float = 0.0) -> None:
        self.most_steps = most_steps
        self.fixed_seconds = fixed_seconds

    def calibrate(self, data: TableData, ctx: FitContext) -> Calibration:
        return Calibration(
            steps=ctx.steps,
            most_steps=self.most_steps,
            batch_size=64,
            device="cpu",
            precision="float32",
            threads=1,
            seconds_per_step=0.0 if ctx.steps else 0.5,
            fixed_seconds=0.0 if ctx.steps else self.fixed_seconds,
        )


@pytest.mark.parametrize(
    ("budget", "most", "steps"),
    [
        (Budget(minutes=2), 0, round(120 * TRAINING_SHARE / 0.5)),
        (Budget(minutes=2), 30, 30),
        (Budget(steps=50), 30, 30),
        (Budget(steps=50), 0, 50),
    ],
)
def test_minutes_become_the_steps_that_the_model_will_take(
    budget: Budget, most: int, steps: int
) -> None:
    assert calibrate(Slow(most), TABLE, budget, seed=0).steps == steps


def test_what_training_takes_beside_its_steps_comes_out_of_the_same_minutes() -> None:
    found = calibrate(Slow(0, fixed_seconds=8.0), TABLE, Budget(minutes=2), seed=0)
    assert found.seconds == pytest.approx(120 * TRAINING_SHARE)
    much = calibrate(Slow(0, fixed_seconds=40.0), TABLE, Budget(minutes=2), seed=0)
    assert much.steps * 0.5 == pytest.approx(60 * TRAINING_SHARE), "half is left to the steps"


def test_the_log_says_steps_time_and_memory(caplog: pytest.LogCaptureFixture) -> None:
    budget = Budget(minutes=2)
    found = calibrate(Slow(30), TABLE, budget, seed=0)
    with caplog.at_level(logging.INFO, logger="prefect_augment"):
        announce("vae", TABLE, budget, found)
        announce("trees", TABLE, budget, None)
        announce("gan", IMAGES, Budget(steps=9), calibrate(Slow(0), TABLE, Budget(steps=9), seed=0))
    vae, trees, gan = caplog.messages
    assert "vae on 5,000 records of 4 columns takes at most 30 steps of 64, about 15 s" in vae
    assert "it may take 48 s of the 2 minutes" in vae
    assert "GB of memory" in vae
    assert "trees on 5,000 records of 4 columns takes about 0.1 s" in trees
    assert gan == "Training gan on 300 images of 12 pixels takes at most 9 steps of 64."
