"""The audit of labels: known flips are found, and a rare class is not called noise."""

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from prefect_augment.evaluation.quality.label_audit import (
    alike,
    audit_labels,
    clean_weights,
    repeated,
    thumbnails,
    unusual,
    with_similar,
)

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int = NDArray[np.int64]


def test_the_second_round_trusts_what_the_first_said() -> None:
    y = np.array([0, 0, 0, 1, 1, 1])
    first = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.1, 0.9], [0.1, 0.9]])
    second = np.array([[0.9, 0.1], [0.9, 0.1], [0.05, 0.95], [0.1, 0.9], [0.1, 0.9], [0.1, 0.9]])
    asked: list[Float | None] = []

    def predict(weights: Float | None) -> Float:
        asked.append(weights)
        return first if weights is None else second

    audit = audit_labels(y, predict)
    assert asked[0] is None
    assert asked[1] == pytest.approx([0.9, 0.9, 0.2, 0.9, 0.9, 0.9])
    assert audit.score == pytest.approx([0.1, 0.1, 0.95, 0.1, 0.1, 0.1])
    assert audit.suggested[2] == 1


def test_with_a_margin_the_surer_prediction_comes_first() -> None:
    y = np.array([0, 0])
    proba = np.array([[0.02, 0.38, 0.3, 0.3], [0.1, 0.9, 0.0, 0.0]])
    plain, surer = (audit_labels(y, lambda _: proba, margin=share).score for share in (0.0, 0.5))
    assert plain == pytest.approx([0.95, 0.9])
    assert surer == pytest.approx([(0.95 + 0.68) / 2, (0.9 + 0.9) / 2], abs=1e-5)


def test_what_similar_pictures_are_labelled_finds_an_error_that_predictions_do_not_tell() -> None:
    rng = np.random.default_rng(0)
    motifs = rng.integers(0, 200, (10, 16, 12, 1))
    # Each motif six times, in other light and with noise; its class is chance.
    images = np.repeat(motifs, 6, axis=0) + rng.integers(0, 40, (60, 1, 1, 1))
    images = (images + rng.integers(0, 10, images.shape)).astype(np.uint8)
    y = np.repeat(rng.permutation(np.arange(10) % 2), 6)
    given = y.copy()
    given[[7, 40]] = 1 - given[[7, 40]]
    indifferent = np.full((60, 2), 0.5)
    proba = with_similar(indifferent, given, thumbnails(images))
    assert proba.sum(axis=1) == pytest.approx(1.0)
    assert set(np.argsort(-audit_labels(given, lambda _: proba).score)[:2]) == {7, 40}


@pytest.mark.parametrize("n", [1, 3])
def test_few_pictures_have_as_many_similar_ones_as_there_are(n: int) -> None:
    proba, y = np.full((n, 2), 0.5), np.zeros(n, dtype=np.int64)
    mixed = with_similar(proba, y, thumbnails(np.zeros((n, 4, 4, 1), np.uint8)))
    assert mixed == pytest.approx(proba if n < 2 else np.tile([0.65, 0.35], (n, 1)))


def test_flips_among_many_are_doubted_and_no_others() -> None:
    y = np.repeat([0, 1], 20)
    proba = np.where(np.arange(40)[:, None] < 20, [0.95, 0.05], [0.05, 0.95])
    y[[3, 25]] = [1, 0]
    audit = audit_labels(y, lambda weights: proba)
    assert np.flatnonzero(audit.doubted).tolist() == [3, 25]
    assert clean_weights(audit, 0.3).tolist() == [0.3 if i in (3, 25) else 1.0 for i in range(40)]


def test_a_rare_class_of_little_confidence_is_not_called_noise() -> None:
    """Its records are all taken for the large class, but with less confidence than that one's own."""
    y = np.repeat([0, 1], [200, 10])
    proba = np.where(y[:, None] == 0, [0.99, 0.01], [0.7, 0.3])
    audit = audit_labels(y, lambda weights: proba)
    assert (audit.score[y == 1] > 0.5).all()
    assert not audit.doubted.any()


