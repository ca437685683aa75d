"""The measure that a run asks for: a built-in one, a scorer of scikit-learn's, or a user's function."""

import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, cast

import numpy as np
from scipy.sparse import coo_array
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import get_scorer, get_scorer_names

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics import measures
from prefect_augment.evaluation.metrics.measures import Measure, Sums
from prefect_augment.params.metrics import Metric, function_given
from prefect_augment.registry import load_function
from prefect_augment.text import suggestion

ENTRY_POINTS = "prefect_augment.metrics"
ONE_CLASS = ("f_beta", "recall_at_precision", "precision_at_recall")
WITH_LABEL = (*ONE_CLASS, "average_precision", "roc_auc")
BUILT_IN = ("balanced_accuracy", "macro_f1", *WITH_LABEL, "log_loss", "brier", "cost")
# Scorers of numbers, clusters and sets of labels; scikit-learn lists all kinds together.
_OF_OTHERS = re.compile(
    r"_error|_deviance|^r2$|^explained_variance$|_samples$|rand_score|mutual_info_score"
    r"|^(completeness|fowlkes_mallows|homogeneity|v_measure)_score$"
)
# Index draws have this many places per record: a weight becomes a whole number of places, whose rounding
# adds 1 / (6 * 3^2) = 2 % to the variance of a draw, so 1 % to the width of an interval.
PLACES = 3


def check_metric(metric: Metric) -> None:
    """Raise ParameterError for a metric that does not exist; :func:`measure_of` checks what it asks of the data."""
    if _is_installed(metric):
        _function(metric)
    elif metric.name not in BUILT_IN and metric.name not in _scorers():
        known = [*BUILT_IN, *_scorers(), *_plugins()]
        raise ParameterError(
            f"there is no metric {metric.name!r}: {suggestion(metric.name, known, n_shown=len(known))}. "
            "A function of yours goes into evaluation.metric.function."
        )
    if metric.label and metric.name not in WITH_LABEL:
        raise ParameterError(
            f"evaluation.metric has the label {metric.label!r}, and {metric.function or metric.name} is not about one "
            f"class; leave it out, or choose one of: {', '.join(WITH_LABEL)}."
        )


def measure_of(metric: Metric, *, classes: Sequence[str], compared: Bool, counts: Int) -> Measure:
    """The measure that a metric asks for, the same for every fold, draw and part of the data.

    ``classes`` are names in the order of their codes; ``counts`` (n_classes,) are real training records: the positive
    class is the rarest ``compared`` one, unless the metric names it. ParameterError if there is no such metric, or it
    names a class that the data do not have or that is not compared, or cannot be computed for these classes.
    """
    check_metric(metric)
    codes = {name: k for k, name in enumerate(classes)}
    used = [metric.label] if metric.label else []
    used += [name for mistake in metric.matrix for name in (mistake.true, mistake.predicted)]
    for name in used:
        if name not in codes:
            raise ParameterError(
                f"evaluation.metric names the class {name!r}, which the data do not have: "
                f"{suggestion(name, list(classes))}."
            )
    if not compared.any():
        compared = np.ones(len(classes), dtype=bool)  # nothing is going to be scored
    rarest = int(np.flatnonzero(compared)[np.argmin(counts[compared])])
    k = codes[metric.label] if metric.label else rarest
    if not compared[k]:
        raise ParameterError(
            f"evaluation.metric is about the class {metric.label!r}, which has too few records to be compared; "
            f"choose one of: {', '.join(np.asarray(classes)[compared])}."
        )
    if _is_installed(metric):
        return _of_function(metric, classes, compared)
    if metric.name not in BUILT_IN:
        return _of_scorer(metric.name, compared, k)
    return _built_in(metric, codes, compared, k)


def _built_in(metric: Metric, codes: dict[str, int], compared: Bool, k: int) -> Measure:
    label = next(name for name, code in codes.items() if code == k)
    alone = (k, label) if metric.label else ()
    match metric.name:
        case "cost":
            costs = np.zeros((len(codes), len(codes)))
            for mistake in metric.matrix:
                costs[codes[mistake.true], codes[mistake.predicted]] = mistake.cost
            return measures.cost(compared, costs)
        case "f_beta":
            return measures.f_beta(compared, k, label, metric.beta)
        case "recall_at_precision":
            return measures.recall_at_precision(compared, k, label, metric.precision)
        case "precision_at_recall":
            return measures.precision_at_recall(compared, k, label, metric.recall)
        case "average_precision" | "roc_auc":
            return cast("Measure", getattr(measures, metric.name)(compared, *alone))
    return cast("Measure", getattr(measures, metric.name)(compared))


