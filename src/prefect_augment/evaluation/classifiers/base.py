"""The classifiers of tables that every strategy trains unless others are named: boosting and logistic regression.

All strategies use the same settings and number of steps, without early stopping, so that they
differ in records and weights alone. Training uses one thread, so results do not depend on the
machine's thread count and several classifiers can train in threads side by side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn import config_context
from sklearn.linear_model import LogisticRegression

from prefect_augment.array_types import Array, Bool, Float, Int
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.evaluation.classifiers.quantile_bins import Bins, CodedBoosting
from prefect_augment.nn.threads import single_threaded

EstimatorKind = Literal["boosting", "logistic"]

# On five tables, 640 to 4,000 records, balanced accuracy is 0.5 points higher than with 60 iterations of 15 leaves
# at a rate of 0.15, log loss 0.003 lower and average precision 0.1 points higher, in 0.65 of the time; 30,000 records
# lose 0.2, 0.001 and 0.1. Those were as good as 100 iterations of 31 leaves at 0.1.
BOOSTING_ITERATIONS = 45
BOOSTING_LEAVES = 10
BOOSTING_RATE = 0.2
# Without it a class of two records makes multiclass boosting diverge (hypothyroid as is: AUPRC 0.63
# instead of 0.98), which would flatter every strategy that is compared with plain training.
BOOSTING_L2 = 1.0
# One iteration grows a tree per class; from ten classes on, fewer iterations keep a fit's time.
BOOSTING_MAX_TREES = 600
NATIVE_LEVELS = 255  # HistGradientBoosting's limit for a category column
LOGISTIC_ITERATIONS = 100
# Up to this many coefficients, and cells of the dense design (160 MB), Newton's method takes a quarter of
# the time of L-BFGS.
FEW_COEFFICIENTS, FEW_CELLS = 500, 20_000_000
BLOCK_PROBABILITIES = 250_000  # records that L-BFGS goes through at a time, times classes: 2 MiB
LARGEST = 1e150  # the linear model sums squares of numbers
LOGISTIC_L2 = 1.0  # scikit-learn's default, C = 1
ONE_HOT_LEVELS = 255  # the most frequent ones; the others share "none of these"


class Classifier(Protocol):
    """A fitted classifier of records in their array form."""

    def predict_proba(self, X: Array, /) -> Float:
        """Probability of every class, shape (n_records, n_classes); 0 for a class never seen."""
        ...


# Records and their class codes in, a class-balanced classifier out.
TrainClassifier = Callable[[Array, Int], Classifier]


def fit_estimator(
    kind: EstimatorKind,
    X: Float,  # (n, n_columns), NaN for null, level codes in category columns
    y: Int,  # (n,) class codes; classes may be absent
    *,
    weights: Float | None,  # (n,), in proportion
    n_levels: Int,  # (n_columns,), 0 for numeric columns
    n_classes: int,
    seed: int,
    n_iterations: int = BOOSTING_ITERATIONS,  # fewer from ten classes on
    step_share: float = 1.0,  # of the iterations, for a pilot
) -> Classifier:
    """A classifier trained on weighted records; a single class is predicted by its weighted share.

    ``boosting`` is histogram gradient boosting with native nulls and categories and a fixed number of iterations.
    ``logistic`` is multinomial logistic regression on standardised numbers (nulls as the median, plus an indicator)
    and one-hot categories, with a fixed limit on iterations. Infinite values count as the largest or smallest finite
    value seen; columns without any value and records of weight 0 are left out. ParameterError if the kind is unknown
    or weights are negative or not finite; EmptyClassError if no record has a positive weight.
    """
    if kind not in ("boosting", "logistic"):
        raise ParameterError(f"estimator {kind!r} is unknown; choose 'boosting' or 'logistic'.")

    def fit(X: Float, y: Int, weights: Float, columns: Columns) -> _Boosting | _Logistic:
        if kind == "logistic":
            return fit_logistic(X, y, weights, columns)
        n = n_trees(n_iterations, n_classes, step_share)
        return _fit_boosting(X, y, weights, columns, n, seed)

    return fit_on_matrix(fit, X, y, weights=weights, n_levels=n_levels, n_classes=n_classes)


def fit_on_matrix(
    fit: "FitMatrix", X: Float, y: Int, *, weights: Float | None, n_levels: Int, n_classes: int
) -> Classifier:
    """What :func:`fit_estimator` does, with another ``fit``.

    ``fit`` gets the records of positive weight without infinite values, dense class codes, weights of
    mean 1 and the :class:`Columns`; its result has ``predict_proba`` over the dense codes.
    """
    weights = checked_weights(weights, len(y))
    used = weights > 0
    X, y, weights = X[used], y[used], weights[used]
    weights = weights / weights.mean()  # regularisation must not depend on the weights' scale

    columns = Columns.of(X, n_levels)
    codes, y_dense = np.unique(y, return_inverse=True)
    if len(codes) == 1 or not len(columns.kept):
        share = np.bincount(y, weights=weights, minlength=n_classes)
        return Constant(share / share.sum())
    # What is fitted here needs no second look by scikit-learn.
    with single_threaded(), config_context(assume_finite=True, skip_parameter_validation=True):
        inner = fit(columns.take(X), y_dense, weights, columns)
    return _OverAllClasses(inner, columns, codes, n_classes)


def n_trees(n_iterations: int, n_classes: int, step_share: float) -> int:
    """Iterations of boosting: fewer with many classes, and a share of them for a pilot."""
    trees_per_iteration = n_classes if n_classes > 2 else 1
    n_iterations = max(10, min(n_iterations, BOOSTING_MAX_TREES // trees_per_iteration))
    return max(1, round(step_share * n_iterations))


def checked_weights(weights: Float | None, n: int) -> Float:
    """Weights of ``n`` records, ones by default; refuses negative, infinite and all-zero ones."""
    weights = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ParameterError("weights must be finite and not negative.")
    if not (weights > 0).any():
        raise EmptyClassError("no record has a positive weight, so there is nothing to learn from.")
    return weights


def balanced_weights(y: Int) -> Float:
    """Weight of each record with which every class that occurs has the same sum; mean 1."""
    counts = np.bincount(y)
    return len(y) / (np.count_nonzero(counts) * counts[y])


@dataclass(frozen=True)
class Columns:
    """Properties of the training columns that later records are treated by."""

    kept: Int  # columns that hold a value
    low: Float  # smallest and largest finite value, per kept column
    high: Float
    n_levels: Int  # 0 for numbers

    @classmethod
    def of(cls, X: Float, n_levels: Int) -> "Columns":
        """The properties of these records."""
        # HistGradientBoosting cannot bin an all-null column: it fails with a message on windows.
        finite = np.isfinite(X)
        kept = np.flatnonzero(finite.any(axis=0))
        values, finite = X[:, kept], finite[:, kept]
        low = np.where(finite, values, np.inf).min(axis=0, initial=np.inf)
        high = np.where(finite, values, -np.inf).max(axis=0, initial=-np.inf)
        return cls(kept, low, high, n_levels[kept])

    @property
    def is_category(self) -> Bool:
        """Which columns hold level codes."""
        return self.n_levels > 0

    def take(self, X: Float) -> Float:
        """The kept columns; infinite numbers become the nearest finite one seen in training."""
        X = X[:, self.kept]
        return np.where(np.isinf(X), np.clip(X, self.low, self.high), X)


@dataclass(frozen=True)
class Constant:
    """Predicts the same probabilities for every record."""

    share: Float

    def predict_proba(self, X: Float) -> Float:
        """The share of every class, shape (n_records, n_classes)."""
        return np.tile(self.share, (len(X), 1))


# (X, dense class codes, weights, columns) -> classifier.
FitMatrix = Callable[[Float, Int, Float, Columns], Any]


@dataclass(frozen=True)
class _OverAllClasses:
    """Spreads a classifier's probabilities over all classes; 0 for those that it does not know."""

    inner: Any
    columns: Columns
    codes: Int
    n_classes: int

    def predict_proba(self, X: Float) -> Float:
        proba = np.zeros((len(X), self.n_classes))
        if len(X):
            with single_threaded(), config_context(assume_finite=True):
                proba[:, self.codes] = self.inner.predict_proba(self.columns.take(X))
        return proba


