"""Class shares: the true ones, and those that an estimator is trained with under a strategy or a recipe.

Their ratio corrects probabilities, see :func:`.correct_prior`.
"""

from collections.abc import Mapping

from prefect_augment.schema import BalancePlan, Recipe, Strategy

__all__ = ["class_shares", "shares_after_loss", "shares_of", "with_priors"]


def class_shares(plan: BalancePlan) -> dict[str, float]:
    """Each class's share of the real training records."""
    return shares_of(plan, {c.name: float(c.n_real) for c in plan.classes})


def with_priors(recipe: Recipe, plan: BalancePlan) -> Recipe:
    """The recipe with the true class shares, and those that it trains with."""
    train = shares_of(
        plan,
        {
            c.name: recipe.class_weight.get(c.name, 1.0) * (c.n_real + recipe.counted(c.name))
            for c in plan.classes
        },
    )
    if recipe.loss == "balanced_softmax":
        train = shares_after_loss(train, recipe.strategy)
    return recipe.model_copy(update={"prior_true": class_shares(plan), "prior_train": train})


def shares_of(plan: BalancePlan, counted: Mapping[str, float]) -> dict[str, float]:
    """Sum strata up to classes, as shares of the total."""
    totals: dict[str, float] = {}
    for entry in plan.classes:
        totals[entry.label] = totals.get(entry.label, 0.0) + counted.get(entry.name, 0.0)
    total = sum(totals.values())
    return {name: n / total for name, n in totals.items()} if total else {}


def shares_after_loss(shares: Mapping[str, float], strategy: Strategy) -> dict[str, float]:
    """Class shares that remain after balanced softmax has removed a part of the prior in training."""
    left = {
        name: share ** (1 - strategy.amount) if share else 0.0 for name, share in shares.items()
    }
    total = sum(left.values())
    return {name: value / total for name, value in left.items()}
