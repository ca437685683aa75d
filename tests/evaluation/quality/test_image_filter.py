"""Image generators whose fault is known meet the filter that must catch it, on 8x8 pictures."""

import numpy as np
import pytest

pytest.importorskip("torch")

from prefect_augment.encoding.arrays import FilterRequest, Labelled
from prefect_augment.evaluation.classifiers.base import balanced_weights
from prefect_augment.evaluation.classifiers.convnet import fit_image_classifier
from prefect_augment.evaluation.quality.image_filter import PictureSpace, ShiftSpace, image_measures
from prefect_augment.evaluation.quality.record_filter import REASONS, filter_records

SIDE = 8
STEPS = 60


def world(n_k, seed):
    """Two classes of pictures: a blob of any place and width, or a stripe of any slope."""
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], n_k)
    across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    images = []
    for k in y:
        cx, cy, width, slope = rng.uniform([2, 2, 1, -1], [5, 5, 2, 1])
        square = (
            (across - cx) ** 2 + (down - cy) ** 2
            if k == 0
            else (down - cy - slope * (across - 3.5)) ** 2
        )
        picture = 200 * np.exp(-square / width**2) + rng.normal(0, 8, (SIDE, SIDE))
        images.append(picture.clip(0, 255))
    return Labelled(np.array(images).astype(np.uint8)[..., None], y)


TRAINING, VALIDATION, FRESH = world((400, 150), 0), world((120, 100), 1), world((100, 150), 2)


def moved(images, right, down):
    """The pictures shifted by pixels; what leaves on one side is repeated from the edge."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return wide[:, 1 - down : 1 - down + SIDE, 1 - right : 1 - right + SIDE]


def filtered(candidates, *, wanted=(300, 300), **options):
    given = {
        "strata": ["head", "tail"],
        "stratum_class": np.arange(2),
        "wanted": np.array(wanted),
        "ordinals": np.arange(len(candidates)),
        "training_keys": [f"key-{i}" for i in range(len(TRAINING))],
        "metrics": False,
    }
    how = {name: options.pop(name) for name in ("steps", "device", "encoder") if name in options}
    request = FilterRequest(**{**given, **options})
    how = {"steps": STEPS, "seed": request.seed, "stratum_class": request.stratum_class, **how}
    measures = image_measures(TRAINING, **how)
    return filter_records(TRAINING, VALIDATION, candidates, request, measures=measures)


@pytest.fixture(scope="module")
def faulty():
    """One candidate set with a block per fault: the three classifiers are trained once for all."""
    rng = np.random.default_rng(0)
    tail_training, tail_fresh = TRAINING.X[-100:], FRESH.X[FRESH.stratum == 1]
    noisy = np.clip(tail_training + rng.normal(0, 1.5, tail_training.shape), 0, 255)
    noise = rng.normal(0, 2, tail_training.shape)
    blocks = {
        "fresh": tail_fresh,
        "copies": tail_training,
        "noisy copies": noisy,
        "moved copies": moved(tail_training, 1, 0),
        "moved and noisy copies": np.clip(moved(tail_training, -1, 1) + noise, 0, 255),
        "other class": FRESH.X[FRESH.stratum == 0],
        "noise": rng.integers(0, 256, (100, SIDE, SIDE, 1)),
    }
    X = np.concatenate(list(blocks.values())).astype(np.uint8)
    names = np.repeat(list(blocks), [len(b) for b in blocks.values()])
    candidates = Labelled(X, np.ones(len(X), dtype=np.int64))
    return filtered(candidates, metrics=True, wanted=(0, 60)), names


@pytest.mark.slow
def test_fresh_real_pictures_pass_at_about_the_nominal_rate(faulty):
    outcome, names = faulty
    for reason in ("near copy", "outlier", "label"):
        assert (outcome.reason[names == "fresh"] == reason).mean() < 0.15
    assert outcome.passed[names == "fresh"].mean() > 0.7


@pytest.mark.slow
def test_copies_of_training_pictures_are_caught(faulty):
    outcome, names = faulty
    assert (outcome.reason[names == "copies"] == "near copy").all()
    found = outcome.strata[0].metrics["exact_copy_fraction"]
    assert found == pytest.approx((names == "copies").mean(), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "least"),
    [("noisy copies", 0.8), ("moved copies", 0.9), ("moved and noisy copies", 0.9)],
)
def test_copies_with_a_little_noise_or_moved_by_a_pixel_are_caught(faulty, kind, least):
    """The classifier's features take moved ones for new ones."""
    outcome, names = faulty
    assert (outcome.reason[names == kind] == "near copy").mean() > least


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["other class", "noise"])
def test_noise_and_pictures_of_another_class_are_caught(faulty, kind):
    outcome, names = faulty
    assert outcome.passed[names == kind].mean() < 0.05


