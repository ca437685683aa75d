"""Likeness of two sets of records: precision, recall, density, coverage, the two-sample test, the Fréchet distance."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from prefect_augment.array_types import Array, Bool, Float, Int
from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.classifiers.base import (
    EstimatorKind,
    balanced_weights,
    fit_estimator,
)
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.neighbours import Space
from prefect_augment.evaluation.quality.class_tests import MIN_TO_COMPARE
from prefect_augment.nn.threads import single_threaded

MAX_COMPARED = 2000  # records a side; all distances between them take 32 MiB
# The two-sample test needs a bound on its seconds rather than its last decimal.
C2ST_FOLDS = 5
C2ST_RECORDS = 1000
C2ST_ITERATIONS = 50


class Likeness(NamedTuple):
    """Likeness of two sets; NaN with fewer than two real records or no synthetic one."""

    precision: float  # share of synthetic records within the ball of some real one
    recall: float  # share of real records within the ball of some synthetic one
    density: float  # mean number of real balls around a synthetic record, over k; 1 if alike
    coverage: float  # share of real records whose ball holds a synthetic one


def likeness(real: Array, synthetic: Array, k: int = 5, *, space: Space | None = None) -> Likeness:
    """Precision, recall, density and coverage of synthetic records against real ones.

    The first 2,000 of each count. A record's closed ball reaches to its k-th nearest neighbour.
    Distances are those of ``space``, or Euclidean (then without nulls).

    Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", section 3.
    Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models".
    """
    real, synthetic = real[:MAX_COMPARED], synthetic[:MAX_COMPARED]
    if len(real) < 2 or not len(synthetic):
        return Likeness(*[float("nan")] * 4)
    if space is None:
        among, between = cdist(real, real), cdist(real, synthetic)
        others = cdist(synthetic, synthetic)
    else:
        a, b = space.place(real), space.place(synthetic)
        among, between = space.distances(a, a), space.distances(a, b)
        others = space.distances(b, b)
    k_real = min(k, len(real) - 1)
    inside = between <= _radius(among, k_real)[:, None]
    recall = float("nan")
    if len(synthetic) > 1:
        reached = between <= _radius(others, min(k, len(synthetic) - 1))
        recall = float(reached.any(axis=1).mean())
    return Likeness(
        precision=float(inside.any(axis=0).mean()),
        recall=recall,
        density=float(inside.sum() / (k_real * len(synthetic))),
        coverage=float(inside.any(axis=1).mean()),
    )


def _radius(among: Float, k: int) -> Float:
    """Distance of each record to its k-th nearest other one; the matrix is overwritten."""
    np.fill_diagonal(among, np.inf)
    return np.partition(among, k - 1, axis=1)[:, k - 1]


def expected_coverage(n_real: int, n_synthetic: int, k: int = 5) -> float:
    """Coverage that records of the same distribution reach on average.

    1 minus the chance that the nearest k of all other records are real ones, any order being equally likely. Naeem et
    al. 2020, section 3.2, have the limit of many records, 1 - 2**-k. More than 2,000 records a side count as 2,000.
    """
    n, m = min(n_real, MAX_COMPARED), min(n_synthetic, MAX_COMPARED)
    if n < 2 or not m:
        return float("nan")
    i = np.arange(min(k, n - 1))
    return float(1.0 - np.prod((n - 1 - i) / (n - 1 + m - i)))


def c2st_auc(
    real: Float,
    synthetic: Float,
    *,
    n_levels: Int,
    seed: int = 0,
    estimator: EstimatorKind = "boosting",
    most: int = C2ST_RECORDS,
    n_iterations: int = C2ST_ITERATIONS,
) -> float:
    """AUC of a classifier that tells synthetic from real records, mean of 5-fold cross-validation.

    0.5 where the sets cannot be told apart; NaN with fewer than five records on a side. The first
    ``most`` records of each side count. ``logistic`` suits the many features that a network makes.
    Lopez-Paz & Oquab 2017, "Revisiting Classifier Two-Sample Tests".
    """
    real, synthetic = real[:most], synthetic[:most]
    if min(len(real), len(synthetic)) < C2ST_FOLDS:
        return float("nan")
    X = np.vstack([real, synthetic])
    y = np.repeat([0, 1], [len(real), len(synthetic)])
    folds = stratified_folds(y, None, C2ST_FOLDS, seed, [str(i) for i in range(len(y))])
    aucs = []
    for fold in range(C2ST_FOLDS):
        train, test = folds != fold, folds == fold
        fitted = fit_estimator(
            estimator,
            X[train],
            y[train],
            weights=balanced_weights(y[train]),
            n_levels=n_levels,
            n_classes=2,
            seed=seed,
            n_iterations=n_iterations,
        )
        aucs.append(roc_auc_score(y[test], fitted.predict_proba(X[test])[:, 1]))
    return float(np.mean(aucs))


# Seconds grow with the cube of the records: 20 distances of 500 records and 2,000 features take two.
MOST, MOST_TOGETHER = 500, 1000
N_DIVISIONS = 19


def frechet_distance(a: Float, b: Float) -> float:
    """Fréchet distance between two Gaussians fitted to features, (n_a, n_features) and (n_b, n_features).

    NaN with fewer than two records on a side. The fewer the records, the larger it is, also between sets of one
    distribution; so compare it with that of as many real records. Dowson & Landau 1982, "The Fréchet distance between
    multivariate normal distributions"; Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", section 2.
    """
    if min(len(a), len(b)) < 2:
        return float("nan")
    gap = a.mean(axis=0) - b.mean(axis=0)
    with single_threaded():
        roots = [_root(x) for x in (a, b)]
        # tr sqrt(Ca Cb) by singular values: no square root of a matrix that few records leave without full rank.
        shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(float((root**2).sum()) for root in roots)
    return float(max(0.0, gap @ gap + spread - 2 * shared))


def _root(x: Float) -> Float:
    """R with R'R the covariance, of at most n_features rows."""
    centred: Float = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return centred if len(x) <= x.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


