"""Autoencoders of images: every variant learns what it is named for, from a few shapes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.errors import ParameterError  # noqa: E402
from prefect_augment.genmodels.base import Arrays, Config, FitContext, ImageData, ImageSpec  # noqa: E402
from prefect_augment.genmodels.images.autoencoder import Autoencoder, AutoencoderPhase  # noqa: E402
from prefect_augment.genmodels.images.autoencoder_network import Codec  # noqa: E402
from prefect_augment.genmodels.images.training import ImageRecords  # noqa: E402
from prefect_augment.genmodels.latents import jacobian_norm  # noqa: E402
from prefect_augment.genmodels.tables.autoencoder import TableAutoencoder  # noqa: E402
from prefect_augment.nn.devices import Device  # noqa: E402
from prefect_augment.params import AutoencoderModel  # noqa: E402

SIZE = 8
SPEC = ImageSpec(SIZE, 1, ("across", "down"), (150, 150))
# Settings that end in a second.
VARIANTS: dict[str, AutoencoderModel] = {
    "dense": AutoencoderModel(variant="dense", n_latent=32, learning_rate=0.01),
    "conv": AutoencoderModel(variant="conv", n_latent=8, width=16, learning_rate=0.01),
    "deep": AutoencoderModel(variant="deep", n_latent=8, width=64, learning_rate=0.01),
    "denoising": AutoencoderModel(layers="dense", n_latent=8, width=64, learning_rate=0.01),
    "sparse": AutoencoderModel(
        variant="sparse", layers="dense", n_latent=32, width=64, learning_rate=0.01
    ),
    "sparse-l1": AutoencoderModel(
        variant="sparse", sparse_by="l1", layers="dense", n_latent=32, width=64, learning_rate=0.01
    ),
    "contractive": AutoencoderModel(
        variant="contractive", layers="dense", n_latent=8, width=64, learning_rate=0.01
    ),
}


def bars(n: int = 300, seed: int = 0) -> ImageData:
    """A bright bar somewhere, lying (class 0) or standing (class 1)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n, dtype=np.int64) % 2
    images = np.zeros((n, SIZE, SIZE, 1), dtype=np.uint8)
    for i, place in enumerate(rng.integers(1, SIZE - 2, n)):
        level = rng.integers(180, 255)
        if y[i]:
            images[i, :, place : place + 2] = level
        else:
            images[i, place : place + 2] = level
    return ImageData(images, y)


def fitted(params: AutoencoderModel, steps: int = 150) -> Autoencoder:
    model = Autoencoder.build(params, SPEC)
    model.fit(bars(), FitContext(seed=1, steps=steps, batch_size=64, threads=1))
    return model


@pytest.fixture(scope="module")
def denoising() -> Autoencoder:
    return fitted(VARIANTS["denoising"], steps=300)


def error(images: np.ndarray, others: np.ndarray) -> float:
    return float(np.mean((images / 255.0 - others / 255.0) ** 2))


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_brings_new_images_back_and_draws_its_classes(variant: str) -> None:
    model, new = fitted(VARIANTS[variant], steps=200), bars(seed=1)
    mean = bars().images.mean(axis=0)
    assert error(model.reconstruct(new.images), new.images) < 0.4 * error(mean, new.images)
    Z = model.embed(new.images)
    again = model.decode_latents(Z, new.y)
    assert np.abs(again.astype(int) - model.reconstruct(new.images)).max() <= 1
    drawn = model.sample(np.repeat([0, 1], 60), seeds=np.arange(120))
    # A lying bar is alike along its rows.
    along, across = (drawn.astype(float).std(axis=axis).mean(axis=(1, 2)) for axis in (2, 1))
    assert (along < across)[:60].mean() > 0.7
    assert (along > across)[60:].mean() > 0.7


