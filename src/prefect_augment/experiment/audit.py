"""The audit of a dataset's real training records: which of them a recipe doubts, and the list of what it found."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.evaluation.quality.label_audit import (
    LabelAudit,
    alike,
    audit_labels,
    clean_weights,
    repeated,
    thumbnails,
    unusual,
    with_similar,
)
from prefect_augment.experiment.evaluator import Evaluator
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.score import evidence, predict_all
from prefect_augment.experiment.table_evaluator import TableEvaluator, audit_table
from prefect_augment.plan.strategies import AS_IS, PROBE
from prefect_augment.plan.weights import shares_of
from prefect_augment.schema import Experiment, Modality, Recipe, StrategyScore
from prefect_augment.storage import Store

# Records whose nearest neighbours are looked for: all pairs are compared, images over nine shifts.
MOST_COMPARED: dict[Modality, int] = {"table": 20_000, "image": 4_000}
# Images whose similar ones are looked for: this many take 5 CPU seconds, and the time grows with their square.
MOST_SIMILAR = 20_000
# Near-duplicates that are listed: larger groups are frames of a film, or pieces of one texture.
MOST_ALIKE = 10
NEAR, ALIKE = "a near-duplicate of", "alike in your encoder's features to"  # begin a reason
# A network of few steps is often sure of no class. Without a margin, labels that were swapped for those of the most
# similar images are found later; with more of it, swaps at random are (benchmarks/audit.py images).
MARGIN = 0.25
MOST_OF_MINUTES = 0.1  # that the audit of images may take; it is in the report's part of the budget
# Of planted errors of 2 % the predictions of the data as they are doubt 1.7 % and more, on three tables that without
# them have at most 0.5 %. Where classes overlap they doubt more than this whatever the labels are.
LEAST_DOUBTED = 0.01


def has_doubted_labels(
    experiment: Experiment, first: Sequence[StrategyScore], store: Store
) -> bool:
    """Whether cleaning is worth a try: the out-of-fold predictions of the data as they are doubt 1 % of the labels.

    ``first`` are the scores of the first comparison. Cleaning is not for images, nor for records that are not
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
    evaluator = open_evaluator(store, experiment)
    data, weight = evaluator.records, recipe.strategy.doubted_weight
    audit = audit_of(evaluator, store)
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
    evaluator = open_evaluator(store, experiment)
    data, weight = evaluator.records, recipe.strategy.doubted_weight
    of_records = clean_weights(audit_of(evaluator, store), weight)
    counts = np.bincount(data.strata, of_records, len(data.strata_names))
    return dict(zip(data.strata_names, counts.tolist(), strict=True))


def audit_list(experiment: Experiment, store: Store) -> pa.Table:
    """The records of training and validation that are worth a look, the likeliest label errors first.

    Columns are ``aug_id``, ``label``, ``suggested`` (the most probable other class), ``score`` in [0, 1] of a label
    error, ``doubted`` and ``reason``: a doubted label, values or pixels that equal an earlier record's or those of a
    record with another label (of images also near-duplicates, by pixels and by an encoder's features), or a large
    distance to all others. Nothing is dropped for being listed.
    """
    evaluator = open_evaluator(store, experiment)
    data, audit = evaluator.records, audit_of(evaluator, store)
    duplicate, contradicts = repeated(data.X, data.y)
    is_far = np.zeros(len(data.y), dtype=bool)
    if len(data.y) <= MOST_COMPARED[experiment.dataset.modality]:
        space = evaluator.plain_space(data.X)
        is_far = unusual(space.nearest_others(space.place(data.X)))
    reasons = {
        "the label is doubted": audit.doubted,
        "equal to a record with another label": contradicts,
        "equal to an earlier record": duplicate,
        "far from all other records": is_far,
    }
    if evaluator.info.image and data.groups is not None and not evaluator.info.group_column:
        is_near, is_shared = repeated(data.groups, data.y)
        is_small = np.bincount(data.groups)[data.groups] <= MOST_ALIKE
        reasons[f"{NEAR} a record with another label"] = is_shared & is_small & ~contradicts
        reasons[f"{NEAR} an earlier record"] = is_near & is_small & ~duplicate
    if evaluator.params.encoder.uri and len(data.y) <= MOST_COMPARED["image"]:
        groups = np.arange(len(data.y)) if data.groups is None else data.groups
        is_near, is_shared = repeated(alike(evaluator.features(data.X), groups), data.y)
        reasons[f"{ALIKE} a record with another label"] = is_shared
        reasons[f"{ALIKE} an earlier record"] = is_near
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


def audit_summary(audit: pa.Table, encoder: str) -> str:
    """How many records the list names, and what the encoder of this name, if any, adds to it."""
    n = pc.sum(audit["doubted"]).as_py() or 0
    text = f"Doubted labels: {n:,}."
    if n < len(audit):
        text += f" Other records that repeat one or lie far from all: {len(audit) - n:,}."
    if encoder:
        near, by_features = (
            pc.sum(pc.match_substring(audit["reason"], kind)).as_py() or 0 for kind in (NEAR, ALIKE)
        )
        text += (
            f" {near:,} images are near-duplicates by their pixels; by the features of your encoder {encoder} "
            f"{by_features:,} more are so alike."
        )
    return f"{text} audit.parquet beside the report lists them." if len(audit) else text


def audit_of(evaluator: Evaluator, store: Store) -> LabelAudit:
    """The audit of all labels; of images by one round of predictions, the linear probe's where there is an encoder.

    A second round, with the same steps as the first, found fewer planted errors (docs/search.md). What similar
    images are labelled finds more: similar in the encoder's features, or as thumbnails.
    """
    data, seed = evaluator.records, evaluator.params.seed * 1000
    if isinstance(evaluator, TableEvaluator):
        return audit_table(evaluator, np.arange(len(data.y)), seed=seed)
    encoded = bool(evaluator.params.encoder.uri)
    proba = predict_all(evaluator, PROBE if encoded else AS_IS, seed, store)
    if len(data.y) <= MOST_SIMILAR:
        proba = with_similar(
            proba, data.y, evaluator.features(data.X) if encoded else thumbnails(data.X)
        )
    return audit_labels(data.y, lambda _: proba, margin=MARGIN)


def audit_seconds(experiment: Experiment, scores: Sequence[StrategyScore]) -> float:
    """What the audit of images takes, by receipts: as long as the data as they are took, and nothing after folds."""
    if experiment.dataset.modality == "table":
        return 0.0
    # The two share their predictions, so one of them took no time.
    plain = [s for s in scores if s.strategy.family in ("as_is", "threshold") and not s.folds]
    return max((s.seconds for s in plain), default=0.0)


def why_not_audited(experiment: Experiment, scores: Sequence[StrategyScore]) -> str | None:
    """Why the labels are not audited: None where they are, empty where the run compares nothing that needs it.

    Tables are audited where cleaning was tried, images where strategies were compared and a tenth of the minutes
    is enough.
    """
    if experiment.dataset.modality == "table":
        return None if any(s.strategy.family == "clean" for s in scores) else ""
    if not scores:
        return ""
    budget, seconds = experiment.params.budget, audit_seconds(experiment, scores)
    if budget.steps or seconds <= 60 * MOST_OF_MINUTES * budget.minutes:
        return None
    return (
        f"The labels were not audited: that takes about {seconds:.0f} seconds, more than a tenth of the "
        f"{budget.minutes:g} minutes. With a larger budget.minutes they are."
    )
