"""The Fréchet distance of kept synthetic images to unseen real ones, in the features of the user's encoder."""

from collections.abc import Callable

import numpy as np

from prefect_augment.array_types import Array, Float
from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.quality.class_tests import MIN_TO_COMPARE
from prefect_augment.evaluation.quality.prdc import MAX_COMPARED
from prefect_augment.evaluation.threads import single_threaded


def frechet_distance(a: Float, b: Float) -> float:
    """Fréchet distance between two Gaussians fitted to features, (n_a, n_features) and (n_b, n_features).

    NaN with fewer than two records on a side. The fewer the records, the larger it is, also between sets of
    one distribution; so compare it with that of as many real records.

    References
    ----------
    Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions".
    Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", section 2.
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


def frechet_metrics(
    features: Callable[[Array], Float], training: Labelled, validation: Labelled, kept: Labelled
) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """Metrics of each stratum with kept records, and those of all these strata together.

    ``frechet_distance`` is of kept records to validation's, ``real_frechet_distance`` of as many training
    records: what a perfect generator reaches. At most 2,000 records of a stratum and part count. Left out where
    a side has fewer than 20.
    """
    sides: dict[int, list[Float]] = {}
    for s in map(int, np.unique(kept.stratum)):
        own, seen, unseen = (
            part.X[part.stratum == s][:MAX_COMPARED] for part in (kept, training, validation)
        )
        n = min(len(own), len(seen))
        sides[s] = [np.asarray(features(X), np.float64) for X in (own[:n], seen[:n], unseen)]
    together = [np.concatenate(side) for side in zip(*sides.values(), strict=True)]
    return {s: _metrics(side) for s, side in sides.items()}, _metrics(together) if together else {}


def _metrics(side: list[Float]) -> dict[str, float]:
    kept, training, validation = side
    if min(map(len, side)) < MIN_TO_COMPARE:
        return {}
    return {
        "frechet_distance": frechet_distance(kept, validation),
        "real_frechet_distance": frechet_distance(training, validation),
    }
