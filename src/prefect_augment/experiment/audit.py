"""The audit of a dataset's real training records: which of them a recipe doubts, and the list of what it found."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from prefect_augment.evaluation.quality.label_audit import (
    LabelAudit,
    audit_labels,
    clean_weights,
    repeated,
    unusual,
)
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.out_of_fold import evidence
from prefect_augment.experiment.table_evaluator import TableEvaluator, audit_table
from prefect_augment.plan.priors import shares_of
from prefect_augment.schema import Experiment, Recipe, StrategyScore
from prefect_augment.storage import Store

MOST_COMPARED = 20_000  # records whose nearest neighbours are looked for; all pairs are compared
# Of planted errors of 2 % the predictions of the data as they are doubt 1.7 % and more, on three tables that without
# them have at most 0.5 %. Where classes overlap they doubt more than this whatever the labels are.
LEAST_DOUBTED = 0.01


def has_doubted_labels(
    experiment: Experiment, first: Sequence[StrategyScore], store: Store
) -> bool:
    """Whether cleaning is worth a try: the out-of-fold predictions of the data as they are doubt 1 % of the labels.

    ``first`` are the scores of the first comparison. Images are not audited, nor are records that are not
    published, or only as copies, which cannot count less.
    """
    publish = experiment.params.publish
    if "real" not in publish.origins or publish.materialise == "copies":
        return False
    as_is = [score for score in first if score.strategy.family == "as_is"]
    if experiment.dataset.modality == "image" or not as_is:
        return False
    evaluator = open_evaluator(store, experiment)
    if evaluator.is_sampled:  # a recipe names what it doubts, and most records are not looked at
        return False
    known = evidence(evaluator, as_is, store)
    if known is None:
        return False
    (predicted,) = known.predictions.values()
    proba = np.mean([of_seeds[0] for of_seeds in predicted.proba.values()], axis=0)
    return bool(audit_labels(known.y, lambda _: proba).doubted.mean() >= LEAST_DOUBTED)


def with_doubted(recipe: Recipe, experiment: Experiment, store: Store) -> Recipe:
    """The recipe of ``clean`` with the records that it doubts, among all of training and validation.

    Nothing is dropped: :attr:`Recipe.doubted <prefect_augment.schema.comparison.Recipe.doubted>` lists them, and
    their ``aug_weight`` is lowered.
    """
    evaluator = _open(experiment, store)
    data, weight = evaluator.records, recipe.strategy.doubted_weight
    audit = _audit(evaluator)
    counted = {
        name: recipe.class_weight.get(name, 1.0) * n
        for name, n in counted_records(recipe, experiment, store).items()
    }
    doubted = {str(key): weight for key in data.keys[audit.doubted]}
    n = f"{len(doubted):,} of {len(data.y):,} records have a doubted label."
    return recipe.model_copy(
        update={
            "doubted": doubted,
            "prior_train": shares_of(experiment.plan, counted),
            "sentence": f"{recipe.sentence} {n}",
        }
    )


def counted_records(recipe: Recipe, experiment: Experiment, store: Store) -> dict[str, float]:
    """What the real records of each stratum count under a recipe of ``clean``."""
    evaluator = _open(experiment, store)
    data, weight = evaluator.records, recipe.strategy.doubted_weight
    of_records = clean_weights(_audit(evaluator), weight)
    counts = np.bincount(data.strata, of_records, len(data.strata_names))
    return dict(zip(data.strata_names, counts.tolist(), strict=True))


def audit_list(experiment: Experiment, store: Store) -> pa.Table:
    """The records of training and validation that are worth a look, the likeliest label errors first.

    Columns are ``aug_id``, ``label``, ``suggested`` (the most probable other class), ``score`` in [0, 1] of a label
    error, ``doubted`` and ``reason``: a doubted label, values that equal an earlier record's or those of a record
    with another label, or a large distance to all others. Nothing is dropped for being listed.
    """
    evaluator = _open(experiment, store)
    data, audit = evaluator.records, _audit(evaluator)
    duplicate, contradicts = repeated(data.X, data.y)
    is_far = np.zeros(len(data.y), dtype=bool)
    if len(data.y) <= MOST_COMPARED:
        space = evaluator.plain_space(data.X)
        is_far = unusual(space.nearest_others(space.place(data.X)))
    reasons = {
        "the label is doubted": audit.doubted,
        "equal to a record with another label": contradicts,
        "equal to an earlier record": duplicate,
        "far from all other records": is_far,
    }
    listed = np.flatnonzero(np.any([*reasons.values()], axis=0))
    listed = listed[np.argsort(-audit.score[listed], kind="stable")]
    classes = np.array(data.classes)
    return pa.table(
        {
            "aug_id": data.keys[listed],
            "label": classes[data.y[listed]],
            "suggested": classes[audit.suggested[listed]],
            "score": audit.score[listed].round(4),
            "doubted": audit.doubted[listed],
            "reason": ["; ".join(text for text, of in reasons.items() if of[i]) for i in listed],
        }
    )


def _open(experiment: Experiment, store: Store) -> TableEvaluator:
    evaluator = open_evaluator(store, experiment)
    assert isinstance(evaluator, TableEvaluator)
    return evaluator


def _audit(evaluator: TableEvaluator) -> LabelAudit:
    seed = evaluator.experiment.params.seed * 1000
    return audit_table(evaluator, np.arange(len(evaluator.records.y)), seed=seed)
