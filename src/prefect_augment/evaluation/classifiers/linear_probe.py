"""The linear probe: a logistic regression on the frozen features of a pretrained encoder of images."""

from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from prefect_augment.array_types import Array, Float, Int
from prefect_augment.evaluation.classifiers.base import Classifier, fit_logistic, fit_on_matrix

if TYPE_CHECKING:
    from prefect_augment.schema import Recipe


def fit_probe(
    features: Array,  # (n, n_features)
    y: Int,  # (n,) class codes; classes may be absent
    *,
    C: float,
    weights: Float | None,  # (n,), in proportion
    n_classes: int,
) -> Classifier:
    """Multinomial logistic regression on standardised features, its L2 penalty being 1/C over weights of mean 1.

    The layer of features stays as it is, and only the head is trained: what long-tailed recognition gains most by
    (Shi et al. 2024, "Long-Tail Learning with Foundation Model", LIFT; Kang et al. 2020, "Decoupling
    Representation and Classifier", section 4). EmptyClassError if no record has a positive weight.
    """
    return fit_on_matrix(
        partial(fit_logistic, l2=1 / C),
        np.asarray(features, dtype=np.float64),
        y,
        weights=weights,
        n_levels=np.zeros(features.shape[1], dtype=np.int64),
        n_classes=n_classes,
    )


class LinearProbe(ClassifierMixin, BaseEstimator):
    """The classifier of a published linear probe, on features of its encoder.

    Parameters
    ----------
    C : float, default=0.01
        Inverse of the L2 penalty, as scikit-learn's; ``dataset.recipe.strategy.C``.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
    n_features_in_ : int

    Examples
    --------
    >>> encoder = open_encoder(dataset.recipe)  # doctest: +SKIP
    >>> X = encoder.features(dataset.to_table()["image"])  # doctest: +SKIP
    >>> model = RecipeClassifier(LinearProbe.of(dataset.recipe), dataset.recipe)  # doctest: +SKIP
    >>> model.fit(X, y).predict(encoder.features(images))  # doctest: +SKIP
    """

    def __init__(self, C: float = 0.01) -> None:
        self.C = C

    @classmethod
    def of(cls, recipe: "Recipe") -> "LinearProbe":
        """Return the unfitted classifier of a recipe."""
        return cls(C=recipe.strategy.C)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on features, shape (n_records, n_features), and the class of each record."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.estimator_ = fit_probe(
            X, codes, C=self.C, weights=sample_weight, n_classes=len(self.classes_)
        )
        return self

    def predict_proba(self, X: Any) -> Float:
        """Probability of each class, shape (n_records, n_classes)."""
        check_is_fitted(self)
        return self.estimator_.predict_proba(validate_data(self, X, dtype=np.float64, reset=False))

    def predict(self, X: Any) -> Array:
        """The most probable class of each record."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])
