"""Ways of making classic records of tables: what each starts from, and what all of them keep."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from imblearn.over_sampling import BorderlineSMOTE, RandomOverSampler
from numpy.typing import NDArray

from prefect_augment.augmentation.base import make_records
from prefect_augment.augmentation.smote import SmoteRecords, StratifiedTable, start_weights
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.params import Classic

METHODS = ("smote", "borderline", "adasyn", "oversampling", "jitter")
Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


def overlapping(n: int = 120, few: int = 30, seed: int = 0) -> tuple[Floats, Codes]:
    """Two classes of numbers that lie partly within one another."""
    rng = np.random.default_rng(seed)
    X = np.concatenate([rng.normal(0, 1, (n, 3)), rng.normal(1.2, 1, (few, 3))])
    return X, np.repeat([0, 1], [n, few])


def run(
    X: Floats,
    strata: Codes,
    counts: dict[int, int],
    method: Any,
    *,
    n_categories: int = 0,
    **options: Any,
) -> SmoteRecords:
    is_category = np.arange(X.shape[1]) >= X.shape[1] - n_categories
    table = StratifiedTable(X, strata, is_category, is_category * 3)
    return make_records(table, counts, classic=Classic(table=method, **options), seed=5)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 15), min_size=1, max_size=3),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from(METHODS),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 10**6),
)
def test_every_way_makes_what_was_asked_and_stays_within_the_class(
    sizes: list[int], n_numbers: int, n_categories: int, method: str, null_share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    X = np.concatenate(
        [rng.normal(size=(n, n_numbers + 1)), rng.integers(0, 3, (n, n_categories))], axis=1
    )
    X[rng.random(X.shape) < null_share] = np.nan
    strata = np.repeat(np.arange(len(sizes)), sizes)
    counts = {0: 7, len(sizes) - 1: 4}
    made = run(X, strata, counts, method, n_categories=n_categories)
    assert np.bincount(made.strata, minlength=len(sizes)).tolist() == [
        counts.get(k, 0) for k in range(len(sizes))
    ]
    assert np.array_equal(strata[made.parents], made.strata)
    assert np.array_equal(np.isnan(made.X), np.isnan(X[made.parents])), "nulls are the parent's"
    for k in counts:
        own, new = X[strata == k], made.X[made.strata == k]
        with warnings.catch_warnings(action="ignore"):  # a column may be all null
            inside = (new >= np.nanmin(own, axis=0) - 1e-12) & (
                new <= np.nanmax(own, axis=0) + 1e-12
            )
        assert (inside | np.isnan(new)).all()
        for j in range(n_numbers + 1, X.shape[1]):
            assert set(new[:, j][~np.isnan(new[:, j])]) <= set(own[:, j])


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_makes_the_same_records(method: str) -> None:
    X, strata = overlapping()
    first, again = (run(X, strata, {1: 40}, method) for _ in range(2))
    assert np.array_equal(first.X, again.X)
    more = run(X, strata, {0: 5, 1: 40}, method)
    assert np.array_equal(more.X[5:], first.X), "another class draws for itself"


def starts(X: Any, strata: Any, method: Any) -> Any:
    table = StratifiedTable(X, strata, np.zeros(3, bool), np.zeros(3, np.int64))
    return start_weights(table, {1: 1}, method=method, k_neighbors=5, max_memory_mib=1024)


def test_borderline_starts_where_imbalanced_learn_finds_danger() -> None:
    X, strata = overlapping()
    X = X / X.std(axis=0)
    weights, notes = starts(X, strata, "borderline")
    theirs = BorderlineSMOTE(random_state=0)
    theirs.fit_resample(X, strata)
    danger = theirs._in_danger_noise(theirs.nn_m_, X[strata == 1], 1, strata, kind="danger")
    assert np.array_equal(weights[strata == 1] > 0, danger)
    assert not notes
    made = run(X, strata, {1: 60}, "borderline")
    assert set(made.parents) <= set(np.flatnonzero((strata == 1) & (weights > 0)))


def test_adasyn_starts_as_often_as_other_classes_are_near() -> None:
    """Brute force."""
    X, strata = overlapping()
    X = X / X.std(axis=0)
    weights, _ = starts(X, strata, "adasyn")
    distances = np.linalg.norm(X[strata == 1][:, None] - X[None], axis=2)
    nearest = distances.argsort(axis=1)[:, 1:6]
    assert weights[strata == 1] == pytest.approx((strata[nearest] != 1).mean(axis=1))
    made = run(X, strata, {1: 4000}, "adasyn")
    share = np.bincount(made.parents, minlength=len(X))[strata == 1] / 4000
    assert share == pytest.approx(weights[strata == 1] / weights[strata == 1].sum(), abs=0.015)


def test_shrinkage_spreads_copies_as_far_as_imbalanced_learn() -> None:
    """Beside the cut at the class's range, which theirs does not have."""
    X, strata = overlapping(n=60, few=400)
    ours = run(X, strata, {1: 3000}, "oversampling", shrinkage=0.5)
    theirs = RandomOverSampler(sampling_strategy={1: 3400}, shrinkage=0.5, random_state=0)
    made = theirs.fit_resample(X, strata)[0][460:]
    moved = (ours.X - X[ours.parents]).std(axis=0)
    their_parents = X[theirs.sample_indices_[460:]]
    assert moved == pytest.approx((made - their_parents).std(axis=0), rel=0.1)
    plain = run(X, strata, {1: 50}, "oversampling", shrinkage=0.0)
    assert np.array_equal(plain.X, X[plain.parents])


