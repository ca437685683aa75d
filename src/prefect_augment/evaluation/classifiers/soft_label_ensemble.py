"""Soft labels: what an ensemble, fitted on real records, says of records that were drawn.

A record drawn for a class is labelled by the model that drew it, and near the border of two classes
that label is often wrong. An ensemble of boosting, a forest and logistic regression knows better than
each of them, and better than the classifier that is trained in the end: given to drawn records as
shares of the classes, what it knows goes over to that classifier (model compression). The members'
shares in it are fitted to what they say of records that they have not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from prefect_augment.evaluation.classifiers.base import Classifier, fit_estimator
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.threads import single_threaded

__all__ = ["Teacher", "class_weighted", "fit_teacher", "soft_rows"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

KINDS = ("boosting", "forest", "logistic")
N_FOLDS = 5
BOOSTING_ITERATIONS = 60  # an ensemble's member may be coarser than a classifier that stands alone
LARGEST = 1e30
FOREST_TREES = 100
FOREST_LEAF = 3
MIXING_ROUNDS = 200
# Shares are whole multiples of this: sums of them are exact, and what is less changes nothing but the
# number of rows.
QUANTUM = 1 / 1024
# Probabilities are raised to this power, and divided by their sum (development seeds 10 to 15).
SHARPNESS = 1 / 0.7


@dataclass(frozen=True)
class Teacher:
    """An ensemble's members, fold by fold, and the share that each kind of member has.

    Attributes
    ----------
    folds : tuple of tuple of Classifier
        Per fold, a member of each kind, fitted on the other folds.
    shares : ndarray of float64, shape (n_kinds,)
        Sum to 1.
    """

    folds: tuple[tuple[Classifier, ...], ...]
    shares: Float

    @property
    def said(self) -> dict[str, float]:
        """Share of each kind of member, for a report."""
        return dict(zip(KINDS, map(float, self.shares.round(3)), strict=True))

    def predict_proba(self, X: Float) -> Float:
        """Probability of every class, shape (n_records, n_classes): the mean of the folds."""
        said = [
            share * member.predict_proba(X)
            for members in self.folds
            for share, member in zip(self.shares, members, strict=True)
            if share > 0
        ]
        proba: Float = np.sum(said, axis=0) / len(self.folds)
        return proba


def fit_teacher(
    X: Float, y: Int, *, is_category: Bool, n_levels: Int, n_classes: int, seed: int
) -> Teacher:
    """An ensemble of boosting, a random forest and logistic regression on real records.

    Parameters
    ----------
    X : ndarray of float64, shape (n_records, n_columns)
        The matrix form: NaN for null, level codes in category columns.
    y : ndarray of int64, shape (n_records,)
        Class codes, at least two different ones.
    is_category : ndarray of bool, shape (n_columns,)
    n_levels : ndarray of int64, shape (n_columns,)
    n_classes : int
        Width of the probabilities.
    seed : int
        Of the folds and the members.

    Returns
    -------
    Teacher

    References
    ----------
    van der Laan, Polley & Hubbard 2007, "Super Learner" (shares that minimise the cross-validated
    loss); Bucilă, Caruana & Niculescu-Mizil 2006, "Model Compression" (what an ensemble says of made
    records, as the training data of one model).
    """
    fold = stratified_folds(y, None, N_FOLDS, seed, [f"{i}" for i in range(len(y))])
    columns: dict[str, Any] = {
        "is_category": is_category,
        "n_levels": n_levels,
        "n_classes": n_classes,
    }
    folds: list[tuple[Classifier, ...]] = []
    unseen = np.zeros((len(KINDS), len(y)))  # probability of the true class
    for f in range(N_FOLDS):
        # With fewer records than folds, one of them holds none out.
        training, held = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        members = _members(X[training], y[training], seed=seed + f, **columns)
        folds.append(members)
        for kind, member in enumerate(members):
            unseen[kind, held] = member.predict_proba(X[held])[np.arange(len(held)), y[held]]
    return Teacher(tuple(folds), _mixture(unseen))


def soft_rows(proba: Float, own: Int) -> tuple[Int, Int, Float]:
    """Every record once for each class that it may be of, with the class's share in it.

    Parameters
    ----------
    proba : ndarray of float64, shape (n_records, n_classes)
        What a teacher says of the records; 0 for a class that they may not stand for.
    own : ndarray of int64, shape (n_records,)
        The class that each was drawn for: it has a row whatever its share.

    Returns
    -------
    rows : ndarray of int64, shape (n_pairs,)
        Which record, ascending.
    classes : ndarray of int64, shape (n_pairs,)
    shares : ndarray of float64, shape (n_pairs,)
        Sum to about 1 for each record; whole multiples of 1/1024.
    """
    drawn = np.arange(len(own))
    sharp = proba**SHARPNESS
    sharp[drawn, own] = np.maximum(sharp[drawn, own], np.finfo(np.float64).tiny)
    sharp = sharp / sharp.sum(axis=1, keepdims=True)
    shares = np.round(sharp / QUANTUM) * QUANTUM
    shares[drawn, own] = np.maximum(shares[drawn, own], QUANTUM)
    rows, classes = np.nonzero(shares)
    return rows.astype(np.int64), classes.astype(np.int64), shares[rows, classes]


def class_weighted(shares: Float, y: Int, *, amount: float) -> Float:
    """Weights with which the classes come nearer to the largest one.

    Parameters
    ----------
    shares : ndarray of float64, shape (n_rows,)
        What each row counts before.
    y : ndarray of int64, shape (n_rows,)
    amount : float in [0, 1]
        A class of sum n gets n (n_max / n)^amount: 0 leaves the classes as they are, 1 balances them.

    Returns
    -------
    ndarray of float64, shape (n_rows,)
        Of mean 1.
    """
    sums = np.bincount(y, weights=shares)
    factor = (sums.max() / np.maximum(sums, np.finfo(np.float64).tiny)) ** amount
    weights = shares * factor[y]
    weighted: Float = weights / weights.mean()
    return weighted


# --- the ensemble's parts ---


@dataclass(frozen=True)
class _Forest:
    """A random forest; nulls are native, levels are read as numbers."""

    forest: RandomForestClassifier
    n_classes: int

    @classmethod
    def of(cls, X: Float, y: Int, n_classes: int, seed: int) -> _Forest:
        forest = RandomForestClassifier(
            FOREST_TREES,
            min_samples_leaf=FOREST_LEAF,
            n_jobs=1,
            random_state=seed & 0xFFFFFFFF,  # no more is taken
        )
        return cls(forest.fit(_in_range(X), y), n_classes)

    def predict_proba(self, X: Float) -> Float:
        proba = np.zeros((len(X), self.n_classes))
        if len(X):
            proba[:, self.forest.classes_] = self.forest.predict_proba(_in_range(X))
        return proba


def _in_range(X: Float) -> Float:
    """Return numbers whose sums single precision holds, which a forest computes in."""
    return np.clip(X, -LARGEST, LARGEST)


def _members(
    X: Float, y: Int, *, is_category: Bool, n_levels: Int, n_classes: int, seed: int
) -> tuple[Classifier, ...]:
    columns: dict[str, Any] = {
        "is_category": is_category,
        "n_levels": n_levels,
        "n_classes": n_classes,
        "seed": seed,
    }
    boosting = fit_estimator(
        "boosting", X, y, weights=None, n_iterations=BOOSTING_ITERATIONS, **columns
    )
    with single_threaded():
        forest = _Forest.of(X, y, n_classes, seed)
    return boosting, forest, fit_estimator("logistic", X, y, weights=None, **columns)


def _mixture(unseen: Float) -> Float:
    """Shares that make the true classes most probable, by expectation and maximisation.

    ``unseen`` is the probability that each kind of member gives to the true class, shape
    (n_kinds, n_records). The loss is convex in the shares, so any start ends at the same place.
    """
    likely = np.maximum(unseen, 1e-6)
    shares: Float = np.full(len(likely), 1 / len(likely))
    for _ in range(MIXING_ROUNDS):
        part = shares[:, None] * likely
        shares = (part / part.sum(axis=0)).mean(axis=1)
    return shares
