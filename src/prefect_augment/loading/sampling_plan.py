"""Which records a reader gets, and how often: passes over groups of records, divided among readers.

Pure arithmetic over the number and the weight of the records in each group (the unit that is read from a shard).
Readers are the workers of all ranks; each computes the same order of groups and the same parts from seed and epoch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from prefect_augment.array_types import Bool, Float, Int

# With one pass, a record that is drawn 50 times in an epoch would be 50 times in one batch; more
# passes than this gain little and cost their time each.
MAX_ROUNDS = 8


@dataclass(frozen=True)
class Pass:
    """One reading of the data."""

    order: Int  # (n_read,) groups in reading order
    ends: Int  # (n_read,) records given after each of them
    scale: float = 0.0  # expected draws per unit of weight; 0: every record once
    offset: float = 0.0  # in [0, 1), start of the systematic draws
    begin: Float | None = None  # (n_read,) expected draws before each group
    factor: Float | None = None  # (n_classes,) without synthetic records: see real_only_weights
    number: int = 0  # of the pass within the epoch

    @property
    def n_records(self) -> int:
        """Records given, repeats included."""
        return int(self.ends[-1]) if len(self.ends) else 0


class Part(NamedTuple):
    """Records ``start`` to ``stop`` of those that the group at ``place`` of a pass gives."""

    place: int
    start: int
    stop: int


@dataclass(frozen=True)
class Reader:
    """One of ``n_ranks`` × ``n_workers`` readers."""

    rank: int = 0
    n_ranks: int = 1
    worker: int = 0
    n_workers: int = 1

    def share(self, n: int) -> int:
        """Return the number of the first ``n`` records that are this reader's: equal parts, up to one."""
        return self._before(n, self.worker + 1) - self._before(n, self.worker)

    def parts(self, passes: Sequence[Pass]) -> Iterator[tuple[Pass, list[Part]]]:
        """Yield each pass with the parts of its groups to read."""
        before = 0
        for one in passes:
            after = before + one.n_records
            start, stop = (
                self._before(after, worker) - self._before(before, worker)
                for worker in (self.worker, self.worker + 1)
            )
            begins = np.concatenate([[0], one.ends])[: len(one.ends)]
            low, high = np.maximum(start - begins, 0), np.minimum(stop, one.ends) - begins
            places = np.flatnonzero(high > low)
            rows = np.stack([places, low[places], high[places]], axis=1).tolist()
            yield one, [Part(*row) for row in rows]
            before = after

    def _before(self, n: int, worker: int) -> int:
        """Return how many of the first ``n`` records go to lower ranks, or to this one's workers below ``worker``."""
        own = _turns(n, self.rank, self.n_ranks)
        lower = sum(_turns(n, rank, self.n_ranks) for rank in range(self.rank))
        return lower + sum(_turns(own, w, self.n_workers) for w in range(worker))


def _turns(n: int, i: int, of: int) -> int:
    """Return reader ``i``'s number of ``n`` turns. It grows with n, so that parts of an epoch add up."""
    return (n + of - 1 - i) // of


def one_pass(n_rows: Int, rng: np.random.Generator | None) -> Pass:
    """Return a pass of every record once; groups are shuffled if there is a generator."""
    order = np.arange(len(n_rows)) if rng is None else rng.permutation(len(n_rows))
    return Pass(order, np.cumsum(n_rows[order]))


def weighted_passes(
    n: int,
    weights: Float,
    largest: float,
    rng: np.random.Generator,
    *,
    factor: Float | None = None,
    number: int = 0,
) -> list[Pass]:
    """Return passes that together give ``n`` records, in proportion to their weights.

    Systematic draws: in a pass a record comes the whole number below or above its expected number.
    ``weights`` are the groups' sums, shape (n_groups,); the number of passes grows with ``largest``, the
    largest weight of a record. ``number`` is that of the first pass.
    """
    total = float(weights.sum())
    if n == 0 or total <= 0:
        return []
    rounds = min(MAX_ROUNDS, max(1, math.ceil(round(n * largest / total, 6))))
    passes = []
    for i in range(rounds):
        n_now = n * (i + 1) // rounds - n * i // rounds
        order = rng.permutation(len(weights))
        order = order[weights[order] > 0]
        sums = np.concatenate([[0.0], np.cumsum(weights[order])]) * (n_now / total)
        sums[-1] = n_now
        offset = float(rng.random())
        ends = np.floor(sums[1:] + offset).astype(np.int64)
        passes.append(Pass(order, ends, n_now / total, offset, sums[:-1], factor, number + i))
    return passes


def draw_rows(one: Pass, place: int, weights: Float, rng: np.random.Generator) -> Int:
    """Return the rows that the group at ``place`` gives in a pass, repeats side by side.

    ``weights`` are those of the group's records, shape (n_rows,), unused if every record comes once.
    ``rng`` has to be the same for every reader of the group: two may share it.
    """
    begin = int(one.ends[place - 1]) if place else 0
    n_drawn = int(one.ends[place]) - begin
    if one.begin is None:
        return np.arange(n_drawn)
    if n_drawn == 0:
        return np.zeros(0, dtype=np.int64)
    rows = rng.permutation(np.flatnonzero(weights > 0))
    ends = one.begin[place] + np.cumsum(weights[rows]) * one.scale
    row_ends = np.floor(ends + one.offset).astype(np.int64)
    # A group ends at the sum of its weights, so that readers agree to the last record.
    row_ends = np.clip(row_ends, begin, begin + n_drawn)
    row_ends[-1] = begin + n_drawn
    return np.repeat(rows, np.diff(row_ends, prepend=begin))


def real_only_weights(weights: Float, synthetic: Bool) -> tuple[Float, Float]:
    """Return weights without synthetic records, with each class drawn as often as before.

    ``weights`` are sums per group and class, shape (n_groups, n_classes); groups have records of one origin.
    Also returns each class's factor for real records, shape (n_classes,). A class without real records
    keeps its synthetic ones; its factor is 0.
    """
    total, real = weights.sum(axis=0), weights[~synthetic].sum(axis=0)
    factor = np.divide(total, real, out=np.zeros_like(total), where=real > 0)
    kept = np.where(synthetic[:, None], np.where(real > 0, 0.0, weights), weights * factor)
    return kept, factor


def natural_weights(weights: Float, n_of_class: Int) -> tuple[Float, Float]:
    """Return weights with which each class is drawn as often as it has records.

    ``weights`` are sums per group and class, shape (n_groups, n_classes). Also returns each class's factor,
    shape (n_classes,).
    """
    total = weights.sum(axis=0)
    factor = np.divide(n_of_class, total, out=np.zeros_like(total), where=total > 0)
    return weights * factor, factor
