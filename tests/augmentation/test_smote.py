import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from imblearn.over_sampling import SMOTE, SMOTENC
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from prefect_augment.augmentation.smote import (
    SmoteRecords,
    StratifiedTable,
    random_oversample_indices,
    smote,
    smote_memory_bytes,
)
from prefect_augment.errors import EmptyClassError, ParameterError

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

N_LEVELS = 4


def a_table(
    sizes: list[int], kinds: str, *, null_share: float = 0.0, seed: int = 0
) -> tuple[Floats, Codes, NDArray[np.bool_], Codes]:
    """X, strata, is_category and n_levels; ``kinds`` has an n or c per column."""
    rng = np.random.default_rng(seed)
    n, is_category = sum(sizes), np.array([kind == "c" for kind in kinds], bool)
    X = np.where(
        is_category, rng.integers(0, N_LEVELS, (n, len(kinds))), rng.normal(size=(n, len(kinds)))
    )
    X[rng.random(X.shape) < null_share] = np.nan
    return X, np.repeat(np.arange(len(sizes)), sizes), is_category, is_category * N_LEVELS


def run(*table_and_counts: Any, **options: int) -> SmoteRecords:
    *table, counts = table_and_counts
    given = {"k_neighbors": 5, "seed": 7, "max_memory_mib": 1024, **options}
    return smote(StratifiedTable(*table), counts, **given)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    st.lists(st.integers(2, 25), min_size=1, max_size=3),
    st.text("nc", min_size=1, max_size=4),
    st.sampled_from([0.0, 0.2, 0.8]),
    st.integers(0, 10**6),
)
def test_numbers_lie_between_the_parent_and_one_neighbour_of_its_stratum(
    sizes: list[int], kinds: str, null_share: float, seed: int
) -> None:
    X, strata, is_category, n_levels = a_table(sizes, kinds, null_share=null_share, seed=seed)
    made = run(X, strata, is_category, n_levels, {0: 9, len(sizes) - 1: 5}, seed=seed)
    assert np.array_equal(strata[made.parents], made.strata)
    for record, parent, stratum in zip(made.X, made.parents, made.strata, strict=True):
        from_, to = X[parent, ~is_category], X[strata == stratum][:, ~is_category]
        value = record[~is_category]
        # Where parent or neighbour is null, nothing lies between them.
        free = np.isnan(from_) | np.isnan(to)
        between = (np.fmin(from_, to) <= value) & (value <= np.fmax(from_, to))
        kept = (value == from_) | np.isnan(from_)
        assert np.any(np.all(np.where(free, kept, between), axis=1))


def test_neighbours_and_draws_are_those_of_imbalanced_learn() -> None:
    X, strata, is_category, n_levels = a_table([60, 20], "nnn", seed=3)
    X = X / X.std(axis=0)  # our distances are over unit variance, so that scales do not matter
    made = run(X, strata, is_category, n_levels, {1: 40}, seed=11)
    their_seed = int(np.random.SeedSequence((11, 1)).generate_state(1)[0])
    theirs, _ = SMOTE(sampling_strategy={1: 60}, random_state=their_seed).fit_resample(X, strata)
    np.testing.assert_allclose(made.X, theirs[80:], atol=1e-12)


def test_numbers_beside_categories_are_those_of_smotenc() -> None:
    X, strata, is_category, n_levels = a_table([60, 30], "nncc", seed=4)
    X[:, ~is_category] /= X[:, ~is_category].std(axis=0)
    made = run(X, strata, is_category, n_levels, {1: 40}, seed=11)
    their_seed = int(np.random.SeedSequence((11, 1)).generate_state(1)[0])
    sampler = SMOTENC([2, 3], sampling_strategy={1: 70}, random_state=their_seed)
    theirs, _ = sampler.fit_resample(X, strata)
    np.testing.assert_allclose(made.X[:, :2], theirs[90:, :2], atol=1e-9)
    # Categories are voted on by the same neighbours; only ties are decided otherwise.
    assert np.mean(made.X[:, 2:] == theirs[90:, 2:]) > 0.6


def test_scales_of_columns_do_not_matter() -> None:
    X, strata, is_category, n_levels = a_table([40, 20], "nnc")
    factors = np.array([1e6, 1e-3, 1.0])
    plain = run(X, strata, is_category, n_levels, {1: 30})
    scaled = run(X * factors, strata, is_category, n_levels, {1: 30})
    assert np.array_equal(plain.parents, scaled.parents)
    np.testing.assert_allclose(plain.X * factors, scaled.X)


