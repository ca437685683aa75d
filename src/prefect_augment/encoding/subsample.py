"""Some of many records: what is computed on records in memory takes a sample where there are more than it needs.

A sample depends on the records' ids and the seed, not on their order or shards. Two rules: a model's training
records are the same number of each class, the rarer ones whole; records that strategies are compared on keep
the class frequencies.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.array_types import Bool, Int, Uint64
from prefect_augment.encoding.strata import table_strata
from prefect_augment.schema import DatasetInfo, ShardInfo
from prefect_augment.shards.staged import iter_shards, read_part, read_shards
from prefect_augment.storage import Store
from prefect_augment.storage.keys import GOLDEN, hash_ids, mixed, ranks_within

# Of a class, where only a share of all records is taken: so many, or all that there are. A recall is then known to
# one or two points.
LEAST_OF_CLASS = 1000


class Sample(NamedTuple):
    """How many records are taken, and which."""

    most: int  # 0: all
    seed: int
    equal: bool = True  # the same number of each class; else each class's share of all


def n_training_records(info: DatasetInfo) -> int:
    """Number of training records."""
    return sum(s.n_records for s in info.shards if s.split == "training")


def read_training_records(
    store: Store, info: DatasetInfo, *, by: Sequence[str], most: int, seed: int
) -> tuple[pa.Table, tuple[str, ...]]:
    """Training records sorted by id, and notes on the selection.

    Above ``most`` records (0: no limit) a sample is taken, see :func:`sample_sizes`, and the whole
    is never in memory. ``by`` are the columns that make up the strata beside the label.
    """
    (records,), taken = _read(store, info, ["training"], by, Sample(most, seed))
    records = records.sort_by("aug_id")
    if not taken:
        return records, ()
    sampled = [
        f"{n_taken:,} of {n_k:,} of {name!r}"
        for name, (n_taken, n_k) in taken.items()
        if n_taken < n_k
    ]
    note = (
        f"fitted on {records.num_rows:,} of {n_training_records(info):,} training records, chosen by their ids and "
        f"the seed ({', '.join(sampled[:5])}{' …' if len(sampled) > 5 else ''}; all of the other classes): "
        "more would change the model little and memory much."
    )
    return records, (note,)


def read_parts(
    store: Store, info: DatasetInfo, parts: Sequence[str], *, by: Sequence[str], sample: Sample
) -> list[pa.Table]:
    """A table per part, in shard order: all of their records, or a sample of the parts together.

    Of a sample the whole is never in memory.
    """
    return _read(store, info, parts, by, sample)[0]


def _read(
    store: Store, info: DatasetInfo, parts: Sequence[str], by: Sequence[str], sample: Sample
) -> tuple[list[pa.Table], dict[str, tuple[int, int]]]:
    """The records, and where they are a sample, by stratum how many of how many."""
    shards = [s for part in parts for s in info.shards if s.split == part]
    if not sample.most or sum(s.n_records for s in shards) <= sample.most:
        return [read_part(store, info, [part]) for part in parts], {}
    chosen, counts = _choose(store, info, shards, by, sample)
    records, start = [], 0
    for part in parts:
        tables = [read_shards(store, [], like=info.shards)]
        for table in iter_shards(store, [s for s in shards if s.split == part]):
            low, high = np.searchsorted(chosen, [start, start + table.num_rows]).tolist()
            tables.append(table.take(pa.array(chosen[low:high] - start)))
            start += table.num_rows
        records.append(pa.concat_tables(tables).unify_dictionaries())
    return records, counts


def _choose(
    store: Store, info: DatasetInfo, shards: Sequence[ShardInfo], by: Sequence[str], sample: Sample
) -> tuple[Int, dict[str, tuple[int, int]]]:
    """Selected records, sorted, and per stratum how many of how many."""
    identifiers = [c for c in info.columns if c.kind == "identifier"]
    numbers = [c.name for c in identifiers if c.arrow_type.startswith("int")]  # signed
    columns = [*dict.fromkeys(["aug_id", info.label, *by, *numbers])]
    index: dict[str, int] = {}
    lowest: dict[str, tuple[float, int]] = {}
    choice, start = _choice(sample), 0
    for table in iter_shards(store, shards, columns):
        names = table_strata(table, label=info.label, by=by)
        codes = np.array([index.setdefault(name, len(index)) for name in names], dtype=np.int64)
        choice.add(codes, hash_ids(table["aug_id"]))
        for name in numbers:
            smallest = pc.min(table[name]).as_py()
            if smallest is not None and smallest < lowest.get(name, (0, 0))[0]:
                lowest[name] = smallest, start + pc.index(table[name], smallest).as_py()
        start += table.num_rows
    rows = choice.rows()
    sizes = choice.sizes()
    counts = {name: (int(sizes[k]), int(choice.counts[k])) for name, k in sorted(index.items())}
    # New identifiers count down from the smallest existing one.
    extra = np.array([row for _, row in lowest.values()], dtype=np.int64)
    return np.union1d(rows, extra), counts


def sample_rows(strata: NDArray[np.integer], hashes: Uint64, sample: Sample) -> Int:
    """Select rows, ascending; ``strata`` are codes from 0, ``hashes`` the hashed ids."""
    choice = _choice(sample)
    choice.add(strata.astype(np.int64), hashes)
    return choice.rows()


def _choice(sample: Sample) -> "_Choice":
    return (_Choice if sample.equal else _Share)(sample.most, sample.seed)


class _Choice:
    """Keep the records with the lowest ranks in each stratum."""

    def __init__(self, most: int, seed: int) -> None:
        self.counts = np.zeros(0, dtype=np.int64)  # per stratum, of all records seen
        self._most = most
        self._salt = _ranked(np.array([seed & (2**63 - 1)], dtype=np.uint64))
        self._strata = np.zeros(0, dtype=np.int64)
        self._ranks = np.zeros(0, dtype=np.uint64)
        self._rows = np.zeros(0, dtype=np.int64)

    def add(self, strata: Int, hashes: Uint64) -> None:
        """Add the next records."""
        start = int(self.counts.sum())
        counts = np.bincount(strata, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts
        self._strata = np.concatenate([self._strata, strata])
        self._ranks = np.concatenate([self._ranks, _ranked(hashes ^ self._salt)])
        self._rows = np.concatenate([self._rows, np.arange(start, start + strata.size)])
        if self._rows.size > 2 * self._most:
            self._keep(self._may_be_taken())

    def rows(self) -> Int:
        """The selected rows, sorted."""
        self._keep(self._taken())
        return np.sort(self._rows)

    def sizes(self) -> Int:
        """Number of records kept per stratum."""
        return np.bincount(self._strata, minlength=len(self.counts))

    def _may_be_taken(self) -> Bool:
        # As other strata grow, a stratum's size shrinks, up to a remainder of one.
        most = sample_sizes(self.counts, most=self._most).max() + 1
        return np.asarray(self._places() < np.minimum(self.counts, most)[self._strata])

    def _taken(self) -> Bool:
        sizes = sample_sizes(self.counts, most=self._most)
        return np.asarray(self._places() < sizes[self._strata])

    def _places(self) -> Int:
        """Place of each record within its stratum, by rank."""
        order = np.lexsort((self._ranks, self._strata))
        places = np.empty(order.size, dtype=np.int64)
        places[order] = ranks_within(self._strata[order])
        return places

    def _keep(self, kept: Bool) -> None:
        self._strata, self._ranks = self._strata[kept], self._ranks[kept]
        self._rows = self._rows[kept]


class _Share(_Choice):
    """Keep the records with the lowest ranks of all, and some of each stratum."""

    def _may_be_taken(self) -> Bool:
        return self._taken()  # of more records none is taken that is not taken of fewer

    def _taken(self) -> Bool:
        of_all = np.empty(self._ranks.size, dtype=np.int64)
        of_all[np.argsort(self._ranks, kind="stable")] = np.arange(self._ranks.size)
        least = min(LEAST_OF_CLASS, self._most // max(1, len(self.counts)))
        return (of_all < self._most) | (self._places() < least)


def _ranked(values: Uint64) -> Uint64:
    """An order of records that has nothing to do with their ids."""
    return mixed(values + np.uint64(GOLDEN))


def sample_sizes(counts: Int, *, most: int) -> Int:
    """Number of records taken per stratum: equal numbers, the rarer ones whole.

    >>> sample_sizes(np.array([900, 80, 10]), most=200).tolist()
    [110, 80, 10]
    """
    sizes = np.zeros(len(counts), dtype=np.int64)
    left, n_left = most, len(counts)
    for k in np.argsort(counts, kind="stable"):
        sizes[k] = min(int(counts[k]), left // n_left)
        left, n_left = left - int(sizes[k]), n_left - 1
    return sizes
