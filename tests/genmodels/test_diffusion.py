"""Flow matching where the answer is known: Gaussians, whose velocity has a closed form."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch import Tensor  # noqa: E402

from prefect_augment.errors import ParameterError  # noqa: E402
from prefect_augment.genmodels.base import FitContext, ImageData, ImageSpec  # noqa: E402
from prefect_augment.genmodels.counter_random import normal, record_keys  # noqa: E402
from prefect_augment.genmodels.diffusion import (  # noqa: E402
    Diffusion,
    _FlowPhase,
    integrate,
    velocity_loss,
)
from prefect_augment.params import DiffusionModel  # noqa: E402
from prefect_augment.training.devices import Device  # noqa: E402
from prefect_augment.training.networks import UNet  # noqa: E402

SPREAD = 0.3
SPEC = ImageSpec(8, 1, ("dark", "bright"), (90, 10))


def gaussian_velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[data - noise | x_t] for data of standard deviation ``SPREAD`` and mean 0."""
    t = t[:, None, None, None]
    return x * (t * SPREAD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * SPREAD**2)


def test_sampler_carries_noise_to_the_gaussian_with_at_least_second_order() -> None:
    """The exact path multiplies the noise by the data's standard deviation."""
    noise = torch.randn(
        64, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    errors = [
        float((integrate(gaussian_velocity, noise, n) - SPREAD * noise).abs().max())
        for n in (40, 80, 160)
    ]
    assert errors[-1] < 0.001
    assert errors[0] / errors[1] > 3.9  # 4 is second order; on these symmetric paths it is 8
    assert errors[1] / errors[2] > 3.9


def test_loss_is_least_at_the_closed_form_and_equals_the_variance_left() -> None:
    rng = torch.Generator().manual_seed(0)
    images = SPREAD * torch.randn(20_000, 1, 2, 2, generator=rng)
    noise = torch.randn(images.shape, generator=rng)
    t = torch.rand(len(images), generator=rng)
    least = float(velocity_loss(gaussian_velocity, images, noise, t))
    left = 1 + SPREAD**2 - (t * SPREAD**2 - (1 - t)) ** 2 / ((1 - t) ** 2 + t**2 * SPREAD**2)
    assert least == pytest.approx(float(left.mean()), rel=0.02)
    for factor in (0.9, 1.1):
        scaled = partial(_scaled_velocity, factor)
        assert float(velocity_loss(scaled, images, noise, t)) > least


def _scaled_velocity(factor: float, x: Tensor, t: Tensor) -> Tensor:
    return factor * gaussian_velocity(x, t)


def test_loss_is_that_of_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    images, noise = rng.normal(size=(2, 3, 1, 2, 2)).astype(np.float32)
    t = np.array([0.0, 0.25, 1.0], dtype=np.float32)
    expected = []
    for i in range(3):
        for p, q in zip(images[i].ravel(), noise[i].ravel(), strict=True):
            x = (1 - t[i]) * q + t[i] * p
            expected.append((np.tanh(x) + t[i] - (p - q)) ** 2)
    ours = velocity_loss(
        lambda x, at: torch.tanh(x) + at[:, None, None, None],
        torch.from_numpy(images), torch.from_numpy(noise), torch.from_numpy(t),
    )  # fmt: skip
    assert float(ours) == pytest.approx(np.mean(expected), rel=1e-5)


def phase(params: DiffusionModel, n_batch: int = 20_000) -> _FlowPhase:
    y = np.repeat([0, 1], [90, 10]).astype(np.int64)
    images = (
        np.where(y == 0, 10, 200).astype(np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    )
    network = UNet(size=8, channels=1, n_classes=2, width=16, n_augment=2)
    return _FlowPhase(network, ImageData(images, y), params, n_batch, Device())


@pytest.mark.parametrize(("power", "rare"), [(1.0, 0.1), (0.5, 0.25), (0.0, 0.5)])
def test_classes_are_drawn_by_a_power_of_their_counts(power: float, rare: float) -> None:
    params = DiffusionModel(class_power=power, label_dropout=0.0)
    images, y, *_ = phase(params).batch("velocity", torch.Generator().manual_seed(0))
    assert float((y == 1).float().mean()) == pytest.approx(rare, abs=0.01)
    assert bool(((images[:, 0, 0, 0] == 200) == (y == 1)).all()), "labels stay with their images"


def test_labels_are_dropped_at_the_rate_asked_for() -> None:
    params = DiffusionModel(label_dropout=0.3)
    _, y, *_ = phase(params).batch("velocity", torch.Generator().manual_seed(0))
    assert float((y == 2).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_moved_images_come_with_their_move_and_others_with_none() -> None:
    one = phase(DiffusionModel(shift_prob=0.5), n_batch=200)
    ramp = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    moved, moves = one._shifted(ramp, torch.Generator().manual_seed(0))
    still = (moves == 0).all(dim=1)
    assert 0.4 < float(still.float().mean()) < 0.8
    assert torch.equal(moved[still], ramp[still])
    right = (moves == torch.tensor([0.0, 1.0])).all(dim=1)
    assert torch.equal(moved[right][..., 1:], ramp[right][..., :-1])
    assert torch.equal(moved[right][..., 0], ramp[right][..., 0]), "the border repeats itself"


def test_noise_of_a_record_is_standard_normal_and_its_own() -> None:
    keys = record_keys(np.arange(2_000))
    drawn = normal(keys, 51)
    assert drawn.shape == (2_000, 51)
    assert drawn.dtype == np.float32
    assert abs(drawn.mean()) < 0.01
    assert drawn.std() == pytest.approx(1.0, abs=0.01)
    assert np.abs(np.corrcoef(drawn[:, :6].T) - np.eye(6)).max() < 0.1
    assert normal(keys[7:8], 10).tobytes() == drawn[7:8, :10].tobytes()


def fitted(params: DiffusionModel) -> Diffusion:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [90, 10]).astype(np.int64)
    base = np.where(y == 0, 60, 190)[:, None, None, None]
    images = np.clip(base + rng.normal(0, 10, (100, 8, 8, 1)), 0, 255).astype(np.uint8)
    model = Diffusion.build(params, SPEC)
    model.fit(ImageData(images, y), FitContext(seed=0, steps=40, batch_size=32, threads=1))
    return model


@pytest.mark.parametrize(("size", "n_threads"), [(8, 1), (28, 6)])
def test_small_steps_are_not_shared_among_threads(
    size: int, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads would wait for one another, and their number would be part of the bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    spec = ImageSpec(size, 1, ("a", "b"), (2, 2))
    model = Diffusion.build(DiffusionModel(width=16 if size == 8 else 48), spec)
    data = ImageData(np.zeros((4, size, size, 1), np.uint8), np.array([0, 0, 1, 1]))
    context = FitContext(seed=0, steps=5, device="cpu")
    assert model.calibrate(data, context).threads == n_threads
    assert model.calibrate(data, replace(context, threads=3)).threads == 3


def test_guidance_moves_away_from_the_unlabelled_velocity() -> None:
    plain = fitted(DiffusionModel(width=16))
    guided = Diffusion.build(DiffusionModel(width=16, guidance=2.0), SPEC)
    guided._network, guided.device = plain._network, plain.device
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 0.3)
    y = torch.tensor([0, 1, 0, 1])
    with torch.inference_mode():
        conditional = plain._velocity(y)(x, t)
        free = plain._velocity(torch.full_like(y, 2))(x, t)
        torch.testing.assert_close(guided._velocity(y)(x, t), free + 2 * (conditional - free))
    assert float((conditional - free).abs().max()) > 1e-3


def test_images_of_another_shape_or_type_are_refused() -> None:
    model = Diffusion.build(DiffusionModel(width=16), SPEC)
    context = FitContext(seed=0, steps=1)
    y = np.zeros(4, dtype=np.int64)
    for images in (np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 1), np.float32)):
        with pytest.raises(ParameterError, match=r"expected uint8 images of shape \(4, 8, 8, 1\)"):
            model.fit(ImageData(images, y), context)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [ImageSpec(4, 1, ("a",), (9,)), ImageSpec(16, 4, ("a",), (9,))])
def test_sizes_and_channels_that_cannot_be_learnt_are_refused(spec: ImageSpec) -> None:
    with pytest.raises(ParameterError, match="8 to 256 px with 1 or 3 channels"):
        Diffusion.build(DiffusionModel(), spec)
