"""A classifier of the user's: found, checked before any work, and fitted on records as pandas reads them.

It gets the learnt columns of the source with their names and types, and the classes as the source
spells them. A value that is missing where training records have all theirs is the column's median or
most frequent level: a pipeline need not expect what it has never seen.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions, version
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import mode
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _check_sample_weight, check_array, has_fit_parameter

from prefect_augment.array_types import Array, Float, Int
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.classifiers.base import Classifier, Constant, checked_weights
from prefect_augment.evaluation.classifiers.tree_ensembles import check_installed, distribution_of
from prefect_augment.nn.threads import single_threaded
from prefect_augment.params import Evaluation, OwnEstimator
from prefect_augment.params.estimators import estimator_digest, package_of, unusable
from prefect_augment.registry import load_function
from prefect_augment.schema import EstimatorInfo, Modality

ENTRY_POINTS = "prefect_augment.estimators"
# What code of the user's raises; an error of memory or an interrupt is nobody's mistake in a parameter.
_FAULTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
_THREADS = ("n_jobs", "nthread", "thread_count")
_SEEDS = ("random_state", "random_seed")


def check_estimators(evaluation: Evaluation) -> Evaluation:
    """Import and make every estimator; return the params with the name and digest of those of the user's.

    Raises MissingExtraError if a library is not installed; ParameterError for a factory that cannot be imported or
    called, that makes no scikit-learn classifier or torch module, or one without ``predict_proba``.
    """
    checked: list[Any] = []
    for estimator in evaluation.estimators:
        if isinstance(estimator, str):
            check_installed(estimator)
        else:
            estimator = _checked(estimator)
        checked.append(estimator)
    return evaluation.model_copy(update={"estimators": checked})


def check_modality(evaluation: Evaluation, modality: Modality) -> None:
    """Raise ParameterError for a classifier of tables where the source has images, and the other way round."""
    for own in evaluation.own_estimators:
        if makes_networks(own) != (modality == "image"):
            makes = "torch modules for images" if makes_networks(own) else "classifiers of tables"
            raise ParameterError(
                f"estimator {own.title!r} makes {makes}, and the source holds {modality} data; give a "
                + (
                    "function of n_classes, size and channels that returns a torch module."
                    if modality == "image"
                    else "scikit-learn classifier, or a function that makes one."
                )
            )


def makes_networks(own: OwnEstimator) -> bool:
    """Whether it is a factory of networks: a function or class with the parameter ``n_classes``."""
    loaded = _loaded(own)
    try:
        return _is_factory(loaded) and "n_classes" in inspect.signature(loaded).parameters
    except (ValueError, TypeError):  # written in C
        return False


def make_network(own: OwnEstimator, n_classes: int, size: int, channels: int) -> Any:
    """The user's untrained torch module for images of ``size`` x ``size`` pixels."""
    shape = {"n_classes": n_classes, "size": size, "channels": channels}
    built = _call(own, _loaded(own), shape | own.option_values)
    if not all(hasattr(built, name) for name in ("forward", "parameters", "train")):
        raise ParameterError(
            f"estimator {own.title!r} makes {type(built).__name__}, which is no torch module; return a torch.nn.Module "
            "that gives logits of shape (n, n_classes) for images of shape (n, channels, size, size)."
        )
    return built


def make_classifier(own: OwnEstimator) -> Any:
    """The user's unfitted scikit-learn classifier."""
    loaded = _loaded(own)
    built = _call(own, loaded, own.option_values) if _is_factory(loaded) else loaded
    if why := unusable(built):
        raise ParameterError(f"estimator {own.title!r} cannot be compared: {why}")
    return clone(built)  # other threads fit it too, and a factory may use a step twice


def estimator_infos(evaluation: Evaluation) -> dict[str, EstimatorInfo]:
    """Package, version and digest of every requested estimator, by its name."""
    infos: dict[str, EstimatorInfo] = {}
    for estimator in evaluation.estimators:
        if isinstance(estimator, str):
            package = distribution_of(estimator)
            infos[estimator] = EstimatorInfo(package=package, version=version(package))
        else:
            own = estimator if estimator.digest else _checked(estimator)
            built = _loaded(own) if makes_networks(own) else make_classifier(own)
            package, of_package = package_of(built)
            infos[own.title] = EstimatorInfo(
                package=_as_pip_names_it(package), version=of_package, digest=own.digest
            )
    return infos


