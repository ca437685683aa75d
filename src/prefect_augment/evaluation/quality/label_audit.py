"""An audit of labels: how likely each is wrong, given out-of-fold predictions, and which are doubted.

Predictions come in two rounds. The classifier of the second trusts a record by what the first, which had
not seen it, said of its label; so wrong labels no longer teach it. Scores rank records; whether one is doubted is
calibrated by class, since a rare class is predicted with little confidence even where its labels are right.
Duplicates, contradictions and outliers are found by the records alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

from prefect_augment.array_types import Array, Bool, Float, Float32, Images, Int
from prefect_augment.evaluation.quality.near_copies import digests
from prefect_augment.nn.threads import single_threaded

# Of the records that the first round doubts entirely: a class must not vanish from the second.
LEAST_TRUST = 1e-3
# A class keeps this share of its records, and this many of them, whatever the predictions say.
KEPT_SHARE, KEPT_RECORDS = 0.2, 5
TINY = 1e-6
# Of images: how many similar ones have a say, with which share, and the side of the thumbnails that tell them.
# Chosen on flips of fashion_lt and magnetic_tile (benchmarks/audit.py images).
N_SIMILAR, SIMILAR_SHARE, THUMBNAIL = 5, 0.3, 8
# At a half up to 3 % of different pictures are such pairs, at 0.4 up to 1 % (six sets, benchmarks/copies.py).
ISOLATED = 0.4


@dataclass(frozen=True)
class LabelAudit:
    """What out-of-fold predictions say of each label."""

    score: Float  # (n,) in [0, 1], of an error; above 0.5 another class is more probable
    suggested: Int  # (n,) the most probable other class
    doubted: Bool  # (n,)


def audit_labels(
    y: Int, predict: Callable[[Float | None], Float], *, margin: float = 0.0
) -> LabelAudit:
    """Score of a label error and whether the label is doubted, for each record of classes ``y`` (n_records,).

    ``predict`` is called twice: with None for weights of 1, and with weights of the records. It gives
    out-of-fold probabilities, shape (n_records, n_classes).

    With p the probabilities of the second round and j the likeliest other class than the record's own k, the
    score is ``p_j / (p_j + p_k)``, or a mean of that and of ``(1 + p_j - p_k) / 2`` with the share ``margin``: also of
    how sure the predictions are. A label is doubted if that exceeds 1/2 and ``p_j`` is at least the mean
    of ``p_j`` over the records labelled j, which calibrates by class. The most suspicious records are
    doubted first, and each class keeps a fifth of its records, five of them at least. Northcutt, Jiang &
    Chuang 2021, "Confident Learning", section 3.1 (a class's mean self-confidence as its threshold).
    """
    first, _ = _doubts(predict(None), y, margin)
    proba = predict(np.maximum(1 - first, LEAST_TRUST))
    score, suggested = _doubts(proba, y, margin)
    n_classes = proba.shape[1]
    confidence = np.array(
        [proba[y == k, k].mean() if (y == k).any() else np.inf for k in range(n_classes)]
    )
    # Rounded down: the mean of equal probabilities may be a bit above them.
    likely = proba[np.arange(len(y)), suggested] >= confidence[suggested] * (1 - 1e-9)
    doubted = (score > 0.5) & likely
    for k in range(n_classes):
        of_class = np.flatnonzero(doubted & (y == k))
        n = int(np.sum(y == k))
        most = max(0, n - max(KEPT_RECORDS, round(KEPT_SHARE * n)))
        doubted[of_class[np.argsort(-score[of_class], kind="stable")[most:]]] = False
    return LabelAudit(score, suggested, doubted)


def with_similar(proba: Float, y: Int, features: Float32) -> Float:
    """Predictions with a share of what the most similar other records are labelled, shape (n_records, n_classes).

    ``proba`` (n_records, n_classes) are out-of-fold predictions, ``features`` (n_records, n_features) are compared by
    cosine. A network of few steps overlooks what a near-duplicate tells.
    """
    n = min(N_SIMILAR, len(y) - 1)
    if n < 1:
        return proba
    with single_threaded():
        near = NearestNeighbors(n_neighbors=n, algorithm="brute").fit(_unit(features))
        # (n_records, n), without the record itself
        similar = near.kneighbors(return_distance=False)
    labels = np.stack([(y[similar] == k).mean(axis=1) for k in range(proba.shape[1])], axis=1)
    return np.asarray((1 - SIMILAR_SHARE) * proba + SIMILAR_SHARE * labels)


def thumbnails(images: Images) -> Float32:
    """Small copies of images less their mean, shape (n, n_features), for :func:`with_similar`."""
    small = images.astype(np.float32)
    for axis in (1, 2):
        edges = np.linspace(0, small.shape[axis], THUMBNAIL + 1).astype(np.int64)[:-1]
        small = np.add.reduceat(small, np.unique(edges), axis=axis)
    flat = small.reshape(len(small), -1)
    return np.asarray(flat - flat.mean(axis=1, keepdims=True), dtype=np.float32)


def _unit(features: Float32) -> Float32:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, TINY), dtype=np.float32)


def clean_weights(audit: LabelAudit, weight: float) -> Float:
    """Weight of each record, shape (n_records,): ``weight`` where the label is doubted, else 1."""
    return np.where(audit.doubted, weight, 1.0)


def _doubts(proba: Float, y: Int, margin: float) -> tuple[Float, Int]:
    """Score of an error and the likeliest other class, both (n_records,)."""
    proba = np.clip(proba, TINY, None)
    rows = np.arange(len(y))
    own, others = proba[rows, y], proba.copy()
    others[rows, y] = 0.0
    other = others.max(axis=1)
    score = (1 - margin) * other / (other + own) + margin * (1 + other - own) / 2
    return score, others.argmax(axis=1).astype(np.int64)


def repeated(X: Array, y: Int) -> tuple[Bool, Bool]:
    """Which records equal an earlier one with the same label, and which equal one with another label.

    ``X`` (n_records, ...) are values without the label; all NaN are equal.
    """
    if not X.size:
        return np.zeros(len(X), dtype=bool), np.zeros(len(X), dtype=bool)
    _, group = np.unique(digests(X), return_inverse=True)
    _, first = np.unique(np.stack([group, y]), axis=1, return_index=True)
    duplicate = np.ones(len(X), dtype=bool)
    duplicate[first] = False
    n_labels = np.bincount(group[first])  # of each group
    return duplicate, (n_labels > 1)[group]


def alike(features: Float32, groups: Int) -> Int:
    """A code for each record, shape (n_records,), that two records share which are alike in features and nothing else.

    Each is the other's nearest by cosine outside of its group, at less than :data:`ISOLATED` of the distance to the
    nearest record of a third group. So each pair is measured by its own surroundings, whatever the encoder's
    distances are. ``features`` are (n_records, n_features); all pairs are compared.
    """
    codes = np.arange(len(features))
    if len(features) < 3:
        return codes
    unit = _unit(features)
    with single_threaded():
        distance = 1 - unit @ unit.T
    distance[groups[:, None] == groups] = np.inf
    other = distance.argmin(axis=1)
    nearest = distance[codes, other]
    distance[groups[other][:, None] == groups] = np.inf
    third = distance.min(axis=1)
    isolated = (nearest < ISOLATED * third) & np.isfinite(third)
    is_pair = isolated & isolated[other] & (groups[other[other]] == groups)
    return np.where(is_pair, np.minimum(codes, other), codes)


def unusual(distance: Float) -> Bool:
    """Which records are far from all others, given each one's distance to the nearest other one.

    Further than the 99 % quantile times two: of a smooth distribution hardly any is.
    """
    finite = distance[np.isfinite(distance)]
    if not len(finite):
        return np.zeros(len(distance), dtype=bool)
    return distance > 2 * np.quantile(finite, 0.99)
