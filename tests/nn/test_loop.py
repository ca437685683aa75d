"""The training loop on a problem with a known answer: a straight line."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch import Tensor, nn  # noqa: E402

from prefect_augment.errors import DivergedError, ParameterError  # noqa: E402
from prefect_augment.nn import loop  # noqa: E402
from prefect_augment.nn.budget import Checkpoint, FitContext  # noqa: E402
from prefect_augment.nn.devices import Device  # noqa: E402
from prefect_augment.nn.loop import step_generator, warmup_cosine  # noqa: E402

CPU = Device("cpu", "float32", 1)


def train(
    phase: Any, *, ema_fraction: float = 0.0, stop_after: int = 0, device: Device = CPU, **ctx: Any
) -> nn.Module:
    phase.ema_fraction = ema_fraction
    network, steps = loop.train(phase, FitContext(**ctx), device, stop_after=stop_after)
    assert steps == (stop_after or ctx["steps"])
    return network


class LinePhase(loop.Phase):
    """y = 3 x - 1 from noisy points; fails on more than ``room`` records at once, where given."""

    name = "line"

    def __init__(self, *, room: int = 0, broken_at: float = 0.0, losses: int = 1) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Linear(1, 1)
        self.room = room
        self.broken_at = broken_at
        self.n_losses = losses
        self.sizes: list[int] = []
        self.rates: list[float] = []

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            f"loss-{i}": torch.optim.Adam(self.network.parameters(), lr=0.05)
            for i in range(self.n_losses)
        }

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        x = torch.randn(32, 1, generator=rng)
        return x, 3 * x - 1 + 0.1 * torch.randn(32, 1, generator=rng)

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        if self.room and len(x) > self.room:
            raise torch.cuda.OutOfMemoryError("no room")
        self.sizes.append(len(x))
        return ((self.network(x) - y) ** 2).mean() / (1.0 - self.broken_at)

    def lr_factor(self, step: int, n_steps: int) -> float:
        self.rates.append(warmup_cosine(step, n_steps))
        return self.rates[-1]


def weights(network: nn.Module) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in network.parameters())


def test_the_answer_is_found_and_the_loss_falls() -> None:
    phase = LinePhase()
    network = train(phase, steps=300, seed=1)
    assert network is phase.network
    assert network.weight.item() == pytest.approx(3.0, abs=0.05)
    assert network.bias.item() == pytest.approx(-1.0, abs=0.05)


def test_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    runs = [train(LinePhase(), steps=20, seed=seed) for seed in (1, 1, 2)]
    assert weights(runs[0]) == weights(runs[1]) != weights(runs[2])


@pytest.mark.parametrize("losses", [1, 2])
def test_stopped_and_resumed_gives_the_bits_of_the_uninterrupted_run(losses: int) -> None:
    whole = train(LinePhase(losses=losses), steps=20, seed=1, ema_fraction=0.1)
    kept: list[Checkpoint] = []
    first = LinePhase(losses=losses)
    train(first, steps=20, seed=1, ema_fraction=0.1, stop_after=10, checkpoint=kept.append)
    second = LinePhase(losses=losses)
    with torch.no_grad():
        second.network.weight.fill_(99.0)  # what is restored must not depend on the start
    resumed = train(second, steps=20, seed=1, ema_fraction=0.1, restored=copy.deepcopy(kept[-1]))
    assert weights(resumed) == weights(whole)


def test_checkpoints_are_plain_json_and_arrays_and_do_not_change_the_run() -> None:
    kept: list[Checkpoint] = []
    saved = train(LinePhase(), steps=5, seed=1, checkpoint=kept.append, checkpoint_seconds=0.0)
    assert [config["step"] for config, _ in kept] == [1, 2, 3, 4, 5]
    assert all(isinstance(a, np.ndarray) for _, arrays in kept for a in arrays.values())
    assert kept[0][1]["network.weight"] != kept[1][1]["network.weight"], "a copy, not a view"
    assert weights(saved) == weights(train(LinePhase(), steps=5, seed=1))


def test_checkpoint_of_another_run_is_refused() -> None:
    kept: list[Checkpoint] = []
    train(LinePhase(), steps=20, seed=1, stop_after=5, checkpoint=kept.append)
    for changes in ({"seed": 2, "steps": 20}, {"seed": 1, "steps": 30}):
        with pytest.raises(ParameterError, match="another run|the checkpoint is of"):
            train(LinePhase(), restored=kept[-1], **changes)  # type: ignore[arg-type]


def test_averaged_weights_are_returned_and_lag_behind() -> None:
    phase = LinePhase()
    result = train(phase, steps=50, seed=1, ema_fraction=0.2)
    assert result is not phase.network
    assert weights(result) != weights(phase.network)
    assert abs(result.weight.item()) < abs(phase.network.weight.item())


def test_diverged_loss_stops_with_the_step_and_what_to_do() -> None:
    class Broken(LinePhase):
        def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
            return super().loss(loss_name, batch) * float("nan")

    with pytest.raises(DivergedError, match="at step 1 of 20.*learning rate") as caught:
        train(Broken(), steps=20, seed=1)
    assert caught.value.values["step"] == 1


def test_curves_are_means_of_each_loss_over_windows_that_a_resume_keeps() -> None:
    def curve(**changes: Any) -> list[tuple[int, float]]:
        heard: list[tuple[int, float]] = []

        def hear(step: int, scalars: Mapping[str, float]) -> None:
            heard.extend((step, v) for name, v in scalars.items() if name.startswith("curve."))

        train(LinePhase(), steps=250, seed=1, report=hear, **changes)
        return heard

    whole = curve()
    assert len(whole) == 100
    assert whole[-1][0] == 250
    assert whole[-1][1] < whole[0][1]
    kept: list[Any] = []
    first = curve(stop_after=31, checkpoint=kept.append)  # in the middle of a window
    assert first + curve(restored=kept[-1]) == whole


def test_without_room_the_batch_is_halved_and_the_gradient_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = train(LinePhase(), steps=10, seed=1)
    narrow = LinePhase(room=10)
    with caplog.at_level(logging.WARNING):
        halved = train(narrow, steps=10, seed=1)
    assert set(narrow.sizes) == {8}
    assert "memory ran out with 32 records at once" in caplog.text
    for ours, theirs in zip(halved.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_single_record_without_room_is_an_error() -> None:
    class Nowhere(LinePhase):
        def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
            raise torch.cuda.OutOfMemoryError("no room")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        train(Nowhere(), steps=1, seed=1)


def test_progress_ends_with_the_last_step_and_names_loss_speed_and_time_left() -> None:
    heard: list[tuple[int, Mapping[str, float]]] = []
    train(LinePhase(), steps=7, seed=1, report=lambda s, x: heard.append((s, x)))
    step, scalars = heard[-1]
    assert step == 7
    assert scalars["seconds_left"] == 0.0
    assert scalars["records_per_second"] > 0
    assert 0 < scalars["loss"] < 100


def test_learning_rate_warms_up_and_ends_near_nothing() -> None:
    phase = LinePhase()
    train(phase, steps=100, seed=1)
    peak = int(np.argmax(phase.rates))
    assert 4 <= peak <= 6
    assert phase.rates == sorted(phase.rates[: peak + 1]) + sorted(phase.rates[peak + 1 :])[::-1]
    assert phase.rates[-1] < 0.02


def test_each_step_and_phase_has_numbers_of_its_own() -> None:
    def first(seed: int, name: str, step: int) -> float:
        return float(torch.rand(1, generator=step_generator(seed, name, step, torch.device("cpu"))))

    drawn = [first(*key) for key in ((1, "a", 0), (1, "a", 1), (1, "b", 0), (2, "a", 0))]
    assert len(set(drawn)) == 4
    assert drawn[0] == first(1, "a", 0)


def test_the_caller_s_threads_and_random_numbers_are_left_alone() -> None:
    before = torch.get_num_threads(), torch.get_rng_state()
    train(LinePhase(), steps=3, seed=1, device=Device("cpu", "float32", before[0] + 1))
    assert torch.get_num_threads() == before[0]
    assert bool((torch.get_rng_state() == before[1]).all())


def test_no_step_is_refused() -> None:
    with pytest.raises(ParameterError, match="at least 1 step"):
        train(LinePhase(), steps=0, seed=1)
