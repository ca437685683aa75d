"""What vectors hold of the classes: learners and clusters on them, scored on records that none has seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    normalized_mutual_info_score,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

__all__ = ["MEASURES", "Divided", "judge"]

N_NEIGHBOURS = 15
MEASURES = (
    "k-NN accuracy",
    "k-NN balanced accuracy",
    "logistic accuracy",
    "logistic balanced accuracy",
    "clusters' NMI",
)


class Divided(Protocol):
    """Classes of records, and which of them are fit, val and test."""

    @property
    def y(self) -> NDArray[np.int64]:
        """Classes."""
        ...

    @property
    def fit(self) -> NDArray[np.int64]:
        """Records that learners learn from."""
        ...

    @property
    def val(self) -> NDArray[np.int64]:
        """Records that scaling is chosen on."""
        ...

    @property
    def test(self) -> NDArray[np.int64]:
        """Records that are scored."""
        ...


def judge(Z: NDArray[np.float64], parts: Divided, seed: int) -> dict[str, float]:
    """Return all measures of some vectors, one per record; scaled first or not, as val says."""
    found: dict[str, float] = {}
    y = parts.y
    learners: dict[str, Callable[[], Any]] = {
        "k-NN": lambda: KNeighborsClassifier(N_NEIGHBOURS),
        "logistic": lambda: LogisticRegression(max_iter=500),
    }
    both = {True: StandardScaler().fit(Z[parts.fit]).transform(Z), False: Z}
    for name, make in learners.items():
        fitted = {}
        for scaled, V in both.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                fitted[scaled] = make().fit(V[parts.fit], y[parts.fit])
        best = max(
            both, key=lambda s: accuracy_score(y[parts.val], fitted[s].predict(both[s][parts.val]))
        )
        said = fitted[best].predict(both[best][parts.test])
        found[f"{name} accuracy"] = accuracy_score(y[parts.test], said)
        found[f"{name} balanced accuracy"] = balanced_accuracy_score(y[parts.test], said)
    n_classes = len(np.unique(y))
    clusters = {
        scaled: KMeans(n_classes, n_init=10, random_state=seed).fit(V[parts.fit])
        for scaled, V in both.items()
    }

    def nmi(scaled: bool, rows: NDArray[np.int64]) -> float:
        return float(
            normalized_mutual_info_score(y[rows], clusters[scaled].predict(both[scaled][rows]))
        )

    found["clusters' NMI"] = nmi(max(both, key=lambda s: nmi(s, parts.val)), parts.test)
    return found