def test_a_value_that_parent_and_neighbour_share_comes_back_to_the_last_digit() -> None:
    """Scaling, or adding two shares, turns 0.7 into 0.7000000000000001, which no record has."""
    X, strata, is_category, n_levels = a_table([20, 20], "nnnn")
    X[:, 1:] = [0.1, 0.7, 1 / 3]
    made = run(X, strata, is_category, n_levels, {1: 500})
    assert np.array_equal(np.unique(made.X[:, 1:], axis=0), [[0.1, 0.7, 1 / 3]])


def test_values_near_the_largest_float_do_not_overflow() -> None:
    X, strata, is_category, n_levels = a_table([20, 20], "nn")
    X[:, 0] = np.where(np.arange(40) % 2, 1.7e308, -1.7e308)
    made = run(X, strata, is_category, n_levels, {1: 50}).X
    assert np.isfinite(made).all()
    assert np.abs(made[:, 0]).max() <= 1.7e308


@pytest.mark.parametrize("kinds", ["nnn", "nncc", "ccc"])
def test_new_records_are_null_exactly_where_their_parents_are(kinds: str) -> None:
    X, strata, is_category, n_levels = a_table([50, 30], kinds, null_share=0.3)
    made = run(X, strata, is_category, n_levels, {0: 10, 1: 100})
    assert np.array_equal(np.isnan(made.X), np.isnan(X[made.parents]))


def test_an_all_null_column_stays_null() -> None:
    X, strata, is_category, n_levels = a_table([30, 12], "nnc")
    X[:, 1] = np.nan
    made = run(X, strata, is_category, n_levels, {1: 20})
    assert np.isnan(made.X[:, 1]).all()
    assert np.isfinite(made.X[:, [0, 2]]).all()


def test_infinite_values_are_kept_and_never_combined() -> None:
    X, strata, is_category, n_levels = a_table([30, 12], "nn")
    X[strata == 1, 0] = np.where(np.arange(12) % 2, np.inf, X[strata == 1, 0])
    made = run(X, strata, is_category, n_levels, {1: 60})
    assert np.array_equal(np.isinf(made.X[:, 0]), np.isinf(X[made.parents, 0]))


@pytest.mark.parametrize("kinds", ["ncc", "ccc"])
def test_categories_are_levels_that_the_stratum_has(kinds: str) -> None:
    X, strata, is_category, n_levels = a_table([40, 15], kinds, null_share=0.1)
    X[strata == 1, 2] = np.where(X[strata == 1, 2] == 0, 1, X[strata == 1, 2])
    made = run(X, strata, is_category, n_levels, {1: 80})
    for column in np.flatnonzero(is_category):
        levels = made.X[:, column][~np.isnan(made.X[:, column])]
        assert np.isin(levels, X[strata == 1, column]).all()
    assert 0 not in made.X[:, 2]


def test_a_category_is_the_most_frequent_one_among_the_neighbours() -> None:
    """Two far clusters, each with one odd record: neighbours outvote the odd one's own level."""
    X = np.array([[0.0, 0], [0.1, 0], [0.2, 0], [0.3, 1], [9.0, 2], [9.1, 2], [9.2, 2], [9.3, 1]])
    strata = np.zeros(8, np.int64)
    made = run(X, strata, np.array([False, True]), np.array([0, 3]), {0: 100}, k_neighbors=3)
    near = made.X[:, 0] < 1
    assert set(made.X[near, 1]) == {0.0}
    assert set(made.X[~near, 1]) == {2.0}


@pytest.mark.parametrize("kinds", ["nn", "nc", "cc"])
def test_a_class_of_two_records_is_combined_and_noted(kinds: str) -> None:
    X, strata, is_category, n_levels = a_table([30, 2], kinds, seed=1)
    X[-2:] = [[0, 1], [2, 3]]
    made = run(X, strata, is_category, n_levels, {1: 12})
    assert made.X.shape == (12, 2)
    assert made.notes == {1: "1 of 5 neighbours: the stratum has 2 records"}


def test_a_class_of_one_record_is_copied_and_noted() -> None:
    X, strata, is_category, n_levels = a_table([30, 1], "nc")
    made = run(X, strata, is_category, n_levels, {1: 4})
    assert np.array_equal(made.X, np.repeat(X[-1:], 4, axis=0))
    assert made.notes == {1: "copied: one record has no neighbour to combine with"}


@pytest.mark.parametrize("kinds", ["nn", "nc", "cc", ""])
def test_a_class_of_equal_records_is_copied_and_noted(kinds: str) -> None:
    X, strata, is_category, n_levels = a_table([30, 6], kinds)
    X[strata == 1] = 1.0
    made = run(X, strata, is_category, n_levels, {1: 9})
    assert np.array_equal(made.X, np.ones((9, len(kinds))))
    assert "nothing varies" in made.notes[1]