def test_deep_layers_are_pretrained_and_killed_there_resume_with_the_same_bits() -> None:
    params, steps = AutoencoderModel(variant="deep", n_latent=4, width=32, pretraining=0.6), 30
    kept: list[tuple[Config, Arrays]] = []

    def die(state: tuple[Config, Arrays]) -> None:
        kept.append(state)
        if state[0]["step"] == 9:  # in the second layer of three
            raise KeyboardInterrupt

    def run(**changes: object) -> Autoencoder:
        model = Autoencoder.build(params, SPEC)
        model.fit(bars(), FitContext(seed=1, steps=steps, batch_size=32, threads=1, **changes))  # type: ignore[arg-type]
        return model

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=die, checkpoint_seconds=0.0)
    assert kept[-1][0]["phase"] == "autoencoder-layer-1"
    resumed = run(restored=kept[-1])
    assert resumed.n_steps == whole.n_steps == steps
    for name, values in whole.state()[1].items():
        assert values.tobytes() == resumed.state()[1][name].tobytes(), name


@pytest.mark.slow
def test_layers_learnt_one_by_one_are_a_better_start_than_none() -> None:
    """Thirty steps of all layers together, after each has been a machine of its own, and without that."""

    def left(pretraining: float, steps: int) -> float:
        params = VARIANTS["deep"].model_copy(update={"pretraining": pretraining})
        new = bars(seed=1).images
        return error(fitted(params, steps).reconstruct(new), new)

    assert left(0.9, 300) < 0.9 * left(0.0, 30)


@pytest.mark.slow
def test_noise_goes_and_the_image_stays(denoising: Autoencoder) -> None:
    clean = bars(seed=1).images
    noise = 127 * np.random.default_rng(0).normal(size=clean.shape)
    noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    mended = denoising.denoise(noisy, 0.5)
    assert mended.dtype == np.uint8
    assert error(mended, clean) < 0.4 * error(noisy, clean)


@pytest.mark.slow
def test_a_blot_is_strange_and_the_map_says_where(denoising: Autoencoder) -> None:
    usual = bars(seed=1).images[:100]
    blotted = usual.copy()
    blotted[:, 5:, 5:] = 255 - blotted[:, 5:, 5:]
    scores = denoising.anomaly_scores(blotted)
    assert scores.dtype == np.float64
    assert (scores > np.quantile(denoising.anomaly_scores(usual), 0.95)).mean() > 0.9
    maps = denoising.anomaly_maps(blotted)
    assert maps.shape == (100, SIZE, SIZE)
    assert maps.dtype == np.float32
    inside, outside = maps[:, 5:, 5:].mean(), maps[:, :4, :4].mean()
    assert inside > 3 * outside


@pytest.mark.slow
def test_sparse_units_keep_the_mean_activation_that_is_asked_for() -> None:
    def mean_of(penalty: float, by: str) -> float:
        params = VARIANTS["sparse"].model_copy(update={"penalty": penalty, "sparse_by": by})
        return float(fitted(params).embed(bars().images).mean())

    assert abs(mean_of(0.5, "kl") - 0.1) < 0.5 * abs(mean_of(0.0, "kl") - 0.1)
    assert mean_of(0.2, "l1") < 0.7 * mean_of(0.0, "l1")


@pytest.mark.slow
def test_a_contractive_encoder_is_flatter_for_codes_of_the_same_spread() -> None:
    def slope(penalty: float) -> float:
        model = fitted(VARIANTS["contractive"].model_copy(update={"penalty": penalty}))
        x = torch.from_numpy(bars(seed=1).images.transpose(0, 3, 1, 2) / 255.0).float()
        jacobians = torch.func.vmap(
            torch.func.jacrev(lambda one: model.network.encode(one[None])[0])
        )(x)
        spread = model.network.encode(x).var(dim=0).sum()
        return float((jacobians**2).flatten(1).sum(dim=1).mean() / spread)

    assert slope(10.0) < 0.7 * slope(0.0)


