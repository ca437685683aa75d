"""Measures of a classifier that may decide a comparison, of one set of records or of many draws of it.

A measure is a function of sums over records: of a weighted confusion matrix, of a mean, or of the weights
of records between the scores of positive ones. So the bootstrap's draws, which give records other weights,
need one matrix product. :mod:`~prefect_augment.evaluation.metrics.chosen_measure` has the measure that a
run asks for, and those of scikit-learn and of users.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.nn.threads import single_threaded
from prefect_augment.schema import MeasureInfo

Reads = Literal["decisions", "probabilities"]

CHUNK_BYTES = 32 << 20
DENSE_SUMS = 24  # up to so many sums a dense product is faster than a sparse one
_EPS = 1e-12


class Sums(NamedTuple):
    """A measure of given predictions as a function of weighted sums over records."""

    of_record: csr_array  # (n_records, n_sums)
    value: Callable[[Float], Float]  # sums (n_draws, n_sums) -> values (n_draws,), NaN if undefined


@dataclass(frozen=True, eq=False)
class Measure:
    """One measure over the compared classes.

    Records of other classes do not enter; a compared record that is taken for another class counts as
    wrong. A value is NaN where it is undefined, such as the ROC AUC of one class.
    """

    name: str
    title: str  # for the report, as "average precision"
    compared: Bool  # (n_classes,)
    higher_is_better: bool = True
    unit: Literal["points", "plain"] = "points"  # points: shown times 100
    reads: Reads = "decisions"
    vectorised: bool = True  # the values of thousands of draws take a second or two

    @property
    def info(self) -> MeasureInfo:
        """What results keep of it."""
        return MeasureInfo(title=self.title, unit=self.unit, higher_is_better=self.higher_is_better)

    def oriented(self, value: Any) -> Any:
        """The value, or its negative where lower is better: higher is better of what comes back."""
        return value if self.higher_is_better else -value

    def value(self, y: Int, proba: Float, decided: Int, weights: Float | None = None) -> float:
        """The measure of these predictions; ``weights`` (n_records,) say how often each record counts.

        ``y`` and ``decided`` (n_records,) are true class codes and those that the classifier decides
        for, ``proba`` (n_records, n_classes) are its probabilities, whose rows sum to 1.
        """
        drawn = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
        return float(self.values(y, proba, decided, drawn[None])[0])

    def values(
        self, y: Int, proba: Float, decided: Int, W: Float, *, unit: Int | None = None
    ) -> Float:
        """The measure in each draw, shape (n_draws,), with at most some 32 MiB beside the arguments.

        ``W`` (n_draws, n_units) is the weight of each unit (group, or block), ``unit`` (n_records,) the
        unit of each record; without, each is its own. The others are as of :meth:`value`. 2,000 draws of
        20,000 records take 1 to 2 seconds for the measures of this module.
        """
        rows = np.flatnonzero(self.compared[y])
        parts = self.sums(y[rows], proba[rows], decided[rows])
        if not parts:
            return np.full(len(W), np.nan)
        drawn_with = rows if unit is None else unit[rows]
        values = np.stack([_over_draws(part, W, drawn_with) for part in parts])
        return _mean(values, np.isfinite(values), axis=0)

    @abstractmethod
    def sums(self, y: Int, proba: Float, decided: Int) -> list[Sums]:
        """The sums that the measure is made of, of records of compared classes; it is the parts' mean.

        A measure that reads decisions has one part, whose columns depend on ``y`` alone.
        """


def _over_draws(part: Sums, W: Float, drawn_with: Int) -> Float:
    n, n_sums = part.of_record.shape
    of_unit = part.of_record
    if n != W.shape[1] or not np.array_equal(drawn_with, np.arange(n)):
        lift = csr_array((np.ones(n), (drawn_with, np.arange(n))), shape=(W.shape[1], n))
        of_unit = lift @ of_unit
    with single_threaded():
        if n_sums <= DENSE_SUMS:
            return part.value(W @ of_unit.toarray())
        values = np.empty(len(W))
        chunk = max(1, CHUNK_BYTES // (8 * (W.shape[1] + 6 * n_sums)))
        for start in range(0, len(W), chunk):
            drawn = slice(start, start + chunk)
            values[drawn] = part.value(np.ascontiguousarray(W[drawn] @ of_unit))
    return values


def _mean(values: Float, counted: Bool, axis: int) -> Float:
    """Mean of the counted values, NaN of none."""
    n = counted.sum(axis=axis)
    total = np.where(counted, values, 0.0).sum(axis=axis)
    return np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)


def _ratio(above: Float, below: Float, *, empty: float = np.nan) -> Float:
    """Quotient, ``empty`` where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(np.shape(below), empty), where=below > 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Margins(Measure):
    """A function of three margins of the weighted confusion matrix."""

    #: records, predictions and hits of the classes that occur, (n_draws, n_present) each, and their codes
    of_margins: Callable[[Float, Float, Float, Int], Float]

    def sums(self, y: Int, proba: Float, decided: Int) -> list[Sums]:
        """Margins of the classes that occur in ``y``."""
        present = np.unique(y)
        n, n_k = len(y), len(present)
        column = np.full(len(self.compared), -1)
        column[present] = np.arange(n_k)
        rows, hits = np.arange(n), np.flatnonzero(y == decided)
        predicted = np.flatnonzero(column[decided] >= 0)
        where = (
            np.concatenate([rows, predicted, hits]),
            np.concatenate(
                [column[y], n_k + column[decided[predicted]], 2 * n_k + column[y[hits]]]
            ),
        )
        of_record = coo_array((np.ones(len(where[0])), where), shape=(n, 3 * n_k)).tocsr()

        def value(sums: Float) -> Float:
            n, predicted, hits = np.split(sums, 3, axis=1)
            return self.of_margins(n, predicted, hits, present)

        return [Sums(of_record, value)] if n else []


