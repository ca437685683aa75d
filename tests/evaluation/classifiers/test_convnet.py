"""The classifier of images on toy pictures: deterministic, balanced draws, a loss with a known value."""

import subprocess
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest

from prefect_augment.errors import EmptyClassError, ParameterError

torch = pytest.importorskip("torch")

from prefect_augment.evaluation.classifiers import convnet  # noqa: E402 - as below
from prefect_augment.evaluation.classifiers.base import balanced_weights  # noqa: E402 - as below
from prefect_augment.evaluation.classifiers.batch_transforms import ClassicRanges, classic_batch  # noqa: E402 - needs torch
from prefect_augment.evaluation.classifiers.convnet import (  # noqa: E402 - needs torch
    OWN_PEAK_RATE,
    PEAK_RATE,
    ConvNet,
    _Classifying,
    _draws,
    balanced_softmax_loss,
    fit_image_classifier,
    one_torch_thread,
)

SIDE = 8


def pictures(n_k, seed):
    """Bright left, top or middle halves on noise."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(n_k)), n_k)
    images = rng.integers(0, 120, (len(y), SIDE, SIDE, 1))
    places = [np.s_[:, :4], np.s_[:4, :], np.s_[2:6, 2:6]]
    for image, k in zip(images, y, strict=True):
        image[places[k]] += 100
    return images.astype(np.uint8), y


TRAINING, TEST = pictures((60, 60, 60), 0), pictures((40, 40, 40), 1)


def fit(images, y, **options):
    given = {"n_classes": 3, "steps": 40, "seed": 0, "batch_size": 32, **options}
    return fit_image_classifier(images, y, **given)


@pytest.mark.slow
def test_toy_classes_are_learnt():
    estimator = fit(*TRAINING)
    proba = estimator.predict_proba(TEST[0])
    assert proba.shape == (120, 3)
    assert np.allclose(proba.sum(axis=1), 1)
    assert (proba.argmax(axis=1) == TEST[1]).mean() > 0.95


@pytest.mark.slow
def test_same_seed_gives_the_same_estimator_bit_for_bit():
    a, b, other = (
        fit(*TRAINING, seed=seed, augment_prob=0.5).predict_proba(TEST[0]) for seed in (3, 3, 4)
    )
    assert np.array_equal(a, b)
    assert not np.array_equal(a, other)


@pytest.mark.slow
def test_two_estimators_trained_beside_one_another_are_those_trained_alone():
    """Strategies are scored in threads; none may see another's threads or random numbers."""
    before = torch.get_num_threads()
    found = {}

    def work(seed):
        found[seed] = fit(*TRAINING, seed=seed, steps=30).predict_proba(TEST[0])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        alone = fit(*TRAINING, seed=seed, steps=30).predict_proba(TEST[0])
        assert np.array_equal(found[seed], alone)
    assert torch.get_num_threads() == before


def test_records_named_by_their_rows_train_as_copies_of_them_do():
    """A strategy's images are drawn from those of all strategies, and none is held twice."""
    images, y = TRAINING
    rows = np.random.default_rng(1).permutation(len(y))[:70]
    one = fit(images, y[rows], rows=rows, steps=4, augment_prob=0.5)
    other = fit(images[rows], y[rows], steps=4, augment_prob=0.5)
    assert one.scale == other.scale
    assert np.array_equal(one.predict_proba(TEST[0]), other.predict_proba(TEST[0]))


def test_one_thread_holds_until_the_last_block_is_left():
    before = torch.get_num_threads()
    with one_torch_thread():
        with one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_training_leaves_the_global_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(*TRAINING, steps=2, augment_prob=1.0)
    assert torch.equal(torch.rand(3), expected)