@pytest.mark.slow
@pytest.mark.parametrize("conv", [False, True])
def test_the_contractive_estimate_is_the_exact_norm_of_an_encoder_of_images(conv: bool) -> None:
    torch.manual_seed(0)
    codec = Codec(8, 1, 3, widths=(16,), conv=conv)
    one = torch.rand(1, 1, 8, 8)
    exact = torch.autograd.functional.jacobian(lambda x: codec.encode(x)[0], one).square().sum()
    inputs = one.repeat(4000, 1, 1, 1).requires_grad_(True)
    directions = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))
    estimate = jacobian_norm(codec.encode(inputs), inputs, directions)
    assert estimate.shape == (4000,)
    assert float(estimate.detach().mean()) == pytest.approx(float(exact), rel=0.08)


def phase_of(params: AutoencoderModel) -> AutoencoderPhase:
    model = Autoencoder.build(params, SPEC)
    records = ImageRecords.of(bars(), class_power=1.0, device=Device())
    torch.manual_seed(0)
    return AutoencoderPhase(model.new_network(), records, params, 16)


def test_the_loss_is_the_squared_error_over_the_variance_of_pixels() -> None:
    phase = phase_of(AutoencoderModel(variant="dense", n_latent=8))
    batch = phase.batch("codec", torch.Generator().manual_seed(0))
    x, network = batch[0].numpy() / 255.0, phase.network
    codes = network.activated(network.encode(torch.from_numpy(x).float()))
    back = network.decode(codes).detach().numpy()
    pixels = bars().images / 255.0
    variance = ((pixels - pixels.mean(axis=0)) ** 2).mean()
    assert phase.variance == pytest.approx(variance, rel=1e-6)
    assert float(phase.loss("codec", batch).detach()) == pytest.approx(
        ((back - x) ** 2).mean() / variance, rel=1e-5
    )


def test_the_contractive_loss_adds_the_norm_for_codes_and_pixels_of_variance_one() -> None:
    params = AutoencoderModel(variant="contractive", layers="dense", n_latent=4, penalty=0.7)
    phase = phase_of(params)
    images, noise, directions = phase.batch("codec", torch.Generator().manual_seed(0))
    loss = float(phase.loss("codec", (images, noise, directions)).detach())
    x = images.float() / 255.0
    back = phase.network.decode(phase.network.activated(phase.network.encode(x)))
    norms = []
    for one, direction in zip(x, directions, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: phase.network.encode(v[None])[0], one
        ).flatten(1)
        norms.append(((direction @ jacobian) ** 2).sum())
    spread = phase.network.encode(x).var(dim=0, correction=0).sum()
    penalty = torch.stack(norms).mean() * phase.variance / spread
    expected = ((back - x) ** 2).mean() / phase.variance + 0.7 * penalty
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)


@pytest.mark.slow
def test_draws_between_neighbours_lie_on_the_lines_between_codes_of_the_class() -> None:
    params = VARIANTS["conv"].model_copy(update={"drawn_by": "neighbours"})
    model, data = fitted(params), bars()
    drawn = model.sample(np.repeat([0, 1], 30), seeds=np.arange(60))
    near = [np.abs(one.astype(float) - data.images).mean(axis=(1, 2, 3)).min() for one in drawn]
    assert np.mean(near) < 25
    state = model.state()
    again = Autoencoder.from_state(*state).sample(np.repeat([0, 1], 30), seeds=np.arange(60))
    assert again.tobytes() == drawn.tobytes()


@pytest.mark.parametrize(
    "params",
    [
        AutoencoderModel(variant="conv"),
        AutoencoderModel(layers="conv"),
        AutoencoderModel(variant="sparse", sparse_by="l1"),
    ],
)
def test_what_is_for_images_alone_is_refused_for_tables(params: AutoencoderModel) -> None:
    from prefect_augment.genmodels.base import TableSpec

    spec = TableSpec(("x",), (False,), (0,), ("a",), (9,))
    with pytest.raises(ParameterError, match="images"):
        TableAutoencoder.build(params, spec)


def test_a_width_that_convolutions_cannot_have_is_refused() -> None:
    with pytest.raises(ParameterError, match="multiple of 16"):
        Autoencoder.build(AutoencoderModel(variant="conv", width=20), SPEC)