def test_records_of_a_stratum_without_any_are_refused() -> None:
    X, strata, is_category, n_levels = a_table([30], "nn")
    with pytest.raises(EmptyClassError, match="stratum 3, which has no record"):
        run(X, strata, is_category, n_levels, {3: 1})


def test_nothing_wanted_gives_nothing() -> None:
    X, strata, is_category, n_levels = a_table([30, 5], "nc")
    made = run(X, strata, is_category, n_levels, {0: 0})
    assert (made.X.shape, made.strata.shape, made.parents.shape) == ((0, 2), (0,), (0,))


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ["n" * 20, "nnncc", "ccc"])
def test_same_seed_gives_the_same_records_with_any_number_of_threads(kinds: str) -> None:
    """Equally near neighbours are many where columns hold two values; threads must not decide."""
    X, strata, is_category, n_levels = a_table([900, 1500], kinds)
    halves = np.random.default_rng(0).permuted(
        np.tile(np.arange(2400) % 2.0, (len(kinds), 1)), axis=1
    )
    X = np.where(is_category, X, halves.T)
    made = []
    for n_threads in (1, 4):
        with threadpool_limits(n_threads):
            made.append(run(X, strata, is_category, n_levels, {1: 500}))
    np.testing.assert_array_equal(made[0].X, made[1].X)
    assert np.array_equal(made[0].parents, made[1].parents)


def test_another_seed_gives_other_records() -> None:
    X, strata, is_category, n_levels = a_table([30, 15], "nn")
    first, second = (run(X, strata, is_category, n_levels, {1: 20}, seed=s) for s in (1, 2))
    assert not np.array_equal(first.X, second.X)


def test_each_stratum_has_a_stream_of_its_own() -> None:
    X, strata, is_category, n_levels = a_table([15, 15], "nn")
    both = run(X, strata, is_category, n_levels, {1: 20, 0: 30})
    alone = run(X, strata, is_category, n_levels, {1: 20})
    np.testing.assert_array_equal(both.X[both.strata == 1], alone.X)
    assert not np.array_equal(both.parents[:20], both.parents[30:] - 15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "n_own", "n_new", "levels"),
    [
        ("n" * 10, 2000, 40_000, 0),
        ("nnnnnnn" + "c" * 7, 2000, 20_000, 30),
        ("nnn" + "c" * 4, 3000, 3000, 3000),  # a dense one-hot matrix of these has 270 MiB
        ("c" * 8, 1500, 3000, 8),
    ],
)
def test_memory_stays_below_the_estimate(kinds: str, n_own: int, n_new: int, levels: int) -> None:
    X, strata, is_category, _ = a_table([500, n_own], kinds)
    n_levels = is_category * max(levels, 1)
    X = np.where(is_category, np.random.default_rng(0).integers(0, max(levels, 1), X.shape), X)
    run(X[:40], strata[:40], is_category, n_levels, {0: 5})  # imports and their caches
    need = smote_memory_bytes(
        StratifiedTable(X, strata, is_category, n_levels), {1: n_new}, k_neighbors=5
    )
    tracemalloc.start()
    run(X, strata, is_category, n_levels, {1: n_new})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < need


def test_too_much_memory_is_refused_with_advice_before_it_is_taken() -> None:
    X, strata, is_category, n_levels = a_table([500, 8000], "ccc")
    tracemalloc.start()
    with pytest.raises(ParameterError, match="max_memory_mib allows 64; raise it") as info:
        run(X, strata, is_category, n_levels, {1: 100}, max_memory_mib=64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert info.value.values["need_bytes"] > 8000**2 * 8
    assert peak < 16 * 1024**2


@pytest.mark.slow
@given(st.integers(1, 30), st.integers(0, 200), st.integers(0, 10**6))
def test_copies_are_spread_evenly(n_own: int, n_new: int, seed: int) -> None:
    strata = np.repeat([0, 1], [5, n_own])
    rows = random_oversample_indices(strata, {1: n_new}, seed)
    assert rows.size == n_new
    copies = np.bincount(rows, minlength=5 + n_own)
    assert copies[:5].sum() == 0
    assert np.ptp(copies[5:]) <= 1


def test_copies_of_a_stratum_without_records_are_refused() -> None:
    with pytest.raises(EmptyClassError, match="stratum 2, which has no record"):
        random_oversample_indices(np.array([0, 1]), {2: 1}, 0)
