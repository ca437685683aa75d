"""Intervals for balanced accuracy, for differences between strategies, and for other sums over records.

One set of draws serves all strategies, so differences are paired by record and by seed. Draws have
two levels: groups of records (single records where there are no groups) and training seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.nn.threads import single_threaded
from prefect_augment.schema import Interval

CHUNK_BYTES = 32 << 20
# Agresti & Min 2005: half a record in each cell of the two-by-two table "first strategy right or wrong,
# second strategy right or wrong", so two records a class in all.
PRIOR_RECORDS = 2.0
# Up to this many classes the imaginary records' pull stays: it is small beside the spread.
FEW_CLASSES = 4


@dataclass(frozen=True)
class Bootstrap:
    """Draws of every strategy's recall per class, from which intervals are computed."""

    strategies: tuple[str, ...]
    classes: Int  # (n_present,) codes of the compared classes that have records
    by_seed: Float  # (n_seeds, n_strategies, n_present) plain estimates
    draws: Float  # (n_bootstrap, n_strategies, n_present), mean over seeds, records drawn anew
    n_units: Int  # (n_present,) records of each class, or groups that hold any
    units: "_Units"

    @property
    def recall(self) -> Float:
        """Plain estimates, mean over seeds, shape (n_strategies, n_present)."""
        return np.asarray(self.by_seed.mean(axis=0))

    def balanced_accuracy(self, strategy: str) -> Interval:
        """Mean recall of a strategy with its 95 % interval."""
        weights = self._weights({strategy: 1 / len(self.classes)})
        return _of_a_share(self._interval(weights, self._centred(weights)))

    def difference(self, strategy: str, against: str, *, level: float = 0.95) -> Interval:
        """Balanced accuracy of ``strategy`` minus that of ``against``, paired by record."""
        share = 1 / len(self.classes)
        weights = self._weights({strategy: share}) + self._weights({against: -share})
        return self._interval(weights, self._centred(weights), level)

    def worst_recall_difference(self, strategy: str, against: str) -> Interval:
        """Lowest recall over the classes of ``strategy`` minus that of ``against``."""
        a, b = self.strategies.index(strategy), self.strategies.index(against)
        worst_a, worst_b = self.recall[a].argmin(), self.recall[b].argmin()
        weights = self._weights({strategy: 1}, worst_a) + self._weights({against: -1}, worst_b)
        return self._interval(weights, self.draws[:, a].min(axis=1) - self.draws[:, b].min(axis=1))

    def class_recall(self, strategy: str) -> dict[int, Interval]:
        """Recall of each class code with its own 95 % interval, not corrected for their number."""
        a = self.strategies.index(strategy)
        return {
            int(k): _of_a_share(
                self._interval(self._weights({strategy: 1}, j), self.draws[:, a, j])
            )
            for j, k in enumerate(self.classes)
        }

    def class_difference(self, strategy: str, against: str) -> dict[int, Interval]:
        """Difference in recall per class code; together the intervals hold at 95 % (max-T)."""
        a, b = self.strategies.index(strategy), self.strategies.index(against)
        draws = self.draws[:, a] - self.draws[:, b]
        wider = [
            self._wider(
                self._weights({strategy: 1}, j) + self._weights({against: -1}, j), draws[:, j]
            )
            for j in range(len(self.classes))
        ]
        centre = draws.mean(axis=0)
        draws = centre + wider * (draws - centre)
        intervals = simultaneous(self.recall[a] - self.recall[b], draws, self.n_units)
        return {int(k): i for k, i in zip(self.classes, intervals, strict=True)}

    def _weights(self, of: Mapping[str, float], only: Any = slice(None)) -> Float:
        """Weights of a sum of recalls, shape (n_strategies, n_present); of one class with ``only``."""
        weights = np.zeros((len(self.strategies), len(self.classes)))
        for strategy, weight in of.items():
            weights[self.strategies.index(strategy), only] = weight
        return weights

    def _centred(self, weights: Float) -> Float:
        """Draws of a mean over classes, without the imaginary records' pull but for a few classes' part.

        They pull every class towards no difference. For few classes that is cautious. In a mean
        over many the pull stays while the spread shrinks, and with some tens of small classes the
        interval would miss the truth. The spread that they add is kept.
        """
        draws = np.tensordot(self.draws, weights, 2)
        pull = float(draws.mean() - (self.recall * weights).sum())
        return np.asarray(draws - max(0.0, 1.0 - FEW_CLASSES / len(self.classes)) * pull)

    def _interval(self, weights: Float, draws: Float, level: float = 0.95) -> Interval:
        """Percentiles of the records' draws, as much wider as training seeds and few records make them."""
        estimate = float((self.recall * weights).sum())
        uncertain = self.units.uncertainty(weights, len(self.by_seed))
        factor = self._wider(weights, draws, uncertain, level)
        return stretched(estimate, draws, factor, level=level)

    def _wider(
        self, weights: Float, draws: Float, uncertain: float = 0.0, level: float = 0.95
    ) -> float:
        """:func:`wider_interval` for a sum of recalls."""
        n_seeds, seeds = len(self.by_seed), []
        for a in np.flatnonzero(weights.any(axis=1)) if n_seeds > 1 else ():
            own = np.zeros_like(weights)
            own[a] = weights[a]
            between = float(np.tensordot(self.by_seed, own, 2).var(ddof=1))
            seeds.append((between, self.units.interaction(own, n_seeds)))
        return wider_interval(float(draws.var()), seeds, n_seeds, uncertain, level=level)