def test_a_class_keeps_records_whatever_the_predictions_say() -> None:
    y = np.repeat([0, 1, 2], [100, 50, 4])
    proba = np.tile([0.98, 0.01, 0.01], (154, 1))
    doubted = audit_labels(y, lambda weights: proba).doubted
    assert [int(np.sum(~doubted & (y == k))) for k in range(3)] == [100, 10, 4]


def test_equal_values_are_duplicates_or_contradictions_by_their_labels() -> None:
    nan = np.nan
    X = np.array([[1.0, nan], [1.0, nan], [0.0, 2.0], [-0.0, 2.0], [3.0, 3.0]])
    duplicate, contradicts = repeated(X, np.array([0, 0, 0, 1, 1]))
    assert duplicate.tolist() == [False, True, False, False, False]
    assert contradicts.tolist() == [False, False, True, True, False]
    assert not repeated(np.zeros((2, 0)), np.array([0, 1]))[0].any()


def test_equal_pictures_are_looked_for_without_a_copy_of_all() -> None:
    X = np.zeros((2000, 32, 32, 3), dtype=np.uint8)
    tracemalloc.start()
    duplicate, _ = repeated(X, np.zeros(len(X), dtype=np.int64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert duplicate.sum() == len(X) - 1
    assert peak < X.nbytes / 2


def test_what_is_far_from_everything_is_unusual() -> None:
    distance = np.concatenate([np.linspace(0.1, 1.0, 200), [5.0, np.inf]])
    assert np.flatnonzero(unusual(distance)).tolist() == [200, 201]


def features_with_copies(seed: int = 0) -> tuple[Float32, Int]:
    """Sixty directions, two of which come again a little turned; no groups."""
    features = np.random.default_rng(seed).normal(size=(62, 30)).astype(np.float32)
    features[60:] = features[[7, 30]] + 0.2 * features[[8, 31]]
    return features, np.arange(62)


def test_pairs_that_are_alike_share_a_code_and_no_others_do() -> None:
    features, groups = features_with_copies()
    features[60:] *= 3  # the cosine does not know a length
    codes = alike(features, groups)
    assert np.flatnonzero(codes != np.arange(62)).tolist() == [60, 61]
    assert codes[60:].tolist() == [7, 30]


def test_what_is_alike_does_not_depend_on_the_encoders_distances() -> None:
    """Of an encoder whose features all point one way a fixed limit would list every pair, or none."""
    features, groups = features_with_copies()
    together = features + np.float32(20)
    unit = together / np.linalg.norm(together, axis=1, keepdims=True)
    assert (1 - unit @ unit.T).max() < 0.03
    assert np.array_equal(alike(together, groups), alike(features, groups))


def test_a_crowd_of_similar_records_holds_no_pair() -> None:
    rng = np.random.default_rng(0)
    crowd = 5 + 0.1 * rng.normal(size=(40, 30))
    others = rng.normal(size=(20, 30))
    codes = alike(np.concatenate([crowd, others]).astype(np.float32), np.arange(60))
    assert codes.tolist() == list(range(60))


def test_records_of_a_group_are_one_for_pairs() -> None:
    """Two near-duplicates by pixels are alike, too; a mirrored copy is alike to either, and no third one."""
    features, groups = features_with_copies()
    features[50], groups[50] = features[7] * 1.001, 7
    codes = alike(features, groups)
    assert codes[60] in (7, 50)
    assert codes[30] == codes[61]
    groups[60] = 7
    assert np.flatnonzero(alike(features, groups) != np.arange(62)).tolist() == [61]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_records_have_no_surroundings(n: int) -> None:
    assert alike(np.ones((n, 3), np.float32), np.arange(n)).tolist() == list(range(n))