def _fit_boosting(
    X: Float, y: Int, weights: Float, columns: Columns, n_iterations: int, seed: int
) -> "_Boosting":
    native = columns.is_category & (columns.n_levels <= NATIVE_LEVELS)
    bins = Bins.of(X, weights, ~native)
    model = CodedBoosting(
        max_iter=n_iterations,
        max_leaf_nodes=BOOSTING_LEAVES,
        learning_rate=BOOSTING_RATE,
        l2_regularization=BOOSTING_L2,
        categorical_features=native if native.any() else None,
        early_stopping=False,
        random_state=seed & 0xFFFFFFFF,  # no more is taken
    )
    return _Boosting(bins, model.fit(bins.take(X), y, sample_weight=weights))


@dataclass(frozen=True)
class _Boosting:
    bins: Bins
    model: CodedBoosting

    def predict_proba(self, X: Float) -> Float:
        return self.model.predict_proba(self.bins.take(X))


def fit_logistic(
    X: Float, y: Int, weights: Float, columns: Columns, l2: float = LOGISTIC_L2
) -> "_Logistic":
    """Minimise the weighted cross-entropy plus an L2 penalty, by Newton's method where coefficients are few."""
    design = Design.of(X, weights, columns)
    numbers, levels = design.transform(X)
    n_known = int(y.max()) + 1
    n_rows = numbers.shape[1] + levels.shape[1]
    if n_rows * n_known > FEW_COEFFICIENTS or n_rows * len(y) > FEW_CELLS:
        return _Logistic(design, _by_lbfgs(numbers, levels, y, weights, n_known, l2))
    # Of two classes scikit-learn penalises their difference, which two penalised columns share.
    penalty = l2 / 2 if n_known == 2 else l2
    model = LogisticRegression(
        C=1 / penalty, solver="newton-cholesky", max_iter=LOGISTIC_ITERATIONS
    )
    model.fit(np.hstack([numbers, levels.toarray()]), y, sample_weight=weights)
    coef = np.vstack([model.coef_.T, model.intercept_])
    return _Logistic(design, coef if n_known > 2 else np.hstack([np.zeros_like(coef), coef]))


