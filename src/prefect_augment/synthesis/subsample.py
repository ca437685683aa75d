"""The training records of a model: all of them, or a sample where the model needs no more.

A sample depends on the records' ids and the seed, not on their order or shards.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.array_types import Int, Uint64
from prefect_augment.encoding.strata import table_strata
from prefect_augment.genmodels.counter_rng import record_keys
from prefect_augment.schema import DatasetInfo
from prefect_augment.shards.staged import iter_shards, read_part
from prefect_augment.storage import Store
from prefect_augment.storage.keys import hash_ids


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
    n = n_training_records(info)
    if not most or n <= most:
        return read_part(store, info, ["training"]).sort_by("aug_id"), ()
    chosen, counts = _choose(store, info, by, most, seed)
    shards = [s for s in info.shards if s.split == "training"]
    tables, start = [], 0
    for table in iter_shards(store, shards):
        low, high = np.searchsorted(chosen, [start, start + table.num_rows]).tolist()
        if low < high:
            tables.append(table.take(pa.array(chosen[low:high] - start)))
        start += table.num_rows
    records = pa.concat_tables(tables).unify_dictionaries().sort_by("aug_id")
    sampled = [
        f"{n_taken:,} of {n_k:,} of {name!r}"
        for name, (n_taken, n_k) in counts.items()
        if n_taken < n_k
    ]
    note = (
        f"fitted on {records.num_rows:,} of {n:,} training records, chosen by their ids and the seed "
        f"({', '.join(sampled[:5])}{' …' if len(sampled) > 5 else ''}; all of the other classes): "
        "more would change the model little and memory much."
    )
    return records, (note,)


def _choose(
    store: Store, info: DatasetInfo, by: Sequence[str], most: int, seed: int
) -> tuple[Int, dict[str, tuple[int, int]]]:
    """Selected training records, sorted, and per stratum how many of how many."""
    shards = [s for s in info.shards if s.split == "training"]
    identifiers = [c for c in info.columns if c.kind == "identifier"]
    numbers = [c.name for c in identifiers if c.arrow_type.startswith("int")]  # signed
    columns = [*dict.fromkeys(["aug_id", info.label, *by, *numbers])]
    index: dict[str, int] = {}
    lowest: dict[str, tuple[float, int]] = {}
    choice, start = _Choice(most, seed), 0
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
    sizes = sample_sizes(choice.counts, most=most)
    counts = {name: (int(sizes[k]), int(choice.counts[k])) for name, k in sorted(index.items())}
    # New identifiers count down from the smallest existing one.
    extra = np.array([row for _, row in lowest.values()], dtype=np.int64)
    return np.union1d(rows, extra), counts


def sample_rows(strata: NDArray[np.integer], hashes: Uint64, *, most: int, seed: int) -> Int:
    """Select at most ``most`` rows, ascending; ``strata`` are codes from 0, ``hashes`` the hashed ids."""
    choice = _Choice(most, seed)
    choice.add(strata.astype(np.int64), hashes)
    return choice.rows()


class _Choice:
    """Keep the records with the lowest ranks in each stratum."""

    def __init__(self, most: int, seed: int) -> None:
        self.counts = np.zeros(0, dtype=np.int64)  # per stratum, of all records seen
        self._most = most
        self._salt = record_keys(np.array([seed & (2**63 - 1)], dtype=np.int64))
        self._strata = np.zeros(0, dtype=np.int64)
        self._ranks = np.zeros(0, dtype=np.uint64)
        self._rows = np.zeros(0, dtype=np.int64)

    def add(self, strata: Int, hashes: Uint64) -> None:
        """Add the next records."""
        start = int(self.counts.sum())
        counts = np.bincount(strata, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts
        ranks = record_keys((hashes ^ self._salt).view(np.int64))
        self._strata = np.concatenate([self._strata, strata])
        self._ranks = np.concatenate([self._ranks, ranks])
        self._rows = np.concatenate([self._rows, np.arange(start, start + strata.size)])
        if self._rows.size > 2 * self._most:
            # As other strata grow, a stratum's size shrinks, up to a remainder of one.
            self._keep(
                np.minimum(self.counts, sample_sizes(self.counts, most=self._most).max() + 1)
            )

    def rows(self) -> Int:
        """The selected rows, sorted."""
        self._keep(sample_sizes(self.counts, most=self._most))
        return np.sort(self._rows)

    def _keep(self, sizes: Int) -> None:
        order = np.lexsort((self._ranks, self._strata))
        ends = np.cumsum(np.bincount(self._strata, minlength=len(sizes)))
        place = np.arange(order.size) - np.concatenate([[0], ends[:-1]])[self._strata[order]]
        kept = order[place < sizes[self._strata[order]]]
        self._strata, self._ranks, self._rows = (
            values[kept] for values in (self._strata, self._ranks, self._rows)
        )


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
