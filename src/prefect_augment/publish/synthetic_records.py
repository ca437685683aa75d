"""Classic and synthetic records of a version: those that a recipe takes of the staged ones."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Int, Int32
from prefect_augment.errors import ParameterError
from prefect_augment.publish.real_records import Ids, Piece, Real, RecordReader, Records
from prefect_augment.schema import DatasetRef, FilterResult, Origin, ShardInfo
from prefect_augment.shards.base import label_names, open_shard
from prefect_augment.shards.parquet import conform
from prefect_augment.shards.staged import iter_shards, load_info
from prefect_augment.shards.stream_writer import Reordered
from prefect_augment.storage import Store
from prefect_augment.synthesis.soft_labels import SHARE


class StagedRecords:
    """Records that the recipe takes of a stage's shards.

    ``lineage`` is argument of ``with_lineage`` -> column; ``places`` has the place in the output of every record of
    the shards, -1 for none. With ``own_categories`` dictionaries list their own levels, not those of ``like``.
    """

    def __init__(
        self,
        reader: RecordReader,
        origin: Origin,
        shards: Sequence[ShardInfo],
        like: pa.Table,
        lineage: Mapping[str, str],
        places: Int,
        *,
        has_shares: bool = False,  # of soft labels
        own_categories: bool = False,
    ) -> None:
        self.reader, self.origin, self.shards, self.like = reader, origin, shards, like
        self.lineage, self.places = lineage, places
        self.has_shares, self.own_categories = has_shares, own_categories
        self.counts, self.labels, self.ids = Counter[str](), set[str](), Ids(reader.workspace)
        self.counted: dict[str, float] = {}
        columns = ["aug_id", "aug_stratum", reader.label, *([SHARE] if has_shares else [])]
        for table, _ in self._chosen(columns):
            strata = table["aug_stratum"].to_pylist()
            self.counts.update(strata)
            shares = table[SHARE].to_pylist() if has_shares else [1] * len(strata)
            for name, share in zip(strata, shares, strict=True):
                self.counted[name] = self.counted.get(name, 0) + share
            self.labels.update(label_names(table[reader.label].unique()))
            self.ids.add(table["aug_id"])

    def _chosen(self, columns: Sequence[str] | None = None) -> Iterator[tuple[pa.Table, Int]]:
        """Yield the taken records with their places."""
        start = 0
        for table in iter_shards(self.reader.store, self.shards, columns):
            places = self.places[start : start + table.num_rows]
            start += table.num_rows
            rows = np.flatnonzero(places >= 0)
            if rows.size == table.num_rows:
                yield table, places
            elif rows.size:
                yield table.take(pa.array(rows)), places[rows]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """One piece: which records are taken depends on all of them."""
        n = self.counts.total()
        share = n / max(1, self.places.size)
        return (Piece(n, int(share * sum(s.n_bytes for s in self.shards)), self._records),)

    def _records(self) -> Iterator[Records]:
        for table in self._in_order():
            yield Records(
                conform(
                    table,
                    self.like,
                    where=f"the {self.origin} records",
                    own_categories=self.own_categories,
                ),
                table["aug_stratum"].to_pylist(),
                {name: table[column] for name, column in self.lineage.items()},
                table[SHARE].to_numpy() if self.has_shares else None,
            )

    def _in_order(self) -> Iterator[pa.Table]:
        taken = self.places[self.places >= 0]
        if np.all(taken[1:] > taken[:-1]):
            for table, _ in self._chosen():
                yield table
            return
        piece = self.pieces[0]
        with Reordered(piece.n_records, piece.n_bytes) as spill:
            for table, places in self._chosen():
                spill.add(table, places)
            yield from spill.tables()


def classic_counts(store: Store, classic: DatasetRef) -> dict[str, int]:
    """Return the number of classic records per stratum."""
    counts: Counter[str] = Counter()
    for table in iter_shards(store, load_info(classic, store).shards, ["aug_stratum"]):
        counts.update(table["aug_stratum"].to_pylist())
    return dict(counts)


def classic_records(
    reader: RecordReader,
    classic: DatasetRef | None,
    wanted: Mapping[str, int],
    real: Real,
    notes: list[str],
) -> StagedRecords:
    """Return the first classic records of each stratum, sorted by id; ParameterError if there are none."""
    if classic is None:
        raise ParameterError(
            "the recipe has classic records, but publish was given none; pass `classic`."
        )
    shards = load_info(classic, reader.store).shards
    strata, _ = _small(reader, shards, wanted, [])
    rows = _first_of_each(strata, np.arange(strata.size), wanted, "classic", notes)
    ids = [np.zeros(0, dtype="S32")]
    for table in iter_shards(reader.store, shards, ["aug_id"]):
        ids.append(np.array(table["aug_id"].to_pylist(), dtype="S32"))
    rows.sort()
    places = _places(rows[np.argsort(np.concatenate(ids)[rows], kind="stable")], strata.size)
    lineage = {"aug_id": "aug_id", "parent": "aug_parent", "seed": "aug_seed"}
    return StagedRecords(reader, "classic", shards, real.like, lineage, places)


def synthetic_records(
    reader: RecordReader,
    candidates: FilterResult | None,
    wanted: Mapping[str, int],
    real: Real,
    order: Sequence[str],
    notes: list[str],
    *,
    alone: bool = False,
) -> StagedRecords:
    """Return the best kept synthetic records of each stratum, by stratum and ordinal.

    ``alone`` publishes them without real records, whose levels their dictionaries then do not list.
    Raises ParameterError if there are none.
    """
    if candidates is None or not candidates.kept:
        raise ParameterError(
            "the recipe has synthetic records, but publish was given none; pass `candidates`, with kept records."
        )
    if candidates.rules:
        notes.append(f"synthetic records {candidates.rules['said']}")
    # A smaller amount is a prefix of the kept candidates; candidates that were never filtered have no rank.
    strata, numbers = _small(reader, candidates.kept, wanted, ["aug_ordinal", "aug_rank"])
    ordinals = numbers["aug_ordinal"]
    by_rank = np.lexsort((ordinals, numbers.get("aug_rank", ordinals)))
    rows = _first_of_each(strata, by_rank, wanted, "synthetic", notes)
    place_of = {name: k for k, name in enumerate(order)}
    stratum_places = np.array([place_of.get(name, -1) for name in sorted(wanted)], dtype=np.int64)
    rows = rows[np.lexsort((ordinals[rows], stratum_places[strata[rows]]))]
    lineage = {"aug_id": "aug_id", "model": "aug_model", "seed": "aug_seed"}
    places = _places(rows, strata.size)
    return StagedRecords(
        reader,
        "synthetic",
        candidates.kept,
        real.like,
        lineage,
        places,
        has_shares=bool(candidates.shares),
        own_categories=alone,
    )


def _small(
    reader: RecordReader,
    shards: Sequence[ShardInfo],
    wanted: Mapping[str, int],
    numbers: Sequence[str],
) -> tuple[Int32, dict[str, Int]]:
    """Return each record's stratum, as its place among the sorted names or -1, and numeric columns."""
    code = {name: k for k, name in enumerate(sorted(wanted))}
    strata = [np.zeros(0, dtype=np.int32)]
    columns: dict[str, list[Int]] = {name: [] for name in numbers}
    for shard in shards:
        with open_shard(reader.store, shard.path) as opened:
            existing = [name for name in numbers if name in opened.schema.names]
        for table in iter_shards(reader.store, [shard], ["aug_stratum", *existing]):
            names = table["aug_stratum"].to_pylist()
            strata.append(np.array([code.get(name, -1) for name in names], dtype=np.int32))
            for name in existing:
                columns[name].append(table[name].to_numpy())
    joined = {name: np.concatenate(parts) for name, parts in columns.items() if parts}
    return np.concatenate(strata), joined


def _first_of_each(
    strata: Int32, rows: Int, wanted: Mapping[str, int], what: str, notes: list[str]
) -> Int:
    """Take the first ``wanted`` rows of each stratum; notes name those with fewer."""
    taken = [np.zeros(0, dtype=np.int64)]
    of_rows = strata[rows]
    for code, (name, n) in enumerate(sorted(wanted.items())):
        taken.append(rows[np.flatnonzero(of_rows == code)[:n]])
        if len(taken[-1]) < n:
            notes.append(
                f"{name}: the recipe has {n} {what} records and {len(taken[-1])} are there."
            )
    return np.concatenate(taken)


def _places(rows: Int, n: int) -> Int:
    """Return the place of each of ``n`` records among ``rows``; -1 if it is not among them."""
    places = np.full(n, -1, dtype=np.int64)
    places[rows] = np.arange(rows.size)
    return places
