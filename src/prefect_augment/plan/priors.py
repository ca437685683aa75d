"""Class shares: the true ones, and those that an estimator is trained with under a strategy or a recipe.

Their ratio corrects probabilities, see :func:`.correct_prior`.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from prefect_augment.array_types import Float
from prefect_augment.schema import BalancePlan, Recipe, Strategy

# Mean share of the partner in a mixed image: of a weight that is uniform in [0, 1], and of a rectangle of such an area
# whose centre is uniform, less what leaves the image (the mean of (s - s**2 / 4)**2 with s**2 uniform).
_PARTNER = {"": 0.0, "mixup": 0.5, "cutmix": 0.5 - 0.2 + 1 / 48}
_BATCH = 128  # records of the classifier's batch; a partner's class is one of them


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
    train = shares_trained(train, recipe.strategy)
    return recipe.model_copy(update={"prior_true": class_shares(plan), "prior_train": train})


def shares_of(plan: BalancePlan, counted: Mapping[str, float]) -> dict[str, float]:
    """Sum strata up to classes, as shares of the total."""
    totals: dict[str, float] = {}
    for entry in plan.classes:
        totals[entry.label] = totals.get(entry.label, 0.0) + counted.get(entry.name, 0.0)
    total = sum(totals.values())
    return {name: n / total for name, n in totals.items()} if total else {}


def shares_trained(shares: Mapping[str, float], strategy: Strategy) -> dict[str, float]:
    """Class shares of the targets, once records are mixed and balanced softmax has removed a part of the prior.

    ``shares`` are those of the draws. A partner's class is drawn evenly from those in its batch.
    """
    trained = dict(shares)
    if mixed := strategy.mixing_prob * _PARTNER[strategy.mixing]:
        in_batch = {name: 1 - (1 - min(1.0, share)) ** _BATCH for name, share in shares.items()}
        total = sum(in_batch.values()) or 1.0
        trained = {
            k: (1 - mixed) * share + mixed * in_batch[k] / total for k, share in trained.items()
        }
    if strategy.family == "loss":
        trained = {k: v / shares[k] ** strategy.amount if v else 0.0 for k, v in trained.items()}
        total = sum(trained.values()) or 1.0
        trained = {k: v / total for k, v in trained.items()}
    return trained


def smoothing_by_class(counts: Sequence[float] | Float, most: float) -> Float:
    """Share of each class's label that goes to the other classes, shape (n_classes,).

    ``most`` for the class with most records and 0 for the one with fewest: Zhong et al. 2021, "Improving Calibration
    for Long-Tailed Recognition", section 3.3, the concave form. Classes without records have 0.

        >>> smoothing_by_class([100, 55, 10, 0], 0.4).round(2)
        array([0.4 , 0.28, 0.  , 0.  ])
    """
    n = np.asarray(counts, dtype=np.float64)
    low, high = n[n > 0].min(initial=math.inf), n.max(initial=0.0)
    share = np.clip((n - low) / (high - low), 0.0, 1.0) if high > low else np.zeros(len(n))
    return most * np.sin(math.pi / 2 * share)
