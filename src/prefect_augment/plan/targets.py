"""How many records each class should have: names of strata, targets, plans, weights.

Pure arithmetic over counts. Reading the counts is the plan stage's, making the records is left to
models and classic augmentation. A stratum is a class, or with ``balance.by`` a class within one
combination (a cell) of those columns; every cell is balanced by itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from prefect_augment.encoding.strata import stratum_parts
from prefect_augment.errors import ParameterError
from prefect_augment.params import Balance, ClassTarget
from prefect_augment.schema.base import ClassPlan, class_order
from prefect_augment.text import suggestion

__all__ = [
    "CAP_WARNING",
    "MIN_SAMPLED",
    "MIN_SAMPLED_IMAGES",
    "balanced_weights",
    "plan_classes",
    "plan_warnings",
    "targets",
]

MIN_SAMPLED = 10  # records a stratum needs before a model may draw for it
# The same for images, below which classic augmentation is used instead: what a hold-out of a fifth leaves of 20.
MIN_SAMPLED_IMAGES = 16
# With soft labels: records drawn of every class per real one (twice what the cap allows), and in all. On
# development seeds two per real one raised AUPRC and macro-F1 more than one did (docs/sampler.md).
SOFT_PER_REAL = 2
MOST_SOFT = 20_000
CAP_WARNING = 5.0  # synthetic per real above which augmentation.md §7 saw results fall


# --- strata -----------------------------------------------------------------------------------


# --- targets ----------------------------------------------------------------------------------


def targets(counts: Mapping[str, int], balance: Balance) -> dict[str, int]:
    """Return how many training records each stratum should have.

    Parameters
    ----------
    counts : mapping of str to int
        Training records per stratum, each at least 1.
    balance : Balance
        The rule, applied within each cell of ``by`` by itself, with n the stratum's own count:
        ``median``: of the cell's counts (upwards where it lies between two); ``majority``: m, the
        largest; ``sqrt``: the geometric mean of own count and majority, sqrt(n m), upwards;
        ``count``: the number given. A class's own target replaces the rule's, in every cell.

    Returns
    -------
    dict of str to int
        Target per stratum, never below ``counts``, in :func:`class_order` of the classes, then of
        the cells' text. ``max_per_class`` lowers what the rule asks, never what is there.

    Raises
    ------
    ParameterError
        If a class is named that is not there, a number asked for is below what is there (no record
        is ever taken away), or above ``max_per_class``.

    References
    ----------
    The geometric mean: square-root sampling of Mahajan et al. 2018, "Exploring the Limits of Weakly
    Supervised Pretraining", section 2.2, scaled so that the majority keeps its count.
    """
    parts = _ordered_parts(counts, balance.by)
    _check_names(balance.classes, {label for label, _ in parts.values()})
    own = {wish.name: wish.target for wish in balance.classes if wish.target >= 0}
    cells: dict[tuple[str, ...], list[int]] = {}
    for name, (_, cell) in parts.items():
        cells.setdefault(tuple(cell.values()), []).append(counts[name])
    return {
        name: _target(name, own.get(label), counts[name], cells[tuple(cell.values())], balance)
        for name, (label, cell) in parts.items()
    }


def _ordered_parts(
    names: Collection[str], by: Sequence[str]
) -> dict[str, tuple[str, dict[str, str]]]:
    """Return class and cell per stratum, by class and then by cell, whatever the order given."""
    parts = {name: stratum_parts(name, by) for name in names}
    rank = {label: i for i, label in enumerate(class_order([label for label, _ in parts.values()]))}
    return dict(sorted(parts.items(), key=lambda item: (rank[item[1][0]], *item[1][1].values())))


def _target(name: str, own: int | None, n_real: int, cell: Sequence[int], balance: Balance) -> int:
    """Return one stratum's target: the number asked for, or what the rule gives, capped."""
    if own is not None:
        return _asked(name, own, n_real, balance, "its target in balance.classes")
    if balance.target == "count":
        return _asked(name, balance.count, n_real, balance, "balance.count")
    ruled = {
        "median": math.ceil(statistics.median(cell)),
        "majority": max(cell),
        "sqrt": math.isqrt(n_real * max(cell) - 1)
        + 1,  # the square root, upwards, without a float's rounding
    }[balance.target]
    capped = min(ruled, balance.max_per_class) if balance.max_per_class else ruled
    return max(n_real, capped)