def test_features_are_the_penultimate_layer_and_do_not_depend_on_the_batch():
    estimator = fit(*TRAINING, steps=5)
    features = estimator.features(TEST[0])
    assert features.dtype == np.float32
    assert features.shape == (120, estimator.network.n_features)
    assert np.allclose(estimator.features(TEST[0][7:9]), features[7:9], atol=1e-5)
    assert estimator.features(TEST[0][:0]).shape == (0, estimator.network.n_features)
    assert estimator.predict_proba(TEST[0][:0]).shape == (0, 3)


PREDICTS = """
import sys
import numpy as np
from prefect_augment.evaluation.classifiers.convnet import fit_image_classifier

def resident():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])

rng = np.random.default_rng(0)
images, y = rng.integers(0, 256, (12_000, 32, 32, 3), dtype=np.uint8), rng.integers(0, 3, 12_000)
estimator = fit_image_classifier(images, y, n_classes=3, steps=5, seed=0)
estimator.features(images[:1000])
before = resident()
estimator.features(images)
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_predictions_of_many_images_leave_no_gaps_in_memory():
    """Features kept batch by batch lay between the network's arrays, and up to 20 kB an image stayed resident."""
    run = subprocess.run(
        [sys.executable, "-c", PREDICTS], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 64 << 20


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "balanced_softmax"])
def test_classes_never_seen_have_probability_zero(loss):
    rows = TRAINING[1] != 1
    proba = fit(TRAINING[0][rows], TRAINING[1][rows], loss=loss).predict_proba(TEST[0])
    assert (proba[:, 1] == 0).all()
    assert np.allclose(proba.sum(axis=1), 1)
    rows = TRAINING[1] == 2
    only = fit(TRAINING[0][rows], TRAINING[1][rows], steps=3).predict_proba(TEST[0])
    assert (only == [0, 0, 1]).all()


def test_balanced_softmax_is_its_definition():
    """-log(n_y e^z_y / sum_j n_j e^z_j), Ren et al. 2020, equation 3; a class of none takes no part."""
    rng = np.random.default_rng(0)
    z, n, y = rng.normal(size=(50, 4)), np.array([1000, 50, 7, 0]), rng.integers(0, 3, 50)
    brute = [
        -np.log(n[k] * np.exp(row[k]) / sum(n[j] * np.exp(row[j]) for j in range(4)))
        for row, k in zip(z, y, strict=True)
    ]
    log_prior = torch.from_numpy(np.log(np.where(n > 0, n, 1)) - np.where(n > 0, 0, np.inf))
    found = balanced_softmax_loss(torch.from_numpy(z), torch.from_numpy(y), log_prior)
    assert float(found) == pytest.approx(np.mean(brute), rel=1e-12)


@pytest.mark.slow
def test_balanced_softmax_lifts_the_tail():
    """Classes that cannot be told apart: as is predicts the head, balanced softmax both."""
    rng = np.random.default_rng(0)
    images, fresh = rng.integers(0, 255, (2, 400, SIDE, SIDE, 1)).astype(np.uint8)
    y = (np.arange(400) < 40).astype(np.int64)
    plain, balanced = (
        fit(images, y, loss=loss, n_classes=2, steps=20).predict_proba(fresh)[:, 1].mean()
        for loss in ("ce", "balanced_softmax")
    )
    assert plain < 0.25
    assert 0.3 < balanced < 0.7


def phase(y, weights=None, synthetic=None, last_synthetic_step=10):
    """The training phase with pictures that name their record, to see what is drawn."""
    n = len(y)
    images = torch.arange(n).view(n, 1, 1, 1).to(torch.uint8)
    weights = np.ones(n) if weights is None else weights
    return _Classifying(
        network=ConvNet(1, 3, side=1, width=0.5),
        images=images,
        y=torch.from_numpy(y),
        scale=(0.0, 1 / 255),
        draws=_draws(y, weights, synthetic, torch.device("cpu")),
        last_synthetic_step=last_synthetic_step,
        log_prior=None,
        augment_prob=0.0,
        ranges=ClassicRanges(),
        batch_size=6000,
    )


