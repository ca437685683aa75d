"""EarlyStopped training: ends when it should, gives back the best, and draws what an unwatched run draws."""

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch import Tensor, nn  # noqa: E402

from prefect_augment.errors import ParameterError  # noqa: E402
from prefect_augment.nn import loop  # noqa: E402
from prefect_augment.nn.budget import Checkpoint, FitContext  # noqa: E402
from prefect_augment.nn.devices import Device  # noqa: E402
from prefect_augment.nn.early_stopping import (  # noqa: E402
    N_STRETCHES,
    PATIENCE,
    EarlyStopped,
    Validation,
    train_with_early_stopping,
)

STEPS = 10 * N_STRETCHES


class Pair(nn.Module):
    """Two parts of one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.left.weight)
        nn.init.zeros_(self.right.weight)


class Rising(loop.Phase):
    """Both numbers rise a little with every step."""

    name = "rising"

    def __init__(self) -> None:
        self.network: nn.Module = Pair()

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"sum": torch.optim.SGD(self.network.parameters(), lr=0.01)}

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.rand(4, 1, generator=rng),)

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        parts = [p for p in ("left", "right") if p not in self.frozen]
        return -torch.stack([self.network.get_submodule(p)(batch[0]).mean() for p in parts]).sum()

    def lr_factor(self, step: int, n_steps: int) -> float:
        return 1.0


def value(network: nn.Module, part: str) -> float:
    weight = network.get_submodule(part).weight
    assert isinstance(weight, Tensor)
    return float(weight.detach())


def scripted(left: list[float], right: list[float], memorised_at: int = 99) -> Iterator[Validation]:
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        yield Validation({"left": a, "right": b}, memorised=i == memorised_at)


def watched(judgements: Iterator[Validation] | None, phase: Rising | None = None) -> EarlyStopped:
    def judge(network: nn.Module) -> Validation:
        assert judgements is not None
        return next(judgements)

    return train_with_early_stopping(
        phase or Rising(), FitContext(0, STEPS), Device(),
        validate=judge if judgements is not None else None,
    )  # fmt: skip


def falling(n: int = N_STRETCHES) -> list[float]:
    return [1.0 - i / 20 for i in range(n)]


def test_each_part_comes_back_as_it_scored_best() -> None:
    left = [5.0, 4.0, 3.0, 4.0, 3.5] + [9.0] * (N_STRETCHES - 5)
    found = watched(scripted(left, falling()))
    assert found.best == {"left": 30, "right": STEPS}
    assert (found.steps, found.reason) == (STEPS, "")
    assert value(found.network, "left") < value(found.network, "right") / 3


def test_a_part_that_no_longer_gets_better_rests_and_the_other_goes_on() -> None:
    phase = Rising()
    watched(scripted([1.0] * N_STRETCHES, falling()), phase)
    assert phase.frozen == {"left"}
    # Best at the first stretch, then as many without a gain.
    assert value(phase.network, "left") < value(phase.network, "right") / 2


def test_training_ends_where_no_part_gets_better() -> None:
    found = watched(scripted([2.0, 1.0] + [1.0] * 14, [1.0] * 16))
    assert found.steps == 10 * (2 + PATIENCE)
    assert found.reason == "no part got better after step 20"
    assert found.best == {"left": 20, "right": 10}


def test_a_network_that_gives_records_back_is_not_taken() -> None:
    found = watched(scripted(falling(), falling(), memorised_at=4))
    assert found.steps == 50
    assert found.best == {"left": 40, "right": 40}
    assert "by heart" in found.reason


def test_where_the_first_gives_records_back_it_is_taken_and_said() -> None:
    found = watched(scripted(falling(), falling(), memorised_at=0))
    assert (found.steps, found.best) == (10, {"left": 10, "right": 10})
    assert "already" in found.reason


def test_without_a_judge_the_steps_are_those_of_the_plain_loop() -> None:
    phase = Rising()
    loop.train(phase, FitContext(0, STEPS), Device())
    found = watched(None)
    compared = watched(scripted(falling(), falling()))
    for network in (found.network, compared.network):
        assert value(network, "left") == value(phase.network, "left")
    assert found.best == {}


def test_a_checkpoint_of_an_unwatched_run_is_refused() -> None:
    kept: list[Checkpoint] = []
    loop.train(Rising(), FitContext(0, STEPS, checkpoint=kept.append), Device(), stop_after=7)
    with pytest.raises(ParameterError, match="without early stopping"):
        train_with_early_stopping(
            Rising(), FitContext(0, STEPS, restored=kept[-1]), Device(), validate=None
        )


@pytest.mark.parametrize("step", [5, 10, 45, 50])
def test_a_resumed_run_judges_and_rests_as_the_uninterrupted_did(step: int) -> None:
    """The judgement is a function of the network, as it has to be."""

    def judge(network: nn.Module) -> Validation:
        left, right = value(network, "left"), value(network, "right")
        return Validation({"left": (left - 0.15) ** 2, "right": -right})

    kept: list[Checkpoint] = []

    def keep(state: Checkpoint) -> None:
        kept.append(state)
        if state[0]["step"] == step:
            raise KeyboardInterrupt

    def run(**changes: object) -> EarlyStopped:
        ctx = FitContext(0, STEPS, **changes)  # type: ignore[arg-type]
        return train_with_early_stopping(Rising(), ctx, Device(), validate=judge)

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=keep, checkpoint_seconds=0.0)
    resumed = run(restored=kept[-1])
    assert resumed.best == whole.best
    assert whole.best["left"] < STEPS == whole.best["right"]
    for part in ("left", "right"):
        assert np.float32(value(resumed.network, part)) == np.float32(value(whole.network, part))