@cache
def _as_pip_names_it(package: str) -> str:
    """The distribution of an importable package; packages_distributions() reads and parses all of every one."""
    its_file = re.compile(rf"^{re.escape(package)}(/__init__)?\.py,", re.MULTILINE)
    for distribution in distributions():
        # An editable installation records no file of its packages, but may name them.
        named = (distribution.read_text("top_level.txt") or "").split()
        if package in named or its_file.search(distribution.read_text("RECORD") or ""):
            return distribution.name
    return package


def _checked(own: OwnEstimator) -> OwnEstimator:
    if makes_networks(own):
        make_network(own, n_classes=2, size=32, channels=3)
        what = _loaded(own)
    else:
        what = make_classifier(own)
    try:
        digest = estimator_digest(what)
    except ValueError as exc:
        raise ParameterError(f"estimator {own.title!r}: {exc}") from exc
    return own.model_copy(update={"digest": digest, "name": own.title})


def _loaded(own: OwnEstimator) -> Any:
    if own.given is not None:
        return own.given
    if not own.factory:
        raise ParameterError(
            f"estimator {own.title!r} was an object in another process, and parameters in JSON do not hold it; start "
            "the run from Python again, or name a factory (module:function)."
        )
    return load_function(own.factory, group=ENTRY_POINTS, field="evaluation.estimators")


def _is_factory(loaded: Any) -> bool:
    return inspect.isclass(loaded) or not hasattr(loaded, "fit")


def _call(own: OwnEstimator, factory: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    try:
        return factory(**options)
    except _FAULTS as exc:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items()) or "no options"
        raise ParameterError(
            f"estimator {own.title!r} could not be made with {given}: {type(exc).__name__}: {exc}; "
            "compare evaluation.estimators with the function's parameters."
        ) from exc


def fit_own(
    own: OwnEstimator,
    X: Float,  # (n, n_columns), the matrix form
    y: Int,  # (n,) class codes
    *,
    weights: Float | None,  # (n,), in proportion
    decode: Callable[[Float], pa.Table],  # the matrix as records, any value of which may be null
    labels: Array,  # (n_classes,) classes as the source spells them
    seed: int,
) -> Classifier:
    """A classifier of the user's on weighted records; a single class is predicted with certainty.

    One thread; ``random_state`` from the seed, wherever a step has one; without ``sample_weight`` it
    trains on records drawn by weight. XGBoost's classifiers get class codes, the only classes that
    they take. ParameterError if it fails; EmptyClassError if no record has a positive weight.
    """
    weights = checked_weights(weights, len(y))
    used = weights > 0
    X, y, weights = X[used], y[used], weights[used]
    weights = weights / weights.mean()
    codes, y_dense = np.unique(y, return_inverse=True)
    if len(codes) == 1:
        return Constant(np.eye(len(labels))[codes[0]])
    estimator = _prepared(make_classifier(own), seed)
    by_code = package_of(estimator)[0] == "xgboost"
    names = np.arange(len(codes)) if by_code else labels[codes]
    frames = _Frames.of(X, decode)
    records = frames.of_matrix(X)
    with _named_faults(own, "fit", records), single_threaded():
        fit_weighted(
            estimator, records, names[y_dense], weights, np.random.RandomState(seed & 0x7FFFFFFF)
        )
    code_of = dict(zip(names.tolist(), codes.tolist(), strict=True))
    known = [
        code_of[c] for c in np.asarray(getattr(estimator, "classes_", np.sort(names))).tolist()
    ]
    return _Own(own, estimator, frames, np.array(known), len(labels))


def fit_weighted(estimator: Any, X: Any, y: Any, weights: Any, rng: np.random.RandomState) -> None:
    """Fit a scikit-learn classifier on weighted records, without ``sample_weight`` on as many drawn by weight.

    In a pipeline the last step gets the weights, in a search the inner estimator. ``X`` is a frame or
    an array; every class is drawn at least once. Without weights, or where all are equal, nothing is drawn.
    """
    if weights is None:
        estimator.fit(X, y)
        return
    if parameter := _weight_parameter(estimator):
        estimator.fit(X, y, **{parameter: weights})
        return
    if not hasattr(X, "columns"):  # a frame's columns are known by their names
        X = check_array(X, dtype=None, accept_sparse="csr", ensure_all_finite=False)
    y = np.asarray(y)
    weights = _check_sample_weight(weights, X, ensure_non_negative=True)
    if weights.min() == weights.max() > 0:
        estimator.fit(X, y)
        return
    # One of each class first, so that none is unknown to the estimator.
    rows_by_class = [np.flatnonzero((y == name) & (weights > 0)) for name in np.unique(y)]
    first = [
        rng.choice(rows, p=weights[rows] / weights[rows].sum())
        for rows in rows_by_class
        if rows.size
    ]
    drawn = rng.choice(len(y), size=len(y) - len(first), p=weights / weights.sum())
    rows = np.concatenate([np.array(first, dtype=np.int64), drawn])
    estimator.fit(_safe_indexing(X, rows), y[rows])


