"""Plan: how many records each class should have, shown before anything is trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import islice, product
from typing import Any

from prefect_augment.encoding.arrays import N_FEWER_FOLDS, N_FOLDS, SMALL_VALIDATION
from prefect_augment.encoding.columns import did_you_mean, listing
from prefect_augment.encoding.strata import table_strata
from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.evaluation.quality.constraints import (
    check_types,
    columns_of,
    n_breaking,
    said_rule,
)
from prefect_augment.nn.machine import NARROW_BELOW, classifier_size, cpu_multiplies_bf16
from prefect_augment.params import (
    AutoModel,
    Balance,
    Budget,
    Classic,
    Evaluation,
    NoModel,
    Quality,
    RunParams,
)
from prefect_augment.params.constraints import Constraint
from prefect_augment.plan.detection import object_classes
from prefect_augment.plan.estimate import classifier_steps, estimate, estimate_images
from prefect_augment.plan.schedule import COMPARISON_SHARE
from prefect_augment.plan.search_space import (
    N_KEPT,
    N_SETTINGS,
    PILOT_EFFORT,
    PILOT_FOLDS,
    n_trained,
    settings,
)
from prefect_augment.plan.strategies import make_strategies
from prefect_augment.plan.targets import (
    MIN_SAMPLED,
    MIN_SAMPLED_IMAGES,
    SOFT_PER_REAL,
    plan_classes,
    plan_warnings,
)
from prefect_augment.schema.base import (
    BalancePlan,
    ClassPlan,
    ColumnInfo,
    DatasetInfo,
    DatasetRef,
    Estimate,
    Strategy,
)
from prefect_augment.schema.experiment import Experiment
from prefect_augment.shards.staged import iter_shards, load_info
from prefect_augment.storage.store import Store
from prefect_augment.synthesis.train import why_no_image_model
from prefect_augment.text import suggestion

__all__ = ["MAX_BY_VALUES", "plan"]

MAX_BY_VALUES = 20  # of a column to balance within; more would cut the classes into crumbs
MOST_SEARCHED = 5.0  # synthetic records per real one
# Of the judge's half of the budget, what judging images with every setting may take; else half of them are tried.
MOST_OF_SETTINGS = 0.25
_TRAINING = ("training", "validation")


def plan(
    dataset: DatasetRef,
    params: RunParams,
    store: Store,
    *,
    searched: bool = False,
    compares: bool = True,
) -> BalancePlan:
    """Return the plan for the training records (training and validation) of a staged dataset.

    Parameters
    ----------
    dataset : DatasetRef
        From the ingest stage.
    params : RunParams
        Targets and caps (``balance``); model kind ``none`` plans no synthetic records; half of the budget
        bounds the classifier of images. Where the model is auto and images are not worth a generator
        within the budget, none is planned, and a warning says why.
    store : Store
        The destination, under whose ``_staging`` the records lie.
    searched : bool
        The number of synthetic records is searched on validation records: where the model is auto and no
        cap is given, so many are planned that :data:`MOST_SEARCHED` per real one can be tried.
    compares : bool
        Whether strategies are compared after it, within the budget.

    Returns
    -------
    BalancePlan
        Pure arithmetic over counts, so it leaves no receipt (but for the calibration that decides
        about a generator of images). Classes that are not in a cell of ``by`` get no records there.

    Raises
    ------
    ParameterError
        If a column of ``by`` is missing, is the label, is named twice, or is not a category of at
        most 20 values; as :func:`prefect_augment.plan.targets.targets` otherwise.
    MissingExtraError
        If the records are images and what compares strategies on them is not installed.
    """
    info = load_info(dataset, store)
    balance = params.balance
    _check_extras(info)
    _check_by(balance.by, info)
    if searched and isinstance(params.model, AutoModel) and balance.max_synthetic_per_real < 0:
        # With soft labels it is the weight of records that is searched.
        soft = _can_have_soft_labels(info, params.quality)
        most = balance.most_per_real if soft else MOST_SEARCHED
        balance = balance.model_copy(update={"max_synthetic_per_real": most})
    params = params.model_copy(update={"balance": balance})
    found = _plan(info, params, store, compares=compares)
    if info.modality != "image" or not isinstance(params.model, AutoModel) or not compares:
        return found
    if not found.n_synthetic:
        return found
    reason = why_no_image_model(Experiment(dataset=dataset, plan=found, params=params), store=store)
    if not reason:
        return found
    without = _plan(
        info,
        params.model_copy(update={"model": NoModel()}),
        store,
        compares=compares,
        declined=True,
    )
    return without.model_copy(
        update={"warnings": (f"no synthetic records: {reason}", *without.warnings)}
    )


def _plan(
    info: DatasetInfo,
    params: RunParams,
    store: Store,
    *,
    compares: bool,
    declined: bool = False,
) -> BalancePlan:
    """Return the plan; ``declined`` says that auto found no model worth its time."""
    balance, quality, evaluation = params.balance, params.quality, params.evaluation
    budget = params.budget if compares else None
    if balance.unit == "object":
        return _plan_objects(info, params, budget, store)
    can_sample = params.model.kind != "none"
    messages = _constraint_warnings(info, quality.constraints, store)
    counts = _training_counts(info, balance.by, store)
    soft = can_sample and _can_have_soft_labels(info, quality)
    classes = plan_classes(
        counts,
        info.compared,
        balance,
        can_sample=can_sample,
        soft_labels=soft,
        least=MIN_SAMPLED if info.image is None else MIN_SAMPLED_IMAGES,
        why_no_model="auto trains no model here, see the plan's notes"
        if declined
        else "no model was asked for",
    )
    has_model = any(entry.n_synthetic for entry in classes)
    if info.image is not None:
        expected, effort = _estimate_images(info, classes, params, budget, has_model=has_model)
    else:
        expected = _estimate(info, classes, evaluation, can_sample=can_sample, soft=soft)
        effort = {"n_settings": evaluation.n_settings or N_SETTINGS}
    return BalancePlan(
        rule=_rule(balance, soft=soft),
        classes=classes,
        estimate=expected,
        warnings=messages
        + plan_warnings(classes, balance, soft_labels=soft)
        + _budget_warnings(expected, effort, info, budget, evaluation.n_seeds),
        soft_labels=soft,
        **effort,
    )


def _plan_objects(
    info: DatasetInfo, params: RunParams, budget: Budget | None, store: Store
) -> BalancePlan:
    """Return the plan of a detection set; no strategies are compared on it."""
    classes = object_classes(info, params.balance, store)
    expected, effort = _estimate_images(info, classes, params, budget, has_model=False)
    return BalancePlan(
        rule=f"{_rule(params.balance, soft=False)} (counted in boxes)",
        classes=classes,
        estimate=expected,
        **effort,
    )


def _can_have_soft_labels(info: DatasetInfo, quality: Quality) -> bool:
    """Tell whether a synthetic record may have a row for each class that it may be of."""
    if quality.purpose != "utility" or quality.labels != "soft" or info.image is not None:
        return False
    # Two rows of one record are alike, and one of them has another class than was drawn.
    return not any(
        rule.kind == "unique" or info.label in columns_of(rule) for rule in quality.constraints
    )


def _budget_warnings(
    expected: Estimate,
    judging: Mapping[str, Any],
    info: DatasetInfo,
    budget: Budget | None,
    n_seeds: int,
) -> tuple[str, ...]:
    """Say what the budget took from the judging of images, and what it cannot take."""
    if budget is None or budget.steps or info.image is None:
        return ()
    found = []
    n_folds = judging["n_folds"]
    if judging["classifier_width"] < 1:
        found.append(
            f"{budget.minutes:g} minutes allow a classifier with half of its channels: differences between strategies "
            "are those of a weaker one."
        )
    wished = N_FOLDS if _rarest(info) < SMALL_VALIDATION["image"] else 1
    if n_folds < wished:
        found.append(
            f"the rarest judged class has {_rarest(info)} validation records, which asks for {wished} folds; "
            f"{budget.minutes:g} minutes allow {n_folds}"
            f"{', which is validation alone: the choice between strategies is a coarse one' if n_folds == 1 else ''}."
        )
    one_seed = expected.comparison_seconds / n_seeds
    if one_seed > 60 * budget.minutes:
        found.append(
            f"judging takes about {one_seed:.0f} seconds at least, more than the budget of "
            f"{budget.minutes:g} minutes."
        )
    return tuple(found)


def _check_extras(info: DatasetInfo) -> None:
    """Refuse images here, where nothing has been trained, and not at the first strategy."""
    if info.modality == "image" and find_spec("torch") is None:
        raise MissingExtraError(
            "images are judged by a network, which needs torch: "
            "pip install 'prefect-augment[images,torch]'",
            extra="torch",
        )


def _check_by(by: Sequence[str], info: DatasetInfo) -> None:
    """Refuse columns that cannot be balanced within, by name."""
    columns = {c.name: c for c in info.columns}
    for i, name in enumerate(by):
        if name == info.label:
            raise ParameterError(
                f"balance.by names the label {name!r}; classes are balanced anyway: leave it out.",
                column=name,
            )
        if name in by[:i]:
            raise ParameterError(f"balance.by names {name!r} twice; keep one.", column=name)
        if name not in columns:
            raise ParameterError(
                f"balance.by names the column {name!r}, which is not there; "
                f"{suggestion(name, columns)}.",
                column=name,
            )
        reason = _why_not_by(columns[name])
        if reason:
            raise ParameterError(
                f"balance.by names {name!r}, {reason}; choose a column with at most "
                f"{MAX_BY_VALUES} categories, or group its values in the source.",
                column=name,
            )


def _why_not_by(column: ColumnInfo) -> str:
    """Say why a column cannot be balanced within; empty where it can."""
    if column.kind not in ("category", "constant", "numeric"):
        return f"which is {_article(column.kind)} column"
    if column.kind == "numeric" and not column.arrow_type.startswith(("int", "uint", "bool")):
        return f"which holds numbers of type {column.arrow_type}, not categories"
    if column.n_unique > MAX_BY_VALUES:
        return f"which has {column.n_unique} values"
    return ""


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _training_counts(info: DatasetInfo, by: Sequence[str], store: Store) -> dict[str, int]:
    """Return training records per stratum; without ``by`` the facts know them."""
    if not by:
        found = Counter[str]()
        for part in _TRAINING:
            found.update(info.part_counts.get(part, {}))
        return {name: n for name, n in found.items() if n}
    shards = [shard for shard in info.shards if shard.split in _TRAINING]
    found = Counter()
    for table in iter_shards(store, shards, [info.label, *by]):
        found.update(table_strata(table, label=info.label, by=by))
    return dict(found)


def _constraint_warnings(
    info: DatasetInfo, rules: Sequence[Constraint], store: Store
) -> tuple[str, ...]:
    """Refuse constraints that no synthetic record can be held to; say which real records break them."""
    if not rules:
        return ()
    if info.image is not None:
        raise ParameterError(
            "quality.constraints are about columns, and the source holds images; leave them out."
        )
    kinds = {column.name: column.kind for column in info.columns} | {info.label: "category"}
    for rule in rules:
        for name in columns_of(rule):
            if name not in kinds:
                raise ParameterError(
                    f"constraint {said_rule(rule)!r} names {name!r}, which is not a column"
                    f"{did_you_mean(name, list(kinds))}; there are: {listing(list(kinds))}.",
                    column=name,
                )
            if kinds[name] not in ("numeric", "category", "constant"):
                raise ParameterError(
                    f"constraint {said_rule(rule)!r} names {name!r}, which is {_article(kinds[name])} "
                    "column, and no model learns it; leave it out, or say with source.columns what "
                    "it is.",
                    column=name,
                )
    shards = [shard for shard in info.shards if shard.split in _TRAINING]
    for rule in rules:
        names = columns_of(rule)
        for table in islice(iter_shards(store, shards, names), 1):
            check_types(rule, table.select(names).schema)
    columns = sorted({name for rule in rules for name in columns_of(rule)})
    broken = n_breaking(rules, iter_shards(store, shards, columns))
    return tuple(
        f"{n:,} real training records break {said_rule(rule)!r}: they stay as they are, and no "
        "synthetic record does."
        for rule, n in zip(rules, broken, strict=True)
        if n
    )


def _rule(balance: Balance, *, soft: bool) -> str:
    """Say in one line what was asked for."""
    words = [balance.target if balance.target != "count" else f"{balance.count} records per class"]
    if balance.max_per_class:
        words.append(f"at most {balance.max_per_class} per class")
    if balance.by:
        words.append(f"within each {' × '.join(balance.by)}")
    if balance.classes:
        words.append(
            f"{len(balance.classes)} classes with a target of their own"
            if len(balance.classes) > 1
            else f"class {balance.classes[0].name!r} with a target of its own"
        )
    most = balance.most_per_real * (SOFT_PER_REAL if soft else 1)
    words.append(f"at most {most:g} synthetic per real{' with soft labels' if soft else ''}")
    return ", ".join(words)


def _estimate(
    info: DatasetInfo,
    classes: Sequence[ClassPlan],
    evaluation: Evaluation,
    *,
    can_sample: bool,
    soft: bool,
) -> Estimate:
    """Count what the run will train, as the score stage will."""
    model = "model" if can_sample else None
    strategies = make_strategies("table", model=model, classic=Classic(), soft_labels=soft)
    n_folds = 1 if _rarest(info) >= SMALL_VALIDATION["table"] else N_FOLDS
    n_pilots = _n_pilots(strategies, classes, most=evaluation.n_settings, soft=soft)
    pilots = n_pilots * min(n_folds, PILOT_FOLDS) / n_folds
    return estimate(
        n_records=sum(sum(part.values()) for part in info.part_counts.values()),
        n_bytes=sum(shard.n_bytes for shard in info.shards),
        n_columns=sum(column.kind in ("numeric", "category") for column in info.columns),
        n_classes=len({entry.label for entry in classes}),
        n_added=sum(max(entry.target - entry.n_real, entry.n_synthetic) for entry in classes),
        n_strategies=math.ceil(pilots * PILOT_EFFORT) + min(len(strategies), N_KEPT + 2),
        n_folds=n_folds,
        n_seeds=evaluation.n_seeds,
        n_estimators=len(evaluation.estimators),
        n_model_strategies=sum(strategy.has_model for strategy in strategies),
    )


def _estimate_images(
    info: DatasetInfo,
    classes: Sequence[ClassPlan],
    params: RunParams,
    budget: Budget | None,
    *,
    has_model: bool,
) -> tuple[Estimate, dict[str, Any]]:
    """Count what judging will train, and fit its effort to half of the budget.

    Returns the estimate and the plan's fields that say how hard it judges.
    """
    assert info.image is not None
    counts = {part: sum(info.part_counts.get(part, {}).values()) for part in info.part_counts}
    n_train = counts.get("training", 0) + counts.get("validation", 0)
    # With a model's candidates, or a validation part of some size, strategies are compared on validation records alone.
    alone = has_model or _rarest(info) >= SMALL_VALIDATION["image"]
    strategies = make_strategies("image", model="model" if has_model else None, classic=Classic())
    folds = (1,) if alone else (N_FOLDS, N_FEWER_FOLDS, 1)
    seconds = math.inf if budget is None or budget.steps else 60 * COMPARISON_SHARE * budget.minutes
    widths = (1.0, 0.5) if n_train >= NARROW_BELOW else (1.0,)
    # All settings where they take a small part of what there is; fewer settings before a narrow estimator, and
    # that before one that is trained much too short, or fewer folds.
    tried = (N_SETTINGS, N_SETTINGS // 2, N_SETTINGS // 4)
    for width, n_settings in product(
        widths, (params.evaluation.n_settings,) if params.evaluation.n_settings else tried
    ):
        pilots = (
            _n_pilots(strategies, classes, most=n_settings) * min(folds[0], PILOT_FOLDS) / folds[0]
        )
        found, steps, n_folds = estimate_images(
            n_train=n_train,
            n_scored=max(counts.get("validation", 0), counts.get("holdout", 0)),
            n_bytes=sum(shard.n_bytes for shard in info.shards),
            side=classifier_size(info.image.most_common_size),
            n_channels=info.image.n_channels,
            n_added=sum(entry.n_synthetic for entry in classes),
            n_strategies=math.ceil(pilots * PILOT_EFFORT) + min(len(strategies), N_KEPT + 2),
            folds=folds,
            n_seeds=params.evaluation.n_seeds,
            has_model=has_model,
            seconds=seconds,
            has_bf16=cpu_multiplies_bf16(),
            width=width,
        )
        if n_settings == N_SETTINGS and not params.evaluation.n_settings:
            fits = found.comparison_seconds <= MOST_OF_SETTINGS * seconds < math.inf
        else:
            fits = found.comparison_seconds / params.evaluation.n_seeds <= seconds
        if fits and n_folds == folds[0] and 2 * steps >= classifier_steps(n_train):
            break
    return found, {
        "classifier_steps": steps,
        "classifier_width": width,
        "n_folds": n_folds,
        "n_settings": n_settings,
    }


def _n_pilots(
    strategies: Sequence[Strategy],
    classes: Sequence[ClassPlan],
    *,
    soft: bool = False,
    most: int = 0,
) -> int:
    """Return how many estimators the pilots train, per fold."""
    empty = Estimate(seconds=0, output_bytes=0, memory_bytes=0)
    plan = BalancePlan(rule="", classes=tuple(classes), estimate=empty, soft_labels=soft)
    tried = (settings(strategy, plan=plan, classic=Classic(), most=most) for strategy in strategies)
    return n_trained(one for own in tried for one in own)


def _rarest(info: DatasetInfo) -> int:
    """Return the validation records of the rarest judged class."""
    validation = info.part_counts.get("validation", {})
    return min((validation.get(name, 0) for name in info.compared), default=0)