def _of_a_share(interval: Interval) -> Interval:
    """What was widened may reach beyond 0 or 1, where no recall is."""
    ends = {"low": max(0.0, interval.low), "high": min(1.0, interval.high)}
    return interval.model_copy(update=ends)


LEAST_FREEDOM = 3  # with fewer, Student's t has no end at the levels of later looks


def wider_interval(
    records: float,  # variance of the mean over seeds that the records have
    # per strategy: variance between seeds, and chance's part of it
    seeds: Sequence[tuple[float, float]],
    n_seeds: int,
    uncertain: float,  # half the variance of ``records``: its square over its degrees of freedom
    *,
    level: float,
) -> float:
    """How many times wider than a normal one by records alone an interval of a difference is.

    Records and seeds are crossed: each seed's estimator is tested on the same records. The spread between a
    strategy's seeds has two parts, the seeds' own and chance in single records, which the records' variance of the
    mean over seeds holds already. The first is the ANOVA component (Searle et al. 1992, section 4.3); few seeds tell
    little of it, hence Student's t with the degrees of freedom of Satterthwaite (1946), also where the component came
    out as 0. Two strategies draw their training apart, so their components add up. Drawing seeds beside records
    counts the second part twice (Owen 2007, "The pigeonhole bootstrap").
    """
    if records == 0:
        return 1.0
    own = sum(max(0.0, between - chance) for between, chance in seeds) / n_seeds
    uncertain += sum((between / n_seeds) ** 2 / (n_seeds - 1) for between, _ in seeds)
    total, tail = records + own, (1 + level) / 2
    freedom = max(LEAST_FREEDOM, total**2 / uncertain) if uncertain else np.inf
    return float(np.sqrt(total / records) * stdtrit(freedom, tail) / ndtri(tail))


def stretched(estimate: float, draws: Float, factor: float, *, level: float) -> Interval:
    """Percentile interval of draws that are ``factor`` times as far from their mean.

    Beyond 95 % the draws are too few for their own tails: the 95 % interval is stretched as a normal
    distribution's would be.
    """
    centre = draws.mean()
    if level > 0.95:
        factor *= float(ndtri((1 + level) / 2) / ndtri(0.975))
    return percentiles(estimate, centre + factor * (draws - centre), level=min(level, 0.95))


def simultaneous(
    estimate: Float,  # (n,)
    draws: Float,  # (n_draws, n)
    n_units: Int,  # (n,) records, or groups of them, behind each estimate
    level: float = 0.95,
) -> list[Interval]:
    """Intervals of differences that all hold together at ``level`` (max-T; Westfall & Young 1993, section 2.6).

    Each is as many standard deviations of its draws wide as the largest of all deviations stays within at that level,
    widened to Student's t for its units. Quantiles at a level divided by the number of classes would lie beyond the
    draws there are: of 60 classes with 30 records each, two equal strategies differ in one by them in about 40 % of
    repetitions, by these in 2 %. Each interval holds its estimate and stays within [-1, 1].
    """
    centre, spread = draws.mean(axis=0), draws.std(axis=0)
    deviations = np.abs(draws - centre) / np.where(spread > 0, spread, 1.0)
    widest = float(np.quantile(deviations.max(axis=1), level))
    # Never wider than Bonferroni: where strategies agree on every record of a class, only the
    # imaginary records vary, and their tails are long.
    widest = min(widest, float(-ndtri((1 - level) / 2 / len(estimate))))
    # A deviation estimated from few records is often too small: Student's t at the normal's tail.
    reach = -spread * stdtrit(np.maximum(n_units - 1, 1), ndtr(-widest))
    return [
        Interval(
            estimate=float(e),
            low=max(-1.0, float(min(c - r, e))),
            high=min(1.0, float(max(c + r, e))),
        )
        for e, c, r in zip(estimate, centre, reach, strict=True)
    ]


