"""What every registered model of images promises, whatever its algorithm."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from support.latent_models import encoding
from support.model_contract import CONDITIONS, ModelContract, as_bytes, seeds

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.errors import AugmentError  # noqa: E402
from prefect_augment.genmodels.base import (  # noqa: E402
    Arrays,
    Config,
    FitContext,
    GenerativeModel,
    ImageData,
    ImageSpec,
)
from prefect_augment.params import AutoencoderModel, Budget, DiffusionModel, GanModel, VaeModel  # noqa: E402
from prefect_augment.registry import load_model_class, model_kinds  # noqa: E402

# A new model adds its params with an effort that ends within a second or two.
SMALL: dict[str, tuple[Any, Budget]] = {
    "diffusion": (
        DiffusionModel(width=16, sampler_steps=3, learning_rate=0.005),
        Budget(steps=60, batch_size=32),
    ),
    "autoencoder": (
        AutoencoderModel(layers="dense", n_latent=16, width=64, learning_rate=0.01),
        Budget(steps=60, batch_size=32),
    ),
    "vae": (VaeModel(n_latent=4, width=16, learning_rate=0.005), Budget(steps=120, batch_size=32)),
    "gan": (GanModel(width=16, n_latent=8, learning_rate=0.005), Budget(steps=60, batch_size=32)),
}

SPEC = ImageSpec(size=12, channels=1, classes=("dark", "gray", "bright"), class_counts=(80, 40, 8))
LEVELS = (50, 125, 200)


def records(spec: ImageSpec = SPEC) -> ImageData:
    """Plain squares whose brightness follows the class, with a little noise."""
    rng = np.random.default_rng(5)
    y = np.repeat(np.arange(spec.n_classes), spec.class_counts).astype(np.int64)
    levels = np.array(LEVELS)[y][:, None, None, None]
    noise = rng.normal(0, 8, (len(y), *spec.shape))
    return ImageData(np.clip(levels + noise, 0, 255).astype(np.uint8), y)


def context(kind: str, **changes: Any) -> FitContext:
    budget = SMALL[kind][1]
    plain = {"seed": 1, "steps": budget.steps, "batch_size": budget.batch_size, "threads": 1}
    return FitContext(**{**plain, **changes})


def fitted(kind: str, spec: ImageSpec = SPEC, **changes: Any) -> GenerativeModel:
    model: GenerativeModel = load_model_class(kind, modality="image").build(SMALL[kind][0], spec)
    model.fit(records(spec), context(kind, **changes))
    return model


@pytest.fixture(scope="module", params=model_kinds("image"))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str) -> GenerativeModel:
    return fitted(kind)


def test_every_registered_image_model_is_under_contract() -> None:
    assert set(model_kinds("image")) == set(SMALL)


class TestImages(ModelContract):
    modality, spec, small = "image", SPEC, SMALL
    X, y = records().images, records().y
    foreign = np.zeros((2, 9, 9, 1), dtype=np.uint8), "uint8 images"

    def fitted(self, kind: str) -> GenerativeModel:
        return fitted(kind)

    def fit_nothing(self, kind: str) -> None:
        fitted(kind, ImageSpec(12, 1, ("a",), (0,)))

    def test_an_unfitted_model_has_no_state(self, kind: str) -> None:
        with pytest.raises(AugmentError, match="fitted"):
            self.unfitted(kind).state()


@pytest.mark.slow
def test_one_image_per_condition_in_their_order(model: GenerativeModel) -> None:
    images = model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    assert images.shape == (len(CONDITIONS), *SPEC.shape)
    assert images.dtype == np.uint8
    means = [images[k == CONDITIONS].mean() for k in range(3)]
    assert means == sorted(means)
    assert means[2] - means[0] > 40  # 150 apart in the records: the label steers the image


@pytest.mark.slow
def test_same_seed_same_image_and_other_seeds_other_images(model: GenerativeModel) -> None:
    once, again, other = (
        model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS), start)) for start in (-3, -3, 10_000)
    )
    assert once.tobytes() == again.tobytes()
    assert once.tobytes() != other.tobytes()
    assert len({image.tobytes() for image in once}) == len(once)


@pytest.mark.slow
def test_an_image_alone_is_the_one_of_its_batch_within_rounding(model: GenerativeModel) -> None:
    all_at_once = model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    for i in (0, 1, 7, len(CONDITIONS) - 1):
        alone = model.sample(CONDITIONS[i : i + 1], seeds=seeds(len(CONDITIONS))[i : i + 1])
        assert np.abs(alone[0].astype(int) - all_at_once[i]).max() <= 2


@pytest.mark.slow
def test_threads_do_not_change_the_bits(
    model: GenerativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        again = model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    finally:
        torch.set_num_threads(before)
    assert once.tobytes() == again.tobytes()


@pytest.mark.slow
def test_killed_and_resumed_training_gives_the_bits_of_the_uninterrupted(kind: str) -> None:
    whole_config, whole = fitted(kind, steps=20).state()
    kept: list[tuple[Config, Arrays]] = []

    def keep_and_die_at_ten(state: tuple[Config, Arrays]) -> None:
        # As it comes back from storage, where memory's order is always C.
        kept.append((copy.deepcopy(state[0]), {k: v.copy("C") for k, v in state[1].items()}))
        if state[0]["step"] == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(kind, steps=20, checkpoint=keep_and_die_at_ten, checkpoint_seconds=0.0)
    resumed_config, resumed = fitted(kind, steps=20, restored=kept[-1]).state()
    assert resumed_config == whole_config
    assert as_bytes(resumed) == as_bytes(whole)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (9, 3), (20, 1), (20, 3), (28, 1), (33, 3)])
def test_any_size_and_both_kinds_of_channels(kind: str, size: int, channels: int) -> None:
    spec = ImageSpec(size, channels, ("a", "b"), (9, 9))
    images = fitted(kind, spec, steps=2).sample(np.array([0, 1]), seeds=seeds(2))
    assert images.shape == (2, size, size, channels)


@pytest.mark.parametrize(
    ("counts", "y"),
    [
        pytest.param({"only": 30}, [0] * 5, id="a single class"),
        pytest.param({"a": 30, "none": 0, "c": 30}, [0, 2], id="a class without records"),
    ],
)
def test_any_classes_are_enough(kind: str, counts: dict[str, int], y: list[int]) -> None:
    spec = ImageSpec(12, 1, tuple(counts), tuple(counts.values()))
    images = fitted(kind, spec, steps=2).sample(np.array(y), seeds=seeds(len(y)))
    assert images.shape == (len(y), 12, 12, 1)


def test_fewer_records_than_a_batch_are_enough(kind: str) -> None:
    spec = ImageSpec(12, 1, ("a", "b"), (2, 1))
    assert fitted(kind, spec, steps=2).n_steps == 2


def test_progress_is_reported_in_steps(kind: str) -> None:
    heard: list[tuple[int, Mapping[str, float]]] = []
    model = fitted(kind, steps=5, report=lambda step, scalars: heard.append((step, dict(scalars))))
    steps = [step for step, _ in heard]
    assert steps == sorted(steps)
    assert steps[-1] == model.n_steps == 5
    assert {"loss", "records_per_second", "seconds_left"} <= set(heard[-1][1])


def test_calibration_says_how_the_machine_trains_and_is_obeyed(kind: str) -> None:
    model = load_model_class(kind, modality="image").build(SMALL[kind][0], SPEC)
    measured = model.calibrate(records(), context(kind, steps=0))
    assert measured.steps == 0
    assert measured.seconds_per_step > 0
    assert measured.batch_size == SMALL[kind][1].batch_size
    given = model.calibrate(records(), context(kind, steps=7))
    assert (given.steps, given.seconds_per_step) == (7, 0.0)
    assert given.threads == 1


@pytest.mark.slow
def test_a_decoded_image_is_like_the_one_embedded(model: GenerativeModel) -> None:
    encodes, data = encoding(model), records()
    X = encodes.decode_latents(encodes.embed(data.images), data.y)
    assert X.shape == data.images.shape
    assert X.dtype == np.uint8
    means, there = X.mean(axis=(1, 2, 3)), data.images.mean(axis=(1, 2, 3))
    assert np.corrcoef(means, there)[0, 1] > 0.9
    assert encodes.decode_latents(encodes.embed(data.images), data.y).tobytes() == X.tobytes()
    mended = encodes.denoise(data.images, 0.1)
    assert (mended.shape, mended.dtype) == (X.shape, X.dtype)


@pytest.mark.slow
def test_what_is_strange_scores_high_and_the_map_shows_it(model: GenerativeModel) -> None:
    encodes, data = encoding(model), records()
    usual = encodes.anomaly_scores(data.images)
    assert (usual.shape, usual.dtype) == ((len(data.y),), np.float64)
    odd = data.images.copy()
    odd[:, ::2] = 255 - odd[:, ::2]
    assert (encodes.anomaly_scores(odd) > np.quantile(usual, 0.9)).mean() > 0.7
    maps = encodes.anomaly_maps(odd)
    assert (maps.shape, maps.dtype) == ((len(odd), 12, 12), np.float32)
    assert maps.mean() > encodes.anomaly_maps(data.images).mean()


@pytest.mark.gpu
def test_a_model_from_the_gpu_embeds_alike_on_the_cpu(kind: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    there = encoding(fitted(kind, device="cuda"))
    here = load_model_class(kind, modality="image").from_state(*there.state(), device="cpu")
    X = records().images
    np.testing.assert_allclose(there.embed(X), here.embed(X), rtol=1e-2, atol=1e-2)
    conditions = np.zeros(20, dtype=np.int64)
    drawn = [m.sample(conditions, seeds=seeds(20)).astype(int) for m in (there, here)]
    assert np.abs(drawn[0] - drawn[1]).mean() < 1
