"""What every registered model of images promises, whatever its algorithm."""

import copy
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.latent_models import assert_embeds_alone, encoding

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.errors import AugmentError  # noqa: E402
from prefect_augment.genmodels.base import (  # noqa: E402
    Arrays,
    Config,
    FitContext,
    GenerativeModel,
    ImageData,
    ImageSpec,
    ScoresClasses,
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


def seeds(n: int, start: int = -3) -> NDArray[np.int64]:
    return np.arange(start, start + n, dtype=np.int64) * 7_919


@pytest.fixture(scope="module", params=model_kinds("image"))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str) -> GenerativeModel:
    return fitted(kind)


CONDITIONS = np.array([2, 0, 0, 1, 2, 1] * 15, dtype=np.int64)


def test_every_registered_image_model_is_under_contract() -> None:
    assert set(model_kinds("image")) == set(SMALL)


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
def test_fitting_twice_gives_the_same_state(kind: str, model: GenerativeModel) -> None:
    config, arrays = model.state()
    again_config, again = fitted(kind).state()
    assert again_config == config
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in arrays.items()}


@pytest.mark.slow
def test_state_is_json_and_arrays_and_samples_the_same_bits(
    kind: str, model: GenerativeModel
) -> None:
    config, arrays = model.state()
    assert all(isinstance(a, np.ndarray) and a.dtype != object for a in arrays.values())
    loaded = load_model_class(kind, modality="image").from_state(
        json.loads(json.dumps(config)), arrays, device="cpu"
    )
    drawn = [m.sample(CONDITIONS, seeds=seeds(len(CONDITIONS))) for m in (model, loaded)]
    assert drawn[0].tobytes() == drawn[1].tobytes()
    assert loaded.n_steps == model.n_steps > 0
    again_config, again = loaded.state()
    assert again_config == config
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in arrays.items()}


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
    assert {k: v.tobytes() for k, v in resumed.items()} == {
        k: v.tobytes() for k, v in whole.items()
    }


@pytest.mark.slow
def test_an_empty_request_gives_no_image(model: GenerativeModel) -> None:
    images = model.sample(np.empty(0, dtype=np.int64), seeds=np.empty(0, dtype=np.int64))
    assert images.shape == (0, *SPEC.shape)
    assert images.dtype == np.uint8


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


@pytest.mark.slow
def test_unknown_classes_missing_seeds_and_no_records_are_refused(
    kind: str, model: GenerativeModel
) -> None:
    with pytest.raises(AugmentError, match="classes 0 to 2"):
        model.sample(np.array([3]), seeds=seeds(1))
    with pytest.raises(AugmentError, match="seeds"):
        model.sample(np.array([0, 1]), seeds=seeds(1))
    empty = ImageSpec(12, 1, ("a",), (0,))
    with pytest.raises(AugmentError, match="0 training records"):
        fitted(kind, empty)


def test_an_unfitted_model_says_so(kind: str) -> None:
    model = load_model_class(kind, modality="image").build(SMALL[kind][0], SPEC)
    with pytest.raises(AugmentError, match="fitted"):
        model.sample(np.array([0]), seeds=seeds(1))
    with pytest.raises(AugmentError, match="fitted"):
        model.state()


def test_params_of_another_model_are_refused(kind: str) -> None:
    with pytest.raises(AugmentError):
        load_model_class(kind, modality="image").build(Budget(), SPEC)


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
def test_an_image_embeds_by_its_pixels_alone(model: GenerativeModel) -> None:
    assert_embeds_alone(encoding(model), records().images)


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


@pytest.mark.slow
def test_latent_vectors_of_another_size_unknown_classes_and_other_images_are_refused(
    model: GenerativeModel,
) -> None:
    encodes = encoding(model)
    wrong = np.zeros((2, encodes.n_latent + 1), dtype=np.float32)
    with pytest.raises(AugmentError, match="latent vectors"):
        encodes.decode_latents(wrong, np.array([0, 1]))
    with pytest.raises(AugmentError, match="classes 0 to 2"):
        encodes.decode_latents(wrong[:, 1:], np.array([0, 3]))
    with pytest.raises(AugmentError, match="uint8 images"):
        encodes.embed(np.zeros((2, 9, 9, 1), dtype=np.uint8))


@pytest.mark.slow
def test_latent_space_comes_back_from_storage(kind: str, model: GenerativeModel) -> None:
    encodes, X = encoding(model), records().images
    config, arrays = model.state()
    loaded = load_model_class(kind, modality="image").from_state(
        json.loads(json.dumps(config)), arrays
    )
    assert loaded.embed(X).tobytes() == encodes.embed(X).tobytes()
    assert loaded.anomaly_scores(X).tobytes() == encodes.anomaly_scores(X).tobytes()


@pytest.mark.slow
def test_the_likeliest_class_is_mostly_the_right_one(model: GenerativeModel) -> None:
    if not isinstance(model, ScoresClasses):
        pytest.skip("does not know how likely an image is")
    data = records()
    scores = model.class_log_likelihoods(data.images)
    assert scores.shape == (len(data.y), 3)
    assert np.isfinite(scores).all()
    assert (scores.argmax(axis=1) == data.y).mean() > 0.9


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
