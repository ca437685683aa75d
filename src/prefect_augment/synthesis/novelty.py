"""Limit the share of drawn records that lie near to a training record.

A record is *near* if it is nearer to its stratum's training records than the nearest
:data:`QUANTILE` of unseen real records: those of validation, or if there are too few the training
records among themselves, as in the quality filter. The share of near draws is measured once. Each
later near draw is then accepted with the probability that leaves the requested share. The decision
depends on the record's own seed, so a candidate does not depend on other draws.

Records equal to a training record count separately. Real records may be equal too (a table with
many empty rows), and drawn ones may be as often, whatever the share of near ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.evaluation.neighbours import FeatureSpace, Points, near_limit, real_distances
from prefect_augment.genmodels.base import GenerativeModel
from prefect_augment.genmodels.counter_rng import record_keys, seeds_from, uniform

QUANTILE = 0.05  # of the real records' distances
MIN_DISTANCES = 10  # with fewer real records only equal ones count, as in the filter
# Draws per stratum to measure the share of near ones, to half a percent. With many strata fewer of each,
# so that measuring does not take longer than drawing.
N_MEASURED, N_MEASURED_IN_ALL, MIN_MEASURED = 2048, 8192, 128
COUNTER = 1 << 40  # of the random number that decides, far beyond those of models


@dataclass(frozen=True)
class _Stratum:
    """Limits of one stratum."""

    training: Points
    limit: float  # distance below which a record is near
    keep_near: float  # acceptance probabilities
    keep_equal: float
    accepted: float  # share of all draws


@dataclass(frozen=True)
class NearRows:
    """Decides which drawn records to keep by their distance to the training records."""

    share: float  # of near records to leave
    encoder: TableEncoder
    space: FeatureSpace  # of all training records
    strata: dict[int, _Stratum]  # others keep all their records

    @classmethod
    def of(
        cls,
        share: float,
        fitted: GenerativeModel,
        encoder: TableEncoder,
        *,
        training: tuple[Float, Int],
        validation: tuple[Float, Int],
        strata: Sequence[int],
    ) -> Self:
        """Measure how near a model's draws lie in the strata that are drawn.

        ``share`` in [0, 1) is the share of near records to leave: 0 leaves none, :data:`QUANTILE`
        as many as among real ones. ``training`` and ``validation`` are records in the matrix form
        with their strata; validation may be empty.
        """
        space = FeatureSpace.of(training[0], encoder.is_category)
        near_rows = cls(share, encoder, space, {})
        n = max(MIN_MEASURED, min(N_MEASURED, N_MEASURED_IN_ALL // max(1, len(strata))))
        for k in strata:
            own = space.place(training[0][training[1] == k])
            real = real_distances(space, own, space.place(validation[0][validation[1] == k]))
            seeds = seeds_from(k, 0, n)
            drawn = fitted.sample(np.full(n, k, dtype=np.int64), seeds=seeds)
            distance = space.nearest(near_rows._points(drawn), own)
            near_rows.strata[k] = _stratum_of(own, real, distance, share)
        return near_rows

    def where_feasible(self, least: float) -> Self:
        """Drop the strata that would accept less than this share of their draws.

        Where columns have few values, all draws may be near, and there is nothing to choose from.
        """
        strata = {k: stratum for k, stratum in self.strata.items() if stratum.accepted >= least}
        return replace(self, strata=strata)

    def stay(self, k: int, X: Float, seeds: Int) -> Bool:
        """Tell which records of stratum ``k`` to keep, shape (n,); ``seeds`` are their own seeds."""
        stratum = self.strata.get(k)
        if stratum is None or min(stratum.keep_near, stratum.keep_equal) >= 1:
            return np.ones(len(X), dtype=bool)
        distance = self.space.nearest(self._points(X), stratum.training)
        keep = np.where(distance == 0, stratum.keep_equal, stratum.keep_near)
        stays: Bool = uniform(record_keys(seeds), COUNTER) < keep
        return stays | ((distance > 0) & (distance >= stratum.limit))

    def _points(self, X: Float) -> Points:
        """Records in the feature space, with the values as written, after rounding."""
        codecs = [self.encoder.codec(name) for name in self.encoder.names]
        written = [codec.encode(codec.decode(x)) for codec, x in zip(codecs, X.T, strict=True)]
        return self.space.place(np.array(written).reshape(X.shape[::-1]).T)


def _stratum_of(training: Points, real: Float, drawn: Float, share: float) -> _Stratum:
    """Acceptance probabilities from the distances of real and drawn records.

    With shares s of near, e of equal and f of other draws, and s', e', f' requested, near ones are
    kept with probability (s' / f') / (s / f), at most 1; likewise equal ones.
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

    def keep(wanted: float, is_one: Bool) -> float:
        n = np.count_nonzero(is_one)
        # None was drawn here, but one may follow.
        return min(1.0, wanted / others * n_others / n) if n else float(wanted > 0)

    keep_near, keep_equal = keep(near, is_near), keep(equal, is_equal)
    stays = n_others + keep_near * is_near.sum() + keep_equal * is_equal.sum()
    return _Stratum(training, limit, keep_near, keep_equal, float(stays / len(drawn)))
