"""Tree ensembles on the matrix of a table: random forest, LightGBM, XGBoost, CatBoost.

Each has its library's defaults, a hundred trees (fewer from six classes on), one thread and no early
stopping. LightGBM, XGBoost and CatBoost read nulls and categories as they are; a random forest reads
the design of logistic regression (nulls as the median with an indicator, one-hot categories).
"""

import importlib
import importlib.metadata
import importlib.util
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.ensemble import RandomForestClassifier

from prefect_augment.array_types import Float, Int
from prefect_augment.errors import MissingExtraError
from prefect_augment.evaluation.classifiers.base import (
    Classifier,
    Columns,
    Design,
    fit_estimator,
    fit_on_matrix,
    n_trees,
)
from prefect_augment.params.estimators import Estimator as EstimatorName

N_TREES = 100
LARGEST = 1e30  # within single precision, which forest and XGBoost compute in
OPTIONAL = ("lightgbm", "xgboost", "catboost")  # packages of the same name


def distribution_of(kind: EstimatorName) -> str:
    """The distribution that an estimator comes from, as pip names it."""
    return kind if kind in OPTIONAL else "scikit-learn"


def check_installed(kind: EstimatorName) -> None:
    """Raise MissingExtraError with the line that installs the estimator's package."""
    if kind in OPTIONAL and importlib.util.find_spec(kind) is None:
        raise MissingExtraError(
            f"evaluation.estimators has {kind!r}, which is not installed; install it where the run works "
            f"(pip install {kind}), or choose 'boosting'.",
            extra=kind,
        )


def fit_named(
    kind: EstimatorName,
    X: Float,
    y: Int,
    *,
    weights: Float | None,
    n_levels: Int,
    n_classes: int,
    seed: int,
    step_share: float = 1.0,
) -> Classifier:
    """A classifier by its name in ``evaluation.estimators``, with the arguments of :func:`.fit_estimator`.

    A pilot has ``step_share`` of the trees. MissingExtraError if its package is not installed; other errors as there.
    """
    columns: dict[str, Any] = {"weights": weights, "n_levels": n_levels, "n_classes": n_classes}
    if kind == "boosting" or kind == "logistic":
        return fit_estimator(kind, X, y, seed=seed, step_share=step_share, **columns)
    check_installed(kind)
    n = n_trees(N_TREES, n_classes if kind in OPTIONAL else 2, step_share)
    return fit_on_matrix(partial(_FITS[kind], n=n, seed=seed & 0x7FFFFFFF), X, y, **columns)


class _Forest:
    def __init__(
        self, X: Float, y: Int, weights: Float, columns: Columns, *, n: int, seed: int
    ) -> None:
        self.design = Design.of(X, weights, columns)
        forest = RandomForestClassifier(n, n_jobs=1, random_state=seed)
        self.forest = forest.fit(self._read(X), y, sample_weight=weights)

    def _read(self, X: Float) -> Any:
        numbers, levels = self.design.transform(X)
        numbers = np.clip(numbers, -LARGEST, LARGEST)
        return sparse.hstack([numbers, levels]).tocsr() if levels.shape[1] else numbers

    def predict_proba(self, X: Float) -> Float:
        return self.forest.predict_proba(self._read(X))


class _LightGBM:
    def __init__(
        self, X: Float, y: Int, weights: Float, columns: Columns, *, n: int, seed: int
    ) -> None:
        lightgbm = importlib.import_module("lightgbm")
        params = _objective(y, "binary", "multiclass") | {
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "seed": seed,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(
            X,
            label=y,
            weight=weights,
            categorical_feature=np.flatnonzero(columns.is_category).tolist(),
        )
        self.booster = lightgbm.train(params, data, num_boost_round=n)

    def predict_proba(self, X: Float) -> Float:
        return _both_classes(self.booster.predict(X, num_threads=1))


class _XGBoost:
    def __init__(
        self, X: Float, y: Int, weights: Float, columns: Columns, *, n: int, seed: int
    ) -> None:
        self.xgboost = importlib.import_module("xgboost")
        self.types = ["c" if category else "q" for category in columns.is_category]
        params = _objective(y, "binary:logistic", "multi:softprob")
        params |= {"tree_method": "hist", "nthread": 1, "seed": seed, "verbosity": 0}
        data = self._read(X, label=y, weight=weights)
        self.booster = self.xgboost.train(params, data, num_boost_round=n)

    def _read(self, X: Float, **of_records: Any) -> Any:
        return self.xgboost.DMatrix(
            np.clip(X, -LARGEST, LARGEST),
            feature_types=self.types,
            enable_categorical=True,
            nthread=1,
            **of_records,
        )

    def predict_proba(self, X: Float) -> Float:
        return _both_classes(self.booster.predict(self._read(X)))


class _CatBoost:
    def __init__(
        self, X: Float, y: Int, weights: Float, columns: Columns, *, n: int, seed: int
    ) -> None:
        catboost = importlib.import_module("catboost")
        self.is_category = columns.is_category
        model = catboost.CatBoostClassifier(
            iterations=n,
            cat_features=np.flatnonzero(columns.is_category).tolist(),
            thread_count=1,
            random_seed=seed,
            allow_writing_files=False,
            verbose=False,
        )
        self.model = model.fit(self._read(X), y, sample_weight=weights)

    def _read(self, X: Float) -> Any:
        """Numbers as they are, levels as whole numbers; a null is the level -1."""
        import pandas as pd

        return pd.DataFrame(
            {
                j: np.where(np.isnan(x), -1, x).astype(np.int64) if category else x
                for j, (x, category) in enumerate(zip(X.T, self.is_category, strict=True))
            }
        )

    def predict_proba(self, X: Float) -> Float:
        return self.model.predict_proba(self._read(X))


def _objective(y: Int, of_two: str, of_many: str) -> dict[str, Any]:
    n_classes = int(y.max()) + 1
    many = {"objective": of_many, "num_class": n_classes}
    return many if n_classes > 2 else {"objective": of_two}


def _both_classes(probabilities: Float) -> Float:
    """Two columns from the second class's probability alone; others unchanged."""
    proba = probabilities.astype(np.float64)
    return proba if proba.ndim == 2 else np.column_stack([1 - proba, proba])


_FITS: dict[str, Any] = {
    "random_forest": _Forest,
    "lightgbm": _LightGBM,
    "xgboost": _XGBoost,
    "catboost": _CatBoost,
}