def balanced_accuracy(compared: Bool) -> Measure:
    """Mean recall of the classes (Brodersen et al. 2010)."""

    def of_margins(n: Float, predicted: Float, hits: Float, classes: Int) -> Float:
        return _mean(_ratio(hits, n, empty=0.0), n > 0, axis=1)

    return Margins("balanced_accuracy", "balanced accuracy", compared, of_margins=of_margins)


def macro_f1(compared: Bool) -> Measure:
    """Mean F1 of the classes; 0 for one that is never predicted."""

    def of_margins(n: Float, predicted: Float, hits: Float, classes: Int) -> Float:
        return _mean(_ratio(2 * hits, n + predicted, empty=0.0), n > 0, axis=1)

    return Margins("macro_f1", "macro F1", compared, of_margins=of_margins)


def f_beta(compared: Bool, k: int, label: str, beta: float) -> Measure:
    """F-measure of class ``k``, in which recall counts ``beta`` times as much as precision (van Rijsbergen 1979)."""

    def of_margins(n: Float, predicted: Float, hits: Float, classes: Int) -> Float:
        j = np.flatnonzero(classes == k)
        if not len(j):
            return np.full(len(n), np.nan)
        n, predicted, hits = n[:, j[0]], predicted[:, j[0]], hits[:, j[0]]
        of_class = _ratio((1 + beta**2) * hits, beta**2 * n + predicted)
        return np.where(n > 0, of_class, np.nan)

    return Margins("f_beta", f"F{beta:g} of {label}", compared, of_margins=of_margins)


@dataclass(frozen=True, eq=False, kw_only=True)
class Mean(Measure):
    """A mean over records."""

    of_records: Callable[[Int, Float, Int], Float]
    # (n_classes, n_classes) true x decided, where the record's value is that
    costs: Float | None = None

    def sums(self, y: Int, proba: Float, decided: Int) -> list[Sums]:
        """The records' values, and their number."""
        of_record = np.column_stack([self.of_records(y, proba, decided), np.ones(len(y))])
        return [Sums(csr_array(of_record), lambda sums: _ratio(sums[:, 0], sums[:, 1]))]


def log_loss(compared: Bool) -> Measure:
    """Mean negative logarithm of the true class's probability; lower is better."""

    def of_records(y: Int, proba: Float, decided: Int) -> Float:
        of_truth = proba[np.arange(len(y)), y]
        return np.asarray(-np.log(np.clip(of_truth, np.finfo(np.float64).eps, 1.0)))

    return Mean(
        "log_loss", "log loss", compared, higher_is_better=False, unit="plain",
        reads="probabilities", of_records=of_records,
    )  # fmt: skip


def brier(compared: Bool) -> Measure:
    """Half the mean squared distance between probabilities and truth (Brier 1950); lower is better."""
    return Mean(
        "brier", "Brier score", compared, higher_is_better=False, unit="plain",
        reads="probabilities", of_records=lambda y, proba, decided: squared_distances(y, proba),
    )  # fmt: skip


def squared_distances(y: Int, proba: Float) -> Float:
    """Each record's part of the Brier score, in [0, 1], shape (n_records,)."""
    of_truth = proba[np.arange(len(y)), y]
    return np.asarray(((proba**2).sum(axis=1) - 2 * of_truth + 1) / 2)


def cost(compared: Bool, costs: Float) -> Measure:
    """Mean cost of a record by ``costs`` (n_classes, n_classes), true x decided; lower is better."""
    return Mean(
        "cost", "mean cost", compared, higher_is_better=False, unit="plain",
        of_records=lambda y, proba, decided: costs[y, decided], costs=costs,
    )  # fmt: skip


