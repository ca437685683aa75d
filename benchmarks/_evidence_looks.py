"""Twenty versions over one hold-out: how often chance alone makes any of them `proven`, and what is still seen.

Hold-out records have a difficulty, the same at every look; strategies are new at each, and are right about a
record by chance around it. One class in ten is rare. Without an effect, both strategies of a look have the
same recalls in truth; with one, the chosen strategy's balanced accuracy is 4 points higher. The intervals and
the level rule are the product's own. `benchmarks/evidence.py` runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import zeta
from scipy.stats import norm

from prefect_augment.evaluation.metrics.bootstrap import Bootstrap, paired_bootstrap
from prefect_augment.evaluation.verdict.decision import is_preferred
from prefect_augment.experiment.looks import FIRST, spent_alpha

__all__ = ["any_false_proven", "level_rule", "looks", "power"]

N_LOOKS = 20
RARE = 0.1  # share of the rare class
RECALLS = (0.9, 0.75)  # of the common and the rare class, without an effect
SHARED = 0.8  # of a record's difficulty in the variance of whether it is right: what looks have in common
EFFECT = 0.04

Float = NDArray[np.float64]


def looks(*, repetitions: int = 200, n: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Everything that this file measures, as plain values.

    ``any_false_proven`` is done-when 3 of issue 20: with the rule at most 0.05.
    """
    stale = [n] * N_LOOKS
    grown = [round(n * (1 + 0.05 * i)) for i in range(N_LOOKS)]
    return {
        "repetitions": repetitions,
        "n_holdout": n,
        "any_false_proven": {
            f"{name}, {n_seeds} seed{'s' * (n_seeds > 1)}": any_false_proven(
                sizes, n_seeds=n_seeds, repetitions=repetitions, seed=seed
            )
            for name, sizes in (("the same records", stale), ("5 % more at each look", grown))
            for n_seeds in (1, 3)
        },
        "power_at_4_points": power(n=n, repetitions=repetitions, seed=seed),
        "power_of_sequences": sequences(n=n),
    }


def any_false_proven(
    sizes: Sequence[int], *, n_seeds: int, repetitions: int, seed: int = 0
) -> dict[str, float]:
    """Share of repetitions with any `proven` over looks of these sizes, none of which has an effect.

    ``without`` decides each look by a 95 % interval, ``with`` by the level of the rule; the same for `preferred`.
    """
    rules = ("without", "with", "preferred, without", "preferred, with")
    n_false = dict.fromkeys(rules, 0)
    first_false = 0
    for repetition in range(repetitions):
        rng = np.random.default_rng([seed, repetition, n_seeds])
        y, difficulty = _records(max(sizes), rng)
        alphas: list[float] = []
        found: dict[str, list[bool]] = {rule: [] for rule in rules}
        for n in sizes:
            boot = _compare(y[:n], difficulty[:n], 0.0, n_seeds=n_seeds, rng=rng)
            returned = alphas[-1] if alphas and found["with"][-1] else 0.0
            alphas.append(_alpha(sizes[: len(alphas) + 1], returned))
            for rule, level in (("without", 0.95), ("with", 1 - 2 * alphas[-1])):
                interval = boot.difference("chosen", "baseline", level=level)
                found[rule].append(interval.low > 0)
                found[f"preferred, {rule}"].append(is_preferred(interval, 1.0))
        first_false += found["with"][0]
        for rule, shown in found.items():
            n_false[rule] += any(shown)
    shares = {rule: k / repetitions for rule, k in n_false.items()}
    return shares | {"at the first look": first_false / repetitions}


def level_rule(sizes: Sequence[int]) -> list[float]:
    """Level of the deciding interval at each look of these sizes, where none is `proven`."""
    return [1 - 2 * _alpha(sizes[: k + 1], 0.0) for k in range(len(sizes))]


