"""Classifiers of a user's, named by ``support.own_models:…``."""

from typing import Any

from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

__all__ = [
    "columns",
    "flat_net",
    "linear",
    "margins",
    "neighbours",
    "nothing",
    "pipeline",
    "shared",
]


def columns() -> ColumnTransformer:
    """Numbers scaled, texts and categories one-hot; nulls are refused, as by most pipelines."""
    return ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["cycles"]),
            ("names", OneHotEncoder(), make_column_selector(dtype_include="category")),
            ("flags", "passthrough", ["loud"]),
        ]
    )


def pipeline(**options: Any) -> Pipeline:
    return make_pipeline(columns(), LogisticRegression(**options))


def neighbours(n_neighbors: int = 5) -> Pipeline:
    """Takes no weights."""
    return make_pipeline(columns(), KNeighborsClassifier(n_neighbors))


def margins() -> LinearSVC:
    return LinearSVC()


def nothing() -> dict[str, int]:
    return {}


linear = LogisticRegression()
_scaler = StandardScaler()


def shared() -> Pipeline:
    return make_pipeline(_scaler, LogisticRegression())


def flat_net(
    n_classes: int, size: int, channels: int, hidden: int = 8, dropout: float = 0.1
) -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(size * size * channels, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, n_classes),
    )
