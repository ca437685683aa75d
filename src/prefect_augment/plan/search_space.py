"""The search space: settings of each strategy that are tried on validation records, and how many the budget allows.

A badly set baseline would flatter every generative model, so all that can be set of a baseline is
searched: thresholds are tuned for every setting. Every prefix of the lists below is a sensible list; their
fields are those of :class:`Strategy <prefect_augment.schema.comparison.Strategy>`. With ``budget.steps`` time plays no
part. Otherwise it comes from the receipts of pilots and scores and never from a clock, so that a rerun decides alike.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

from prefect_augment.encoding.arrays import N_FOLDS, SMALL_VALIDATION
from prefect_augment.params import AutoModel, Budget, Classic, FlowModel, ModelParams, TreesModel
from prefect_augment.plan.strategies import as_trained
from prefect_augment.registry import model_kinds, resolve_model
from prefect_augment.schema import BalancePlan, DatasetInfo, Strategy, StrategyScore

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


# Of budget.minutes, for the comparison with its hold-out. A network trains in most of the rest; without one, the
# rest is for ingest, the report and for scores that take longer than their pilots suggest.
COMPARISON_SHARE, COMPARISON_SHARE_ALONE = 0.5, 0.7
# On the hold-out: the chosen strategy, the best baseline and as is.
HOLDOUT_STRATEGIES = 3


@dataclass(frozen=True)
class Schedule:
    """The comparison's part of a budget."""

    seconds: float = math.inf  # infinite where time does not count
    workers: int = 1  # strategies that are scored at the same time
    spent: float = 0.0  # seconds of earlier scores, the pilots of generative models

    @classmethod
    def of(
        cls, budget: Budget, *, workers: int, trains_network: bool, spent: float = 0.0
    ) -> "Schedule":
        """The schedule of a run; ``trains_network``: a generative model takes its part of the minutes."""
        if budget.steps:
            return cls(workers=workers)
        share = COMPARISON_SHARE if trains_network else COMPARISON_SHARE_ALONE
        return cls(60 * share * budget.minutes, workers, spent)

    def n_kept(self, pilots: Sequence[StrategyScore], best: Sequence[StrategyScore]) -> int:
        """Strategies that can be scored in full beside those on the hold-out, at least two.

        ``best`` are the pilots of each strategy's best setting, the best strategy first.
        :data:`N_KEPT` where time does not count.
        """
        if math.isinf(self.seconds):
            return N_KEPT
        n_folds, more = (N_FOLDS, N_FOLDS / PILOT_FOLDS) if pilots[0].folds else (1, 1.0)
        full = [more / PILOT_STEP_SHARE * score.seconds for score in best]
        left = self._left(len(best), pilots) - _holdout(full, n_folds)
        return max(2, sum(taken <= left for taken in accumulate(full)))

    def n_seeds(
        self,
        pilots: Sequence[StrategyScore],
        full: Sequence[StrategyScore],
        finalists: Sequence[Strategy],
        *,
        most: int,
    ) -> int:
        """Seeds with which the finalists can be scored and compared on the hold-out, from one to ``most``.

        ``pilots`` and ``full`` are the scores so far, in full with one seed.
        """
        if math.isinf(self.seconds):
            return most
        seconds = [score.seconds for score in full if score.strategy in finalists]
        holdout = _holdout(seconds, len(full[0].folds) or 1)
        left = self._left(len(seconds), (*pilots, *full)) - holdout
        per_seed = math.fsum(seconds) + holdout
        return 1 + max(0, min(most - 1, int(left / per_seed))) if per_seed > 0 else most

    def _left(self, n: int, scored: Sequence[StrategyScore]) -> float:
        """Seconds that ``n`` strategies may still take together; ``workers`` of them run side by side."""
        taken = self.spent + math.fsum(score.seconds for score in scored)
        return self.seconds * min(self.workers, n) - taken


def _holdout(seconds: Sequence[float], n_folds: int) -> float:
    """Seconds of the strategies on the hold-out, trained once on the records of all folds."""
    per_fold = math.fsum(seconds) / len(seconds) / n_folds
    return HOLDOUT_STRATEGIES * per_fold * n_folds / max(1, n_folds - 1)


# Of a model's training, what its pilot gets.
PILOT_SHARE = 0.25
_BY_NAME = "tried only by name: it was best on none of the data sets that it was measured on"
#: Parameters of the kinds for tables that :func:`suitable` returns.
TABLE_MODELS: dict[str, ModelParams] = {"trees": TreesModel(), "flow": FlowModel()}


def suitable(
    info: DatasetInfo, plan: BalancePlan, model: ModelParams
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Kinds of models to compare by pilots, and why others are skipped, by kind.

    A model by name is not compared with others; none is tried if the plan has no synthetic records.
    """
    kind = resolve_model(model, modality=info.modality)
    if not isinstance(model, AutoModel) or kind is None or not plan.n_synthetic:
        return ((kind,) if kind and plan.n_synthetic else ()), {}
    skipped = {k: _BY_NAME for k in model_kinds(info.modality) if k != kind}
    if info.modality == "image":
        return (kind,), skipped
    del skipped["flow"]
    n_validation = min(
        (info.part_counts.get("validation", {}).get(k, 0) for k in info.compared), default=0
    )
    if find_spec("torch") is None:
        skipped["flow"] = "it needs the extra torch"
    elif n_validation < SMALL_VALIDATION["table"]:
        skipped["flow"] = (
            f"it is trained in steps, and the rarest compared class has {n_validation} validation records: "
            f"below {SMALL_VALIDATION['table']} strategies are compared by folds, and every fold would take "
            "its whole budget"
        )
    else:
        return (kind, "flow"), skipped
    return (kind,), skipped


def pilot_budget(budget: Budget) -> Budget:
    """Budget of a pilot's training: a quarter of the run's."""
    return budget.model_copy(
        update={
            "minutes": PILOT_SHARE * budget.minutes,
            "steps": max(1, round(PILOT_SHARE * budget.steps)) if budget.steps else 0,
        }
    )


def training_budget(budget: Budget, n_piloted: int) -> Budget:
    """Budget of training after the pilots of ``n_piloted`` kinds; steps stay as requested."""
    if budget.steps:
        return budget
    left = 1 - PILOT_SHARE * n_piloted
    return budget.model_copy(update={"minutes": left * budget.minutes})