def _asked(name: str, asked: int, n_real: int, balance: Balance, where: str) -> int:
    """Return the number asked for, or say why it cannot be granted."""
    if asked < n_real:
        raise ParameterError(
            f"class {name!r} has {n_real} training records and {where} asks for {asked}; no class "
            f"is made smaller: ask for at least {n_real}, or give this class a target of its own "
            "in balance.classes.",
            class_name=name,
            found=n_real,
            asked=asked,
        )
    if balance.max_per_class and asked > max(balance.max_per_class, n_real):
        raise ParameterError(
            f"class {name!r}: {where} asks for {asked} records and "
            f"max_per_class={balance.max_per_class} forbids them; raise one or lower the other.",
            class_name=name,
            found=n_real,
            asked=asked,
        )
    return asked


def _check_names(wishes: Sequence[ClassTarget], labels: Collection[str]) -> None:
    """Refuse a wish for a class that is not there."""
    for wish in wishes:
        if wish.name not in labels:
            raise ParameterError(
                f"balance.classes names {wish.name!r}, which is not a class of the training "
                f"records; {suggestion(wish.name, labels)}.",
                class_name=wish.name,
            )


# --- plans ------------------------------------------------------------------------------------


def plan_classes(
    counts: Mapping[str, int],
    compared: Collection[str],
    balance: Balance,
    *,
    can_sample: bool,
    soft_labels: bool = False,
    least: int = MIN_SAMPLED,
    why_no_model: str = "no model was asked for",
) -> tuple[ClassPlan, ...]:
    """Return per stratum how the way from its count to its target is gone.

    Parameters
    ----------
    counts : mapping of str to int
        Training records per stratum, each at least 1.
    compared : collection of str
        Classes that stand in all parts of the split.
    balance : Balance
        Targets and caps.
    can_sample : bool
        Whether there is a generative model.
    soft_labels : bool
        Whether synthetic records stand for every class that they may be of. Then weights and not
        numbers bring the balance, and records are drawn of every class, at target or not.
    least : int
        Records that a stratum needs before a model may draw for it.
    why_no_model : str
        For the notes, where there is no model.

    Returns
    -------
    tuple of ClassPlan
        In the order of :func:`targets`. Synthetic records up to ``max_synthetic_per_real`` per real
        one, none for a stratum under ``least``; the rest of the way is classic.

    Raises
    ------
    ParameterError
        As :func:`targets`.
    """
    caps = {
        w.name: w.max_synthetic_per_real for w in balance.classes if w.max_synthetic_per_real >= 0
    }
    plans = []
    for name, target in targets(counts, balance).items():
        label, cell = stratum_parts(name, balance.by)
        n_real, cap = counts[name], caps.get(label, balance.most_per_real)
        refusal = ""
        if target > n_real:
            refusal = _why_not_sampled(n_real, cap, "" if can_sample else why_no_model, least)
        n_synthetic = 0 if refusal else min(target - n_real, math.floor(cap * n_real))
        plans.append(
            ClassPlan(
                name=name,
                label=label,
                by=cell,
                n_real=n_real,
                target=target,
                n_synthetic=n_synthetic,
                n_classic=target - n_real - n_synthetic,
                compared=label in compared,
                note="; ".join(filter(None, (refusal, _not_compared(label in compared)))),
            )
        )
    if soft_labels and any(plan.n_synthetic for plan in plans):
        drawn = _soft_draws(plans, caps, balance)
        plans = [_with_draws(plan, drawn[plan.name]) for plan in plans]
    return tuple(plans)