Part = tuple[Labelled, Bool]  # records, and which of them count
# Features of kept, validation's and training records of a stratum.
Side = tuple[Float, Float, Float]


def frechet_metrics(
    features: Callable[[Array], Array], *, kept: Part, validation: Part, training: Part, seed: int
) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """Metrics of each stratum with kept records, and those of all these strata together.

    ``frechet_distance`` is of kept records to validation's; no more are kept than there are training records.
    ``real_frechet_distance`` is the mean, and ``real_frechet_largest`` the largest, of 19 random divisions of the
    real records into as many on either side: of generators like the real records one in twenty is above the largest.
    500 records of a stratum and part count, and 1,000 of all together. Left out where a side has fewer than 20.
    """
    sides: dict[int, Side] = {}
    for s in map(int, np.unique(kept[0].stratum[kept[1]])):
        parts = [
            part.X[np.flatnonzero((part.stratum == s) & counts)[:MOST]]
            for part, counts in (kept, validation, training)
        ]
        own, unseen, seen = (np.asarray(features(X), dtype=np.float64) for X in parts)
        sides[s] = own[: len(seen)], unseen, seen
    rng = np.random.default_rng(seed)
    by_stratum = {s: _metrics([side], rng) for s, side in sides.items()}
    most = MOST_TOGETHER // max(1, len(sides))
    together = [(own[:most], unseen[:most], seen[:most]) for own, unseen, seen in sides.values()]
    return by_stratum, _metrics(together, rng)


def _metrics(sides: Sequence[Side], rng: np.random.Generator) -> dict[str, float]:
    if not sides or min(sum(map(len, part)) for part in zip(*sides, strict=True)) < MIN_TO_COMPARE:
        return {}
    own, unseen, _ = (np.concatenate(part) for part in zip(*sides, strict=True))
    real = []
    for _ in range(N_DIVISIONS):
        drawn = [np.concatenate(side[1:]) for side in sides]
        drawn = [pool[rng.permutation(len(pool))] for pool in drawn]
        ends = [(len(side[1]), len(side[1]) + len(side[0])) for side in sides]
        first = np.concatenate([pool[:m] for pool, (m, _) in zip(drawn, ends, strict=True)])
        other = np.concatenate([pool[m:end] for pool, (m, end) in zip(drawn, ends, strict=True)])
        real.append(frechet_distance(other, first))
    return {
        "frechet_distance": frechet_distance(own, unseen),
        "real_frechet_distance": float(np.mean(real)),
        "real_frechet_largest": max(real),
    }
