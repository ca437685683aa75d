"""What vectors hold of the classes: estimators and clusters on them, scored on records that none has seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

__all__ = ["MEASURES", "Divided", "score_vectors"]

N_NEIGHBOURS = 15
MEASURES = (
    "k-NN accuracy",
    "k-NN balanced accuracy",
    "logistic accuracy",
    "logistic balanced accuracy",
    "clusters' NMI",
)


class Divided(Protocol):
    """Classes of records, and which of them are training, validation and test."""

    @property
    def y(self) -> NDArray[np.int64]:
        """Classes."""
        ...

    @property
    def training(self) -> NDArray[np.int64]:
        """Records that estimators learn from."""
        ...

    @property
    def validation(self) -> NDArray[np.int64]:
        """Records that scaling is chosen on."""
        ...

    @property
    def test(self) -> NDArray[np.int64]:
        """Records that are scored."""
        ...


def score_vectors(Z: NDArray[np.float64], parts: Divided, seed: int) -> dict[str, float]:
    """Return all measures of some vectors, one per record; scaled first or not, as validation says."""
    found: dict[str, float] = {}
    y = parts.y
    estimators: dict[str, Callable[[], Any]] = {
        "k-NN": lambda: KNeighborsClassifier(N_NEIGHBOURS),
        "logistic": lambda: LogisticRegression(max_iter=500),
    }
    both = {True: StandardScaler().fit(Z[parts.training]).transform(Z), False: Z}
    for name, make in estimators.items():
        fitted = {}
        for scaled, V in both.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                fitted[scaled] = make().fit(V[parts.training], y[parts.training])
        best = max(
            both,
            key=lambda s: accuracy_score(
                y[parts.validation], fitted[s].predict(both[s][parts.validation])
            ),
        )
        said = fitted[best].predict(both[best][parts.test])
        found[f"{name} accuracy"] = accuracy_score(y[parts.test], said)
        found[f"{name} balanced accuracy"] = balanced_accuracy_score(y[parts.test], said)
    n_classes = len(np.unique(y))
    clusters = {
        scaled: KMeans(n_classes, n_init=10, random_state=seed).fit(V[parts.training])
        for scaled, V in both.items()
    }

    def nmi(scaled: bool, rows: NDArray[np.int64]) -> float:
        return float(
            normalized_mutual_info_score(y[rows], clusters[scaled].predict(both[scaled][rows]))
        )

    found["clusters' NMI"] = nmi(max(both, key=lambda s: nmi(s, parts.validation)), parts.test)
    return found