def _weight_parameter(estimator: Any) -> str:
    """The name of the weights in fit; empty where there are none."""
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        return f"{name}__sample_weight" if has_fit_parameter(last, "sample_weight") else ""
    if has_fit_parameter(estimator, "sample_weight"):
        return "sample_weight"
    parameters = inspect.signature(estimator.fit).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return ""
    # A wrapper, such as a search, passes its arguments on to the inner estimator.
    wrapped = getattr(estimator, "estimator", None)
    return "sample_weight" if wrapped is None else _weight_parameter(wrapped)


def _prepared(estimator: Any, seed: int) -> Any:
    """The unfitted classifier with one thread and the seed, in every step that has them."""
    settings: dict[str, int] = {}
    params = estimator.get_params(deep=True)
    for name, value in params.items():
        of, _, last = name.rpartition("__")
        # None is one thread in scikit-learn, where some warn of a number, and all of them elsewhere.
        if last in _THREADS and not (
            value is None and package_of(params.get(of, estimator))[0] == "sklearn"
        ):
            settings[name] = 1
        elif last in _SEEDS:
            settings[name] = seed & 0x7FFFFFFF
    return estimator.set_params(**settings)


@contextmanager
def _named_faults(own: OwnEstimator, method: str, records: Any) -> Iterator[None]:
    try:
        yield
    except _FAULTS as exc:
        columns = ", ".join(f"{name} ({dtype})" for name, dtype in records.dtypes.items())
        raise ParameterError(
            f"estimator {own.title!r} failed in {method} on {len(records)} records: {type(exc).__name__}: {exc}. "
            f"It gets a pandas frame with the columns {columns}."
        ) from exc


@dataclass(frozen=True)
class _Frames:
    """Records as pandas frames that all have the training records' types."""

    decode: Callable[[Float], pa.Table]
    fill: Float  # (n_columns,), NaN for columns with missing values in training
    dtypes: Any

    @classmethod
    def of(cls, X: Float, decode: Callable[[Float], pa.Table]) -> "_Frames":
        fill = np.full(X.shape[1], np.nan)
        table = decode(X)
        kinds = table.schema.types
        for j in np.flatnonzero(~np.isnan(X).any(axis=0)):
            is_number = pa.types.is_floating(kinds[j]) or pa.types.is_integer(kinds[j])
            fill[j] = np.median(X[:, j]) if is_number else mode(X[:, j]).mode
        return cls(decode, fill, table.to_pandas().dtypes)

    def of_matrix(self, X: Float) -> Any:
        filled = np.where(np.isnan(X), self.fill, X)
        return self.decode(filled).to_pandas().astype(self.dtypes)


@dataclass(frozen=True)
class _Own:
    own: OwnEstimator
    estimator: Any
    frames: _Frames
    codes: Int  # class code of each column of its probabilities
    n_classes: int

    def predict_proba(self, X: Float) -> Float:
        """Probability of every class; ParameterError where it fails or gives no probabilities."""
        proba = np.zeros((len(X), self.n_classes))
        if not len(X):
            return proba
        records = self.frames.of_matrix(X)
        with _named_faults(self.own, "predict_proba", records), single_threaded():
            own = np.asarray(self.estimator.predict_proba(records), dtype=np.float64)
        if own.shape != (len(X), len(self.codes)) or not np.isfinite(own).all() or (own < 0).any():
            raise ParameterError(
                f"estimator {self.own.title!r} gives no probabilities: an array of shape {own.shape}, and expected are "
                f"numbers from 0 to 1 of shape {(len(X), len(self.codes))}."
            )
        proba[:, self.codes] = own
        return proba