def _scorers() -> list[str]:
    return [name for name in get_scorer_names() if not _OF_OTHERS.search(name)]


def _is_installed(metric: Metric) -> bool:
    """Whether it is somebody else's; of a built-in one the installed packages are not asked, which takes 60 ms."""
    is_named = metric.name not in BUILT_IN and metric.name in _plugins()
    return bool(metric.function) or is_named


def _plugins() -> list[str]:
    """Names of installed packages' metrics, but for those that are named like one that there is."""
    known = {*BUILT_IN, *get_scorer_names()}
    return sorted({p.name for p in entry_points(group=ENTRY_POINTS)} - known)


def _function(metric: Metric) -> Callable[..., Any]:
    """The user's function; ParameterError if it cannot be had."""
    given = function_given(metric.function)
    return given or load_function(
        metric.function or metric.name, group=ENTRY_POINTS, field="evaluation.metric"
    )


class _Predicted(ClassifierMixin, BaseEstimator):
    """A classifier that looks its predictions up: scorers take an estimator."""

    def __init__(self, proba: Float, decided: Int) -> None:
        self.proba, self.decided = proba, decided
        self.classes_ = np.arange(proba.shape[1])
        self.reads = ""

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, X: Int) -> Int:
        self.reads = "decisions"
        return np.asarray(self.decided[X[:, 0]])

    def predict_proba(self, X: Int) -> Float:
        self.reads = "probabilities"
        return np.asarray(self.proba[X[:, 0]])


def _of_scorer(name: str, compared: Bool, positive: int) -> Measure:
    """A scorer of scikit-learn's over the compared classes; the rarer of two is its positive class.

    Of several classes, code 0 is the positive one. It is tried on a few made-up records first.
    """
    order = np.flatnonzero(compared)
    order = np.r_[order[order != positive], positive] if len(order) == 2 else order
    scorer = get_scorer(name)
    y = np.repeat(np.arange(len(order)), 4)
    proba = np.full((len(y), len(order)), 0.3 / len(order)) + 0.7 * np.eye(len(order))[y]
    tried = _Predicted(proba, y)
    try:
        _scored(scorer, tried, y)
    except (ValueError, TypeError, AttributeError) as exc:
        raise ParameterError(
            f"scikit-learn's scorer {name!r} does not work with {len(order)} classes: "
            f"{' '.join(str(exc).split())}."
        ) from exc
    weighs = True
    try:
        _scored(scorer, tried, y, sample_weight=np.ones(len(y)))
    except (TypeError, ValueError):  # it takes no weights, or not of several classes
        weighs = False
    common: dict[str, Any] = {"title": name.replace("_", " "), "unit": "plain", "vectorised": False}
    if tried.reads == "decisions":
        return _DecisionScorer(
            name,
            compared=compared,
            reads="decisions",
            order=order,
            scorer=scorer,
            weighs=weighs,
            **common,
        )

    def of_arrays(y: Int, proba: Float, decided: Int, weights: dict[str, Float]) -> float:
        y, proba, decided = _restricted(order, y, proba, decided)
        try:
            return _scored(scorer, _Predicted(proba, decided), y, **weights)
        except ValueError:  # it refuses them, as of one class
            return np.nan

    return _Whole(
        name, compared=compared, reads="probabilities", weighs=weighs, of_arrays=of_arrays, **common
    )