def drawn(training, step, n):
    training.lr_factor(step, 20)
    x, _ = training.batch("classifier", torch.Generator().manual_seed(step))
    return np.bincount(x.flatten().round().long().numpy(), minlength=n) / 6000


def test_resampling_draws_every_class_equally_often():
    y = np.repeat([0, 1, 2], [150, 40, 10])
    shares = np.bincount(y, drawn(phase(y, balanced_weights(y)), 0, 200))
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)
    natural = np.bincount(y, drawn(phase(y), 0, 200))
    assert natural == pytest.approx([0.75, 0.2, 0.05], abs=0.03)


def test_records_of_weight_zero_are_never_drawn():
    y = np.repeat([0, 1], [5, 5])
    weights = np.array([0, 1, 1, 0, 1, 1, 0, 1, 1, 0], dtype=float)
    assert np.array_equal(drawn(phase(y, weights), 0, 10) > 0, weights > 0)


def test_the_finish_draws_real_records_and_keeps_the_classes_shares():
    y = np.repeat([0, 1, 2], [20, 20, 5])
    synthetic = np.zeros(45, dtype=bool)
    synthetic[[*range(25, 40), *range(40, 45)]] = True  # 15 of class 1, all of class 2
    training = phase(y, balanced_weights(y), synthetic)
    before, after = drawn(training, 9, 45), drawn(training, 10, 45)
    assert (before > 0).all()
    assert not after[25:40].any()
    assert after[40:].all(), "a class without real records keeps its synthetic ones"
    for shares in (before, after):
        assert np.bincount(y, shares) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_deferred_weights_count_after_their_share_of_the_steps():
    y = np.repeat([0, 1, 2], [150, 40, 10])
    training = phase(y, balanced_weights(y))
    training.n_deferred = 8
    before, after = (np.bincount(y, drawn(training, step, 200)) for step in (7, 8))
    assert before == pytest.approx([0.75, 0.2, 0.05], abs=0.03)
    assert after == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize("loss", ["ce", "balanced_softmax"])
def test_mixing_and_smoothing_leave_a_class_without_records_at_zero(loss):
    rows = TRAINING[1] != 1
    options = {"loss": loss, "mixing": "cutmix", "mixing_prob": 0.5, "steps": 3}
    first, again = (
        fit(TRAINING[0][rows], TRAINING[1][rows], smoothing=np.array([0.3, 0.0, 0.1]), **options)
        for _ in range(2)
    )
    proba = first.predict_proba(TEST[0])
    assert np.isfinite(proba).all()
    assert (proba[:, 1] == 0).all()
    assert np.array_equal(proba, again.predict_proba(TEST[0]))


def test_learning_rate_rises_to_one_and_ends_at_almost_nothing():
    training = phase(np.zeros(3, dtype=np.int64))
    factors = [training.lr_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 25)
    assert max(factors) == factors[30] == 1.0
    assert factors[-1] == pytest.approx(1 / 2.5e5)
    assert all(b > a for a, b in pairwise(factors[:31]))


@pytest.mark.parametrize(("side", "final"), [(8, 8), (28, 7), (32, 8), (64, 8)])
def test_the_last_feature_map_is_about_seven_pixels_wide(side, final):
    network = ConvNet(3, 10, side=side, width=0.5)
    before_pooling = network.body[:-2](torch.zeros(1, 3, side, side))
    assert before_pooling.shape[2:] == (final, final)