class Curve(NamedTuple):
    """Weights of records from the highest score of a class to the lowest, in steps at its own records' scores."""

    positive: Float  # (n_draws, n_steps) of the class at each step
    tied: Float  # (n_draws, n_steps) of others with that score
    above: Float  # (n_draws, n_steps) of others between this step and the one before

    @property
    def hits(self) -> Float:
        """Records of the class with at least each step's score."""
        return np.cumsum(self.positive, axis=1)

    @property
    def precision(self) -> Float:
        """Precision of taking everything from each step's score on for the class; 0 where that is nothing."""
        hits = self.hits
        return _ratio(hits, hits + np.cumsum(self.above + self.tied, axis=1), empty=0.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking(Measure):
    """A function of each class's curve, averaged over classes."""

    of_curve: Callable[[Curve, Float], Float]
    k: int | None = None  # one class alone
    but_largest: bool = False  # all classes but the largest

    def sums(self, y: Int, proba: Float, decided: Int) -> list[Sums]:
        """One part per class."""
        n_k = np.bincount(y, minlength=len(self.compared))
        largest = int(np.argmax(n_k)) if self.but_largest else -1
        classes = range(len(n_k)) if self.k is None else [self.k]
        return [
            _of_curve(y == k, proba[:, k], self.of_curve)
            for k in classes
            if n_k[k] and k != largest
        ]


def _of_curve(is_positive: Bool, score: Float, of_curve: Callable[[Curve, Float], Float]) -> Sums:
    """Sums whose columns are the curve's steps. The order of records is the same in all draws."""
    steps = -np.unique(-score[is_positive])  # highest first
    n, n_steps = len(score), len(steps)
    # The step at or below a score: that of the highest own score that does not exceed it.
    step = np.searchsorted(-steps, -score, side="left")
    at = (step < n_steps) & (steps[np.minimum(step, n_steps - 1)] == score)
    column = np.where(is_positive, step, np.where(at, n_steps + step, 2 * n_steps + step))
    of_record = csr_array((np.ones(n), column, np.arange(n + 1)), shape=(n, 3 * n_steps + 1))

    def value(sums: Float) -> Float:
        positive, tied, above = np.split(sums[:, : 3 * n_steps], 3, axis=1)
        # The last column is below all steps.
        others = tied.sum(axis=1) + above.sum(axis=1) + sums[:, -1]
        curve = Curve(positive, tied, above)
        return np.where(positive.sum(axis=1) > 0, of_curve(curve, others), np.nan)

    return Sums(of_record, value)


def average_precision(compared: Bool, k: int | None = None, label: str = "") -> Measure:
    """Mean average precision of the classes other than the largest, or of class ``k`` alone."""

    def of_curve(curve: Curve, others: Float) -> Float:
        return _ratio((curve.positive * curve.precision).sum(axis=1), curve.positive.sum(axis=1))

    title = f"average precision of {label}" if label else "average precision"
    return Ranking(
        "average_precision", title, compared, reads="probabilities",
        of_curve=of_curve, k=k, but_largest=k is None,
    )  # fmt: skip


def roc_auc(compared: Bool, k: int | None = None, label: str = "") -> Measure:
    """Mean over classes, or of class ``k``, of the area under the ROC curve of the class against the rest.

    The probability that a record of the class has a higher score than another one, ties counting half
    (Hanley & McNeil 1982).
    """

    def of_curve(curve: Curve, others: Float) -> Float:
        lost = np.cumsum(curve.above + curve.tied, axis=1) - curve.tied / 2
        pairs = curve.positive.sum(axis=1) * others
        return 1.0 - _ratio((curve.positive * lost).sum(axis=1), pairs)

    title = f"ROC AUC of {label}" if label else "ROC AUC"
    return Ranking("roc_auc", title, compared, reads="probabilities", of_curve=of_curve, k=k)


def recall_at_precision(compared: Bool, k: int, label: str, precision: float) -> Measure:
    """Highest recall of class ``k`` over the thresholds with at least this precision; 0 if there is none."""

    def of_curve(curve: Curve, others: Float) -> Float:
        hits = curve.hits
        recall = _ratio(hits, np.broadcast_to(hits[:, -1:], hits.shape))
        return np.where(curve.precision >= precision - _EPS, recall, 0.0).max(axis=1)

    return AtTarget(
        "recall_at_precision", f"recall at {100 * precision:g} % precision of {label}", compared,
        reads="probabilities", of_curve=of_curve, k=k, target=precision, of="precision",
    )  # fmt: skip


def precision_at_recall(compared: Bool, k: int, label: str, recall: float) -> Measure:
    """Highest precision of class ``k`` over the thresholds with at least this recall."""

    def of_curve(curve: Curve, others: Float) -> Float:
        reached = curve.hits >= (recall - _EPS) * curve.hits[:, -1:]
        return np.where(reached, curve.precision, 0.0).max(axis=1)

    return AtTarget(
        "precision_at_recall", f"precision at {100 * recall:g} % recall of {label}", compared,
        reads="probabilities", of_curve=of_curve, k=k, target=recall, of="recall",
    )  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class AtTarget(Ranking):
    """A measure at the threshold of one class that reaches a precision or recall."""

    k: int
    target: float
    of: Literal["precision", "recall"]