def test_jitter_moves_by_a_share_of_the_classs_own_deviation() -> None:
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(0, 1, 500), rng.normal(50, 100, 500)])
    made = run(X, np.zeros(500, np.int64), {0: 2000}, "jitter", jitter=0.1)
    moved = (made.X - X[made.parents]).std(axis=0)
    assert moved == pytest.approx(0.1 * X.std(axis=0), rel=0.08)


def test_where_a_method_says_nothing_all_records_are_started_from() -> None:
    """Two classes far apart have no border."""
    X = np.concatenate([np.random.default_rng(0).normal(0, 1, (30, 2)), np.full((12, 2), 50.0)])
    X[30:] += np.random.default_rng(1).normal(0, 1, (12, 2))
    strata = np.repeat([0, 1], [30, 12])
    for method, said in (
        ("borderline", "none is at the border"),
        ("adasyn", "no other class is near"),
    ):
        made = run(X, strata, {1: 40}, method)
        assert said in made.notes[1]
        assert len(set(made.parents)) > 8


@pytest.mark.parametrize("method", METHODS)
def test_too_little_memory_and_empty_classes_are_refused(method: str) -> None:
    X, strata = np.zeros((400_000, 60)), np.zeros(400_000, np.int64)
    strata[:10] = 1
    if method in ("smote", "borderline", "adasyn"):
        with pytest.raises(ParameterError, match="raise it, lower balance.target"):
            run(X, strata, {1: 10}, method, max_memory_mib=64)
    with pytest.raises(EmptyClassError, match="has no record"):
        run(X[:50], strata[:50], {2: 3}, method)


@pytest.mark.parametrize("method", ["borderline", "adasyn"])
def test_tables_of_categories_and_constant_numbers_have_a_border(method: str) -> None:
    rng = np.random.default_rng(0)
    strata = np.repeat([0, 1], [90, 30])
    levels = np.where(rng.random((120, 2)) < 0.8, strata[:, None], 1 - strata[:, None])
    found = run(levels.astype(float), strata, {1: 30}, method, n_categories=2)
    assert len(found.parents) == 30
    # A category that is the class says that no other class is near, whatever stands beside it.
    own = np.column_stack([np.zeros((120, 2)), strata])
    table = StratifiedTable(own, strata, np.array([False, False, True]), np.array([0, 0, 2]))
    weights, notes = start_weights(table, {1: 30}, method=method, k_neighbors=5, max_memory_mib=256)
    assert (weights == 1).all()
    assert 1 in notes
