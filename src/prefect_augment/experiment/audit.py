"""The audit of a dataset's real training records: which of them a recipe doubts."""

import numpy as np

from prefect_augment.evaluation.quality.label_audit import clean_weights
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.table_evaluator import TableEvaluator, audit_table
from prefect_augment.plan.priors import shares_of
from prefect_augment.schema import Experiment, Recipe
from prefect_augment.storage import Store

__all__ = ["with_doubted"]


def with_doubted(recipe: Recipe, experiment: Experiment, store: Store) -> Recipe:
    """The recipe of ``clean`` with the records that it doubts, among all of training and validation.

    Nothing is dropped: :attr:`Recipe.doubted <prefect_augment.schema.comparison.Recipe.doubted>` lists them, and
    their ``aug_weight`` is lowered.
    """
    evaluator = open_evaluator(store, experiment)
    data, weight = evaluator.records, recipe.strategy.doubted_weight
    rows = np.arange(len(data.y))
    assert isinstance(evaluator, TableEvaluator)
    audit = audit_table(evaluator, rows, seed=experiment.params.seed * 1000)
    counts = np.bincount(data.strata, clean_weights(audit, weight), len(data.strata_names))
    counted = {
        name: recipe.class_weight.get(name, 1.0) * n
        for name, n in zip(data.strata_names, counts.tolist(), strict=True)
    }
    doubted = {str(key): weight for key in data.keys[audit.doubted]}
    n = f"{len(doubted):,} of {len(rows):,} records have a doubted label."
    return recipe.model_copy(
        update={
            "doubted": doubted,
            "prior_train": shares_of(experiment.plan, counted),
            "sentence": f"{recipe.sentence} {n}",
        }
    )
