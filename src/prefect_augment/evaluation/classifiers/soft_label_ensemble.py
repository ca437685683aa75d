"""Soft labels: class probabilities of synthetic records by an ensemble fitted on real records.

A record drawn for a class carries the label of the model that drew it, which is often wrong near the border of two
classes. An ensemble of boosting, a forest and logistic regression knows better than each of its members and than the
final classifier, which learns from it through these labels (model compression). The members' shares are fitted to
their probabilities of records that they have not seen.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.ensemble import RandomForestClassifier

from prefect_augment.array_types import Float, Int
from prefect_augment.evaluation.classifiers.base import Classifier, fit_estimator
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.nn.threads import single_threaded

MEMBERS = ("boosting", "forest", "logistic")
# Five folds and a hundred trees take three times as long, for 0.001 less of log loss. All iterations of
# boosting and 20 trees take 1.6 times as long, for 0.0003 less (five tables of 640 to 4,000 records).
N_FOLDS = 3
LARGEST = 1e30
FOREST_TREES = 10
BOOSTING_SHARE = 0.5  # of a strategy's iterations
FOREST_LEAF = 3
MIXING_ROUNDS = 200
# Shares are whole multiples of this: their sums are exact, and smaller shares only add rows.
QUANTUM = 1 / 1024
# Probabilities are raised to this power, and divided by their sum (development seeds 10 to 15).
SHARPNESS = 1 / 0.7


@dataclass(frozen=True)
class Teacher:
    """An ensemble: per fold one member of each kind, fitted on the other folds, and each kind's share."""

    folds: tuple[tuple[Classifier, ...], ...]
    shares: Float  # (n_members,), sums to 1
    of_training: Float  # (n_training, n_classes), of each training record by the members that have not seen it

    @property
    def member_shares(self) -> dict[str, float]:
        """Share of each kind of member, for a report."""
        return dict(zip(MEMBERS, map(float, self.shares.round(3)), strict=True))

    def predict_proba(self, X: Float) -> Float:
        """Probability of every class, shape (n_records, n_classes): the mean of the folds."""
        weighted = [
            share * member.predict_proba(X)
            for members in self.folds
            for share, member in zip(self.shares, members, strict=True)
            if share > 0
        ]
        return np.sum(weighted, axis=0) / len(self.folds)


def fit_teacher(
    X: Float, y: Int, *, n_levels: Int, n_classes: int, seed: int, weights: Float | None = None
) -> Teacher:
    """An ensemble of boosting, a random forest and logistic regression on real records of at least two classes.

    ``X`` is the matrix form: NaN for null, level codes in category columns. ``weights`` (n_records,) are 1 by
    default. van der Laan, Polley & Hubbard 2007, "Super Learner" (shares that minimise the cross-validated loss);
    Bucilă, Caruana & Niculescu-Mizil 2006, "Model Compression" (an ensemble's predictions on synthetic records train
    one model).
    """
    fold = stratified_folds(y, None, N_FOLDS, seed, [f"{i}" for i in range(len(y))])
    weights = np.ones(len(y)) if weights is None else weights
    columns: dict[str, Any] = {"n_levels": n_levels, "n_classes": n_classes}
    folds: list[tuple[Classifier, ...]] = []
    proba = np.zeros((len(MEMBERS), len(y), n_classes))
    for f in range(N_FOLDS):
        # With fewer records than folds, one of them holds none out.
        training, held_out = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        own, of_fold = (X[training], y[training]), weights[training]
        given = {**columns, "weights": of_fold, "seed": seed + f}
        boosting = fit_estimator("boosting", *own, step_share=BOOSTING_SHARE, **given)
        with single_threaded(), config_context(assume_finite=True, skip_parameter_validation=True):
            forest = _Forest.of(*own, of_fold, n_classes, seed + f)
        members = boosting, forest, fit_estimator("logistic", *own, **given)
        folds.append(members)
        for m, member in enumerate(members):
            proba[m, held_out] = member.predict_proba(X[held_out])
    shares = _mixture(proba[:, np.arange(len(y)), y], weights)
    return Teacher(tuple(folds), shares, np.tensordot(shares, proba, 1))


