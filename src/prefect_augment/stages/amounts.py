"""How many records a recipe adds, and the same recipe with fewer of them.

Fewer is always a prefix of what was judged; more would be records that nothing was judged on.
"""

from __future__ import annotations

from collections.abc import Mapping

from prefect_augment.balancing import suggestion
from prefect_augment.datatypes import BalancePlan, Recipe
from prefect_augment.errors import ParameterError
from prefect_augment.stages.priors import with_priors
from prefect_augment.stages.recipe_words import recipe_sentence

__all__ = ["added_records", "lowered", "lowered_amounts"]


def added_records(recipe: Recipe) -> dict[str, int]:
    """Return stratum -> records that the recipe adds: synthetic, classic and copies together."""
    added: dict[str, int] = {}
    for part in (recipe.synthetic, recipe.classic, recipe.copies):
        for name, n in part.items():
            added[name] = added.get(name, 0) + n
    return {name: n for name, n in added.items() if n}


def lowered_amounts(recipe: Recipe, amounts: Mapping[str, int]) -> dict[str, int]:
    """Return the amounts that are lower than the recipe's; refuse what cannot be granted.

    Raises
    ------
    ParameterError
        If a class gets no records in the recipe, or an amount is negative or raised.
    """
    allowed = added_records(recipe)
    for name, asked in amounts.items():
        if name not in allowed:
            raise ParameterError(
                f"no records are to be added to class {name!r}, so its amount cannot be changed; "
                + (
                    f"{suggestion(name, tuple(allowed))}."
                    if allowed
                    else "this proposal adds no records at all."
                ),
                class_name=name,
            )
        if not 0 <= asked <= allowed[name]:
            raise ParameterError(
                f"class {name!r}: {asked:,} records were asked for and 0 to {allowed[name]:,} are allowed; an "
                "approval may lower an amount, not raise it. For more, run again with other balance parameters.",
                class_name=name,
                asked=asked,
                allowed=allowed[name],
            )
    return {name: n for name, n in amounts.items() if n < allowed[name]}


def lowered(
    recipe: Recipe, plan: BalancePlan, amounts: Mapping[str, int], *, copies: bool = False
) -> Recipe:
    """Return the recipe with fewer added records.

    A class keeps its effective count, records times weight, so what it loses in records it gains in
    weight; with duplicates instead of weights there is nothing to make up for it.

    Parameters
    ----------
    recipe : Recipe
        As it was judged.
    plan : BalancePlan
        Gives the real records per stratum.
    amounts : mapping of str to int
        Stratum -> records to add; where it is not named it keeps what the recipe has.
    copies : bool
        Duplicates are published instead of weights.
    """
    amounts = lowered_amounts(recipe, amounts)
    if not amounts:
        return recipe
    parts = {"synthetic": recipe.synthetic, "classic": recipe.classic, "copies": recipe.copies}
    new = {kind: dict(counts) for kind, counts in parts.items()}
    for name, n in amounts.items():
        share = _split(n, {kind: counts.get(name, 0) for kind, counts in parts.items()})
        for kind, k in share.items():
            new[kind][name] = k
    new = {kind: {name: n for name, n in counts.items() if n} for kind, counts in new.items()}
    weight = dict(recipe.class_weight)
    # What is left of soft labels counts in proportion; publishing scales all weights by what it is.
    shares = {
        name: share * new["synthetic"][name] / recipe.synthetic[name]
        for name, share in recipe.shares.items()
        if name in new["synthetic"]
    }
    fewer = recipe.model_copy(update={**new, "shares": shares, "weights_from": None})
    if not copies:
        real = {c.name: c.n_real for c in plan.classes if c.name in weight}
        n_rows = sum(real.values()) + sum(added_records(fewer).get(name, 0) for name in real)
        effective = {name: weight[name] * (n + recipe.counted(name)) for name, n in real.items()}
        mean = sum(effective.values()) / max(1, n_rows)
        weight = {
            name: effective[name] / max(1, n + fewer.counted(name)) / mean
            for name, n in real.items()
        }
    sentence = recipe_sentence(
        recipe.arm,
        n_synthetic=sum(new["synthetic"].values()),
        n_classic=sum(new["classic"].values()),
        copies=copies,
        policy=recipe.classic_policy,
        soft=bool(recipe.shares),
    )
    lower = fewer.model_copy(
        update={
            "class_weight": weight,
            "sentence": f"{sentence} Fewer records were added than judged, as the approval has it.",
        }
    )
    return with_priors(lower, plan)


def _split(n: int, counts: Mapping[str, int]) -> dict[str, int]:
    """Divide ``n`` in proportion to ``counts``; what rounding leaves goes to the first that have room."""
    total = sum(counts.values())
    share = {kind: n * k // total for kind, k in counts.items()}
    for kind, k in counts.items():
        share[kind] += min(n - sum(share.values()), k - share[kind])
    return share
