"""Whether records look like their class: classifiers from two halves of the training records.

One half trains the filter that picks records for *utility*, the other the label classifier, so that
records are not picked for the quirks of the classifier that checks their labels.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from prefect_augment.array_types import Array, Bool, Float, Int
from prefect_augment.encoding.arrays import FilterRequest, Labelled
from prefect_augment.evaluation.classifiers.base import Classifier, TrainClassifier
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.neighbours import MIN_VALIDATION

MIN_TO_CLASSIFY = 5  # of a class, in the half that the classifier learns from


@dataclass(frozen=True)
class Labels:
    """Class probabilities of candidates and of real records that the classifiers have not seen."""

    wanted: Int  # (n_candidates,) class that each was drawn for
    proba: Float  # (n_candidates, n_classes), by the label classifier
    # Per class, (n_real, n_classes), by the label classifier; None for a class with too few records.
    real: tuple[Float | None, ...]
    score: Float | None  # (n_candidates,) of its class, by the utility filter

    @classmethod
    def of(
        cls,
        training: Labelled,
        validation: Labelled,
        candidates: Labelled,
        request: FilterRequest,
        train: TrainClassifier,
    ) -> "Labels":
        """Train both classifiers on training records that are split by key; with soft labels only one."""
        y, y_validation, wanted = (
            request.stratum_class[part.stratum] for part in (training, validation, candidates)
        )
        fold = stratified_folds(y, request.training_groups, 2, request.seed, request.training_keys)

        def train_on(rows: Bool) -> Classifier:
            # A half can be empty where one record is all there is.
            rows = rows if rows.any() else np.ones(len(y), dtype=bool)
            return train(training.X[rows], y[rows])

        a, b = fold == 0, fold == 1
        with ThreadPoolExecutor(2) as pool:  # networks take one core each
            second = pool.submit(train_on, b)
            by_utility = None if request.purpose == "soft" else pool.submit(train_on, a).result()
        classifier = second.result()
        p_validation, p_held_out = map(classifier.predict_proba, (validation.X, training.X[a]))
        real: list[Float | None] = []
        for k, n in enumerate(np.bincount(y[b], minlength=int(request.stratum_class.max()) + 1)):
            of_class = p_validation[y_validation == k]
            if len(of_class) < MIN_VALIDATION:
                of_class = np.concatenate([of_class, p_held_out[y[a] == k]])
            real.append(of_class if min(n, len(of_class)) >= MIN_TO_CLASSIFY else None)
        return cls(
            wanted,
            classifier.predict_proba(candidates.X),
            tuple(real),
            utility_scores(by_utility, candidates.X, wanted) if by_utility else None,
        )

    def doubtful(self, quantile: float) -> Int:
        """Candidates that look less like their class than all but this share of real records do."""
        limits = [
            np.nan if p is None else np.quantile(p[:, k], quantile) for k, p in enumerate(self.real)
        ]
        own = self.proba[np.arange(len(self.proba)), self.wanted]
        return np.flatnonzero(own < np.array(limits)[self.wanted])

    def mistaken(self, rows: Int, k: int) -> tuple[Bool, Bool] | tuple[None, None]:
        """Which candidates (``rows``) and real records of class ``k`` are taken for another class."""
        real = self.real[k]
        if real is None:
            return None, None
        return self.proba[rows].argmax(axis=1) != k, real.argmax(axis=1) != k


def utility_scores(classifier: Classifier, X: Array, wanted_class: Int) -> Float:
    """Probability that the utility filter gives to each candidate's class, shape (n_candidates,)."""
    return classifier.predict_proba(X)[np.arange(len(X)), wanted_class]