def soft_label_rows(proba: Float, own: Int) -> tuple[Int, Int, Float]:
    """One row for each record and class that it may belong to: record, class and the class's share.

    ``proba`` (n_records, n_classes) comes from a teacher. The class that a record was drawn for (``own``) has a row
    whatever its share. Records ascend; the shares of each sum to about 1, in multiples of 1/1024.
    """
    drawn = np.arange(len(own))
    sharp = proba**SHARPNESS
    sharp[drawn, own] = np.maximum(sharp[drawn, own], np.finfo(np.float64).tiny)
    sharp = sharp / sharp.sum(axis=1, keepdims=True)
    shares = np.round(sharp / QUANTUM) * QUANTUM
    shares[drawn, own] = np.maximum(shares[drawn, own], QUANTUM)
    rows, classes = np.nonzero(shares)
    return rows.astype(np.int64), classes.astype(np.int64), shares[rows, classes]


def own_label_rows(proba: Float, y: Int) -> tuple[Int, Int, Float]:
    """The same of real records, which keep half of their own label: record, class and the class's share.

    ``proba`` (n_records, n_classes) comes from members that have not seen the record. With half of the label AUPRC of
    boosting rose by 0.02 to 0.05 on four tables of 800 records, with none of it fell on one. Hinton, Vinyals & Dean
    2015, "Distilling the knowledge in a neural network", section 2 (labels and an ensemble's probabilities together).
    """
    mixed = proba / 2
    mixed[np.arange(len(y)), y] += 0.5
    shares = np.round(mixed / QUANTUM) * QUANTUM
    rows, classes = np.nonzero(shares)
    return rows.astype(np.int64), classes.astype(np.int64), shares[rows, classes]


def class_balanced_weights(shares: Float, y: Int, *, amount: float) -> Float:
    """Weights of mean 1 that raise a class of sum n by the factor (n_max / n)^amount, shape (n_rows,).

    ``shares`` (n_rows,) weigh rows before. Amount 0 leaves the classes as they are, 1 balances them.
    """
    sums = np.bincount(y, weights=shares)
    factor = (sums.max() / np.maximum(sums, np.finfo(np.float64).tiny)) ** amount
    weights = shares * factor[y]
    return weights / weights.mean()


@dataclass(frozen=True)
class _Forest:
    """A random forest; nulls are native, levels are read as numbers."""

    forest: RandomForestClassifier
    n_classes: int

    @classmethod
    def of(cls, X: Float, y: Int, weights: Float, n_classes: int, seed: int) -> "_Forest":
        forest = RandomForestClassifier(
            FOREST_TREES,
            min_samples_leaf=FOREST_LEAF,
            n_jobs=1,
            random_state=seed & 0xFFFFFFFF,  # no more is taken
        )
        return cls(forest.fit(_in_range(X), y, sample_weight=weights), n_classes)

    def predict_proba(self, X: Float) -> Float:
        proba = np.zeros((len(X), self.n_classes))
        if len(X):
            proba[:, self.forest.classes_] = self.forest.predict_proba(_in_range(X))
        return proba


def _in_range(X: Float) -> Float:
    """Clip numbers so that single precision, which a forest computes in, holds their sums."""
    return np.clip(X, -LARGEST, LARGEST)


def _mixture(true_proba: Float, weights: Float) -> Float:
    """Shares that make the true classes most probable, by expectation and maximisation.

    ``true_proba`` (n_members, n_records) are each member's probabilities of the true class. The
    loss, weighted by record, is convex in the shares, so any start reaches the same optimum.
    """
    p, weights = np.maximum(true_proba, 1e-6), weights / weights.sum()
    shares: Float = np.full(len(p), 1 / len(p))
    for _ in range(MIXING_ROUNDS):
        shares = shares * (p @ (weights / (shares @ p)))
    return shares
