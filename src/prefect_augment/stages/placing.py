"""Which shard every candidate goes to: each part of each batch in the order of its ids, cut into shards.

Ids come by key and are wanted by id; places come by id and are wanted by row. Both times they are brought
into order on local disk, so that no array is as long as there are records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.binned import Binned, bin_of, bin_of_row, n_bins_for
from prefect_augment.compact import KEY, sort_order
from prefect_augment.spill import Workspace

__all__ = ["Placer", "Places", "Placing"]

# Bounds the memory: a shard is held a few times over while it is sorted and encoded.
SHARD_BYTES = 32 << 20

NOWHERE = -1
WAITING = np.dtype(
    [("id", KEY), ("key", KEY), ("row", np.int64), ("size", np.int32), ("group", np.int32)]
)
PLACED = np.dtype(
    [
        ("id", KEY),
        ("key", KEY),
        ("row", np.int64),
        ("group", np.int32),
        ("shard", np.int32),
        ("rank", np.int32),
        ("reason", np.int8),
    ]
)


@dataclass(frozen=True)
class Placing:
    """Where each candidate goes.

    Parameters
    ----------
    stems : tuple of (str, str)
        Part and the beginning of its shards' names, per shard.
    numbers : tuple of int
        Number of the batch, per shard.
    placed : Binned
        The places, by row.
    first : ndarray of int32, shape (n_groups,)
        First shard of each part of each batch.
    """

    stems: tuple[tuple[str, str], ...]
    numbers: tuple[int, ...]
    placed: Binned
    first: NDArray[np.int32]

    def places(self) -> Places:
        """Return the places from the first row on."""
        return Places(self)


class Places:
    """Places of candidates in the order of their rows."""

    def __init__(self, placing: Placing) -> None:
        self._placing = placing
        self._number = 0
        self._held = np.zeros(0, dtype=PLACED)

    def next(self, n: int) -> NDArray[Any]:
        """Return the places of the next ``n`` candidates.

        ``shard`` is -1 for none, and ``reason`` then says why; ``rank`` is the place in the shard.
        """
        held = [self._held]
        while sum(map(len, held)) < n:
            rows = self._placing.placed.read(self._number)
            self._number += 1
            rows = rows[np.argsort(rows["row"])]
            goes = rows["group"] >= 0
            rows["shard"][goes] += self._placing.first[rows["group"][goes]]
            held.append(rows)
        every = np.concatenate(held)
        self._held = every[n:].copy()
        return every[:n]


@dataclass
class _Group:
    """A part of a batch while it is cut into shards."""

    n_bytes: int = 0  # of all its records
    done: int = 0  # bytes before the next record
    last: int = -2  # number of the last shard, those without records counted; none has it
    n_shards: int = 0
    n_in_shard: int = 0
    number: int = field(default=0)


class Placer:
    """Cuts every part of every batch into shards of about equal bytes.

    Parameters
    ----------
    n_records : int
        How many candidates there are.
    workspace : Workspace
        Where they are brought into order.
    """

    def __init__(self, n_records: int, workspace: Workspace) -> None:
        n_bins = n_bins_for(n_records)
        self._waiting = Binned(workspace, WAITING, n_bins)
        self._placed = Binned(workspace, PLACED, n_bins)
        self._groups: dict[tuple[int, int], _Group] = {}

    def add(
        self,
        *,
        part: NDArray[np.int8],
        batch: NDArray[np.int32],
        ids: NDArray[Any],
        keys: NDArray[Any],
        sizes: NDArray[np.int32],
        rows: NDArray[np.int64],
    ) -> None:
        """Take candidates that go into a shard; all arrays of shape (n_records,), sizes in bytes."""
        waiting = np.zeros(len(rows), dtype=WAITING)
        waiting["id"], waiting["key"], waiting["row"], waiting["size"] = ids, keys, rows, sizes
        for p in np.unique(part).tolist():
            for number in np.unique(batch[part == p]).tolist():
                of_group = (part == p) & (batch == number)
                group = self._groups.setdefault((p, number), _Group(number=len(self._groups)))
                group.n_bytes += int(sizes[of_group].sum(dtype=np.int64))
                waiting["group"][of_group] = group.number
        self._waiting.add(waiting, bin_of(waiting["id"], self._waiting.n_bins))

    def leave_out(self, rows: NDArray[np.int64], reasons: NDArray[np.int8]) -> None:
        """Take candidates that go nowhere."""
        placed = np.zeros(len(rows), dtype=PLACED)
        placed["row"], placed["reason"] = rows, reasons
        placed["group"] = placed["shard"] = NOWHERE
        self._put(placed)

    def _put(self, placed: NDArray[Any]) -> None:
        self._placed.add(placed, bin_of_row(placed["row"]))

    def placing(self, parts: Mapping[int, str]) -> Placing:
        """Cut the shards.

        Parameters
        ----------
        parts : mapping of int to str
            Name of each part, in the order of the shards.
        """
        by_number = {group.number: group for group in self._groups.values()}
        for number in range(self._waiting.n_bins):
            rows = self._waiting.read(number)
            rows = rows[sort_order(rows["group"], rows["id"])]
            starts = np.flatnonzero(np.diff(rows["group"], prepend=-1))
            for some in np.split(rows, starts[1:]):
                if len(some):
                    self._put(_cut(some, by_number[int(some["group"][0])]))
        self._waiting.clear()
        stems: list[tuple[str, str]] = []
        numbers: list[int] = []
        first = np.zeros(len(by_number), dtype=np.int32)
        for p, name in parts.items():
            for batch in sorted(number for part, number in self._groups if part == p):
                group = self._groups[p, batch]
                first[group.number] = len(stems)
                stems += [(name, f"{name}-b{batch:05d}-{i:05d}") for i in range(group.n_shards)]
                numbers += [batch] * group.n_shards
        return Placing(tuple(stems), tuple(numbers), self._placed, first)


def _cut(rows: NDArray[Any], group: _Group) -> NDArray[Any]:
    """Give the next records of a part of a batch, sorted by id, their places."""
    after = group.done + np.cumsum(rows["size"], dtype=np.int64)
    n_shards = max(1, -(-group.n_bytes // SHARD_BYTES))
    which = np.minimum((after - 1) * n_shards // max(1, group.n_bytes), n_shards - 1)
    begins = np.diff(which, prepend=group.last) != 0  # one huge record leaves numbers out
    shard = group.n_shards - 1 + np.cumsum(begins)
    place = np.arange(len(rows))
    start = np.maximum.accumulate(np.where(begins, place, -group.n_in_shard))
    rank = place - start
    group.done, group.last = int(after[-1]), int(which[-1])
    group.n_shards, group.n_in_shard = int(shard[-1]) + 1, int(rank[-1]) + 1
    placed = np.zeros(len(rows), dtype=PLACED)
    for name in ("id", "key", "row", "group"):
        placed[name] = rows[name]
    placed["shard"], placed["rank"] = shard, rank
    return placed