def _scored(scorer: Callable[..., float], predicted: _Predicted, y: Int, **weights: Float) -> float:
    """What a scorer gives; undefined values, as a precision where nothing is predicted, are no warning here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        return float(scorer(predicted, np.arange(len(y))[:, None], y, **weights))


def _restricted(order: Int, y: Int, proba: Float, decided: Int) -> tuple[Int, Float, Int]:
    """Codes, probabilities and decisions over the compared classes alone.

    A record that is taken for another class is decided anew by its probabilities of these.
    """
    code = np.full(proba.shape[1], -1)
    code[order] = np.arange(len(order))
    proba = proba[:, order]
    proba = proba / np.maximum(proba.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    among = code[decided]
    return code[y], proba, np.where(among < 0, np.argmax(proba, axis=1), among)


@dataclass(frozen=True, eq=False, kw_only=True)
class _DecisionScorer(Measure):
    """A scorer of decisions: it sees one record, with a weight, per cell of the confusion matrix."""

    order: Int
    scorer: Callable[..., float]
    weighs: bool  # where it takes no weights, it sees :data:`PLACES` records per weight of 1

    def sums(self, y: Int, proba: Float, decided: Int) -> list[Sums]:
        """Cells of the confusion matrix."""
        n, n_k = len(y), len(self.order)
        y, _, decided = _restricted(self.order, y, proba, decided)
        cells = coo_array((np.ones(n), (np.arange(n), y * n_k + decided)), shape=(n, n_k**2))
        return [Sums(cells.tocsr(), lambda sums: np.array([self._score(row, n_k) for row in sums]))]

    def _score(self, cells: Float, n_k: int) -> float:
        there = np.flatnonzero(cells > 0)
        weights = {"sample_weight": cells[there]} if self.weighs else {}
        if not self.weighs:
            there = np.repeat(there, np.rint(PLACES * cells[there]).astype(np.int64))
        y, decided = np.divmod(there, n_k)
        predicted = _Predicted(np.eye(n_k)[decided], decided)
        return _scored(self.scorer, predicted, y, **weights)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Whole(Measure):
    """A measure that is computed anew for every draw: a thousand draws take a thousand calls.

    Where it takes no weights, a draw repeats records by :data:`PLACES` places per record, so a call
    sees three times as many.
    """

    weighs: bool
    #: the measure of some records: codes, probabilities, decisions, and as ``sample_weight`` their weights
    of_arrays: Callable[[Int, Float, Int, dict[str, Float]], float]

    def values(
        self, y: Int, proba: Float, decided: Int, W: Float, *, unit: Int | None = None
    ) -> Float:
        """The measure in each draw; for the parameters see :meth:`Measure.values`."""
        rows = np.flatnonzero(self.compared[y])
        drawn_with = rows if unit is None else unit[rows]
        if not len(rows):
            return np.full(len(W), np.nan)
        y, proba, decided = y[rows], proba[rows], decided[rows]
        return np.array([self._drawn(y, proba, decided, w[drawn_with]) for w in W])

    def _drawn(self, y: Int, proba: Float, decided: Int, w: Float) -> float:
        if self.weighs or (w == w[0]).all():
            return self.of_arrays(y, proba, decided, {"sample_weight": w} if self.weighs else {})
        # As often as whole weights say, else by places, which are dealt evenly along the cumulated weights (systematic
        # sampling, Madow 1949), with no chance in it.
        if not np.array_equal(w, np.round(w)):
            edges = np.floor(np.cumsum(w) * (PLACES * len(w) / w.sum()) + 0.5)
            w = np.diff(edges, prepend=0.0)
        places = np.repeat(np.arange(len(w)), w.astype(np.int64))
        return self.of_arrays(y[places], proba[places], decided[places], {})

    def sums(self, y: Int, proba: Float, decided: Int) -> list[Sums]:
        """None: it is not made of sums."""
        return []


def _of_function(metric: Metric, classes: Sequence[str], compared: Bool) -> Measure:
    """A user's function, tried on a few made-up records: it fails now or not at all."""
    function = _function(metric)
    path = metric.function or metric.name
    try:
        weighs = "sample_weight" in inspect.signature(function).parameters
    except ValueError:  # a built-in without a signature
        weighs = False

    def of_arrays(y: Int, proba: Float, decided: Int, weights: dict[str, Float]) -> float:
        value = function(np.asarray(classes)[y], proba, list(classes), **weights)
        try:
            return float(value)
        except (TypeError, ValueError) as exc:
            raise ParameterError(
                f"evaluation.metric: {path} returned {type(value).__name__}; expected one number."
            ) from exc

    measure = _Whole(
        path, path.rpartition(":")[2].replace("_", " "), compared,
        higher_is_better=not metric.lower_is_better, unit="plain", reads="probabilities",
        vectorised=False, weighs=weighs, of_arrays=of_arrays,
    )  # fmt: skip
    y = np.repeat(np.flatnonzero(compared), 4)
    proba = np.full((len(y), len(classes)), 0.3 / len(classes)) + 0.7 * np.eye(len(classes))[y]
    try:
        measure.value(y, proba, y)
    except Exception as exc:
        raise ParameterError(
            f"evaluation.metric: {path} fails on {len(y)} made-up records of {int(compared.sum())} classes: "
            f"{type(exc).__name__}: {exc}; it is called with (y_true, proba, classes)."
        ) from exc
    return measure