@pytest.mark.slow
def test_utility_keeps_the_best_of_what_passed(faulty):
    outcome, _ = faulty
    assert outcome.kept.sum() == 60
    surplus = outcome.reason == "surplus"
    assert outcome.score[outcome.kept].min() >= outcome.score[surplus].max()


@pytest.mark.slow
def test_the_feature_space_is_named_and_not_called_fid(faulty):
    space = faulty[0].feature_space
    assert "penultimate features of a class-balanced convolutional classifier" in space
    assert "fid" not in space.lower()


@pytest.mark.slow
def test_every_candidate_is_accounted_for(faulty):
    outcome, _ = faulty
    assert set(outcome.reason) <= {"", *REASONS}
    (tail,) = outcome.strata
    assert tail.n_candidates == tail.n_kept + sum(tail.reasons.values()) == len(outcome.reason)
    assert {"density", "coverage", "c2st_auc"} <= set(tail.metrics)
    assert "frechet_distance" not in {*tail.metrics, *outcome.metrics}, "it is of an encoder"


@pytest.mark.slow
def test_a_collapsed_generator_is_caught():
    """One good picture again and again: of it, a share as of real ones stays."""
    tail = FRESH.X[FRESH.stratum == 1]
    first = filtered(Labelled(tail, np.ones(len(tail), dtype=np.int64)), steps=20)
    good = tail[np.flatnonzero(first.passed)[0]]
    X = np.concatenate([np.repeat(good[None], 100, axis=0), tail[:50]])
    outcome = filtered(Labelled(X, np.ones(150, dtype=np.int64)), steps=20)
    assert (outcome.reason[:100] == "repeat").sum() >= 95


def test_nothing_to_filter_is_not_an_error():
    empty = Labelled(np.empty((0, SIDE, SIDE, 1), np.uint8), np.empty(0, dtype=np.int64))
    outcome = filtered(empty, steps=2)
    assert [c.n_candidates for c in outcome.strata] == [0, 0]


@pytest.mark.slow
def test_same_seed_gives_the_same_outcome():
    a, b = (filtered(FRESH, steps=10, seed=3) for _ in range(2))
    assert np.array_equal(a.reason, b.reason)
    assert np.array_equal(a.score, b.score)


@pytest.fixture(scope="module")
def space():
    X, y = TRAINING.X, TRAINING.stratum
    weights = balanced_weights(y)
    estimator = fit_image_classifier(X, y, n_classes=2, steps=20, seed=0, weights=weights)
    return PictureSpace.of(estimator, X, y)


@pytest.mark.slow
def test_distance_is_zero_for_equal_pixels_and_for_no_others(space):
    almost = TRAINING.X[:20].copy()
    almost[:, 0, 0, 0] ^= 1
    points = space.place(TRAINING.X[:20])
    distances = space.distances(points, space.place(np.concatenate([TRAINING.X[:20], almost])))
    assert (np.diag(distances[:, :20]) == 0).all()
    assert (np.diag(distances[:, 20:]) > 0).all()


