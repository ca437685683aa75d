"""What changed between two versions of a dataset, and what of it is more than chance.

Two versions share most of their records, so the noise between them is less than between two samples:
of n and m records with s in common, a difference of shares has the variance p (1 - p) / n_eff with
``1 / n_eff = 1 / n + 1 / m - 2 s / (n m)``. With equal records n_eff is infinite: any difference is one.

What is called noise is a bound that all columns together stay below in 99 of 100 versions, where
records are drawn independently from one source: Kolmogorov's distribution for numbers and dates, the
mean of the total variation distance plus its Gaussian tail for categories.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean

import numpy as np

from prefect_augment.evaluation.metrics.column_profile import MAX_LEVELS
from prefect_augment.schema.base import Interval, Recipe, StrategyScore, Verdict
from prefect_augment.schema.drift import (
    ClassDrift,
    ColumnContent,
    ColumnDrift,
    Contents,
    Drift,
    StrategyDrift,
)
from prefect_augment.text import count, natural_order, percent

__all__ = ["class_drifts", "column_drifts", "drift_sentence", "n_shared", "strategy_drifts"]

ALPHA = 0.01  # of a false flag among all columns, and again among all classes
SHOWN_LEVELS = 6
NAMED = 4  # columns or classes in a sentence


def n_shared(before: Contents, now: Contents) -> int:
    """How many records two versions share, by the ids that each has kept."""
    a, b = set(before.sketch), set(now.sketch)
    if not a or not b:
        return 0
    # Below the smaller of the two largest ids both sketches are complete.
    ends = [max(s) for s, c in ((a, before), (b, now)) if len(s) < c.n_records]
    low = {key for key in a if not ends or key <= min(ends)}
    share = len(low & b) / len(low) if low else 0.0
    return min(round(share * before.n_records), now.n_records)


def effective(n: int, m: int, shared: float) -> float:
    """Records of one sample that would be as noisy as the difference of two; infinite for equal ones."""
    if not n or not m:
        return 0.0
    rest = 1 / n + 1 / m - 2 * min(shared, n, m) / (n * m)
    return 1 / rest if rest > 1e-15 else math.inf


def share_noise(share: float, n_eff: float, alpha: float) -> float:
    """How far a share moves by chance: two-sided, by the normal distribution."""
    if n_eff == 0:
        return 1.0
    # One record of each side more or less: a share of 0 has no variance, and may still move.
    variance = max(share * (1 - share), 1 / (1 + n_eff)) / n_eff
    return min(1.0, NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt(variance))


def class_drifts(
    before: Mapping[str, int], now: Mapping[str, int], shared: int
) -> tuple[ClassDrift, ...]:
    """Every class of the two versions, by its size now."""
    names = sorted({*before, *now}, key=lambda c: (-now.get(c, 0), natural_order(c)))
    n, m = sum(before.values()), sum(now.values())
    n_eff = effective(n, m, shared)
    found = []
    for name in names:
        a, b = before.get(name, 0), now.get(name, 0)
        noise = share_noise((a + b) / max(n + m, 1), n_eff, ALPHA / max(len(names), 1))
        moved = abs(a / max(n, 1) - b / max(m, 1)) > noise
        found.append(
            ClassDrift(name=name, before=a, now=b, noise=noise, changed=moved or not (a and b))
        )
    return tuple(found)


def column_drifts(
    before: Contents, now: Contents, on_before: Mapping[str, ColumnContent], shared: int
) -> tuple[ColumnDrift, ...]:
    """Every column of the two versions, what changed most first.

    Parameters
    ----------
    before, now : Contents
    on_before : mapping of column to ColumnContent
        The columns of ``now``, counted at the points and in the bins of ``before``.
    shared : int
        Records that are in both versions.
    """
    old = {c.name: c for c in before.columns}
    names = [*old, *(c.name for c in now.columns if c.name not in old)]
    alpha = ALPHA / max(2 * len(names), 1)  # values and nulls are looked at
    looked = shared * min(_ratio(before), _ratio(now))
    n_eff = effective(before.n_looked_at, now.n_looked_at, looked)
    found = [_column(old.get(name), on_before.get(name), n_eff, alpha, name) for name in names]
    if before.mean_picture and now.mean_picture:
        found.append(_picture(before, now, n_eff, alpha))
    order = {"changed": 0, "new": 1, "gone": 1, "not compared": 2, "same": 3}
    return tuple(
        sorted(found, key=lambda c: (order[c.status], -_excess(c), natural_order(c.column)))
    )


def _ratio(contents: Contents) -> float:
    return contents.n_looked_at / contents.n_records if contents.n_records else 0.0


def _excess(column: ColumnDrift) -> float:
    """Distance over noise, for the order."""
    if column.distance is None:
        return 0.0
    return column.distance / max(column.noise or 0.0, 1e-9)


def _column(
    old: ColumnContent | None, now: ColumnContent | None, n_eff: float, alpha: float, name: str
) -> ColumnDrift:
    if old is None or now is None:
        there = now or old
        assert there is not None
        return ColumnDrift(column=name, kind=there.kind, status="new" if old is None else "gone")
    nulls = [c.n_null / max(c.n + c.n_null, 1) for c in (old, now)]
    null_noise = share_noise(fmean(nulls), n_eff, alpha)
    null_changed = abs(nulls[0] - nulls[1]) > null_noise
    values = _values(old, now, n_eff, alpha)
    if null_changed:
        values = values.model_copy(update={"status": "changed"})
    return values.model_copy(
        update={
            "null_before": nulls[0],
            "null_now": nulls[1],
            "null_noise": null_noise,
            "null_changed": null_changed,
        }
    )


def _values(old: ColumnContent, now: ColumnContent, n_eff: float, alpha: float) -> ColumnDrift:
    why = ""
    if old.kind != now.kind:
        why = f"it was {old.kind} and is {now.kind}"
    elif not old.n or not now.n:
        why = "it was empty or is"
    elif not (old.points or old.levels) or not (now.points or now.levels):
        why = "a report may not hold real values (report.pictures)"
    elif now.kind == "category" and max(old.n_levels, now.n_levels) > MAX_LEVELS:
        # Each version knows its own most frequent ones: rare levels would come and go by chance.
        why = f"it has more than {MAX_LEVELS} values"
    if why:
        return ColumnDrift(column=now.name, kind=now.kind, status="not compared", why=why)
    # Empty values are no values: as many fewer count.
    n_eff *= min(old.n / (old.n + old.n_null), now.n / (now.n + now.n_null))
    return (_levels if now.kind == "category" else _numbers)(old, now, n_eff, alpha)


def _numbers(old: ColumnContent, now: ColumnContent, n_eff: float, alpha: float) -> ColumnDrift:
    a, b = np.array(old.at_most) / old.n, np.array(now.at_most) / now.n
    distance = float(np.abs(a - b).max())
    noise = min(1.0, math.sqrt(math.log(2 / alpha) / (2 * n_eff))) if n_eff else 1.0
    return ColumnDrift(
        column=now.name,
        kind=now.kind,
        status="changed" if distance > noise else "same",
        distance=distance,
        noise=noise,
        edges=old.edges,
        before=tuple(k / old.n for k in old.counts),
        now=tuple(k / now.n for k in now.counts),
    )


def _levels(old: ColumnContent, now: ColumnContent, n_eff: float, alpha: float) -> ColumnDrift:
    names = sorted({*old.levels, *now.levels}, key=lambda v: (-_pooled(v, old, now), v))
    a, b = ([c.levels.get(v, 0) / c.n for v in names] for c in (old, now))
    rest = [max(0.0, 1 - sum(a)), max(0.0, 1 - sum(b))]
    distance = 0.5 * sum(abs(x - y) for x, y in zip([*a, rest[0]], [*b, rest[1]], strict=True))
    mean = 0.0
    noise = 1.0
    if n_eff:
        shares = [_pooled(v, old, now) for v in names] + [fmean(rest)]
        mean = 0.5 * sum(math.sqrt(2 / math.pi * p * (1 - p) / n_eff) for p in shares if p < 1)
        noise = min(1.0, mean + math.sqrt(math.log(1 / alpha) / (2 * n_eff)))
    shown = names[:SHOWN_LEVELS]
    return ColumnDrift(
        column=now.name,
        kind="category",
        status="changed" if distance > noise else "same",
        distance=distance,
        noise=noise,
        new_levels={v: n for v, n in now.levels.items() if v not in old.levels},
        vanished_levels={v: n for v, n in old.levels.items() if v not in now.levels},
        levels=tuple(shown),
        before=tuple(a[: len(shown)]),
        now=tuple(b[: len(shown)]),
    )


def _pooled(level: str, *sides: ColumnContent) -> float:
    return fmean(side.levels.get(level, 0) / side.n for side in sides)


def _picture(before: Contents, now: Contents, n_eff: float, alpha: float) -> ColumnDrift:
    """The mean picture: root mean square over its pixels of the difference, in standard deviations."""
    # One scale for all: a pixel at the border that is almost always black would outweigh the others.
    spread = max(1.0, float(np.sqrt(np.mean(np.array(before.picture_spread) ** 2))))
    moved = np.array(now.mean_picture) - np.array(before.mean_picture)
    distance = float(np.sqrt(np.mean(moved**2))) / spread
    # Pixels go together; at worst all move as one, and the tail is that of one normal variable.
    noise = (1 + math.sqrt(2 * math.log(1 / alpha))) / math.sqrt(n_eff) if n_eff else 1.0
    return ColumnDrift(
        column="mean picture",
        kind="picture",
        status="changed" if distance > noise else "same",
        distance=distance,
        noise=noise,
        before=before.mean_picture,
        now=now.mean_picture,
    )


def strategy_drifts(
    before: tuple[Mapping[str, float], Verdict | None],
    now: tuple[Sequence[StrategyScore], Verdict | None],
) -> tuple[StrategyDrift, ...]:
    """Every strategy of the two versions, the best now first: its validation score, and the verdict."""
    validation = [dict(before[0]), _validation_scores(now[0])]
    hold = [v.balanced_accuracy if v else {} for v in (before[1], now[1])]
    names = sorted(
        {*validation[0], *validation[1], *hold[0], *hold[1]},
        key=lambda n: (-validation[1].get(n, -1.0), natural_order(n)),
    )
    return tuple(
        StrategyDrift(
            name=name,
            validation_before=validation[0].get(name),
            validation_now=validation[1].get(name),
            holdout_before=hold[0].get(name),
            holdout_now=hold[1].get(name),
            changed=_apart(hold[0].get(name), hold[1].get(name)),
        )
        for name in names
    )


def _validation_scores(scores: Sequence[StrategyScore]) -> dict[str, float]:
    by_strategy: dict[str, list[float]] = {}
    for score in scores:
        by_strategy.setdefault(score.strategy.name, []).append(score.score)
    return {name: fmean(found) for name, found in by_strategy.items()}


def _apart(a: Interval | None, b: Interval | None) -> bool:
    """Whether two estimates differ by more than the root of the sum of their squared half-widths."""
    if a is None or b is None:
        return False
    widths = math.hypot((a.high - a.low) / 2, (b.high - b.low) / 2)
    return abs(a.estimate - b.estimate) > widths


def drift_sentence(drift: Drift) -> str:
    """What changed, in a few sentences."""
    more = drift.n_now - drift.n_before
    size = (
        f"{count(abs(more))} records {'more' if more > 0 else 'fewer'}"
        if more
        else "as many records"
    )
    if more and drift.n_before:
        size += f" ({percent(abs(more) / drift.n_before)} %)"
    parts = [f"Since version {drift.version}: {size}."]
    parts += _named("New classes", [c.name for c in drift.classes if not c.before])
    parts += _named("Classes that are gone", [c.name for c in drift.classes if not c.now])
    moved = [c.name for c in drift.classes if c.changed and c.before and c.now]
    parts += _named("Classes whose share moved beyond chance", moved)
    for word, status in (("New columns", "new"), ("Columns that are gone", "gone")):
        parts += _named(word, [c.column for c in drift.columns if c.status == status])
    changed = [c.column for c in drift.columns if c.status == "changed"]
    parts += _named("Columns that changed beyond chance", changed)
    if not changed and any(c.status == "same" for c in drift.columns):
        parts.append("No column changed beyond chance.")
    if drift.recipe_before and drift.recipe_now and drift.recipe_before != drift.recipe_now:
        parts.append(f"The recipe was “{drift.recipe_before}” and is “{drift.recipe_now}”.")
    return " ".join(parts)


def _named(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{what}: {', '.join(f'“{name}”' for name in names[:NAMED])}{more}."]


def recipe_name(recipe: Recipe | None) -> str:
    """What a recipe is called; empty for none."""
    return recipe.strategy.name if recipe else ""
