"""Several phases on one network: counted, stopped and resumed as one run."""

import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch import Tensor, nn  # noqa: E402

from prefect_augment.errors import ParameterError  # noqa: E402
from prefect_augment.nn import loop  # noqa: E402
from prefect_augment.nn.budget import Checkpoint, FitContext  # noqa: E402
from prefect_augment.nn.devices import Device  # noqa: E402
from prefect_augment.nn.sequence import Stretch, mean_seconds_per_step, train_in_turn  # noqa: E402


class Layer(loop.Phase):
    """Fits one of two weights to a noisy number, and leaves the other alone."""

    ema_fraction = 0.05

    def __init__(self, network: nn.Module, place: int, target: float) -> None:
        self.name = f"layer-{place}"
        self.network, self.place, self.target = network, place, target

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        assert isinstance(self.network, nn.ParameterList)
        return {"all": torch.optim.Adam([self.network[self.place]], lr=0.1)}

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        return (self.target + 0.1 * torch.randn(8, generator=rng),)

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        assert isinstance(self.network, nn.ParameterList)
        return ((self.network[self.place] - batch[0]) ** 2).mean()


def stretches(steps: tuple[int, int] = (60, 40), done: list[float] | None = None) -> list[Stretch]:
    network = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in range(2)])

    def then() -> None:
        if done is not None:
            done.append(float(network[0].detach()))

    return [
        Stretch(Layer(network, 0, 1.0), steps[0], then),
        Stretch(Layer(network, 1, -2.0), steps[1]),
    ]


def weights(network: nn.Module) -> list[float]:
    return [float(p.detach()) for p in network.parameters()]


def test_each_stretch_trains_its_part_and_goes_on_from_the_one_before() -> None:
    done: list[float] = []
    heard: list[int] = []
    network, steps = train_in_turn(
        stretches(done=done), FitContext(1, report=lambda step, scalars: heard.append(step)),
        Device(),
    )  # fmt: skip
    assert steps == heard[-1] == 100
    assert heard == sorted(heard)
    assert done == [pytest.approx(1.0, abs=0.2)]
    assert weights(network)[0] == done[0], "the averaged weights, and then left alone"
    assert weights(network)[1] == pytest.approx(-2.0, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 30, 59, 61, 80])
def test_a_run_stopped_in_any_stretch_resumes_with_the_same_bits(stop: int) -> None:
    whole, _ = train_in_turn(stretches(), FitContext(1), Device())
    kept: list[Checkpoint] = []

    def keep(state: Checkpoint) -> None:
        kept.append(state)
        if state[0]["step"] == stop:
            raise KeyboardInterrupt

    ctx = FitContext(1, checkpoint=keep, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        train_in_turn(stretches(), ctx, Device())
    ctx = FitContext(1, restored=kept[-1])
    resumed, steps = train_in_turn(stretches(), ctx, Device())
    assert (steps, weights(resumed)) == (100, weights(whole))


def test_a_checkpoint_of_another_run_is_refused() -> None:
    kept: list[Checkpoint] = []
    ctx = FitContext(1, checkpoint=kept.append, checkpoint_seconds=0.0)
    train_in_turn(stretches(), ctx, Device())
    with pytest.raises(ParameterError, match="in a run of 100 steps"):
        train_in_turn(stretches((60, 50)), FitContext(1, restored=kept[0]), Device())


def test_the_mean_step_counts_stretches_by_their_steps() -> None:
    assert mean_seconds_per_step(stretches(), seed=1, device=Device()) > 0
