"""The Fréchet distance of kept synthetic images to unseen real ones, in the features of the user's encoder."""

from collections.abc import Callable, Sequence

import numpy as np

from prefect_augment.array_types import Array, Bool, Float
from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.quality.class_tests import MIN_TO_COMPARE
from prefect_augment.nn.threads import single_threaded

# Seconds grow with the cube of the records: 20 distances of 500 records and 2,000 features take two.
MOST, MOST_TOGETHER = 500, 1000
N_DIVISIONS = 19


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