def paired_bootstrap(
    y: Int,  # (n_records,) class codes
    hits: Mapping[str, Float],  # by strategy, (n_seeds, n_records)
    *,
    compared: Bool,  # (n_classes,) classes that count
    groups: Any = None,  # (n_records,)
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Bootstrap:
    """Bootstrap of all strategies' recalls over groups (or records), with the same draws for all.

    ``hits`` are the shares of estimators that are right about a record under a seed. EmptyClassError if no record
    belongs to a compared class; ParameterError if the strategies' shapes differ.

    Groups get exponential weights (the Bayesian bootstrap, Rubin 1981) instead of whole counts, so no class can
    vanish from a draw. Records with equal hits throughout share one gamma weight: the same distribution for much less
    work. A class of which every record is right would have no spread at all, so each class also gets
    ``PRIOR_RECORDS`` (two) imaginary records, spread over all ways in which the strategies can be right or wrong:
    with three records in a class, nothing is shown (Agresti & Min 2005, "Simple improved confidence intervals for
    comparing matched proportions"). Training seeds are a crossed effect: :meth:`Bootstrap.difference`.
    """
    strategies = tuple(hits)
    shapes = {hits[strategy].shape for strategy in strategies}
    if len(shapes) != 1 or shapes != {(hits[strategies[0]].shape[0], len(y))}:
        raise ParameterError(
            f"expected hits of one shape (n_seeds, {len(y)}) for every strategy; got {sorted(shapes)}."
        )
    counted = np.flatnonzero(compared[y])
    if not len(counted):
        raise EmptyClassError(
            "no record belongs to a compared class, so there is nothing to compare."
        )
    n_seeds = hits[strategies[0]].shape[0]
    # of shape (n_counted, strategies * seeds)
    flat = np.concatenate([hits[strategy][:, counted] for strategy in strategies]).T
    classes, y_dense = np.unique(y[counted], return_inverse=True)
    if groups is None:
        units = _units_of_records(y_dense, flat)
    else:
        units = _units_of_groups(
            y_dense, flat, np.unique(np.asarray(groups)[counted], return_inverse=True)[1]
        )

    rng = np.random.default_rng(seed)
    with single_threaded():
        draws = _draw_recalls(units, len(classes), len(strategies), n_seeds, n_bootstrap, rng)
    n_k = np.bincount(y_dense)
    recall = np.stack([np.bincount(y_dense, weights=column) / n_k for column in flat.T])
    by_seed = recall.reshape(len(strategies), n_seeds, len(classes)).swapaxes(0, 1)
    n_units = np.bincount(units.klass, weights=units.size[units.unit], minlength=len(classes))
    return Bootstrap(strategies, classes, by_seed, draws, n_units.astype(np.int64), units)


@dataclass(frozen=True)
class _Units:
    """What is drawn together, and the records of each class in it."""

    size: Float  # (n_units,) number of identical units that share a weight
    unit: Int  # (n_entries,) an entry is one unit's records of one class
    klass: Int  # (n_entries,)
    n: Float  # (n_entries,) records
    hits: Float  # (n_entries, n_strategies * n_seeds) sums of hits

    def interaction(self, weights: Float, n_seeds: int) -> float:
        """Variance that chance in single units gives a sum of recalls of one seed."""
        variance = 0.0
        for size, values in self._parts(weights, n_seeds):
            n = size.sum()
            residuals = values - values.mean(axis=1, keepdims=True)
            residuals -= np.average(residuals, axis=0, weights=size)
            variance += n / max(1.0, n - 1) * float(size @ (residuals**2).sum(axis=1))
        return variance / (n_seeds - 1)

    def uncertainty(self, weights: Float, n_seeds: int) -> float:
        """Half the variance of the variance that the units give a sum of recalls.

        Few units that differ say little of how much units differ, and imaginary ones are known. From
        fourth moments (O'Neill 2014, "Some useful moment results in sampling problems").
        """
        uncertain = 0.0
        for size, values in self._parts(weights, n_seeds):
            of_mean = values.mean(axis=1) * size.sum() / (size.sum() + PRIOR_RECORDS)
            squares = (of_mean - np.average(of_mean, weights=size)) ** 2
            uncertain += float(size @ (squares - np.average(squares, weights=size)) ** 2) / 2
        return uncertain

    def sizes(self, entries: Int) -> tuple[float, float]:
        """Records of a class in a unit on average, and how many of them one independent record is worth.

        The second is Kish's (1965) design effect of the hits, 1 for independent records: an imaginary
        unit is as large as the class's units are, and its records are as alike as theirs.
        """
        size, n, hits = self.size[self.unit[entries]], self.n[entries], self.hits[entries]
        per_unit = float(np.average(n, weights=size))
        share = size @ hits / (size @ n)
        chance = (size @ n) * float((share * (1 - share)).sum())
        if chance == 0:  # all right or all wrong: as alike as can be
            return per_unit, per_unit
        between = float((size @ (hits - n[:, None] * share) ** 2).sum())
        return per_unit, float(np.clip(between / chance, 1.0, per_unit))

    def _parts(self, weights: Float, n_seeds: int) -> Iterator[tuple[Float, Float]]:
        """Per class, and for units of several: numbers of units, and their part (n, n_seeds) of a sum of recalls.

        ``weights`` (n_strategies, n_classes).
        """
        n_k = np.bincount(self.klass, weights=self.n * self.size[self.unit])
        by_strategy = self.hits.reshape(len(self.hits), len(weights), n_seeds)
        parts = np.einsum("eas,ea->es", by_strategy, (weights / n_k).T[self.klass])
        n_units = len(self.size)
        values = np.stack(
            [np.bincount(self.unit, weights=part, minlength=n_units) for part in parts.T], axis=1
        )  # (n_units, n_seeds)
        stratum = np.full(n_units, weights.shape[1])
        stratum[self.unit] = self.klass
        stratum[np.bincount(self.unit, minlength=n_units) > 1] = weights.shape[1]
        for g in np.unique(stratum):
            yield self.size[stratum == g], values[stratum == g]


def _units_of_records(y: Int, flat: Float) -> _Units:
    """Records of one class with equal hits throughout are one unit of that size."""
    table = np.column_stack([y, flat])
    order = np.lexsort(table.T)
    table = table[order]
    starts = np.flatnonzero(np.r_[True, (table[1:] != table[:-1]).any(axis=1)])
    size = np.diff(np.r_[starts, len(y)]).astype(np.float64)
    rows: Float = table[starts]
    return _Units(
        size, np.arange(len(rows)), rows[:, 0].astype(np.int64), np.ones(len(rows)), rows[:, 1:]
    )


def _units_of_groups(y: Int, flat: Float, group: Int) -> _Units:
    """Each group is a unit; it may hold several classes."""
    n_classes = int(y.max()) + 1
    entries, entry = np.unique(group * n_classes + y, return_inverse=True)
    n = np.bincount(entry).astype(np.float64)
    hits: Float = np.stack([np.bincount(entry, weights=column) for column in flat.T], axis=1)
    return _Units(np.ones(int(group.max()) + 1), entries // n_classes, entries % n_classes, n, hits)


def _draw_recalls(
    units: _Units,
    n_classes: int,
    n_strategies: int,
    n_seeds: int,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> Float:
    """Recall per draw, strategy and class, shape (n_bootstrap, n_strategies, n_classes)."""
    of_class = [np.flatnonzero(units.klass == k) for k in range(n_classes)]
    # cell c of the imaginary records: strategy a is right where bit a of c is set
    cells = (np.arange(2**n_strategies)[:, None] >> np.arange(n_strategies)) & 1
    draws = np.empty((n_bootstrap, n_strategies, n_classes))
    chunk = max(1, CHUNK_BYTES // (8 * (len(units.size) + len(units.unit))))
    for start in range(0, n_bootstrap, chunk):
        n_draws = min(chunk, n_bootstrap - start)
        weight = rng.standard_gamma(units.size, size=(n_draws, len(units.size)))
        for k, entries in enumerate(of_class):
            w = weight[:, units.unit[entries]]
            right = (w @ units.hits[entries]).reshape(n_draws, n_strategies, n_seeds)
            total = w @ units.n[entries]
            per_unit, alike = units.sizes(entries)
            shape = np.full(len(cells), PRIOR_RECORDS * per_unit / alike / len(cells))
            prior = alike * rng.standard_gamma(shape, size=(n_draws, len(cells)))
            right_mean = right.mean(axis=2) + prior @ cells
            share = right_mean / (total + prior.sum(axis=1))[:, None]
            draws[start : start + n_draws, :, k] = share.clip(0.0, 1.0)
    return draws


# Most random blocks that single records are drawn in: the variance of a mean over records stays the
# same, its estimate has an error of sqrt(2 / 2000) = 3 %, and the work no longer grows with records.
MAX_UNITS = 2000


def units_of(n: int, groups: Any, *, seed: int) -> Int:
    """Number of the unit that each of ``n`` records is drawn with: its group, or a random block."""
    if groups is not None:
        return np.asarray(np.unique(np.asarray(groups), return_inverse=True)[1], dtype=np.int64)
    if n <= MAX_UNITS:
        return np.arange(n, dtype=np.int64)
    return np.random.default_rng(seed).permutation(n) % MAX_UNITS


@dataclass(frozen=True)
class Draws:
    """Weights of records and training seeds in each draw (two-level Bayesian bootstrap)."""

    unit: Int  # (n_records,)
    every: Float  # (1 + n_draws, n_units): ones, which are the records themselves, then the draws
    seeds: Float  # (n_draws, n_seeds), rows sum to 1; from seed_weights

    @classmethod
    def of(cls, n: int, groups: Any, *, n_seeds: int, n_draws: int, seed: int) -> "Draws":
        """Draw the weights of ``n`` records in groups, and of ``n_seeds`` seeds."""
        unit = units_of(n, groups, seed=seed)
        rng = np.random.default_rng([seed, 1])
        every = np.ones((1 + n_draws, int(unit.max(initial=-1)) + 1))
        rng.standard_exponential(out=every[1:])
        return cls(unit, every, seed_weights(n_seeds, n_draws, rng))

    @property
    def weights(self) -> Float:
        """The draws, exponential, shape (n_draws, n_units)."""
        return self.every[1:]

    def sums(self, values: Float) -> Float:
        """Weighted sum of each column in each draw, shape (n_draws, n_columns)."""
        n_units = self.weights.shape[1]
        per_unit = np.stack(
            [np.bincount(self.unit, weights=column, minlength=n_units) for column in values.T],
            axis=1,
        )
        return np.asarray(self.weights @ per_unit)

    def means(self, values: Float) -> Float:
        """Weighted mean of a value (n_seeds, n_records) in each draw, shape (n_draws,)."""
        sums = self.sums(np.concatenate([values, np.ones((1, values.shape[1]))]).T)
        means = ((sums[:, :-1] / sums[:, -1:]) * self.seeds).sum(axis=1)
        return np.clip(means, values.min(), values.max())


def seed_weights(n_seeds: int, n_draws: int, rng: np.random.Generator) -> Float:
    """Weight of each training seed in each draw, shape (n_draws, n_seeds); some may be negative.

    Seeds are drawn with replacement, one fewer than there are, which makes the spread of their mean unbiased (Rao & Wu
    1988, "Resampling inference with complex survey data"). Two or three seeds say little about that spread, and no draw
    exceeds the outermost of them. So weights move away from even ones by as much as Student's t of the difference of
    two strategies (2 n - 2 degrees of freedom) is wider than the normal. A single seed has all the weight.
    """
    if n_seeds == 1:
        return np.ones((n_draws, 1))
    even = np.full(n_seeds, 1 / n_seeds)
    drawn = rng.multinomial(n_seeds - 1, even, size=n_draws) / (n_seeds - 1)
    wider = float(stdtrit(2 * n_seeds - 2, 0.975) / ndtri(0.975))
    return np.asarray(even + wider * (drawn - even))


def percentiles(estimate: float, draws: Float, *, level: float = 0.95) -> Interval:
    """Percentile interval of draws that holds the estimate."""
    # The k-th of n draws is the quantile k / (n + 1) (Davison & Hinkley 1997, section 2.4).
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(draws, tails, method="weibull")
    # The imaginary records pull draws off an estimate at the edge, such as a recall of 1.
    return Interval(
        estimate=float(estimate), low=float(min(low, estimate)), high=float(max(high, estimate))
    )
