"""Rows near to a training record: as rare as asked for, with equal ones as frequent as among real records."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from prefect_augment import GenerativeSampler
from prefect_augment.encoding.columns import describe_columns
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.estimators.sampler import SMALL_CLASS
from prefect_augment.evaluation.neighbours import FeatureSpace, near_limit
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.synthesis.novelty import QUANTILE, NearRows

N = 400


class Copier:
    """Gives back training records: some of them as they are, some moved a little, the others elsewhere."""

    def __init__(self, X: NDArray[np.float64], equal: float, near: float) -> None:
        self.X, self.equal, self.near = X, equal, near

    def sample(self, conditions: NDArray[np.int64], *, seeds: NDArray[np.int64]) -> np.ndarray:
        made = []
        for k, seed in zip(conditions, seeds, strict=True):
            rng = np.random.default_rng([abs(int(seed)), int(k)])
            row, chance = self.X[rng.integers(len(self.X))], rng.random()
            if chance > self.equal:
                row = row + 1e-4 if chance < self.equal + self.near else rng.normal(size=len(row))
            made.append(row)
        return np.array(made)


def real(twins: int = 0) -> NDArray[np.float64]:
    X = np.random.default_rng(0).normal(size=(N, 3))
    X[:twins] = X[0]
    return X


def compared(
    X: NDArray[np.float64], share: float, *, equal: float, near: float, n: int = 4000
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return how far drawn rows are from the training records, and which of them stay."""
    table = pa.table({**{f"x{j}": X[:, j] for j in range(3)}, "y": ["a"] * N})
    encoder = TableEncoder.fit(table, columns=describe_columns(table, label="y"), label="y")
    model, y = Copier(X, equal, near), np.zeros(N, dtype=np.int64)
    rows = NearRows.of(
        share,
        model,
        encoder,
        training=(X, y),
        validation=(X[:0], y[:0]),
        strata=[0],  # type: ignore[arg-type]
    )
    seeds = seeds_from(3, 0, n)
    drawn = model.sample(np.zeros(n, dtype=np.int64), seeds=seeds)
    stays = rows.stay(0, drawn, seeds)
    assert np.array_equal(stays[100:200], rows.stay(0, drawn[100:200], seeds[100:200]))
    written = encoder.encode(encoder.decode(drawn, strata=["a"] * n))
    return rows.space.nearest(rows.space.place(written), rows.space.place(X)), stays


def limit_of(X: NDArray[np.float64]) -> float:
    space = FeatureSpace.of(X, np.zeros(3, dtype=bool))
    return near_limit(space.nearest_others(space.place(X)), QUANTILE)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
def test_near_rows_are_as_rare_as_asked_for(share: float) -> None:
    distance, stays = compared(real(), share, equal=0.1, near=0.3)
    left = distance[stays]
    assert np.mean(left < limit_of(real())) == pytest.approx(share, abs=0.03)
    assert (left > 0).all(), "no two real records are equal"
    assert stays[distance >= limit_of(real())].all(), "rows that are far enough all stay"


def test_rows_equal_to_a_training_record_are_as_frequent_as_among_real_ones() -> None:
    X = real(twins=120)
    distance, stays = compared(X, 0.0, equal=0.6, near=0.2)
    assert np.mean(distance[stays] == 0) == pytest.approx(120 / N, abs=0.03)
    assert not ((distance > 0) & (distance < limit_of(X)))[stays].any()


def test_nothing_is_passed_over_where_real_records_are_all_equal() -> None:
    twice = np.repeat(real()[: N // 2], 2, axis=0)
    assert compared(twice, 0.0, equal=1.0, near=0.0)[1].all()


def test_rows_as_rare_as_asked_for_all_stay() -> None:
    assert compared(real(), 0.5, equal=0.0, near=0.2)[1].all()


def test_the_sampler_says_how_many_draws_were_passed_over() -> None:
    rng = np.random.default_rng(1)
    X, y = np.round(rng.normal(size=(240, 2)), 1), np.repeat([0, 1], [200, 40])
    near = {}
    for share in (None, 0.0):
        sampler = GenerativeSampler(max_near=share, purpose="faithful", random_state=0)
        made, labels = sampler.fit_resample(X, y)
        assert len(made) == 400
        assert (labels == 1).sum() == 200
        space = FeatureSpace.of(X, np.zeros(2, dtype=bool))
        own = space.place(X[y == 1])
        distances = space.nearest(space.place(made[240:]), own)
        limit = near_limit(space.nearest_others(own), QUANTILE)
        near[share] = np.mean((distances > 0) & (distances < limit))
        assert (sampler.summary_["accepted"][1] == 1.0) == (share is None)
    assert near[None] > near[0.0] == 0


def test_a_share_that_is_none_is_refused() -> None:
    for none in (1.0, "none"):
        with pytest.raises(ValueError, match="max_near"):
            GenerativeSampler(max_near=none).fit_resample(np.zeros((20, 1)), np.repeat([0, 1], 10))


def test_by_itself_only_small_classes_are_held_against_their_rows() -> None:
    rng = np.random.default_rng(2)
    y = np.repeat([0, 1, 2], [200, 60, SMALL_CLASS - 1])
    X = np.round(rng.normal(size=(len(y), 2)), 1)
    accepted = {}
    for share in ("auto", None):
        sampler = GenerativeSampler(max_near=share, purpose="faithful", random_state=0)
        sampler.fit_resample(X, y)
        accepted[share] = sampler.summary_["accepted"]
    assert accepted["auto"][1] == accepted[None][1] == accepted[None][2] == 1.0
    assert accepted["auto"][2] < 1.0


def test_by_itself_it_leaves_rows_that_can_only_be_near() -> None:
    """One column of a few values: every draw equals a row, and the few real ones hardly one another."""
    y = np.repeat([0, 1], [60, 6 + MIN_SAMPLED_RECORDS])
    X = np.concatenate([np.arange(60.0) % 20, np.arange(6.0 + MIN_SAMPLED_RECORDS)])[:, None]
    sampler = GenerativeSampler(purpose="faithful", random_state=0)
    assert len(sampler.fit_resample(X, y)[0]) == 120


def test_many_small_classes_are_measured_on_fewer_draws_each() -> None:
    """Measuring is not to take longer than drawing; a class by itself is measured closely."""

    class Counting(Copier):
        n_drawn = 0

        def sample(self, conditions: NDArray[np.int64], *, seeds: NDArray[np.int64]) -> np.ndarray:
            self.n_drawn += len(seeds)
            return super().sample(conditions, seeds=seeds)

    X = real()
    table = pa.table({**{f"x{j}": X[:, j] for j in range(3)}, "y": ["a"] * N})
    encoder = TableEncoder.fit(table, columns=describe_columns(table, label="y"), label="y")
    n_drawn = {}
    for n_classes in (1, 40):
        model, y = Counting(X, 0.1, 0.1), np.arange(N) % n_classes
        none = (X[:0], y[:0])
        strata = list(range(n_classes))
        NearRows.of(0.05, model, encoder, training=(X, y), validation=none, strata=strata)  # type: ignore[arg-type]
        n_drawn[n_classes] = model.n_drawn
    assert n_drawn[40] <= 5 * n_drawn[1]
    assert n_drawn[1] >= 2000