def _by_lbfgs(
    numbers: Float, levels: Any, y: Int, weights: Float, n_known: int, l2: float
) -> Float:
    """Coefficients, the intercepts last, with the loss in blocks of records.

    With a thousand classes that is a quarter of the time and memory of scikit-learn's, which also warns when it
    reaches its iteration limit; silencing one warning is not safe in threads before Python 3.14.
    """
    n_numbers, n_rows = numbers.shape[1], numbers.shape[1] + levels.shape[1]
    shape = (n_rows + 1, n_known)
    step = max(1, BLOCK_PROBABILITIES // n_known)
    blocks = [
        (numbers[i : i + step], levels[i : i + step], y[i : i + step], weights[i : i + step])
        for i in range(0, len(y), step)
    ]

    def loss(flat: Float) -> tuple[float, Float]:
        coef = flat.reshape(shape)
        gradient, log_likelihood = np.zeros_like(coef), 0.0
        for block_numbers, block_levels, truth, weight in blocks:
            z = block_numbers @ coef[:n_numbers] + block_levels @ coef[n_numbers:n_rows] + coef[-1]
            z -= z.max(axis=1, keepdims=True)
            true_class = np.arange(len(truth)), truth
            z_true = z[true_class]
            np.exp(z, out=z)
            total = z.sum(axis=1)
            log_likelihood += float((weight * (z_true - np.log(total))).sum())
            z *= (weight / total)[:, None]
            z[true_class] -= weight
            gradient[:n_numbers] += block_numbers.T @ z
            gradient[n_numbers:n_rows] += block_levels.T @ z
            gradient[-1] += z.sum(axis=0)
        gradient[:-1] += l2 * coef[:-1]
        value = l2 / 2 * (coef[:-1] ** 2).sum() - log_likelihood
        return value / len(y), gradient.ravel() / len(y)

    best = minimize(
        loss,
        np.zeros(shape[0] * shape[1]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": LOGISTIC_ITERATIONS, "gtol": 1e-6, "ftol": 1e-9},
    )
    return best.x.reshape(shape)


@dataclass(frozen=True)
class _Logistic:
    design: "Design"
    coef: Float  # (n_design_columns + 1, n_classes), the intercept last

    def predict_proba(self, X: Float) -> Float:
        numbers, levels = self.design.transform(X)
        n_numbers = numbers.shape[1]
        z = numbers @ self.coef[:n_numbers] + levels @ self.coef[n_numbers:-1] + self.coef[-1]
        return softmax(z, axis=1)


def _squarable(values: Float) -> Float:
    """Clip numbers so that sums of their squares stay finite."""
    return np.clip(values, -LARGEST, LARGEST)


@dataclass(frozen=True)
class Design:
    """The design matrix of a linear model: dense numbers and sparse one-hot levels."""

    numeric: Int
    category: Int
    with_null: Int  # columns that had nulls in training; each gets an indicator
    median: Float
    mean: Float
    scale: Float
    level_column: tuple[Int, ...]  # per category column: level code -> one-hot column, or -1
    n_level_columns: int

    @classmethod
    def of(cls, X: Float, weights: Float, columns: Columns) -> "Design":
        """The design of these training records."""
        numeric = np.flatnonzero(~columns.is_category)
        category = np.flatnonzero(columns.is_category)
        values = _squarable(X[:, numeric])
        median = np.nanmedian(values, axis=0) if len(numeric) else np.zeros(0)
        filled = np.where(np.isnan(values), median, values)
        # Weighted, so that two copies of a record equal one of weight 2.
        mean = np.average(filled, axis=0, weights=weights)
        scale = np.sqrt(np.average((filled - mean) ** 2, axis=0, weights=weights))
        level_column, n = [], 0
        for j in category:
            codes = X[:, j][~np.isnan(X[:, j])].astype(np.int64)
            counts = np.bincount(codes)
            frequent = np.argsort(-counts, kind="stable")[:ONE_HOT_LEVELS]
            frequent = np.sort(frequent[counts[frequent] > 0])
            lookup = np.full(len(counts), -1, dtype=np.int64)
            lookup[frequent] = n + np.arange(len(frequent))
            level_column.append(lookup)
            n += len(frequent)
        with_null = np.flatnonzero(np.isnan(X).any(axis=0))
        scale = np.where(scale > 0, scale, 1.0)
        return cls(numeric, category, with_null, median, mean, scale, tuple(level_column), n)

    def transform(self, X: Float) -> tuple[Float, sparse.csr_matrix]:
        """Standardised numbers with their indicators of nulls, and one-hot levels."""
        values = _squarable(X[:, self.numeric])
        filled = np.where(np.isnan(values), self.median, values)
        numbers = np.hstack([(filled - self.mean) / self.scale, np.isnan(X[:, self.with_null])])
        rows, places = [], []
        for j, lookup in zip(self.category, self.level_column, strict=True):
            codes = np.where(np.isnan(X[:, j]), -1, X[:, j]).astype(np.int64)
            known = (codes >= 0) & (codes < len(lookup))
            place = np.where(known, lookup[np.where(known, codes, 0)], -1)
            occurring = np.flatnonzero(place >= 0)
            rows.append(occurring)
            places.append(place[occurring])
        row = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        place = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)
        shape = (len(X), self.n_level_columns)
        return numbers, sparse.csr_matrix((np.ones(len(row)), (row, place)), shape=shape)
