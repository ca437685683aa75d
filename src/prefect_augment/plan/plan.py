"""Plan: how many records each class should have, shown before anything is trained."""

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
from prefect_augment.evaluation.classifiers.bagging import N_BAGS
from prefect_augment.evaluation.quality.constraints import (
    check_types,
    columns_of,
    describe_rule,
    n_breaking,
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
from prefect_augment.params.run import Constraint
from prefect_augment.plan.detection import object_classes
from prefect_augment.plan.estimate import (
    HOLDOUT_SHARE,
    classifier_steps,
    estimate,
    estimate_images,
    most_compared,
    slowness,
    whole_run,
)
from prefect_augment.plan.search_space import (
    COMPARISON_SHARE,
    N_KEPT,
    N_SETTINGS,
    N_TABLE_SETTINGS,
    PILOT_FOLDS,
    PILOT_STEP_SHARE,
    n_trained,
    settings,
)
from prefect_augment.plan.strategies import make_strategies
from prefect_augment.plan.targets import (
    MIN_SAMPLED,
    MIN_SAMPLED_IMAGES,
    SOFT_LABELS_PER_REAL,
    plan_classes,
    plan_warnings,
)
from prefect_augment.registry import load_model_class
from prefect_augment.schema import (
    BalancePlan,
    ClassPlan,
    ColumnInfo,
    DatasetInfo,
    DatasetRef,
    Estimate,
    Experiment,
    ShardInfo,
    Strategy,
)
from prefect_augment.schema.experiment import MAX_COMPARED
from prefect_augment.shards.staged import iter_shards, load_info
from prefect_augment.storage import Store
from prefect_augment.synthesis.train import why_no_image_model
from prefect_augment.text import suggestion

MAX_BY_VALUES = 20  # of a column to balance within; more would make the cells too small
MAX_SEARCHED = 5.0  # synthetic records per real one
# Of the comparison's half of the budget, for images with every setting; else half of the settings are tried.
MAX_SETTINGS_SHARE = 0.25
_TRAINING = ("training", "validation")


def plan(
    dataset: DatasetRef,
    params: RunParams,
    store: Store,
    *,
    searched: bool = False,
    compares: bool = True,
) -> BalancePlan:
    """The plan for the training records (training and validation) of a staged dataset.

    As :func:`prefect_augment.tasks.plan.plan_balance` has it. For images half of the budget bounds the classifier;
    where auto finds no generative model worth the budget, none is planned, with a warning. Nothing is stored but,
    for images and a budget in minutes, how fast this machine trains. MissingExtraError if images are to be compared
    without torch.
    """
    info = load_info(dataset, store)
    balance = params.balance
    if info.modality == "image" and find_spec("torch") is None:  # not first at the first strategy
        raise MissingExtraError(
            "images are compared by a network, which needs torch: "
            "pip install 'prefect-augment[images,torch]'",
            extra="torch",
        )
    _check_by(balance.by, info)
    if searched and isinstance(params.model, AutoModel) and balance.max_synthetic_per_real < 0:
        # With soft labels the weight of records is searched.
        soft_labels = _can_have_soft_labels(info, params.quality)
        most = balance.most_per_real if soft_labels else MAX_SEARCHED
        balance = balance.model_copy(update={"max_synthetic_per_real": most})
    params = params.model_copy(update={"balance": balance})
    result = _plan(info, params, store, compares=compares)
    may_decline = info.modality == "image" and isinstance(params.model, AutoModel) and compares
    if not (may_decline and result.n_synthetic):
        return result
    experiment = Experiment(dataset=dataset, plan=result, params=params)
    reason = why_no_image_model(experiment, store=store)
    if not reason:
        return result
    params = params.model_copy(update={"model": NoModel()})
    without = _plan(info, params, store, compares=compares, declined=True)
    warnings = (f"no synthetic records: {reason}", *without.warnings)
    return without.model_copy(update={"warnings": warnings})


def _plan(
    info: DatasetInfo, params: RunParams, store: Store, *, compares: bool, declined: bool = False
) -> BalancePlan:
    """The plan; ``declined``: auto found no model worth its time."""
    balance, quality, evaluation = params.balance, params.quality, params.evaluation
    budget = params.budget if compares else None
    if balance.unit == "object":  # no strategies are compared on a detection set
        classes = object_classes(info, balance, store)
        expected, comparison = _estimate_images(
            info, classes, params, budget, store, has_model=False
        )
        return BalancePlan(
            rule=f"{_rule_text(balance, soft_labels=False)} (counted in boxes)",
            classes=classes,
            estimate=_whole_run(expected, info, params, compares=False, has_model=False),
            **comparison,
        )
    can_sample = params.model.kind != "none"
    messages = _constraint_warnings(info, quality.constraints, store)
    counts = _training_counts(info, balance.by, store)
    soft_labels = can_sample and _can_have_soft_labels(info, quality)
    classes = plan_classes(
        counts,
        info.compared,
        balance,
        can_sample=can_sample,
        soft_labels=soft_labels,
        least=MIN_SAMPLED if info.image is None else MIN_SAMPLED_IMAGES,
        why_no_model="auto trains no model here, see the plan's notes"
        if declined
        else "no model was requested",
    )
    has_model = any(entry.n_synthetic for entry in classes)
    max_compared = 0 if has_model else max_compared_images(info)
    if max_compared and compares:
        sampled = (
            f"strategies are compared on {max_compared:,} of the training and validation images, and on "
            f"{max_compared // HOLDOUT_SHARE:,} of the hold-out. They are chosen by their ids and the seed; all images "
            "are published."
        )
        messages = (*messages, sampled)
    if info.image is not None:
        expected, comparison = _estimate_images(
            info, classes, params, budget, store, has_model=has_model
        )
    else:
        expected = _estimate(
            info, classes, evaluation, can_sample=can_sample, soft_labels=soft_labels
        )
        comparison = {"n_settings": evaluation.n_settings or N_TABLE_SETTINGS}
    needs = _whole_run(expected, info, params, compares=compares, has_model=has_model)
    return BalancePlan(
        rule=_rule_text(balance, soft_labels=soft_labels),
        classes=classes,
        estimate=needs,
        warnings=messages
        + plan_warnings(classes, balance, soft_labels=soft_labels)
        + _budget_warnings(expected, comparison, info, budget, evaluation.n_seeds),
        soft_labels=soft_labels,
        max_compared=max_compared,
        **comparison,
    )


def max_compared_images(info: DatasetInfo) -> int:
    """Most training and validation images that the comparison reads; 0 for all of them."""
    if info.image is None:
        return 0
    n = {part: sum(of.values()) for part, of in info.part_counts.items()}
    n_training = sum(n.get(part, 0) for part in _TRAINING)
    most = most_compared(info.image)
    fits = n_training <= most and n.get("holdout", 0) <= most // HOLDOUT_SHARE
    return 0 if fits else most


def _can_have_soft_labels(info: DatasetInfo, quality: Quality) -> bool:
    """Whether a synthetic record may have a row for each class that it may belong to."""
    if quality.purpose != "utility" or quality.labels != "soft" or info.image is not None:
        return False
    # Two rows of one record are equal but for the class, which may break such constraints.
    return not any(
        rule.kind == "unique" or info.label in columns_of(rule) for rule in quality.constraints
    )


def _budget_warnings(
    expected: Estimate,
    comparison: Mapping[str, Any],
    info: DatasetInfo,
    budget: Budget | None,
    n_seeds: int,
) -> tuple[str, ...]:
    """Warnings on what the budget cuts from the comparison of images, and what does not fit at all."""
    if budget is None or budget.steps or info.image is None:
        return ()
    warnings = []
    n_folds = comparison["n_folds"]
    if comparison["classifier_width"] < 1:
        warnings.append(
            f"{budget.minutes:g} minutes allow a classifier with half of its channels: strategies are compared with "
            "a weaker one."
        )
    n_wanted = N_FOLDS if _rarest(info) < SMALL_VALIDATION["image"] else 1
    if n_folds < n_wanted:
        warnings.append(
            f"the rarest compared class has {_rarest(info)} validation records, which needs {n_wanted} folds; "
            f"{budget.minutes:g} minutes allow {n_folds}"
            f"{', which is validation alone: the choice between strategies is coarse' if n_folds == 1 else ''}."
        )
    one_seed = expected.comparison_seconds / n_seeds
    if one_seed > 60 * budget.minutes:
        warnings.append(
            f"the comparison takes at least about {one_seed:.0f} seconds, more than the budget of "
            f"{budget.minutes:g} minutes."
        )
    return tuple(warnings)


def _check_by(by: Sequence[str], info: DatasetInfo) -> None:
    """Refuse columns that cannot be balanced within."""
    columns = {c.name: c for c in info.columns}
    for i, name in enumerate(by):
        problem = ""
        if name == info.label:
            problem = f"the label {name!r}; classes are balanced anyway: leave it out"
        elif name in by[:i]:
            problem = f"{name!r} twice; keep one"
        elif name not in columns:
            problem = f"the column {name!r}, which does not exist; {suggestion(name, columns)}"
        elif reason := _why_not_by(columns[name]):
            problem = (
                f"{name!r}, {reason}; choose a column with at most {MAX_BY_VALUES} categories, or group its values in "
                "the source"
            )
        if problem:
            raise ParameterError(f"balance.by names {problem}.", column=name)


def _why_not_by(column: ColumnInfo) -> str:
    """Why a column cannot be balanced within; empty where it can."""
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
    """Training records per stratum; without ``by`` the dataset's info has them."""
    if not by:
        counts = Counter[str]()
        for part in _TRAINING:
            counts.update(info.part_counts.get(part, {}))
        return {name: n for name, n in counts.items() if n}
    counts = Counter()
    for table in iter_shards(store, _training_shards(info), [info.label, *by]):
        counts.update(table_strata(table, label=info.label, by=by))
    return dict(counts)


def _training_shards(info: DatasetInfo) -> list[ShardInfo]:
    return [shard for shard in info.shards if shard.split in _TRAINING]


def _constraint_warnings(
    info: DatasetInfo, rules: Sequence[Constraint], store: Store
) -> tuple[str, ...]:
    """Refuse constraints that no synthetic record can keep; warn of real records that break them."""
    if not rules:
        return ()
    if info.image is not None:
        raise ParameterError(
            "quality.constraints are for columns, and the source has images; leave them out."
        )
    column_kinds = {column.name: column.kind for column in info.columns} | {info.label: "category"}
    for rule in rules:
        for name in columns_of(rule):
            problem, known = "", list(column_kinds)
            if name not in column_kinds:
                problem = f"not a column{did_you_mean(name, known)}; there are: {listing(known)}"
            elif column_kinds[name] not in ("numeric", "category", "constant"):
                problem = (
                    f"{_article(column_kinds[name])} column, and no model learns it; leave it out, or set its kind in "
                    "source.columns"
                )
            if problem:
                raise ParameterError(
                    f"constraint {describe_rule(rule)!r} names {name!r}, which is {problem}.",
                    column=name,
                )
    shards = _training_shards(info)
    for rule in rules:
        names = columns_of(rule)
        for table in islice(iter_shards(store, shards, names), 1):
            check_types(rule, table.select(names).schema)
    columns = sorted({name for rule in rules for name in columns_of(rule)})
    broken = n_breaking(rules, iter_shards(store, shards, columns))
    return tuple(
        f"{n:,} real training records break {describe_rule(rule)!r}: they stay as they are, and no "
        "synthetic record does."
        for rule, n in zip(rules, broken, strict=True)
        if n
    )


def _rule_text(balance: Balance, *, soft_labels: bool) -> str:
    words = [f"{balance.count} records per class" if balance.target == "count" else balance.target]
    if balance.max_per_class:
        words.append(f"at most {balance.max_per_class} per class")
    if balance.by:
        words.append(f"within each {' × '.join(balance.by)}")
    if len(balance.classes) == 1:
        words.append(f"class {balance.classes[0].name!r} with a target of its own")
    elif balance.classes:
        words.append(f"{len(balance.classes)} classes with a target of their own")
    most = balance.most_per_real * (SOFT_LABELS_PER_REAL if soft_labels else 1)
    words.append(f"at most {most:g} synthetic per real{' with soft labels' if soft_labels else ''}")
    return ", ".join(words)


def _estimate(
    info: DatasetInfo,
    classes: Sequence[ClassPlan],
    evaluation: Evaluation,
    *,
    can_sample: bool,
    soft_labels: bool,
) -> Estimate:
    """Needs of a run on a table, from what the score stage will train."""
    model = "model" if can_sample else None
    own = bool(evaluation.own_estimators)
    strategies = make_strategies(
        "table", model=model, classic=Classic(), soft_labels=soft_labels, own_estimators=own
    )
    n_folds = 1 if _rarest(info) >= SMALL_VALIDATION["table"] else N_FOLDS
    most = evaluation.n_settings or N_TABLE_SETTINGS
    n_pilots = _n_pilots(strategies, classes, most=most, soft_labels=soft_labels)
    pilots = n_pilots * min(n_folds, PILOT_FOLDS) / n_folds
    return estimate(
        n_records=sum(sum(part.values()) for part in info.part_counts.values()),
        n_bytes=sum(shard.n_bytes for shard in info.shards),
        n_columns=sum(column.kind in ("numeric", "category") for column in info.columns),
        n_classes=len({entry.label for entry in classes}),
        n_added=sum(max(entry.target - entry.n_real, entry.n_synthetic) for entry in classes),
        n_strategies=math.ceil(pilots * PILOT_STEP_SHARE)
        + min(len(strategies), N_KEPT + 2)
        + N_BAGS * own,  # one strategy trains that many
        n_folds=n_folds,
        n_seeds=evaluation.n_seeds,
        n_estimators=len(evaluation.estimators),
        n_model_strategies=sum(strategy.has_model for strategy in strategies),
        max_compared=MAX_COMPARED,
    )


def _estimate_images(
    info: DatasetInfo,
    classes: Sequence[ClassPlan],
    params: RunParams,
    budget: Budget | None,
    store: Store,
    *,
    has_model: bool,
) -> tuple[Estimate, dict[str, Any]]:
    """Needs of a run on images, and the plan's fields that fit the comparison to half of the budget."""
    assert info.image is not None
    counts = {part: sum(info.part_counts.get(part, {}).values()) for part in info.part_counts}
    n_train = counts.get("training", 0) + counts.get("validation", 0)
    # With a model's candidates, or enough validation records, strategies are compared on validation alone.
    alone = has_model or _rarest(info) >= SMALL_VALIDATION["image"]
    strategies = make_strategies(
        "image",
        model="model" if has_model else None,
        classic=params.classic,
        own_estimators=bool(params.evaluation.own_estimators),
    )
    folds = (1,) if alone else (N_FOLDS, N_FEWER_FOLDS, 1)
    settings_given = params.evaluation.n_settings
    seconds, slow = math.inf, 1.0
    if budget is not None and not budget.steps:
        seconds = 60 * COMPARISON_SHARE * budget.minutes
        slow = slowness(info, store, device=budget.device)
    side = classifier_size(info.image.most_common_size)
    widths = (1.0, 0.5) if n_train >= NARROW_BELOW else (1.0,)
    # All settings where they take a small part of the budget. Otherwise fewer settings, then a narrow estimator,
    # then one with far too few steps, or fewer folds.
    tried = (N_SETTINGS, N_SETTINGS // 2, N_SETTINGS // 4)
    for width, n_settings in product(widths, (settings_given,) if settings_given else tried):
        n_pilots = _n_pilots(strategies, classes, most=n_settings)
        pilots = n_pilots * min(folds[0], PILOT_FOLDS) / folds[0]
        needs, steps, n_folds = estimate_images(
            n_train=n_train,
            n_scored=max(counts.get("validation", 0), counts.get("holdout", 0)),
            n_bytes=sum(shard.n_bytes for shard in info.shards),
            side=side,
            n_pixels=math.prod(info.image.most_common_size),
            n_channels=info.image.n_channels,
            n_added=sum(max(0, entry.target - entry.n_real) for entry in classes),
            n_strategies=math.ceil(pilots * PILOT_STEP_SHARE) + min(len(strategies), N_KEPT + 2),
            folds=folds,
            n_seeds=params.evaluation.n_seeds,
            has_model=has_model,
            seconds=seconds,
            has_bf16=cpu_multiplies_bf16(),
            width=width,
            slow=slow,
        )
        if n_settings == N_SETTINGS and not settings_given:
            fits = needs.comparison_seconds <= MAX_SETTINGS_SHARE * seconds < math.inf
        else:
            fits = needs.comparison_seconds / params.evaluation.n_seeds <= seconds
        if fits and n_folds == folds[0] and 2 * steps >= classifier_steps(n_train):
            break
    comparison = {
        "classifier_steps": steps,
        "classifier_width": width,
        "classifier_input": (side, info.image.n_channels),
    }
    return needs, {**comparison, "n_folds": n_folds, "n_settings": n_settings}


def _whole_run(
    expected: Estimate, info: DatasetInfo, params: RunParams, *, compares: bool, has_model: bool
) -> Estimate:
    """The estimate with the training of a network, which takes its part of the minutes, and the store's requests."""
    trains = has_model and compares and not params.budget.steps
    trains = trains and load_model_class(params.model, modality=info.modality).trained_in_steps
    share = 1 - COMPARISON_SHARE if trains else 0.0
    return whole_run(
        expected,
        n_bytes=sum(shard.n_bytes for shard in info.shards),
        compares=compares,
        has_model=has_model,
        training_seconds=60 * share * params.budget.minutes,
    )


def _n_pilots(
    strategies: Sequence[Strategy],
    classes: Sequence[ClassPlan],
    *,
    soft_labels: bool = False,
    most: int = 0,
) -> int:
    """Estimators that the pilots train, per fold."""
    empty = Estimate(seconds=0, output_bytes=0, memory_bytes=0)
    plan = BalancePlan(rule="", classes=tuple(classes), estimate=empty, soft_labels=soft_labels)
    tried = (settings(strategy, plan=plan, classic=Classic(), most=most) for strategy in strategies)
    return n_trained(one for group in tried for one in group)


def _rarest(info: DatasetInfo) -> int:
    """Validation records of the rarest compared class."""
    validation = info.part_counts.get("validation", {})
    return min((validation.get(name, 0) for name in info.compared), default=0)
