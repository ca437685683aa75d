"""Class shares: those there are, and those that a learner is trained with under an arm or a recipe.

Their ratio corrects probabilities, see :func:`.correct_prior`.
"""

from __future__ import annotations

from collections.abc import Mapping

from prefect_augment.datatypes import Arm, BalancePlan, Recipe
from prefect_augment.stages.arms import wanted_records

__all__ = ["arm_shares", "class_shares", "with_priors"]


def class_shares(plan: BalancePlan) -> dict[str, float]:
    """Return each class's share of the real training records."""
    return _shares(plan, {c.name: float(c.n_real) for c in plan.classes})


def arm_shares(
    arm: Arm,
    plan: BalancePlan,
    *,
    available: Mapping[str, int] | None = None,
    shares: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return each class's share of what an arm trains with: records times weight.

    ``available`` and ``shares`` are those of :func:`.wanted_records`.
    """
    counts = {c.name: c.n_real for c in plan.classes}
    wanted = wanted_records(arm, counts, plan, available=available, shares=shares)
    found = _shares(plan, {name: w.effective for name, w in wanted.items()})
    return _corrected_loss(found, arm) if arm.family == "loss" else found


def with_priors(recipe: Recipe, plan: BalancePlan) -> Recipe:
    """Return the recipe with the class shares that there are, and those that it trains with."""
    train = _shares(
        plan,
        {
            c.name: recipe.class_weight.get(c.name, 1.0) * (c.n_real + recipe.counted(c.name))
            for c in plan.classes
        },
    )
    if recipe.loss == "balanced_softmax":
        train = _corrected_loss(train, recipe.arm)
    return recipe.model_copy(update={"prior_true": class_shares(plan), "prior_train": train})


def _shares(plan: BalancePlan, counted: Mapping[str, float]) -> dict[str, float]:
    """Sum strata up to classes, and divide by the sum of all."""
    found: dict[str, float] = {}
    for entry in plan.classes:
        found[entry.label] = found.get(entry.label, 0.0) + counted.get(entry.name, 0.0)
    total = sum(found.values())
    return {name: n / total for name, n in found.items()} if total else {}


def _corrected_loss(shares: Mapping[str, float], arm: Arm) -> dict[str, float]:
    """Balanced softmax takes so much of the prior out while it trains: what is left of it."""
    left = {name: share ** (1 - arm.amount) if share else 0.0 for name, share in shares.items()}
    total = sum(left.values())
    return {name: value / total for name, value in left.items()}
