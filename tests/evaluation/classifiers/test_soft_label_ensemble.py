"""Soft labels: the ensemble, its shares, and the rows and weights that come of it."""

import numpy as np
import pytest

from prefect_augment.evaluation.classifiers.soft_label_ensemble import (
    class_balanced_weights,
    fit_teacher,
    own_label_rows,
    soft_label_rows,
)


def rings(n, seed, *, share=0.2):
    """Two classes, apart by the distance to the middle: nothing that a linear model can learn."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < share).astype(np.int64)
    angle = rng.uniform(0, 2 * np.pi, n)
    r = 1 + y + 0.2 * rng.normal(size=n)
    return np.column_stack([r * np.cos(angle), r * np.sin(angle)]), y


def teacher_of(X, y, **options):
    given = {"n_levels": np.zeros(X.shape[1], dtype=np.int64), "n_classes": 2, "seed": 0, **options}
    return fit_teacher(X, y, **given)


@pytest.fixture(scope="module")
def on_rings():
    return teacher_of(*rings(400, 0))


@pytest.mark.slow
def test_members_get_shares_by_what_they_say_of_records_they_have_not_seen(on_rings):
    assert on_rings.member_shares["logistic"] < 0.05, "a line cannot tell rings apart"
    assert sum(on_rings.shares) == pytest.approx(1)
    X, y = rings(400, 1)
    right = on_rings.predict_proba(X).argmax(axis=1) == y
    assert right.mean() > 0.95


@pytest.mark.slow
def test_the_line_leads_where_classes_are_apart_by_one():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 8))
    y = (X.sum(axis=1) + rng.logistic(size=200) > 0).astype(np.int64)
    shares = teacher_of(X, y).member_shares
    assert shares["logistic"] > shares["boosting"] + shares["forest"]


@pytest.mark.slow
def test_same_records_and_seed_give_the_same_teacher():
    X, y = rings(60, 2)
    one, again, other = (teacher_of(X, y, seed=seed).predict_proba(X) for seed in (0, 0, 1))
    assert (one == again).all()
    assert (one != other).any()


@pytest.mark.slow
def test_nulls_infinities_levels_and_classes_of_one_record_are_taken():
    rng = np.random.default_rng(0)
    X = np.column_stack(
        [rng.normal(size=60), rng.integers(0, 3, 60), np.full(60, np.nan), rng.normal(size=60)]
    )
    X[::7, 0], X[3, 3], X[4, 3] = np.nan, np.inf, -np.inf
    y = np.arange(60) % 2
    y[0] = 3
    found = teacher_of(X, y, n_classes=4, n_levels=np.array([0, 3, 0, 0])).predict_proba(X)
    assert found.sum(axis=1) == pytest.approx(np.ones(60))
    assert (found[:, 2] == 0).all(), "no record is of class 2"


def test_a_record_stands_once_for_each_class_it_may_be_of():
    proba = np.array([[0.25, 0.75, 0.0], [0.9995, 0.0, 0.0005], [0.5, 0.5, 0.0]])
    rows, classes, shares = soft_label_rows(proba, np.array([0, 0, 2]))
    assert rows.tolist() == [0, 0, 1, 2, 2, 2]
    assert classes.tolist() == [0, 1, 0, 0, 1, 2], "what it was drawn for is among them"
    assert shares[1] > 0.75, "sharper than the teacher"
    assert shares[2:].tolist() == [1.0, 0.5, 0.5, 1 / 1024]
    assert (shares * 1024 % 1 == 0).all(), "sums are exact"
    assert shares[:2].sum() == pytest.approx(1, abs=1e-3)


def test_a_record_of_which_nothing_is_said_stands_for_what_it_was_drawn_for():
    rows, classes, shares = soft_label_rows(np.zeros((1, 3)), np.array([1]))
    assert (rows.tolist(), classes.tolist(), shares.tolist()) == ([0], [1], [1.0])


@pytest.mark.parametrize(("amount", "sums"), [(0.0, [8, 2]), (0.5, [8, 4]), (1.0, [8, 8])])
def test_classes_come_so_far_to_the_largest(amount, sums):
    y = np.repeat([0, 1], [8, 4])
    shares = np.repeat([1.0, 0.5], [8, 4])
    weights = class_balanced_weights(shares, y, amount=amount)
    assert weights.mean() == pytest.approx(1)
    found = np.bincount(y, weights=weights)
    assert found / found[0] * 8 == pytest.approx(sums)


@pytest.mark.slow
def test_training_records_are_judged_by_members_that_have_not_seen_them():
    """A record whose label is wrong is found out, which an ensemble that had learnt it could not."""
    X, y = rings(300, 3)
    wrong = np.flatnonzero(y == 0)[:15]
    y_given = y.copy()
    y_given[wrong] = 1
    of_training = teacher_of(X, y_given).of_training
    assert of_training.sum(axis=1) == pytest.approx(1)
    assert (of_training[wrong, 1] < 0.5).mean() > 0.8


def test_a_real_record_keeps_half_of_its_own_label():
    proba = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]])
    rows, classes, shares = own_label_rows(proba, np.array([1, 1]))
    assert rows.tolist() == [0, 0, 1, 1, 1]
    assert classes.tolist() == [0, 1, 0, 1, 2]
    assert shares == pytest.approx([0.45, 0.55, 0.1, 0.75, 0.15], abs=1 / 1024)
    assert (proba == [[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]]).all(), "the caller's array stays as it was"