def power(*, n: int, repetitions: int, seed: int = 0) -> dict[str, float]:
    """Share of `proven` at a true +4 points, by the look at which it is found.

    ``grown``: the hold-out had half of its ``n`` records at the looks before; ``after proven``: the look
    before was `proven`.
    """
    half = [n // 2] * (N_LOOKS - 1)
    levels = {f"look {k}": level_rule([n] * k)[-1] for k in (1, 2, 5, 20)}
    levels |= {f"look {k}, grown": level_rule([*half[: k - 1], n])[-1] for k in (5, 20)}
    levels["look 20, after proven"] = 1 - 2 * FIRST
    seen = dict.fromkeys(levels, 0)
    for repetition in range(5 * repetitions):
        rng = np.random.default_rng([seed, repetition, 7])
        y, difficulty = _records(n, rng)
        boot = _compare(y, difficulty, EFFECT, n_seeds=1, rng=rng)
        for name, level in levels.items():
            seen[name] += _is_proven(boot, level)
    return {f"{name} ({100 * levels[name]:.3f} %)": k / repetitions / 5 for name, k in seen.items()}


def sequences(*, n: int) -> dict[str, dict[str, float]]:
    """Power at +4 points of spending sequences for normal intervals, where the first look has 44 %.

    The rule is beside sequences that spend all by the look's number, as its power of 1.2, 1.6 and 2.
    """
    effect = norm.isf(FIRST) + norm.ppf(0.44)  # in standard errors of n records
    cases = {
        "the same records": [n] * N_LOOKS,
        "twice as many at look 20": [*[n] * (N_LOOKS - 1), 2 * n],
        "5 % more at each look": [round(n * (1 + 0.05 * i)) for i in range(N_LOOKS)],
    }
    found: dict[str, dict[str, float]] = {}
    for name, sizes in cases.items():
        for k in (2, 5, 20):
            now = effect * np.sqrt(sizes[k - 1] / n)
            spent = {"rule": _alpha(sizes[:k], 0.0)}
            spent |= {f"k^-{p}": FIRST * k**-p / (float(zeta(p)) - 1) for p in (1.2, 1.6, 2.0)}
            found[f"{name}, look {k}"] = {
                rule: round(float(norm.sf(norm.isf(alpha) - now)), 3)
                for rule, alpha in spent.items()
            }
    return found


# --- one look ---------------------------------------------------------------------------------


def _alpha(sizes: Sequence[int], returned: float) -> float:
    """What the last of these looks spends."""
    n_before = sizes[-2] if len(sizes) > 1 else 0
    return spent_alpha(
        len(sizes), n_first=sizes[0], n_before=n_before, n_now=sizes[-1], returned=returned
    )


def _records(n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Float]:
    """Classes, evenly over the records so that each prefix has its share, and difficulties."""
    return (np.arange(n) % round(1 / RARE) == 0).astype(np.int64), rng.normal(size=n)


def _compare(
    y: NDArray[np.int64],
    difficulty: Float,
    effect: float,
    *,
    n_seeds: int,
    rng: np.random.Generator,
) -> Bootstrap:
    """Draws of two new strategies on the records; ``chosen`` is truly better by ``effect``.

    Half of the variance beside the difficulty is the strategy's, the other its seed's.
    """
    own = np.sqrt((1 - SHARED) / 2)
    hits = {}
    for name, gain in (("chosen", effect), ("baseline", 0.0)):
        bound = norm.ppf(np.array(RECALLS) + gain)[y]
        score = np.sqrt(SHARED) * difficulty + own * rng.normal(size=len(y))
        score = score + own * rng.normal(size=(n_seeds, len(y)))
        hits[name] = (score < bound).astype(float)
    compared = np.ones(2, dtype=bool)
    return paired_bootstrap(y, hits, compared=compared, seed=int(rng.integers(2**31)))


def _is_proven(boot: Bootstrap, level: float) -> bool:
    """Whether the interval of the difference lies above 0."""
    return boot.difference("chosen", "baseline", level=level).low > 0