def _soft_draws(
    plans: Sequence[ClassPlan], caps: Mapping[str, float], balance: Balance
) -> dict[str, int]:
    """Return per stratum how many records with soft labels are drawn: rarer strata whole."""
    wished = {}
    for plan in plans:
        cap = caps.get(plan.label, balance.most_per_real)
        most = math.floor(SOFT_PER_REAL * cap * plan.n_real) if plan.n_real >= MIN_SAMPLED else 0
        if balance.max_per_class:
            most = min(most, max(0, balance.max_per_class - plan.n_real))
        wished[plan.name] = most
    left, drawn = MOST_SOFT, {}
    for i, name in enumerate(sorted(wished, key=lambda name: wished[name])):
        drawn[name] = min(wished[name], left // (len(wished) - i))
        left -= drawn[name]
    return drawn


def _with_draws(plan: ClassPlan, n_synthetic: int) -> ClassPlan:
    rest = max(0, plan.target - plan.n_real - n_synthetic)
    return plan.model_copy(update={"n_synthetic": n_synthetic, "n_classic": rest})


def _why_not_sampled(n_real: int, cap: float, why_no_model: str, least: int) -> str:
    """Say why a stratum gets no synthetic records; empty where it may."""
    if why_no_model:
        return f"no synthetic records: {why_no_model}"
    if n_real < least:
        return f"no synthetic records: {n_real} real ones, a model needs {least}"
    return (
        "no synthetic records: the cap leaves room for none"
        if math.floor(cap * n_real) == 0
        else ""
    )


def _not_compared(compared: bool) -> str:
    return "" if compared else "not judged: too few records to stand in all parts of the split"


def plan_warnings(
    classes: Sequence[ClassPlan], balance: Balance, *, soft_labels: bool = False
) -> tuple[str, ...]:
    """Return what a person should know before a plan is carried out.

    Parameters
    ----------
    classes : sequence of ClassPlan
        From :func:`plan_classes`.
    balance : Balance
        The wish behind it.
    soft_labels : bool
        As for :func:`plan_classes`; more records than real ones are nothing to warn of then.

    Returns
    -------
    tuple of str
        Caps above :data:`CAP_WARNING`, more synthetic than real records in all, nothing to do.

    References
    ----------
    ``augmentation.md`` section 7 of the project's research: at most 5 synthetic per real in a class
    and 1 over the whole set, beyond which published results fall.
    """
    caps = {"balance": balance.most_per_real}
    caps |= {f"class {wish.name!r}": wish.max_synthetic_per_real for wish in balance.classes}
    found = [
        f"{where} allows {cap:g} synthetic records per real one; "
        f"above {CAP_WARNING:g} this has been seen to hurt"
        for where, cap in caps.items()
        if cap > CAP_WARNING
    ]
    n_real, n_synthetic = sum(c.n_real for c in classes), sum(c.n_synthetic for c in classes)
    if n_synthetic > n_real and not soft_labels:
        found.append(
            f"{n_synthetic} synthetic records for {n_real} real ones; "
            "more than one per real has been seen to hurt"
        )
    if all(c.target == c.n_real for c in classes):
        found.append("every class is at its target already; there is nothing to balance")
    return tuple(found)


def balanced_weights(
    counts: Mapping[str, int], targets: Mapping[str, int], amount: float
) -> dict[str, float]:
    """Return the weight of one record of each stratum that balances by weighting alone.

    Parameters
    ----------
    counts : mapping of str to int
        Records per stratum, n; strata with 0 are left out.
    targets : mapping of str to int
        Records each should have, t, of the same unit as ``counts`` up to a common factor.
    amount : float
        How much of the way to go, on a log scale: 0 none, 1 all of it.

    Returns
    -------
    dict of str to float
        ``(t / n)**amount``, scaled to a mean of 1 over the records.

    Raises
    ------
    ParameterError
        If ``amount`` is not finite, or a stratum has no positive target.

    Examples
    --------
    >>> balanced_weights({"sick": 10, "well": 90}, {"sick": 90, "well": 90}, 1.0)
    {'sick': 5.0, 'well': 0.5555555555555556}
    """
    if not math.isfinite(amount):
        raise ParameterError(
            f"amount={amount} is not a finite number; 0 weights nothing, 1 balances fully."
        )
    lacking = [name for name, n in counts.items() if n > 0 and targets.get(name, 0) <= 0]
    if lacking:
        raise ParameterError(
            f"strata {lacking} have records and no target; give each a target of at least 1."
        )
    raw = {name: (targets[name] / n) ** amount for name, n in counts.items() if n > 0}
    total = math.fsum(counts[name] * weight for name, weight in raw.items())
    n_records = sum(counts[name] for name in raw)
    return {name: weight * n_records / total for name, weight in raw.items()}
