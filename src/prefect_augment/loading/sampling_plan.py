"""Which records a reader gets, and how often: passes over groups of records, cut among readers.

Pure arithmetic over the number and the weight of the records in each group (a group is what is read
from a shard at once). Readers are the workers of all ranks; they agree on the order of the groups and
on where each one's part begins because all compute the same from seed and epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Part",
    "Pass",
    "Reader",
    "draw_rows",
    "one_pass",
    "real_only_weights",
    "repeat_numbers",
    "weighted_passes",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

# A record that is drawn 50 times in an epoch would stand 50 times in one batch if the data were read
# once; more than this many readings gain little and cost their time each.
MAX_ROUNDS = 8


@dataclass(frozen=True)
class Pass:
    """One reading of the data.

    Attributes
    ----------
    order : ndarray of int64, shape (n_read,)
        The groups, in the order they are read.
    ends : ndarray of int64, shape (n_read,)
        Records given after each of them.
    scale : float
        Expected draws per unit of weight; 0 gives every record once, in its place.
    offset : float
        In [0, 1): where systematic draws begin.
    begin : ndarray of float64, shape (n_read,)
        Expected draws before each group.
    factor : ndarray of float64, shape (n_classes,), or None
        Where synthetic records are not drawn: see :func:`real_only_weights`.
    number : int
        Of the pass within the epoch.
    """

    order: Int
    ends: Int
    scale: float = 0.0
    offset: float = 0.0
    begin: Float | None = None
    factor: Float | None = None
    number: int = 0

    @property
    def n_records(self) -> int:
        """Records given, repeats counted."""
        return int(self.ends[-1]) if len(self.ends) else 0


@dataclass(frozen=True)
class Part:
    """The records ``start`` to ``stop`` of what group ``place`` of a pass gives."""

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
        """Records of the first ``n`` that are this reader's: equal parts, give or take one."""
        return _turns(self._of_rank(n, self.rank), self.worker, self.n_workers)

    def parts(self, passes: Sequence[Pass]) -> Iterator[tuple[Pass, list[Part]]]:
        """Yield the groups to read in each pass, and which of their records."""
        before = 0
        for one in passes:
            after = before + one.n_records
            start = sum(
                self._of_rank(after, r) - self._of_rank(before, r) for r in range(self.rank)
            )
            mine = [
                _turns(self._of_rank(after, self.rank), w, self.n_workers)
                - _turns(self._of_rank(before, self.rank), w, self.n_workers)
                for w in range(self.worker + 1)
            ]
            start += sum(mine[:-1])
            yield one, _between(one, start, start + mine[-1])
            before = after

    def _of_rank(self, n: int, rank: int) -> int:
        return _turns(n, rank, self.n_ranks)


def _turns(n: int, i: int, of: int) -> int:
    """How many of ``n`` turns are reader ``i``'s. Grows with n, so that parts of an epoch add up."""
    return (n + of - 1 - i) // of


def _between(one: Pass, start: int, stop: int) -> list[Part]:
    first = int(np.searchsorted(one.ends, start, side="right"))
    parts = []
    for place in range(first, len(one.ends)):
        begin = int(one.ends[place - 1]) if place else 0
        if begin >= stop:
            break
        low, high = max(start, begin) - begin, min(stop, int(one.ends[place])) - begin
        if high > low:
            parts.append(Part(place, low, high))
    return parts


# --- passes -----------------------------------------------------------------------------------


def one_pass(n_rows: Int, rng: np.random.Generator | None) -> Pass:
    """Return every record once; groups shuffled where there is a generator."""
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
    """Return passes that together give ``n`` records, each in proportion to its weight.

    Systematic draws: in a pass a record comes the whole number below or above its expected number.

    Parameters
    ----------
    n : int
        Records given in all.
    weights : ndarray of float64, shape (n_groups,)
        Sum of the weights in each group.
    largest : float
        Largest weight of a record: with it the number of passes grows.
    rng : numpy Generator
        For the order of the groups.
    factor : ndarray of float64, optional
        Kept in the passes.
    number : int
        Of the first pass.
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
    """Return the rows that a group gives in a pass, repeats side by side.

    Parameters
    ----------
    one : Pass
        The pass.
    place : int
        Of the group in it.
    weights : ndarray of float64, shape (n_rows,)
        Of the group's records; not used where every record is given once.
    rng : numpy Generator
        The same for every reader of the group: two may share it.
    """
    begin = int(one.ends[place - 1]) if place else 0
    n_given = int(one.ends[place]) - begin
    if one.begin is None:
        return np.arange(n_given)
    if n_given == 0:
        return np.zeros(0, dtype=np.int64)
    rows = rng.permutation(np.flatnonzero(weights > 0))
    ends = one.begin[place] + np.cumsum(weights[rows]) * one.scale
    counted = np.floor(ends + one.offset).astype(np.int64)
    # The groups' own sums decide where a group ends, so that readers agree to the last record.
    counted = np.clip(counted, begin, begin + n_given)
    counted[-1] = begin + n_given
    return np.repeat(rows, np.diff(counted, prepend=begin))


def repeat_numbers(rows: Int) -> Int:
    """Return, for rows whose repeats stand side by side, which repeat each is, from 0.

    Examples
    --------
    >>> repeat_numbers(np.array([7, 7, 7, 2, 5, 5]))
    array([0, 1, 2, 0, 0, 1])
    """
    if not len(rows):
        return rows
    starts = np.concatenate([[0], np.flatnonzero(np.diff(rows)) + 1])
    lengths = np.diff(np.append(starts, len(rows)))
    numbers: Int = np.arange(len(rows)) - np.repeat(starts, lengths)
    return numbers


def real_only_weights(weights: Float, synthetic: NDArray[np.bool_]) -> tuple[Float, Float]:
    """Return weights per group and class without synthetic records, each class drawn as often as before.

    Parameters
    ----------
    weights : ndarray of float64, shape (n_groups, n_classes)
        Sums of the records' weights; a group has records of one origin.
    synthetic : ndarray of bool, shape (n_groups,)
        Which groups hold synthetic records.

    Returns
    -------
    tuple of ndarray
        The weights with that, and the factor of each class, shape (n_classes,), for real records. A
        class without real records keeps its synthetic ones; its factor is 0.
    """
    total, real = weights.sum(axis=0), weights[~synthetic].sum(axis=0)
    factor = np.divide(total, real, out=np.zeros_like(total), where=real > 0)
    kept = np.where(synthetic[:, None], np.where(real > 0, 0.0, weights), weights * factor)
    return kept, factor
