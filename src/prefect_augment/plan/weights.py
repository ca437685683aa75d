"""Class shares and weights of records: scaled to mean 1, and kept from version to version while they hardly change.

The true class shares over those that an estimator is trained with correct probabilities, see :func:`.correct_prior`.
Shards store the weights. If they changed with every record that a source grows by, every real shard
would be rewritten for a change of some thousandths.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from prefect_augment.array_types import Float
from prefect_augment.params import Publish
from prefect_augment.schema import BalancePlan, Recipe, Strategy
from prefect_augment.storage import Store, latest_version, read_manifest

logger = logging.getLogger(__name__)

# A stratum keeps its weight of the parent version while the new one differs by less than this share.
MAX_MOVE = 0.2
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


def shard_weights(
    recipe: Recipe, counts: Iterable[Mapping[str, int]], counted: Iterable[Mapping[str, float]]
) -> dict[str, float]:
    """The ``aug_weight`` of each stratum's records in the shards, exact in float32.

    Weights are scaled to mean 1 over all records, except those kept from an earlier version. ``counts`` are records
    per stratum, for each published origin; ``counted`` the same, but for rows with soft labels their shares. A
    synthetic row with a soft label has this weight times its share.
    """
    total: Counter[str] = Counter()
    for origin in counts:
        total.update(origin)
    mass = dict.fromkeys(total, 0.0)
    for of_origin in counted:
        for name, n in of_origin.items():
            mass[name] += n
    weights = {name: recipe.class_weight.get(name, 1.0) for name in total}
    scale = 1.0
    if recipe.weights_from is None:
        scale = total.total() / sum(n * weights[name] for name, n in mass.items())
    return {name: float(np.float32(weight * scale)) for name, weight in sorted(weights.items())}


def keep_weights(
    recipe: Recipe,
    plan: BalancePlan,
    publish: Publish,
    store: Store,
    *,
    counted: Mapping[str, float] | None = None,
) -> Recipe:
    """The recipe with the weights of the newest version, if the new ones would hardly differ.

    Weights are kept, with ``weights_from``, if both versions have the same kind of recipe and the same strata,
    neither writes duplicates, and each weight would change by less than :data:`MAX_MOVE`. The log has the decision.
    ``counted`` is what the real records of each stratum count, where not 1 each.
    """
    latest = latest_version(store)
    if latest is None or any(recipe.copies.values()):
        return recipe
    parent = read_manifest(store, latest)
    by_origin = {
        "real": {c.name: c.n_real for c in plan.classes if c.n_real},
        "classic": recipe.classic,
        "synthetic": recipe.synthetic,
    }
    published = [origin for origin in by_origin if origin in publish.origins]
    synthetic = recipe.shares or recipe.synthetic
    shares: dict[str, Mapping[str, float]] = {
        "synthetic": {k: recipe.synthetic_weight * n for k, n in synthetic.items()}
    }
    if counted is not None:
        shares["real"] = {name: counted[name] for name in by_origin["real"]}
    fresh = shard_weights(
        recipe,
        [by_origin[origin] for origin in published],
        [shares.get(origin, by_origin[origin]) for origin in published],
    )
    if fresh == parent.weights:
        return recipe
    reason = _why_new(recipe, fresh, parent.recipe, parent.weights)
    if reason:
        logger.info("The weights are new, so all shards are written again: %s.", reason)
        return recipe
    version = parent.recipe.weights_from or parent.version
    logger.info(
        "The weights are those of version %d: no class's would change by %d %%, so shards of earlier "
        "records stay as they are.",
        version,
        round(100 * MAX_MOVE),
    )
    sentence = (
        f"The weights are those of version {version}: none would have changed by {MAX_MOVE:.0%}."
    )
    kept = recipe.model_copy(
        update={
            "class_weight": dict(parent.weights),
            "weights_from": version,
            "sentence": f"{recipe.sentence} {sentence}",
        }
    )
    return with_priors(kept, plan)


def _why_new(
    recipe: Recipe, fresh: Mapping[str, float], before: Recipe, weights: Mapping[str, float]
) -> str:
    """Why the weights cannot be the parent's; empty where they can."""
    settings = [
        (r.strategy.family, r.loss, bool(r.shares), r.synthetic_weight) for r in (recipe, before)
    ]
    if settings[0] != settings[1]:
        return f"the recipe was {before.strategy.name!r} and is {recipe.strategy.name!r}"
    if not weights:
        return "the version before has none"
    if set(fresh) != set(weights):
        changed = sorted(set(fresh) ^ set(weights))
        return f"the classes differ from the version before ({', '.join(map(repr, changed[:5]))})"
    moves = {name: fresh[name] / weights[name] - 1 for name in fresh}
    name = max(moves, key=lambda name: abs(moves[name]))
    if abs(moves[name]) >= MAX_MOVE:
        return f"that of {name!r} would change from {weights[name]:.4g} to {fresh[name]:.4g}"
    return ""