def test_small_sets_get_a_narrow_network():
    assert fit(*TRAINING, steps=1).network.n_features == 64
    y = np.repeat([0, 1, 2], 700)
    images = np.zeros((2100, SIDE, SIDE, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(2100) % 256
    assert fit(images, y, steps=1).network.n_features == 128
    assert fit(images, y, steps=1, width=0.5).network.n_features == 64
    assert fit(*TRAINING, steps=1, width=0.5).network.n_features == 64, "half once, not twice"


def test_unusable_values_are_refused():
    with pytest.raises(ParameterError, match="loss"):
        fit(*TRAINING, loss="focal")
    with pytest.raises(ParameterError, match="negative"):
        fit(*TRAINING, weights=np.full(180, -1.0))
    with pytest.raises(EmptyClassError, match="no record"):
        fit(*TRAINING, weights=np.zeros(180))


def changed(x, prob, seed=0, **ranges):
    rng = torch.Generator().manual_seed(seed)
    return classic_batch(x, rng, prob=prob, ranges=ClassicRanges(**ranges))


NOTHING = dict.fromkeys(("rotate_degrees", "shift", "brightness", "contrast"), 0.0)
NOTHING["scale_range"] = (1.0, 1.0)


def test_classic_changes_the_wanted_share_and_nothing_else():
    x = torch.rand((2000, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    before = x.clone()
    out = changed(x, 0.5)
    assert torch.equal(x, before)
    touched = (out != x).flatten(1).any(dim=1)
    assert float(touched.float().mean()) == pytest.approx(0.5, abs=0.04)
    assert 0.0 <= float(out.min()) <= float(out.max()) <= 1.0
    assert changed(x, 0.0) is x


def test_ranges_of_nothing_change_nothing():
    x = torch.rand((5, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(changed(x, 1.0, **NOTHING), x, atol=1e-6)


def test_a_shift_moves_the_picture_by_at_most_its_share():
    """A bright column in the middle of 20 pixels, shifted by up to 10 %: it stays within 2 of there."""
    x = torch.zeros((500, 1, 20, 20))
    x[:, :, :, 10] = 1.0
    column = changed(x, 1.0, **{**NOTHING, "shift": 0.1}).sum(dim=(1, 2)).argmax(dim=1)
    assert int(column.min()) == 8
    assert int(column.max()) == 12


def test_a_rotation_of_an_oblong_picture_does_not_shear_it():
    """A horizontal line turned by 45 degrees falls as many pixels as it goes along."""
    x = torch.zeros((400, 1, 40, 80))
    x[:, :, 19:21, :] = 1.0
    out = changed(x, 1.0, **{**NOTHING, "rotate_degrees": 45.0})
    falls = []
    for picture in out[:, 0]:
        rows = [
            float((picture[:, c] * torch.arange(40)).sum() / picture[:, c].sum()) for c in (32, 48)
        ]
        falls.append((rows[1] - rows[0]) / 16)
    assert max(map(abs, falls)) == pytest.approx(1.0, abs=0.15), "the tangent of 45 degrees"


def test_brightness_and_contrast_stay_in_their_ranges():
    x = torch.full((500, 1, 4, 4), 0.5)
    x[:, :, :2] = 0.3
    x[:, :, 2:] = 0.7
    bright = changed(x, 1.0, **{**NOTHING, "brightness": 0.1}).mean(dim=(1, 2, 3))
    assert 0.59 < float(bright.max()) <= 0.6
    contrast = changed(x, 1.0, **{**NOTHING, "contrast": 0.1})
    spread = (contrast[:, 0, 3, 0] - contrast[:, 0, 0, 0]) / 0.4
    assert 1.09 < float(spread.max()) <= 1.1001
    assert torch.allclose(contrast.mean(dim=(1, 2, 3)), torch.tensor(0.5), atol=1e-5)


def test_the_users_network_keeps_the_lower_rate(monkeypatch):
    rates = []

    def trained(phase, *_):
        rates.append(phase.make_optimizers()["classifier"].param_groups[0]["lr"])

    monkeypatch.setattr(convnet, "train", trained)
    fit(*TRAINING)
    fit(*TRAINING, make=lambda k, size, channels: ConvNet(channels, k, side=size, width=0.5))
    assert rates == [PEAK_RATE, OWN_PEAK_RATE]
