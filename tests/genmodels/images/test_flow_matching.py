"""Flow matching where the answer is known: Gaussians, whose velocity has a closed form."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from torch import Tensor  # noqa: E402

from prefect_augment.errors import ParameterError  # noqa: E402
from prefect_augment.genmodels import counter_rng as counter_random  # noqa: E402
from prefect_augment.genmodels.base import FitContext, ImageData, ImageSpec  # noqa: E402
from prefect_augment.genmodels.counter_rng import normal, record_keys  # noqa: E402
from prefect_augment.genmodels.images.flow_matching import (  # noqa: E402
    Diffusion,
    FlowPhase,
    class_balance_loss,
    denoised,
    integrate,
    velocity_loss,
)
from prefect_augment.genmodels.images.training import N_AUGMENT, ImageRecords, moved, turned  # noqa: E402
from prefect_augment.nn.devices import Device  # noqa: E402
from prefect_augment.nn.networks import UNet  # noqa: E402
from prefect_augment.params import DiffusionModel  # noqa: E402

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


def test_heun_reaches_the_gaussian_too() -> None:
    noise = torch.randn(
        64, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    errors = [
        float((integrate(gaussian_velocity, noise, n, rule="heun") - SPREAD * noise).abs().max())
        for n in (40, 80, 160)
    ]
    assert errors[-1] < 0.01
    assert errors[0] / errors[1] > 3.0


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_the_velocity_is_edm_s_denoiser(sigma: float) -> None:
    """Of a Gaussian the denoiser is the shrunk image: x s² / (s² + sigma²)."""
    x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shrunk = x * SPREAD**2 / (SPREAD**2 + sigma**2)
    torch.testing.assert_close(denoised(gaussian_velocity, x, sigma), shrunk)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_the_loss_is_edm_s_with_the_weight_of_its_preconditioning(sigma: float) -> None:
    rng = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 16, 1, 2, 2, generator=rng, dtype=torch.float64)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) + t[:, None, None, None]

    t = torch.full((16,), 1 / (1 + sigma), dtype=torch.float64)
    error = (denoised(velocity, images + sigma * noise, sigma) - images) ** 2
    weight = ((1 + sigma) / sigma) ** 2
    ours = velocity_loss(velocity, images, noise, t)
    assert float(ours) == pytest.approx(float(weight * error.mean()), rel=1e-9)


def test_the_regulariser_pulls_each_side_to_the_other_and_more_where_noise_covers_more() -> None:
    ours, theirs = torch.zeros(2, 1, 1, 1), torch.full((2, 1, 1, 1), 3.0)
    for side in (ours, theirs):
        side.requires_grad_(True)
    loss = class_balance_loss(ours, theirs, torch.tensor([0.0, 0.75]))
    loss.backward()
    assert loss.item() == pytest.approx((1 + 0.25) * (9 + 0.25 * 9) / 2)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.flatten().tolist() == pytest.approx([-3.0, -0.75])
    assert theirs.grad.flatten().tolist() == pytest.approx([0.75, 0.1875])


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


def phase(params: DiffusionModel, n_batch: int = 20_000) -> FlowPhase:
    y = np.repeat([0, 1], [90, 10]).astype(np.int64)
    images = (
        np.where(y == 0, 10, 200).astype(np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    )
    network = UNet(size=8, channels=1, n_classes=2, width=16, n_augment=N_AUGMENT)
    data = ImageData(images, y)
    records = ImageRecords.of(data, class_power=params.class_power, device=Device())
    return FlowPhase(network, records, params, n_batch)


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


def told(images: Tensor, **shares: float) -> tuple[Tensor, Tensor]:
    plain = {"shift": 0.0, "flip": 0.0, "turn": 0.0}
    return moved(images, **{**plain, **shares}, rng=torch.Generator().manual_seed(0))


def test_moved_images_come_with_their_move_and_others_with_none() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    images, moves = told(ramp, shift=0.5)
    still = (moves == 0).all(dim=1)
    assert 0.4 < float(still.float().mean()) < 0.8
    assert torch.equal(images[still], ramp[still])
    right = (moves[:, :2] == torch.tensor([0.0, 1.0])).all(dim=1)
    assert torch.equal(images[right][..., 1:], ramp[right][..., :-1])
    assert torch.equal(images[right][..., 0], ramp[right][..., 0]), "the border repeats itself"
    images, moves = told(ramp, flip=0.3)
    assert float(moves[:, 2].mean()) == pytest.approx(0.3, abs=0.1)
    assert torch.equal(images[moves[:, 2] == 1], ramp[moves[:, 2] == 1].flip(3))
    assert torch.equal(images[moves[:, 2] == 0], ramp[moves[:, 2] == 0])
    images, moves = told(ramp, turn=0.5)
    are = (moves[:, 3:] != 0).all(dim=1)
    assert 0.4 < float(are.float().mean()) < 0.6
    torch.testing.assert_close(images[~are], ramp[~are].float(), atol=1e-3, rtol=0)
    assert bool((images[are] != ramp[are]).flatten(1).any(dim=1).all())


def test_turning_goes_counter_clockwise_and_scaling_enlarges() -> None:
    dot = torch.zeros(1, 1, 9, 9)
    dot[0, 0, 4, 6] = 1.0  # right of the middle
    up = turned(dot, torch.tensor([np.pi / 2]), torch.tensor([1.0]))
    assert float(up[0, 0, 2, 4]) == pytest.approx(1.0, abs=1e-4)
    far = turned(dot, torch.tensor([0.0]), torch.tensor([2.0]))
    assert int(far[0, 0, 4].argmax()) == 8


def test_noise_of_a_record_is_standard_normal_and_its_own() -> None:
    keys = record_keys(np.arange(2_000))
    drawn = normal(keys, 51)
    assert drawn.shape == (2_000, 51)
    assert drawn.dtype == np.float32
    assert abs(drawn.mean()) < 0.01
    assert drawn.std() == pytest.approx(1.0, abs=0.01)
    assert np.abs(np.corrcoef(drawn[:, :6].T) - np.eye(6)).max() < 0.1
    assert normal(keys[7:8], 10).tobytes() == drawn[7:8, :10].tobytes()


def fitted(params: DiffusionModel, **changes: Any) -> Diffusion:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [90, 10]).astype(np.int64)
    base = np.where(y == 0, 60, 190)[:, None, None, None]
    images = np.clip(base + rng.normal(0, 10, (100, 8, 8, 1)), 0, 255).astype(np.uint8)
    model = Diffusion.build(params, SPEC)
    plain: dict[str, Any] = {"seed": 0, "steps": 40, "batch_size": 32, "threads": 1}
    model.fit(ImageData(images, y), FitContext(**{**plain, **changes}))
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


@pytest.mark.slow
def test_guidance_moves_away_from_the_unlabelled_velocity() -> None:
    plain = fitted(DiffusionModel(width=16))
    guided = Diffusion.build(DiffusionModel(width=16, guidance=2.0), SPEC)
    network, guided.device = plain.network, plain.device
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 0.3)
    y = torch.tensor([0, 1, 0, 1])
    with torch.inference_mode():
        conditional = plain._velocity(network, y, plain.params.guidance)(x, t)
        free = plain._velocity(network, torch.full_like(y, 2))(x, t)
        steered = guided._velocity(network, y, guided.params.guidance)(x, t)
        torch.testing.assert_close(steered, free + 2 * (conditional - free))
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


@pytest.mark.slow
def test_guidance_moves_away_from_an_early_network_that_is_kept() -> None:
    model = fitted(DiffusionModel(width=16, guidance=1.5, guide="early"))
    early, network = model._early, model.network
    assert early is not None
    x, t, y = torch.randn(4, 1, 8, 8), torch.full((4,), 0.3), torch.tensor([0, 1, 0, 1])
    with torch.inference_mode(), model.device.autocast():
        late, soon = network(x, t, y), early(x, t, y)
        torch.testing.assert_close(
            model._velocity(network, y, model.params.guidance)(x, t), soon + 1.5 * (late - soon)
        )
    assert float((late - soon).abs().max()) > 1e-3
    config, arrays = model.state()
    again = Diffusion.from_state(config, arrays)
    asked = np.array([0, 1]), np.array([5, 6])
    drawn = [m.sample(asked[0], seeds=asked[1]) for m in (model, again)]
    assert drawn[0].tobytes() == drawn[1].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("died", [4, 20])
def test_a_resumed_run_has_the_same_early_network(died: int) -> None:
    """The early network is kept after 10 of 40 steps: died before and after it."""
    params = DiffusionModel(width=16, guidance=1.5, guide="early")
    whole = fitted(params)
    kept: list[Any] = []

    def die(state: Any) -> None:
        kept.append(copy.deepcopy(state))
        if state[0]["step"] == died:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(params, checkpoint=die, checkpoint_seconds=0.0)
    resumed = fitted(params, restored=kept[-1])
    ours, theirs = (m.state()[1] for m in (whole, resumed))
    assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}


@pytest.fixture(scope="module")
def trained() -> Diffusion:
    return fitted(DiffusionModel(width=16, learning_rate=0.005), steps=100)


@pytest.mark.slow
def test_denoising_brings_images_nearer(trained: Diffusion) -> None:
    model = trained
    rng = np.random.default_rng(1)
    clean = np.full((20, 8, 8, 1), 60.0)
    noisy = np.clip(clean + rng.normal(0, 0.2 * 255, clean.shape), 0, 255).astype(np.uint8)
    made = model.denoise(noisy, 0.2)
    assert (made.shape, made.dtype) == (noisy.shape, np.uint8)
    assert np.square(made - clean).mean() < 0.5 * np.square(noisy - clean).mean()
    with pytest.raises(ParameterError, match="label_dropout"):
        fitted(DiffusionModel(width=16, label_dropout=0.0), steps=1).denoise(noisy, 0.2)


@pytest.mark.slow
def test_images_are_likeliest_in_their_class(trained: Diffusion) -> None:
    model = trained
    images = np.stack([np.full((8, 8, 1), level, np.uint8) for level in (60, 190, 65, 185)])
    likely = model.class_log_likelihoods(images)
    assert likely.shape == (4, 2)
    assert likely.argmax(axis=1).tolist() == [0, 1, 0, 1]
    alone = model.class_log_likelihoods(images[2:3])
    np.testing.assert_allclose(alone, likely[2:3], rtol=0.02)


def test_the_regulariser_and_moves_are_learnt_with() -> None:
    plain = fitted(DiffusionModel(width=16), steps=3).state()[1]
    for changed in ({"class_balance": 1.0}, {"turn_prob": 0.5}, {"flip_prob": 0.5}):
        other = fitted(DiffusionModel(width=16, **changed), steps=3).state()[1]
        assert any(plain[k].tobytes() != other[k].tobytes() for k in plain), changed


def test_numbers_do_not_depend_on_how_many_are_computed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = counter_random.record_keys(np.arange(7))
    whole = counter_random.normal(keys, 1001, start=3)
    monkeypatch.setattr(counter_random, "BLOCK", 2500)
    np.testing.assert_array_equal(counter_random.normal(keys, 1001, start=3), whole)
