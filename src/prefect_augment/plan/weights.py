"""Weights of records: scaled to mean 1, and kept from version to version while they hardly move.

Weights stand in the shards. Were they new with every record that a source grows by, every real shard
would be written again for the sake of some thousandths.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from prefect_augment.params import Publish
from prefect_augment.plan.priors import with_priors
from prefect_augment.schema.base import BalancePlan, Recipe
from prefect_augment.storage.manifests import latest_version, read_manifest
from prefect_augment.storage.store import Store

__all__ = ["MAX_MOVE", "inherit_weights", "shard_weights"]

logger = logging.getLogger(__name__)

# A stratum's weight stays what it was in the parent version while the new one is nearer than this share.
MAX_MOVE = 0.2


def shard_weights(
    recipe: Recipe,
    counts: Iterable[Mapping[str, int]],
    counted: Iterable[Mapping[str, float]],
) -> dict[str, float]:
    """Return the ``aug_weight`` of each stratum's records, as the shards hold it.

    With soft labels a synthetic row's is that times its share.

    Parameters
    ----------
    recipe : Recipe
        Its weights are scaled so that the mean over all records is 1, but for inherited ones, which
        stay as they are.
    counts : iterable of mapping
        Stratum -> records of each origin that is published in train.
    counted : iterable of mapping
        What these count: the same numbers, but for rows with soft labels their shares.

    Returns
    -------
    dict of str to float
        Exact in float32.
    """
    total: Counter[str] = Counter()
    for origin in counts:
        total.update(origin)
    mass = dict.fromkeys(total, 0.0)
    for of_origin in counted:
        for name, n in of_origin.items():
            mass[name] += n
    given = {name: recipe.class_weight.get(name, 1.0) for name in total}
    scale = 1.0
    if recipe.weights_from is None:
        scale = total.total() / sum(n * given[name] for name, n in mass.items())
    return {name: float(np.float32(weight * scale)) for name, weight in sorted(given.items())}


def inherit_weights(recipe: Recipe, plan: BalancePlan, publish: Publish, store: Store) -> Recipe:
    """Return the recipe with the weights of the newest version, where they would hardly be others.

    Parameters
    ----------
    recipe : Recipe
        As it was made for the records there are now.
    plan : BalancePlan
        Gives the real records per stratum.
    publish : Publish
        Which records go out.
    store : Store
        The destination.

    Returns
    -------
    Recipe
        With ``weights_from`` where they are inherited: the version that they were made for. That is so
        where its kind of recipe is the same, it has the same strata, neither writes duplicates, and
        each weight would move by less than :data:`MAX_MOVE`. The log says what was done and why.
    """
    latest = latest_version(store)
    if latest is None or any(recipe.copies.values()):
        return recipe
    parent = read_manifest(store, latest)
    origins = {
        "real": {c.name: c.n_real for c in plan.classes if c.n_real},
        "classic": recipe.classic,
        "synthetic": recipe.synthetic,
    }
    goes_out = [origin for origin in origins if origin in publish.origins]
    synthetic = recipe.shares or recipe.synthetic
    shares = {"synthetic": {k: recipe.synthetic_weight * n for k, n in synthetic.items()}}
    fresh = shard_weights(
        recipe,
        [origins[origin] for origin in goes_out],
        [shares.get(origin, origins[origin]) for origin in goes_out],
    )
    if fresh == parent.weights:
        return recipe
    reason = _why_new(recipe, fresh, parent.recipe, parent.weights)
    if reason:
        logger.info("The weights are new, so that all shards are written again: %s.", reason)
        return recipe
    version = parent.recipe.weights_from or parent.version
    logger.info(
        "The weights are those of version %d: no class's would move by %d %%, so that shards of "
        "records that were there before stay as they are.",
        version,
        round(100 * MAX_MOVE),
    )
    said = f"The weights are those of version {version}: none would have moved by {MAX_MOVE:.0%}."
    inherited = recipe.model_copy(
        update={
            "class_weight": dict(parent.weights),
            "weights_from": version,
            "sentence": f"{recipe.sentence} {said}",
        }
    )
    return with_priors(inherited, plan)


def _why_new(
    recipe: Recipe, fresh: Mapping[str, float], before: Recipe, weights: Mapping[str, float]
) -> str:
    """Say why the weights cannot be the parent's; empty where they can."""
    kinds = [
        (r.strategy.family, r.loss, bool(r.shares), r.synthetic_weight) for r in (recipe, before)
    ]
    if kinds[0] != kinds[1]:
        return f"the recipe was {before.strategy.name!r} and is {recipe.strategy.name!r}"
    if not weights:
        return "the version before does not say its own"
    if set(fresh) != set(weights):
        changed = sorted(set(fresh) ^ set(weights))
        return f"the classes are others than in the version before ({', '.join(map(repr, changed[:5]))})"
    moves = {name: fresh[name] / weights[name] - 1 for name in fresh}
    name = max(moves, key=lambda name: abs(moves[name]))
    if abs(moves[name]) >= MAX_MOVE:
        return f"that of {name!r} would move from {weights[name]:.4g} to {fresh[name]:.4g}"
    return ""
