"""How many records each class should have: targets, plans, weights. Pure arithmetic over counts.

A stratum is a class, or with ``balance.by`` a class within one combination (a cell) of those
columns; every cell is balanced on its own.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from prefect_augment.encoding.strata import stratum_parts
from prefect_augment.errors import ParameterError
from prefect_augment.params import Balance
from prefect_augment.schema import ClassPlan, class_order
from prefect_augment.text import suggestion

MIN_SAMPLED = 10  # records a stratum needs before a model may draw for it
# The same for images, below which classic augmentation is used instead: what a hold-out of a fifth leaves of 20.
MIN_SAMPLED_IMAGES = 16
# With soft labels: records drawn of every class per real one (twice what the cap allows), and in all. On
# development seeds two per real one raised AUPRC and macro-F1 more than one did (docs/sampler.md).
SOFT_LABELS_PER_REAL = 2
MAX_SOFT_LABELS = 20_000
CAP_WARNING = 5.0  # synthetic per real above which augmentation.md §7 saw results fall


def targets(counts: Mapping[str, int], balance: Balance) -> dict[str, int]:
    """Training records that each stratum should have, never below ``counts``.

    The rule applies within each cell of ``by``, with n the stratum's own count. ``median``: of the cell's counts,
    rounded up; ``majority``: m, the largest; ``sqrt``: the geometric mean sqrt(n m), rounded up; ``count``: the
    number in ``balance``. A class's own target replaces the rule's, in every cell. ``max_per_class`` lowers what the
    rule gives. Classes are in :func:`class_order`, then cells by text. ParameterError if a class is unknown, or a
    requested number is below the count (no record is ever removed) or above ``max_per_class``.

    The geometric mean is square-root sampling (Mahajan et al. 2018, "Exploring the Limits of Weakly
    Supervised Pretraining", section 2.2), scaled so that the majority keeps its count.
    """
    parts = {name: stratum_parts(name, balance.by) for name in counts}
    labels = class_order([label for label, _ in parts.values()])
    order = {label: i for i, label in enumerate(labels)}
    parts = dict(sorted(parts.items(), key=lambda item: (order[item[1][0]], *item[1][1].values())))
    for own in balance.classes:
        if own.name not in order:
            raise ParameterError(
                f"balance.classes names {own.name!r}, which is not a class of the training "
                f"records; {suggestion(own.name, order)}.",
                class_name=own.name,
            )
    requested = {own.name: own.target for own in balance.classes if own.target >= 0}
    cells: dict[tuple[str, ...], list[int]] = {}
    for name, (_, cell) in parts.items():
        cells.setdefault(tuple(cell.values()), []).append(counts[name])
    return {
        name: _target(
            name, requested.get(label), counts[name], cells[tuple(cell.values())], balance
        )
        for name, (label, cell) in parts.items()
    }


def _target(
    name: str, requested: int | None, n_real: int, cell: Sequence[int], balance: Balance
) -> int:
    """One stratum's target: the requested number, or what the rule gives, capped."""
    if requested is not None:
        return _requested(name, requested, n_real, balance, "its target in balance.classes")
    if balance.target == "count":
        return _requested(name, balance.count, n_real, balance, "balance.count")
    by_rule = {
        "median": math.ceil(statistics.median(cell)),
        "majority": max(cell),
        # The square root, rounded up without floating point.
        "sqrt": math.isqrt(n_real * max(cell) - 1) + 1,
    }[balance.target]
    capped = min(by_rule, balance.max_per_class) if balance.max_per_class else by_rule
    return max(n_real, capped)


def _requested(name: str, requested: int, n_real: int, balance: Balance, where: str) -> int:
    """The requested number, or an error where it cannot be granted."""
    if requested < n_real:
        problem = (
            f" has {n_real} training records and {where} asks for {requested}; no class is made smaller: ask for at "
            f"least {n_real}, or give this class a target of its own in balance.classes."
        )
    elif balance.max_per_class and requested > max(balance.max_per_class, n_real):
        problem = (
            f": {where} asks for {requested} records and max_per_class={balance.max_per_class} forbids them; raise "
            "one or lower the other."
        )
    else:
        return requested
    message = f"class {name!r}{problem}"
    raise ParameterError(message, class_name=name, n_real=n_real, requested=requested)


def plan_classes(
    counts: Mapping[str, int],
    compared: Collection[str],
    balance: Balance,
    *,
    can_sample: bool,
    soft_labels: bool = False,
    least: int = MIN_SAMPLED,
    why_no_model: str = "no model was requested",
) -> tuple[ClassPlan, ...]:
    """Per stratum, the synthetic and classic records that lead from its count to its target.

    Synthetic records up to ``max_synthetic_per_real`` per real one, none for a stratum under ``least``; the rest is
    classic. ``compared`` are the classes that are in all parts of the split. With ``soft_labels`` weights bring the
    balance, and records are drawn of every class, at target or not. ``why_no_model`` is for the notes.
    """
    caps = {
        w.name: w.max_synthetic_per_real for w in balance.classes if w.max_synthetic_per_real >= 0
    }
    plans = []
    for name, target in targets(counts, balance).items():
        label, cell = stratum_parts(name, balance.by)
        n_real, cap = counts[name], caps.get(label, balance.most_per_real)
        most, refusal, notes = math.floor(cap * n_real), "", []
        if target > n_real and not can_sample:
            refusal = why_no_model
        elif target > n_real and n_real < least:
            refusal = f"{n_real} real ones, a model needs {least}"
        elif target > n_real and not most:
            refusal = "the cap allows none"
        if refusal:
            notes.append(f"no synthetic records: {refusal}")
        if label not in compared:
            notes.append("not compared: too few records for all parts of the split")
        n_synthetic = 0 if refusal else min(target - n_real, most)
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
                note="; ".join(notes),
            )
        )
    if soft_labels and any(plan.n_synthetic for plan in plans):
        n_drawn = _soft_label_draws(plans, caps, balance)
        for i, plan in enumerate(plans):
            n = n_drawn[plan.name]
            rest = max(0, plan.target - plan.n_real - n)
            plans[i] = plan.model_copy(update={"n_synthetic": n, "n_classic": rest})
    return tuple(plans)


