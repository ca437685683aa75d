"""Folds: even, whole groups, and the same in any order of the records."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.folds import stratified_folds


def keys_of(n):
    return [f"key-{i}" for i in range(n)]


def folds_of(y, groups, n_folds, order):
    return stratified_folds(y, groups, n_folds, 7, [f"key-{i}" for i in order])


@pytest.mark.slow
@given(
    y=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    n_folds=st.integers(2, 6),
    shuffle_seed=st.integers(0, 100),
)
def test_folds_are_even_and_do_not_depend_on_the_order(y, n_folds, shuffle_seed):
    y = np.array(y)
    folds = folds_of(y, None, n_folds, range(len(y)))
    for k in np.unique(y):
        counts = np.bincount(folds[y == k], minlength=n_folds)
        assert counts.max() - counts.min() <= 1
    sizes = np.bincount(folds, minlength=n_folds)
    assert sizes.max() - sizes.min() <= 1

    order = np.random.default_rng(shuffle_seed).permutation(len(y))
    assert np.array_equal(folds_of(y[order], None, n_folds, order), folds[order])


# A hundred draws come near to the second of CPU that an unmarked test may take.
@pytest.mark.slow
@given(
    groups=st.lists(st.integers(0, 15), min_size=1, max_size=80),
    n_folds=st.integers(2, 5),
    shuffle_seed=st.integers(0, 100),
)
def test_groups_stay_whole_whatever_they_are_called(groups, n_folds, shuffle_seed):
    groups = np.array(groups)
    y = (groups * 7 + np.arange(len(groups))) % 3
    folds = folds_of(y, groups, n_folds, range(len(y)))
    for g in np.unique(groups):
        assert len(np.unique(folds[groups == g])) == 1

    order = np.random.default_rng(shuffle_seed).permutation(len(y))
    renamed = [f"patient {99 - g}" for g in groups[order]]
    assert np.array_equal(folds_of(y[order], renamed, n_folds, order), folds[order])


def test_groups_are_spread_evenly_over_classes():
    """40 patients of 5 records; 8 of them have the rare class."""
    groups = np.repeat(np.arange(40), 5)
    y = (groups < 8).astype(np.int64)
    folds = stratified_folds(y, groups, 4, 0, keys_of(200))
    for k in (0, 1):
        assert list(np.bincount(folds[y == k])) == [(y == k).sum() / 4] * 4


def test_another_seed_gives_other_folds():
    y = np.zeros(100, dtype=np.int64)
    a, b = (stratified_folds(y, None, 5, seed, keys_of(100)) for seed in (0, 1))
    assert not np.array_equal(a, b)


def test_a_class_with_fewer_records_than_folds_stands_in_some():
    y = np.array([0] * 20 + [1] * 2)
    folds = stratified_folds(y, None, 5, 0, keys_of(22))
    assert len(np.unique(folds[y == 1])) == 2
    assert len(stratified_folds(y[:0], None, 5, 0, [])) == 0


def test_unusable_values_are_refused():
    with pytest.raises(ParameterError, match="at least 2"):
        stratified_folds(np.zeros(3, int), None, 1, 0, keys_of(3))
    with pytest.raises(ParameterError, match="one key and one group"):
        stratified_folds(np.zeros(3, int), None, 2, 0, keys_of(2))
