"""How the compared strategies do on corrupted hold-out records.

Every condition has the same records and the same bootstrap draws, so that a difference between
strategies, and its change from clean records, have intervals of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.evaluation.metrics.bootstrap import (
    Bootstrap,
    paired_bootstrap,
    percentiles,
    units_of,
)
from prefect_augment.evaluation.metrics.corruptions import Corruption
from prefect_augment.schema import ConditionRow, Difference, Interval, RobustnessResult

Pairs = Sequence[tuple[str, str]]


def rows_to_corrupt(y: Int, compared: Bool, *, most: int, seed: int) -> Int:
    """Sorted rows of compared classes, at most ``most``: equally many per class, and all of rarer classes.

    Balanced accuracy is most precise that way.
    """
    rows = np.flatnonzero(compared[y])
    if len(rows) <= most:
        return rows
    counts = np.bincount(y[rows])
    sizes = np.sort(counts[counts > 0])
    # The largest n per class with which the classes together have at most ``most``.
    full = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    room = (most - full) // np.arange(len(sizes), 0, -1)
    per_class = int(room[np.argmax(room <= sizes)])
    order = np.random.default_rng(seed).permutation(rows)
    order = order[np.argsort(y[order], kind="stable")]
    rank = np.arange(len(order)) - np.searchsorted(y[order], y[order])
    return np.sort(order[rank < max(1, per_class)])


def robustness(
    y: Int,
    clean: Mapping[str, Float],
    corrupted: Mapping[str, Mapping[str, Float]],
    *,
    corruptions: Sequence[Corruption],
    pairs: Pairs,
    compared: Bool,
    groups: Any = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> RobustnessResult:
    """Compare strategies under each corruption.

    ``clean`` maps strategies, and ``corrupted`` corruptions and strategies, to shares of right
    estimators, shape (n_seeds, n_records). The result's sentence is about the first of ``pairs``
    (strategy, against). For the other parameters see :func:`.paired_bootstrap`.
    """
    # With units all conditions have the same draws; records merged by equal hits would not.
    units = units_of(len(y), groups, seed=seed)

    def draw(hits: Mapping[str, Float]) -> Bootstrap:
        return paired_bootstrap(
            y, hits, compared=compared, groups=units, n_bootstrap=n_bootstrap, seed=seed
        )

    base = _Drawn.of(draw(clean))
    by_corruption = {c.name: _Drawn.of(draw(corrupted[c.name])) for c in corruptions}
    mean = _Drawn.mean(list(by_corruption.values()))
    conditions = tuple(
        by_corruption[c.name].result(c.name, c.strength, pairs, base=base) for c in corruptions
    )
    overall = mean.result("mean", "the mean over these conditions", pairs, base=base)
    return RobustnessResult(
        n_records=len(y),
        seed=seed,
        clean=base.result("clean", "the same records as they are", pairs),
        conditions=conditions,
        mean=overall,
        sentence=_sentence(overall, conditions, pairs),
    )


class _Drawn:
    """Balanced accuracy of each strategy: the estimate, and its draws of shape (n_bootstrap,)."""

    def __init__(self, estimate: Mapping[str, float], draws: Mapping[str, Float]) -> None:
        self.estimate, self.draws = estimate, draws

    @classmethod
    def of(cls, boot: Bootstrap) -> "_Drawn":
        return cls(
            {strategy: float(boot.recall[a].mean()) for a, strategy in enumerate(boot.strategies)},
            {strategy: boot.draws[:, a].mean(axis=1) for a, strategy in enumerate(boot.strategies)},
        )

    @classmethod
    def mean(cls, some: "Sequence[_Drawn]") -> "_Drawn":
        strategies = list(some[0].estimate)
        return cls(
            {
                strategy: float(np.mean([s.estimate[strategy] for s in some]))
                for strategy in strategies
            },
            {
                strategy: np.mean([s.draws[strategy] for s in some], axis=0)
                for strategy in strategies
            },
        )

    def difference(self, strategy: str, against: str) -> tuple[float, Float]:
        return (
            self.estimate[strategy] - self.estimate[against],
            self.draws[strategy] - self.draws[against],
        )

    def result(
        self, name: str, strength: str, pairs: Pairs, *, base: "_Drawn | None" = None
    ) -> ConditionRow:
        differences, changes = [], []
        for strategy, against in pairs:
            gap, draws = self.difference(strategy, against)
            differences.append(_named(strategy, against, percentiles(gap, draws)))
            if base is not None:
                clean_gap, clean_draws = base.difference(strategy, against)
                changes.append(
                    _named(strategy, against, percentiles(gap - clean_gap, draws - clean_draws))
                )
        return ConditionRow(
            name=name,
            strength=strength,
            balanced_accuracy={
                strategy: percentiles(value, self.draws[strategy])
                for strategy, value in self.estimate.items()
            },
            differences=tuple(differences),
            changes=tuple(changes),
        )


def _named(strategy: str, against: str, interval: Interval) -> Difference:
    return Difference(strategy=strategy, against=against, interval=interval)


def _sentence(mean: ConditionRow, conditions: Sequence[ConditionRow], pairs: Pairs) -> str:
    if not pairs:
        return (
            "Only one strategy was compared, so there is no gain or loss in robustness to report."
        )
    gap, change = mean.differences[0], mean.changes[0].interval
    clean = gap.interval.estimate - change.estimate
    text = (
        f"On corrupted records “{gap.strategy}” differs from “{gap.against}” by "
        f"{_points(gap.interval.estimate)} points on "
        f"average (95 % interval {_points(gap.interval.low)} to {_points(gap.interval.high)}), on clean ones by "
        f"{_points(clean)}: "
    )
    if change.low > 0:
        text += "robustness improves."
    elif change.high < 0:
        still = ", though it stays better" if gap.interval.low > 0 else ""
        text += f"robustness gets worse{still}."
    else:
        text += "no clear change in robustness."
    worse = [c.name for c in conditions if c.differences[0].interval.high < 0]
    return text + (f" It is worse under {', '.join(worse)}." if worse else "")


def _points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"
