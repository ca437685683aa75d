"""Drawn records that lie too near to a training record: passed over until they are as rare as asked for.

A record is *near* where it is nearer to the training records of its stratum than the nearest
:data:`QUANTILE` of real records are that were not fitted on: validation's, or where there are too few of
them the training records beside one another (as in the gate, whose distances these are). How many of a
model's records are near is measured on some draws; of those that follow, each near one is kept with
the probability that leaves the wanted share. Whether it is depends on its own seed, so that a
candidate stays the same whatever else is drawn.

Records that are equal to a training record count apart: real ones may be equal too (a table with many
empty rows), and drawn ones may as often as these, whatever share of near ones is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.evaluation.neighbours import (
    FeatureSpace,
    Points,
    near_limit,
    real_distances,
)
from prefect_augment.genmodels.base import GenerativeModel
from prefect_augment.genmodels.counter_rng import record_keys, seeds_from, uniform

__all__ = ["QUANTILE", "NearRows"]

QUANTILE = 0.05  # of the real records' distances: nearer is near
MIN_DISTANCES = 10  # with fewer real records only equal ones count, as in the gate
# Draws of each stratum by which near ones are counted: their share is known to half a percent. Where there
# are many strata fewer of each, so that measuring does not take longer than drawing.
N_MEASURED, N_MEASURED_IN_ALL, MIN_MEASURED = 2048, 8192, 128
COUNTER = 1 << 40  # of the random number that decides: far behind those that models use

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Stratum:
    """What is near in one stratum, how much of it stays, and how much of all that is drawn."""

    training: Points
    limit: float
    keep_near: float
    keep_equal: float
    accepted: float


@dataclass(frozen=True)
class NearRows:
    """Which drawn records stay, by how near they lie to the training records.

    Attributes
    ----------
    share : float
        Wanted share of near records.
    encoder : TableEncoder
        Distances are those of values as they are written, after rounding.
    space : FeatureSpace
        Of all training records.
    strata : dict of int to _Stratum
        Records of others all stay.
    """

    share: float
    encoder: TableEncoder
    space: FeatureSpace
    strata: dict[int, _Stratum]

    @classmethod
    def of(
        cls,
        share: float,
        fitted: GenerativeModel,
        encoder: TableEncoder,
        *,
        training: tuple[Floats, NDArray[np.int64]],
        validation: tuple[Floats, NDArray[np.int64]],
        strata: Sequence[int],
    ) -> Self:
        """Measure how near a model's records lie.

        Parameters
        ----------
        share : float in [0, 1)
            Of near records that may be left: 0 leaves none, :data:`QUANTILE` as many as among real ones.
        fitted : GenerativeModel
        encoder : TableEncoder
            The model's.
        training, validation : (ndarray of float64, shape (n, n_columns), ndarray of int64, shape (n,))
            Records in the matrix form with their strata; validation may be empty.
        strata : sequence of int
            Those that are drawn.
        """
        space = FeatureSpace.of(training[0], encoder.is_category)
        found = cls(share, encoder, space, {})
        n = max(MIN_MEASURED, min(N_MEASURED, N_MEASURED_IN_ALL // max(1, len(strata))))
        for k in strata:
            own = space.place(training[0][training[1] == k])
            real = real_distances(space, own, space.place(validation[0][validation[1] == k]))
            seeds = seeds_from(k, 0, n)
            drawn = fitted.sample(np.full(n, k, dtype=np.int64), seeds=seeds)
            distance = space.nearest(found._placed(drawn), own)
            found.strata[k] = _of_distances(own, real, distance, share)
        return found

    def where_possible(self, least: float) -> Self:
        """Return the same without the strata in which less than a share of the draws would stay.

        Where columns have few values, all that is drawn may be near, and there is nothing to choose from.
        """
        strata = {k: of for k, of in self.strata.items() if of.accepted >= least}
        return replace(self, strata=strata)

    def stay(self, k: int, X: Floats, seeds: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which records of a stratum stay, shape (n,).

        Parameters
        ----------
        k : int
            The stratum.
        X : ndarray of float64, shape (n, n_columns)
        seeds : ndarray of int64, shape (n,)
            Each record's own.
        """
        of = self.strata.get(k)
        if of is None or min(of.keep_near, of.keep_equal) >= 1:
            return np.ones(len(X), dtype=bool)
        distance = self.space.nearest(self._placed(X), of.training)
        keep = np.where(distance == 0, of.keep_equal, of.keep_near)
        stays: NDArray[np.bool_] = uniform(record_keys(seeds), COUNTER) < keep
        return stays | ((distance > 0) & (distance >= of.limit))

    def _placed(self, X: Floats) -> Points:
        """Return records in the feature space, as they are once they are written."""
        codecs = [self.encoder.codec(name) for name in self.encoder.names]
        written = [codec.encode(codec.decode(x)) for codec, x in zip(codecs, X.T, strict=True)]
        return self.space.place(np.array(written).reshape(X.shape[::-1]).T)


def _of_distances(training: Points, real: Floats, drawn: Floats, share: float) -> _Stratum:
    """Return what is near and how much of it stays, from real and drawn records' distances.

    With shares s of near, e of equal and f of other records drawn, and s', e', f' wanted, near ones
    are kept with probability (s' / f') / (s / f), at most 1; the same of equal ones.
    """
    equal = float(np.mean(real == 0)) if len(real) else 0.0
    limit = near_limit(real, QUANTILE) if len(real) >= MIN_DISTANCES else 0.0
    near = share * (1.0 - equal)
    others = 1.0 - equal - near
    if others <= 0:  # real records are all equal
        return _Stratum(training, limit, 1.0, 1.0, 1.0)
    is_equal = drawn == 0
    is_near = ~is_equal & (drawn < limit)
    n_others = np.count_nonzero(~is_equal & ~is_near)

    def keep(wanted: float, is_one: NDArray[np.bool_]) -> float:
        n = np.count_nonzero(is_one)
        # Where none was seen there may still be one.
        return min(1.0, wanted / others * n_others / n) if n else float(wanted > 0)

    keep_near, keep_equal = keep(near, is_near), keep(equal, is_equal)
    stays = n_others + keep_near * is_near.sum() + keep_equal * is_equal.sum()
    return _Stratum(training, limit, keep_near, keep_equal, float(stays / len(drawn)))
