"""``RecipeClassifier``: a scikit-learn classifier trained and read by a published recipe."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.utils import (
    _safe_indexing,
    assert_all_finite,
    check_random_state,
    column_or_1d,
    get_tags,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from prefect_augment.array_types import Float
from prefect_augment.encoding.columns import describe_columns
from prefect_augment.encoding.frames import Layout
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.classifiers.bagging import Bagged, bags
from prefect_augment.evaluation.classifiers.linear_probe import LinearProbe
from prefect_augment.evaluation.classifiers.own_estimator import fit_weighted
from prefect_augment.evaluation.classifiers.soft_label_ensemble import fit_teacher, own_label_rows
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.metrics.thresholds import tune_multipliers
from prefect_augment.evaluation.quality.label_audit import audit_labels, clean_weights
from prefect_augment.loading.probabilities import (
    class_names,
    multipliers_of,
    prior_corrected,
    reweighted,
)
from prefect_augment.params.estimators import estimator_digest
from prefect_augment.schema import Recipe

N_FOLDS = 5


def _out_of_fold(
    X: Any, y: NDArray[Any], *, seed: int
) -> tuple[NDArray[Any], NDArray[np.int64], Callable[[Float | None], Float]]:
    """Classes, class codes, and what gives out-of-fold probabilities by an ensemble, given the records' weights."""
    classes, codes = np.unique(y, return_inverse=True)
    table, label = Layout.of(X).with_classes(X, class_names(list(classes)), codes)
    columns = describe_columns(table, label=label, overrides=[])
    encoder = TableEncoder.fit(table, columns=columns, label=label)
    matrix = encoder.encode(table)

    def predict(weights: Float | None) -> Float:
        return fit_teacher(
            matrix,
            codes,
            n_levels=encoder.n_levels,
            n_classes=len(classes),
            seed=seed if weights is None else seed + 1,
            weights=weights,
        ).of_training

    return classes, codes, predict


def _gives_probabilities(self: "RecipeClassifier") -> bool:
    getattr(getattr(self, "estimator_", self.estimator), "predict_proba")  # noqa: B009 - its own message
    return True


class RecipeClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier under the recipe that won the comparison.

    Training weights records by the recipe. :meth:`predict` multiplies probabilities before it takes the
    largest, where the recipe has tuned thresholds. :meth:`predict_proba` corrects the prior:
    its probabilities hold where classes are as frequent as in the source. So the predicted class need
    not be the most probable one, which for a rare class is the point of the recipe.

    Parameters
    ----------
    estimator : classifier
        A clone is trained. Without support for ``sample_weight`` it trains on records drawn by
        weight. In a pipeline the last step gets the weights.
    recipe : Recipe, dict or None, default=None
        ``dataset.recipe``, or the content of a ``recipe.json``. None trains and predicts like the
        estimator alone.
    thresholds : {"fit", "recipe"}, default="fit"
        Where the recipe has tuned thresholds. ``fit`` tunes them for ``estimator``, on the out-of-fold
        probabilities of five stratified folds of the training records; five further fits. The very
        estimator that was compared keeps the recipe's. ``recipe`` takes those of ``thresholds_of``.
    thresholds_of : str, default=""
        Classifier of the comparison whose multipliers to use, the one most like ``estimator``
        (``boosting``, ``logistic``), whatever ``thresholds`` says; optional where there is one.
    prior : dict or None, default=None
        Class shares where the classifier is used, if others than the source's.
    correct_prior : bool, default=True
        False gives probabilities as trained.
    random_state : int, RandomState or None, default=None
        Of the folds, and of the draws for estimators that take no weights.

    Attributes
    ----------
    estimator_ : classifier
        The fitted one.
    classes_ : ndarray, shape (n_classes,)
    multipliers_ : ndarray, shape (n_classes,)
        Of the probabilities in :meth:`predict`; where there is a recipe. Fitted ones are 1 for classes
        with fewer records than folds.
    n_features_in_ : int
        Where the estimator has it; ``feature_names_in_`` likewise.

    References
    ----------
    Saerens, Latinne & Decaestecker 2002 (the prior); Menon et al. 2021, "Long-tail learning via
    logit adjustment", section 4 (a recipe's balanced softmax, applied after training instead of
    in the loss, which is fixed in scikit-learn's classifiers).

    Examples
    --------
    >>> dataset = open_dataset("defects-balanced")  # doctest: +SKIP
    >>> model = RecipeClassifier(HistGradientBoostingClassifier(), dataset.recipe)  # doctest: +SKIP
    >>> model.fit(X, y, sample_weight=dataset.sample_weight()).predict(X_new)  # doctest: +SKIP
    """

    def __init__(
        self,
        estimator: Any,
        recipe: Any = None,
        *,
        thresholds: str = "fit",
        thresholds_of: str = "",
        prior: Any = None,
        correct_prior: bool = True,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.recipe = recipe
        self.thresholds = thresholds
        self.thresholds_of = thresholds_of
        self.prior = prior
        self.correct_prior = correct_prior
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the estimator by the recipe.

        Parameters
        ----------
        X : whatever the estimator takes, shape (n_records, …)
        y : array-like, shape (n_records,)
        sample_weight : array-like, shape (n_records,), optional
            ``dataset.sample_weight()``, for the records of ``dataset.to_table()``, used unchanged. Without it every
            class of ``y`` is weighted to its share in the recipe, which must not have synthetic records with soft
            labels; a recipe of clean labels audits these records anew. A recipe of soft labels of the real records
            weighs the rows that it makes of them by the classes' shares, whatever is given.

        Raises
        ------
        ParameterError
            If recipe, thresholds, thresholds_of or prior do not fit the classes.
        """
        if self.thresholds not in ("fit", "recipe"):
            raise ParameterError(f"thresholds={self.thresholds!r}; choose 'fit' or 'recipe'.")
        recipe = self._recipe()
        y = column_or_1d(y, warn=True)  # a recipe is of one label
        if recipe is not None:  # else the estimator checks it
            assert_all_finite(y)
            check_classification_targets(y)
        rng = check_random_state(self.random_state)
        relabels = recipe is not None and recipe.strategy.family == "soft_labels"
        weights = sample_weight
        if sample_weight is None and not relabels:
            if recipe is not None and recipe.strategy.family == "clean":
                # A record whose label an audit of these records doubts counts less.
                _, codes, predict = _out_of_fold(X, y, seed=int(rng.randint(2**31 - 1)))
                audit = audit_labels(codes, predict)
                weights = clean_weights(audit, recipe.strategy.doubted_weight)
                weights = weights / weights.mean()
            else:
                weights = self._weights(recipe, y)
        self.estimator_ = self._fitted(recipe, X, y, weights, rng)
        self.classes_ = self.estimator_.classes_
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.estimator_, name):
                setattr(self, name, getattr(self.estimator_, name))
        if recipe is not None:
            names = self._names(recipe)
            prior_corrected(np.ones((1, len(names))), recipe, names, self.prior)
            if recipe.thresholds and not hasattr(self.estimator, "predict_proba"):
                raise ParameterError(
                    f"the recipe multiplies probabilities, and {type(self.estimator).__name__} gives none; choose a "
                    "classifier with predict_proba, such as CalibratedClassifierCV around it."
                )
            self.multipliers_ = self._multipliers(recipe, names, X, y, weights)
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Class of each record, decided as in the comparison."""
        check_is_fitted(self)
        recipe = self._recipe()
        decides = recipe is not None and (recipe.thresholds or recipe.loss == "balanced_softmax")
        if recipe is None or not decides or not hasattr(self.estimator_, "predict_proba"):
            return np.asarray(self.estimator_.predict(X))
        names = self._names(recipe)
        proba = self._as_trained(recipe, names, self.estimator_.predict_proba(X))
        proba = reweighted(proba, names, self.multipliers_)
        return np.asarray(self.classes_[proba.argmax(axis=1)])

    @available_if(_gives_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Float:
        """Probability of each class, shape (n_records, n_classes), with the prior corrected."""
        check_is_fitted(self)
        proba = np.asarray(self.estimator_.predict_proba(X))
        recipe = self._recipe()
        if recipe is None:
            return proba
        names = self._names(recipe)
        proba = self._as_trained(recipe, names, proba)
        return prior_corrected(proba, recipe, names, self.prior) if self.correct_prior else proba

    def __sklearn_tags__(self) -> Any:
        """Take what the estimator takes."""
        tags, inner = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.input_tags = inner.input_tags
        tags.non_deterministic = inner.non_deterministic
        if inner.classifier_tags is not None:
            tags.classifier_tags = replace(inner.classifier_tags, multi_label=False)
        return tags

    def _recipe(self) -> Recipe | None:
        if isinstance(self.recipe, Mapping):
            return Recipe.model_validate(self.recipe)
        if self.recipe is None or isinstance(self.recipe, Recipe):
            return self.recipe
        raise ParameterError(
            f"recipe is a {type(self.recipe).__name__}; give dataset.recipe, the content of a recipe.json, or None."
        )

    def _names(self, recipe: Recipe) -> tuple[str, ...]:
        names = class_names(self.classes_)
        unknown = [name for name in names if recipe.prior_true and name not in recipe.prior_true]
        if unknown:
            raise ParameterError(
                f"class {unknown[0]!r} is none of the recipe's: {', '.join(map(repr, recipe.prior_true))}."
            )
        return names

    def _weights(self, recipe: Recipe | None, y: Any, counts: Float | None = None) -> Float | None:
        """Weight each class of ``y`` to its share in the recipe; None where nothing is weighted.

        ``counts`` is what each record counts before, 1 by default.
        """
        if recipe is None or recipe.loss == "balanced_softmax":
            return None
        if not recipe.prior_train or recipe.shares:
            problem = "has soft labels" if recipe.shares else "does not say its class shares"
            raise ParameterError(
                f"the recipe {problem}; pass sample_weight=dataset.sample_weight() with the records of "
                "dataset.to_table()."
            )
        same = all(abs(recipe.prior_train[k] - p) < 1e-9 for k, p in recipe.prior_true.items())
        if same and counts is None:
            return None
        classes, codes = np.unique(np.asarray(y), return_inverse=True)
        names = class_names(list(classes))
        shares = np.array([recipe.prior_train.get(name, 0.0) for name in names])
        if not shares.all():
            name = names[int(np.argmin(shares))]
            known = ", ".join(map(repr, recipe.prior_train))
            raise ParameterError(f"class {name!r} is none of the recipe's: {known}.")
        counts = np.ones(len(codes)) if counts is None else counts
        weights = counts * (shares / np.bincount(codes, counts))[codes]
        return np.asarray(weights / weights.mean())

    def _fitted(self, recipe: Recipe | None, X: Any, y: Any, weights: Any, rng: Any) -> Any:
        family = "" if recipe is None else recipe.strategy.family
        if family == "bagging":
            members = []
            for bag in bags(y, weights, seed=int(rng.randint(2**31 - 1))):
                members.append(clone(self.estimator))
                fit_weighted(members[-1], _safe_indexing(X, bag), y[bag], None, rng)
            return Bagged(tuple(members))
        estimator = clone(self.estimator)
        if recipe is not None and family == "soft_labels":
            # A row for each record and class that it may belong to.
            classes, codes, predict = _out_of_fold(X, y, seed=int(rng.randint(2**31 - 1)))
            rows, labels, shares = own_label_rows(predict(None), codes)
            y = classes[labels]
            X, weights = _safe_indexing(X, rows), self._weights(recipe, y, shares)
        fit_weighted(estimator, X, y, weights, rng)
        return estimator

    def _multipliers(
        self, recipe: Recipe, names: tuple[str, ...], X: Any, y: Any, weights: Any
    ) -> Float:
        of = self.thresholds_of or self._compared_as(recipe)
        if of or self.thresholds == "recipe" or not recipe.thresholds:
            return multipliers_of(recipe, of, names)
        weights = None if weights is None else np.asarray(weights)
        codes = np.searchsorted(self.classes_, y)
        rng = check_random_state(self.random_state)
        keys = [str(i) for i in range(len(y))]
        folds = stratified_folds(codes, None, N_FOLDS, int(rng.randint(2**31 - 1)), keys)
        proba = np.zeros((len(y), len(names)))
        for fold in range(N_FOLDS):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            of_train = None if weights is None else weights[train]
            estimator = self._fitted(recipe, _safe_indexing(X, train), y[train], of_train, rng)
            known = np.searchsorted(self.classes_, estimator.classes_)
            proba[np.ix_(test, known)] = estimator.predict_proba(_safe_indexing(X, test))
        return tune_multipliers(
            codes,
            self._as_trained(recipe, names, proba),
            compared=np.bincount(codes, minlength=len(names)) >= N_FOLDS,
        )

    def _compared_as(self, recipe: Recipe) -> str:
        """The name that this very estimator had in the comparison; empty if it was not compared."""
        if recipe.strategy.family == "probe" and isinstance(self.estimator, LinearProbe):
            return recipe.strategy.name if recipe.thresholds else ""
        # Asked of the estimator, since its class needs torch.
        if recipe.strategy.patches and getattr(self.estimator, "of_patches", False):
            return recipe.strategy.name if recipe.thresholds else ""
        try:
            digest = estimator_digest(self.estimator) if recipe.estimators else ""
        except ValueError:  # it cannot be hashed, so it was not compared
            return ""
        return next((name for name, own in recipe.estimators.items() if own == digest), "")

    def _as_trained(self, recipe: Recipe, names: tuple[str, ...], proba: Float) -> Float:
        """Probabilities with the class shares that the recipe trains with."""
        if recipe.loss != "balanced_softmax" or not recipe.prior_train:
            return proba
        # Trained without weights: correct here for what the loss would have corrected.
        factors = [recipe.prior_train[name] / (recipe.prior_true[name] or 1.0) for name in names]
        return reweighted(proba, names, np.array(factors))