def _soft_label_draws(
    plans: Sequence[ClassPlan], caps: Mapping[str, float], balance: Balance
) -> dict[str, int]:
    """Records with soft labels to draw per stratum; the limit cuts the largest strata."""
    wanted = {}
    for plan in plans:
        cap = caps.get(plan.label, balance.most_per_real)
        n = plan.n_real if plan.n_real >= MIN_SAMPLED else 0
        most = math.floor(SOFT_LABELS_PER_REAL * cap * n)
        if balance.max_per_class:
            most = min(most, max(0, balance.max_per_class - plan.n_real))
        wanted[plan.name] = most
    left, drawn = MAX_SOFT_LABELS, {}
    for i, name in enumerate(sorted(wanted, key=lambda name: wanted[name])):
        drawn[name] = min(wanted[name], left // (len(wanted) - i))
        left -= drawn[name]
    return drawn


def plan_warnings(
    classes: Sequence[ClassPlan], balance: Balance, *, soft_labels: bool = False
) -> tuple[str, ...]:
    """Warnings about a plan: caps above :data:`CAP_WARNING`, more synthetic than real records, nothing to do.

    At most 5 synthetic per real in a class and 1 over the whole set, beyond which published results
    fall (``augmentation.md`` section 7 of the project's research). With ``soft_labels`` more
    records than real ones are fine.
    """
    caps = {"balance": balance.most_per_real}
    caps |= {f"class {own.name!r}": own.max_synthetic_per_real for own in balance.classes}
    warnings = [
        f"{where} allows {cap:g} synthetic records per real one; "
        f"above {CAP_WARNING:g} published results get worse"
        for where, cap in caps.items()
        if cap > CAP_WARNING
    ]
    n_real, n_synthetic = sum(c.n_real for c in classes), sum(c.n_synthetic for c in classes)
    if n_synthetic > n_real and not soft_labels:
        warnings.append(
            f"{n_synthetic} synthetic records for {n_real} real ones; "
            "with more than one per real published results get worse"
        )
    if all(c.target == c.n_real for c in classes):
        warnings.append("every class is at its target already; there is nothing to balance")
    return tuple(warnings)
