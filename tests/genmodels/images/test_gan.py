"""The game of generator and critic against brute force, moves that do not leak, and a planted collapse."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch import Tensor, nn  # noqa: E402

from prefect_augment.genmodels.base import FitContext, ImageData, ImageSpec  # noqa: E402
from prefect_augment.genmodels.images import gan as gan_module  # noqa: E402
from prefect_augment.genmodels.images.gan import (  # noqa: E402
    GanPhase,
    GanValidation,
    ImageGan,
    class_gaps,
    compared_rows,
    relativistic_loss,
    slope_penalty,
)
from prefect_augment.genmodels.images.training import ImageRecords, critic_moves, seen_by_critic  # noqa: E402
from prefect_augment.nn.devices import Device  # noqa: E402
from prefect_augment.params import GanModel  # noqa: E402

SPEC = ImageSpec(8, 1, ("dark", "bright"), (30, 10))


def images() -> ImageData:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], SPEC.class_counts).astype(np.int64)
    base = np.where(y == 0, 60, 190)[:, None, None, None]
    return ImageData(np.clip(base + rng.normal(0, 20, (40, 8, 8, 1)), 0, 255).astype(np.uint8), y)


def phase(batch_size: int = 8, **changes: Any) -> GanPhase:
    model = ImageGan.build(GanModel(width=8, n_latent=4, **changes), SPEC)
    records = ImageRecords.of(images(), class_power=0.5, device=Device())
    torch.manual_seed(0)
    return GanPhase(model.new_network(), records, model.params, batch_size)


def test_the_loss_is_that_of_a_loop_over_pairs() -> None:
    real, made = np.array([0.5, -1.0, 3.0]), np.array([1.5, -1.0, -40.0])
    expected = np.mean([np.log1p(np.exp(m - r)) for r, m in zip(real, made, strict=True)])
    ours = relativistic_loss(torch.from_numpy(real), torch.from_numpy(made))
    assert float(ours) == pytest.approx(expected)


def test_slopes_are_those_of_small_differences() -> None:
    critic = phase().network.critic.double()
    for block in (*critic.first, *critic.second):
        nn.init.normal_(block.conv2.weight, std=0.1)  # they start at zero, and would not count
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1])
    numbers, slopes = slope_penalty(lambda at: critic(at, y).double(), x)
    step, by_hand = 1e-3, np.zeros(2)
    with torch.no_grad():
        for pixel in range(64):
            move = torch.zeros(64, dtype=torch.float64)
            move[pixel] = step
            above, below = (critic(x + s * move.reshape(1, 1, 8, 8), y) for s in (1, -1))
            by_hand += ((above - below).double().numpy() / (2 * step)) ** 2
        np.testing.assert_allclose(numbers.numpy(), critic(x, y).double().numpy())
    # The critic's numbers are float32: differences of them have three digits.
    np.testing.assert_allclose(slopes.detach().numpy(), by_hand, rtol=0.05)


def test_the_penalty_moves_the_critic_as_a_loop_over_records_would() -> None:
    """R1 + R2 with half the weight each, on the first of four records; the pairs over all."""
    one = phase()
    batch = one.batch("critic-0", torch.Generator().manual_seed(3))
    real, y, z, real_moves, made_moves = batch
    critic, generator = one.network.critic, one.network.generator
    one.penalty = 2.0

    def gradients(loss: Tensor) -> list[Tensor]:
        parameters = list(critic.parameters())
        return list(torch.autograd.grad(loss, parameters, allow_unused=False))

    ours = gradients(one.loss("critic-0", batch))
    x = seen_by_critic(real.float() / 127.5 - 1, real_moves)
    made = seen_by_critic(generator(z, y), made_moves).detach()
    total = relativistic_loss(critic(x, y), critic(made, y))
    for side in (x, made):
        for i in range(2):
            at = side[i : i + 1].clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(critic(at, y[i : i + 1]).sum(), at, create_graph=True)
            total = total + 2.0 / 2 * slope.square().sum() / 2
    for mine, theirs in zip(ours, gradients(total), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_generator_s_step_leaves_the_critic_without_gradients() -> None:
    one = phase()
    one.loss("generator", one.batch("generator", torch.Generator().manual_seed(3))).backward()
    assert all(p.grad is None for p in one.network.critic.parameters())
    assert any(p.grad is not None for p in one.network.generator.parameters())
    assert all(p.requires_grad for p in one.network.critic.parameters())


def test_moves_before_the_critic_leave_images_alone_at_the_rate_asked_for() -> None:
    x = torch.rand(4_000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rng, cpu = torch.Generator().manual_seed(1), torch.device("cpu")
    never = seen_by_critic(x, critic_moves(len(x), 0.0, rng, cpu))
    torch.testing.assert_close(never, x, atol=1e-6, rtol=0)
    some = seen_by_critic(x, critic_moves(len(x), 0.3, rng, cpu))
    alone = ((some - x).abs() < 1e-6).flatten(1).all(dim=1).float().mean()
    # Four kinds, each left out with 0.7; moves by less than half a pixel are none either.
    assert 0.7**4 < float(alone) < 0.7**4 + 0.12


def test_a_gradient_passes_through_every_move() -> None:
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    moves = critic_moves(50, 0.8, torch.Generator().manual_seed(1), torch.device("cpu"))
    seen_by_critic(x, moves).sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_the_distance_is_nothing_between_equals_and_the_spread_tells_sameness() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 400, 3, generator=rng)
    distance, spread = class_gaps(a, b)
    assert abs(distance) < 0.03
    assert spread == pytest.approx(1.0, abs=0.05)
    assert class_gaps(a, b + 1)[0] > 0.3
    assert class_gaps(a, 0.1 * b)[1] == pytest.approx(0.1, abs=0.01)


def test_classes_of_few_records_are_not_scored() -> None:
    rows = compared_rows(np.repeat([0, 1, 2], [100, 7, 8]))
    assert {k: len(v) for k, v in rows.items()} == {0: 64, 2: 8}


class Collapsing(GanValidation):
    """What is drawn becomes one image a class from the third judgement on."""

    n_compared = 0

    def gaps(self, network: nn.Module) -> dict[int, tuple[float, float]]:
        Collapsing.n_compared += 1
        if Collapsing.n_compared < 3:
            return super().gaps(network)
        # As it happens: the generator no longer looks at its vector.
        with torch.no_grad():
            start = network.get_submodule("generator").start
            start.weight[:, : start.in_features // 2] = 0.0
        return super().gaps(network)


def test_a_planted_collapse_ends_training_with_the_best_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Collapsing.n_compared = 0
    monkeypatch.setattr(gan_module, "GanValidation", Collapsing)
    model = ImageGan.build(GanModel(width=8, n_latent=4), SPEC)
    model.fit(images(), FitContext(seed=0, steps=32, batch_size=8, threads=1))
    assert "all the same in 2 of 2 classes at step 6" in model.stopped
    assert model.n_steps == 6
    drawn = model.sample(np.zeros(20, np.int64), seeds=np.arange(20))
    assert len({image.tobytes() for image in drawn}) == 20, "the generator of before is back"
    config, arrays = model.state()
    assert ImageGan.from_state(config, arrays).stopped == model.stopped


@pytest.mark.slow
def test_healthy_training_is_not_stopped() -> None:
    model = ImageGan.build(GanModel(width=8, n_latent=4), SPEC)
    model.fit(images(), FitContext(seed=0, steps=16, batch_size=8, threads=1))
    assert (model.stopped, model.n_steps) == ("", 16)


def test_of_very_many_classes_some_of_all_sizes_are_scored() -> None:
    counts = np.concatenate([[600], np.full(500, 9), np.full(499, 40), [5]])
    rows = compared_rows(np.repeat(np.arange(1001), counts))
    assert sum(map(len, rows.values())) <= 1024
    assert {0, 500} <= set(rows)
    assert any(counts[k] == 9 for k in rows)
    assert 1000 not in rows