@pytest.mark.slow
def test_distances_are_those_of_all_pairs(space):
    points = space.place(TRAINING.X[:30])
    a, b = points[:10], points[10:]
    brute = np.linalg.norm(a.features[:, None] - b.features[None], axis=2)
    assert np.allclose(space.distances(a, b), brute, atol=1e-5)
    assert np.allclose(space.nearest(a, b), brute.min(axis=1), atol=1e-5)
    others = np.linalg.norm(a.features[:, None] - a.features[None], axis=2)
    np.fill_diagonal(others, np.inf)
    assert np.allclose(space.nearest_others(a), others.min(axis=1), atol=1e-5)


@pytest.mark.slow
def test_an_empty_or_single_set_has_no_neighbours(space):
    points = space.place(TRAINING.X[:3])
    assert np.isinf(space.nearest(points, points[:0])).all()
    assert np.isinf(space.nearest_others(points[:1])).all()


@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (-1, 1), (0, 0)])
def test_a_picture_moved_brighter_and_with_more_contrast_is_at_distance_zero(shift):
    space = ShiftSpace()
    first = TRAINING.X[:20] // 2
    distances = space.distances(space.place(moved(first, *shift) * 2 + 7), space.place(first))
    assert np.diag(distances).max() < 1e-5
    assert distances[~np.eye(20, dtype=bool)].min() > 0.001


def test_large_pictures_are_compared_at_a_bounded_size():
    images = np.random.default_rng(0).integers(0, 256, (3, 100, 70, 3), dtype=np.uint8)
    assert ShiftSpace().place(images).shape == (3, 25, 17)


def test_pictures_without_contrast_resemble_nothing():
    space = ShiftSpace()
    flat = space.place(np.full((2, SIDE, SIDE, 1), 90, np.uint8))
    assert (space.distances(flat, space.place(TRAINING.X[:5])) == 1).all()
    assert (space.nearest_others(flat) == 1).all()
    assert np.isinf(space.nearest_others(flat[:1])).all()
    assert np.isinf(space.nearest(flat, flat[:0])).all()


@pytest.mark.slow
def test_an_encoder_takes_the_place_of_the_classifier_in_the_feature_space(tmp_path, monkeypatch):
    """A copy of a training image is near in it, fresh images are not; only the label classifiers are trained."""
    pytest.importorskip("onnxruntime")
    from support.encoders import encoder_bytes, encoder_params

    from prefect_augment.evaluation.quality import image_filter
    from prefect_augment.loading.encoder import open_encoder
    from prefect_augment.schema import EncoderInfo

    n_trained = []

    def counted(images, *args, **options):
        n_trained.append(len(images))
        return fit_image_classifier(images, *args, **{**options, "steps": 5})

    monkeypatch.setattr(image_filter, "fit_image_classifier", counted)
    params = encoder_params(tmp_path, encoder_bytes(shape=("n", 1, SIDE, SIDE), n_features=24))
    encoder = open_encoder(EncoderInfo.of(params))
    own = TRAINING.X[:40].astype(int)
    noisy = own + np.random.default_rng(0).integers(-1, 2, own.shape)
    X = np.concatenate([noisy.clip(0, 255).astype(np.uint8), FRESH.X])
    both = Labelled(X, np.concatenate([TRAINING.stratum[:40], FRESH.stratum]))
    outcome = filtered(both, encoder=encoder, metrics=True)
    assert f"24 features of your encoder encoder.onnx (sha256 {params.sha256[:12]}" in (
        outcome.feature_space
    )
    fidelity = {"frechet_distance", "real_frechet_distance", "real_frechet_largest"}
    assert all(fidelity <= set(of.metrics) for of in outcome.strata)
    assert set(outcome.metrics) == fidelity
    assert len(TRAINING) not in n_trained
    is_copy = np.char.find(outcome.reason.astype(str), "cop") >= 0
    assert is_copy[:40].mean() > 0.9
    assert is_copy[40:].mean() < 0.2
