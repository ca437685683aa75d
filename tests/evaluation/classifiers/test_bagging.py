"""Bags keep a strategy's balance, and their mean is what predicts."""

import numpy as np
import pytest

from prefect_augment.errors import EmptyClassError
from prefect_augment.evaluation.classifiers.bagging import N_BAGS, Bagged, bags, n_bags


def test_a_bag_has_the_balance_of_the_weights() -> None:
    strata = np.repeat([0, 1, 2], [800, 150, 50])
    weights = np.repeat([1.0, 2.0, 4.0], [800, 150, 50])
    drawn = bags(strata, weights, seed=0)
    assert len(drawn) == N_BAGS
    for bag in drawn:
        assert np.bincount(strata[bag]).tolist() == [200, 75, 50]
    often = np.unique(np.concatenate(drawn))
    assert len(often) > 750, "other bags see the records that one has left out"


def test_bags_go_by_the_seed_and_by_weight() -> None:
    strata = np.repeat(["often", "rare"], [90, 10])
    weights = np.r_[np.zeros(45), np.ones(55)]
    one, same, other = (bags(strata, weights, n=2, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])
    assert min(one[0]) >= 45, "a record of weight 0 is in no bag"


def test_every_class_is_in_every_bag() -> None:
    strata = np.r_[np.zeros(1000, int), 1]
    assert all(1 in strata[bag] for bag in bags(strata, np.r_[np.full(1000, 9.0), 1.0], seed=0))


def test_a_pilot_has_fewer_bags() -> None:
    assert (n_bags(1.0), n_bags(1 / 3), n_bags(0.01)) == (10, 3, 3)


def test_the_mean_of_the_members_predicts() -> None:
    class Member:
        classes_ = np.array(["a", "b"])

        def __init__(self, p: float) -> None:
            self.p = p

        def predict_proba(self, X: list[int]) -> np.ndarray:
            return np.tile([self.p, 1 - self.p], (len(X), 1))

    bagged = Bagged((Member(0.9), Member(0.2), Member(0.1)))
    assert np.allclose(bagged.predict_proba([0, 0]), [[0.4, 0.6]] * 2)
    assert bagged.predict([0]).tolist() == ["b"]


def test_weights_without_any_record_are_refused() -> None:
    with pytest.raises(EmptyClassError):
        bags(np.zeros(3, int), np.zeros(3), seed=0)
