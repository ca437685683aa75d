"""The search space: settings of each strategy that are tried on validation records.

A badly set baseline would flatter every generative model, so all that can be set of a baseline is
searched: thresholds are tuned for every setting. Every prefix of the lists below is a sensible list; their
fields are those of :class:`Strategy <prefect_augment.schema.comparison.Strategy>`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from prefect_augment.params import Classic
from prefect_augment.plan.strategies import as_trained
from prefect_augment.schema import BalancePlan, Strategy

# Most of one strategy. Tables have half as many: on few records the best of eight is the luckiest one, and with
# tuned thresholds settings differ little. Plans of images lower it where the budget is short.
N_SETTINGS = 8
N_TABLE_SETTINGS = 4
# Of pilots: share of an estimator's steps, and folds of five (validation alone stays validation alone).
PILOT_STEP_SHARE, PILOT_FOLDS = 1 / 3, 3
N_KEPT = 4  # strategies that are scored in full after the pilots
N_TOGETHER = 2  # settings of a piece: the slowest strategy's would keep one worker busy while the others wait
_LEARNT_IN_FOLDS = ("soft_labels", "clean")
# (amount, weight) with soft labels: 2 records per real one are drawn, which count as 2, 1, 1/2 or 5.
_SOFT_LABELS = (
    *((1.0, 1.0), (0.5, 0.5), (1.0, 0.25), (0.5, 1.0)),
    *((1.0, 0.5), (0.5, 0.25), (1.0, 2.5), (0.5, 2.5)),
)

# Amounts of a strategy that draws or weights real records, or SMOTE's.
_PLAIN = (1.0, 0.5, 0.75, 0.25)
# Of bags: one that is balanced in full has lost most records of the frequent classes.
_BAGGING = (0.25, 0.5, 0.1, 1.0)
# (amount, image_prob given times, strength) of classic augmentation on the fly; None: all images.
_CLASSIC: tuple[tuple[float, float | None, float], ...] = (
    *((1.0, 1.0, 1.0), (0.5, 1.0, 1.0), (1.0, None, 1.0), (1.0, 1.0, 2.0)),
    *((1.0, None, 2.0), (1.0, 0.5, 1.0), (0.5, None, 1.0), (1.0, 1.0, 0.5)),
)
# (amount, value) of the field that a strategy of Classic.image_strategies is about.
_OF_IMAGES = {
    "mixing_prob": ((1.0, 0.5), (0.5, 0.5), (1.0, 1.0), (1.0, 0.25)),
    "deferred": ((1.0, 0.6), (0.5, 0.6), (1.0, 0.8), (1.0, 0.4)),
    "smoothing": ((1.0, 0.3), (0.5, 0.3), (1.0, 0.1), (0.5, 0.1)),
}
# (amount, C) of a linear probe.
_PROBE = (
    *((1.0, 0.01), (1.0, 0.001), (0.5, 0.01), (1.0, 0.1)),
    *((0.5, 0.001), (0.5, 0.1), (1.0, 1.0), (0.5, 1.0)),
)
# (amount, C, mirroring) of patch features.
_PATCHES = (
    *((1.0, 1.0, "horizontal"), (1.0, 1.0, "both"), (1.0, 1.0, ""), (0.5, 1.0, "horizontal")),
    *((0.5, 1.0, "both"), (1.0, 0.1, "horizontal"), (1.0, 0.1, "both"), (1.0, 0.1, "")),
)
# What a record with a doubted label counts: less than others, or nothing.
_CLEAN = (0.3, 0.0)
_OTHER_STRENGTHS = (2.0, 0.5)  # than the policy's own
# Settings of a strategy with a model; missing fields are the strategy's own.
_MODEL: tuple[dict[str, Any], ...] = (
    {"amount": 1.0},
    {"amount": 0.5},
    {"amount": 1.0, "per_real": 1.0},
    {"amount": 1.0, "per_real": 0.5},
    {"amount": 1.0, "per_real": 2.0},
    {"amount": 1.0, "synthetic_weight": 0.5},
    {"amount": 0.5, "per_real": 1.0},
)
_IMAGE_MODEL = (*_MODEL[:6], {"amount": 1.0, "real_only_finish": 1.0}, _MODEL[6])


def settings(
    strategy: Strategy, *, plan: BalancePlan, classic: Classic, copies: bool = False, most: int = 0
) -> tuple[Strategy, ...]:
    """A strategy with each of its settings, the most important first; alone where there is nothing to set.

    ``copies``: duplicates are published instead of weights, so no record can count less than
    another. ``most`` is the number of settings; 0 for the plan's.
    """
    if strategy.amount > 0:
        return (strategy,)
    candidates = (strategy.model_copy(update=one) for one in _settings(strategy, plan, classic))
    if copies:
        candidates = (one for one in candidates if one.synthetic_weight == 1)
    return tuple(dict.fromkeys(candidates))[: most or plan.n_settings or N_SETTINGS]


def _settings(strategy: Strategy, plan: BalancePlan, classic: Classic) -> Iterable[dict[str, Any]]:
    if strategy.has_model and plan.soft_labels:
        return ({"amount": amount, "synthetic_weight": weight} for amount, weight in _SOFT_LABELS)
    if strategy.has_model:
        on_images = strategy.real_only_finish < 1
        most = max((c.n_synthetic / c.n_real for c in plan.classes if c.n_real), default=0.0)
        listed = _IMAGE_MODEL if on_images else _MODEL  # but numbers that the plan does not reach
        return (one for one in listed if one.get("per_real", 0.0) < most)
    for name, tried in _OF_IMAGES.items():
        if getattr(strategy, name):
            return ({"amount": amount, name: value} for amount, value in tried)
    if strategy.patches:
        return ({"amount": amount, "C": C, "mirroring": how} for amount, C, how in _PATCHES)
    if strategy.family == "clean":
        return ({"amount": 1.0, "doubted_weight": weight} for weight in _CLEAN)
    if strategy.family == "probe":
        return ({"amount": amount, "C": C} for amount, C in _PROBE)
    if strategy.classic_prob:
        return _on_the_fly(strategy, classic)
    amounts = _BAGGING if strategy.family == "bagging" else _PLAIN
    return ({"amount": amount} for amount in amounts)


def _on_the_fly(strategy: Strategy, classic: Classic) -> Iterable[dict[str, Any]]:
    # The user's own pipeline or function has its own strength; TrivialAugment and RandAugment have none.
    own = bool(classic.policy or classic.plugin or classic.image in ("trivial", "random"))
    for amount, times, strength in _CLASSIC:
        if own and strength in _OTHER_STRENGTHS:
            continue
        prob = 1.0 if times is None else times * strategy.classic_prob
        yield {"amount": amount, "classic_prob": prob, "classic_strength": strength}


def pilot_groups(
    strategies: Sequence[Strategy], *, plan: BalancePlan, classic: Classic, copies: bool = False
) -> list[tuple[Strategy, ...]]:
    """Settings that pilots train together: two of a strategy's, and all strategies without settings as one group.

    Settings that share what is learnt or drawn within each fold stay together.
    """
    tried = [
        settings(strategy, plan=plan, classic=classic, copies=copies) for strategy in strategies
    ]
    fixed = tuple(
        strategy for strategy, group in zip(strategies, tried, strict=True) if group == (strategy,)
    )
    groups = [fixed] if fixed else []
    for group in tried:
        if group[0] in fixed:
            continue
        n = len(group) if group[0].has_model or group[0].family in _LEARNT_IN_FOLDS else N_TOGETHER
        groups += [group[i : i + n] for i in range(0, len(group), n)]
    return groups


def n_trained(strategies: Iterable[Strategy]) -> int:
    """Estimators that settings train: thresholds are applied to predictions alone."""
    return len({as_trained(strategy) for strategy in strategies})
