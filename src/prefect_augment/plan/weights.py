"""Weights of records: scaled to mean 1, and kept from version to version while they hardly change.

Shards store the weights. If they changed with every record that a source grows by, every real shard
would be rewritten for a change of some thousandths.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from prefect_augment.params import Publish
from prefect_augment.plan.priors import with_priors
from prefect_augment.schema import BalancePlan, Recipe
from prefect_augment.storage import Store, latest_version, read_manifest

logger = logging.getLogger(__name__)

# A stratum keeps its weight of the parent version while the new one differs by less than this share.
MAX_MOVE = 0.2


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
