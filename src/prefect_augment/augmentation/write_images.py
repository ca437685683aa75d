"""Classic copies of images: one real record each, with new bytes in its image column.

The recipe gives the number per stratum. Which record a copy comes from and how it looks depend only
on the records' ids and the seed. Records are read in portions, and copies are sorted by id through
local files. Workers of an engine make and stage the copies of different shards, which are then found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.array_types import ByteString, Float, Int
from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed
from prefect_augment.encoding.annotations import ImageTargets, MovedRecord
from prefect_augment.encoding.arrays import TRAINED_ON, by_columns
from prefect_augment.encoding.images import image_array
from prefect_augment.encoding.pixels import (
    decode_checked,
    encode_like,
    encode_png,
    image_bytes,
    is_jpeg,
)
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.encoding.strata import table_strata
from prefect_augment.errors import EmptyClassError, SchemaError
from prefect_augment.params import Classic
from prefect_augment.schema import BalancePlan, DatasetInfo, Result, ShardInfo
from prefect_augment.shards.staged import iter_shards
from prefect_augment.shards.stream_writer import (
    BATCH_BYTES,
    BATCH_RECORDS,
    Reordered,
    cut,
    write_stream,
)
from prefect_augment.storage import Stage, Store, read_result

SHARD_RECORDS, SHARD_BYTES = 1_000_000, 128 * 1024 * 1024
# Of encoded images: dozens of thumbnails, or one large image, because decoded ones take memory.
PORTION_BYTES = 32 * 1024
IDS = ("aug_id", "content_key")  # of staged records, beside the source's columns
_PLACE = "\0place"


class _Jobs(NamedTuple):
    """The copies to make, sorted by id."""

    ids: ByteString  # (n_copies,) 32 hexadecimal digits
    rows: Int  # (n_copies,) places among the training records
    by_row: Int  # (n_copies,) the copies in the order of rows
    copies: Int  # (n_copies,) number of the copy of its record, from 0
    strata: Int  # (n_copies,) places in the strata of _TrainingRecords
    probs: Float  # (n_strata,)
    starts: Int  # (n_shards + 1,) row of the first training record of each shard


@dataclass(frozen=True)
class _TrainingRecords:
    """The training records of the requested strata, in the order of their shards."""

    store: Store
    source: DatasetInfo
    by: Sequence[str]
    strata: Sequence[str]

    @property
    def shards(self) -> list[ShardInfo]:
        """Shards that may hold such records; the others stay unread."""
        return [s for s in self.source.shards if s.split in TRAINED_ON]

    @property
    def column(self) -> str:
        """The image column."""
        if self.source.image is None:
            raise SchemaError("the staged records name no image column; ingest the source again.")
        return self.source.image.column

    def tables(
        self, shard: ShardInfo, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[pa.Table, Int]]:
        """Yield the records of a shard in portions, each with its strata's places."""
        index = {name: k for k, name in enumerate(self.strata)}
        for table in iter_shards(self.store, [shard], columns):
            codes = self._codes(table, index)
            rows = np.flatnonzero(codes >= 0)
            if rows.size:
                yield table.take(pa.array(rows)), codes[rows]

    def _codes(self, table: pa.Table, index: Mapping[str, int]) -> Int:
        names = table_strata(table, label=self.source.label, by=self.by)
        return np.array([index.get(name, -1) for name in names], dtype=np.int64)

    def expected_bytes(self, n_copies: int) -> int:
        """Estimate the bytes of so many copies from the mean size of a record."""
        n = sum(shard.n_records for shard in self.shards)
        return n_copies * sum(shard.n_bytes for shard in self.shards) // max(1, n)


def make_image_copies(maker: "CopyMaker") -> DatasetInfo:
    """Make the copies and write their shards.

    The records of a stratum take turns, in an order drawn from the seed, so more copies extend fewer.
    Policies leave some records unchanged (``classic.image_prob``); here that probability is raised so
    that the unchanged share of real records and copies together is the same as with the policy on the
    fly. An unchanged copy keeps its parent's bytes; others are written as 8-bit PNG, or as JPEG of
    quality 95 if the parent is a JPEG. Boxes, masks and keypoints move with the image; a box that
    leaves it is dropped with all its columns (``classic.min_visibility``).
    """
    stage, source = maker.stage, maker.training.source
    training, policy, n = maker.training, maker.policy, len(maker.jobs.ids)
    sizes = np.zeros(n, dtype=np.int64)
    shards: list[ShardInfo] = []
    with Reordered(n, training.expected_bytes(n)) as spill:
        for number in range(maker.n_shards):
            for table, places in maker.staged(number) or maker.copies(number):
                images = image_bytes(table.column(training.column), name=training.column)
                sizes[places] = [len(data) for data in images]
                spill.add(table, places)
        for n, tables in cut(spill.tables(), _shard_sizes(sizes)):
            shards += write_stream(
                stage.store,
                tables,
                n_records=n,
                prefix=stage.prefix,
                stem=f"classic-{len(shards):05d}",
                split="train",
                origin="classic",
                label=source.label,
                max_records=SHARD_RECORDS,
                max_bytes=2 * SHARD_BYTES,  # one shard each: they are cut at SHARD_BYTES
            )
    return stage.info_of(
        source, shards, part="classic", notes=(policy.rule,), extra={"policy": policy.info}
    )


# --- which records ----------------------------------------------------------------------------


def _jobs(
    training: _TrainingRecords,
    counts: Mapping[str, int],
    policy: ImagePolicy,
    digest: str,
    seed: int,
) -> _Jobs:
    """Return the copies to make."""
    columns = [*dict.fromkeys(["aug_id", training.source.label, *training.by])]
    keys, ranks = [np.zeros(0, dtype="S32")], [np.zeros(0, dtype="S32")]
    codes = [np.zeros(0, dtype=np.int64)]
    starts = [0]
    for shard in training.shards:
        starts.append(starts[-1])
        for table, table_codes in training.tables(shard, columns):
            keys.append(_as_bytes(table["aug_id"]))
            # Ranks depend on the seed: in the order of ids the same records would always come first.
            ranks.append(_as_bytes(derived_ids("classic order", table["aug_id"].to_pylist(), seed)))
            codes.append(table_codes)
            starts[-1] += table.num_rows
    parents, ranked, strata = np.concatenate(keys), np.concatenate(ranks), np.concatenate(codes)
    ids = [np.zeros(0, dtype="S32")]
    rows: list[Int] = []
    copies: list[Int] = []
    of: list[Int] = []
    probs = np.zeros(len(training.strata))
    for code, name in enumerate(training.strata):
        n = counts[name]
        members = np.flatnonzero(strata == code)
        if not members.size:
            raise EmptyClassError(
                f"class {name!r} has no training record to make {n} classic copies of; lower its "
                "target, or leave it out of the recipe.",
                stratum=name,
            )
        members = members[np.argsort(ranked[members], kind="stable")]
        probs[code] = min(1.0, policy.prob * (members.size + n) / n)
        for start in range(0, n, BATCH_RECORDS):
            turns = np.arange(start, min(n, start + BATCH_RECORDS))
            drawn, numbers = members[turns % members.size], turns // members.size
            texts = [key.decode() for key in parents[drawn].tolist()]
            lineage = (texts, name, digest, policy.digest, seed, numbers.tolist())
            ids.append(_as_bytes(derived_ids("classic", *lineage)))
            rows.append(drawn)
            copies.append(numbers)
            of.append(np.full(turns.size, code))
    joined = np.concatenate(ids)
    order = np.argsort(joined)
    none = [np.zeros(0, dtype=np.int64)]
    row, copy, stratum = (np.concatenate(none + parts)[order] for parts in (rows, copies, of))
    by_row = np.argsort(row, kind="stable")
    return _Jobs(joined[order], row, by_row, copy, stratum, probs, np.array(starts))


def _as_bytes(ids: Any) -> ByteString:
    return np.array(ids.to_pylist(), dtype="S32")


# --- their bytes ------------------------------------------------------------------------------


class _Staged(Result):
    """The receipt of a shard's copies, made before by another task."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class CopyMaker:
    """Makes the copies of one shard of training records after the other."""

    training: _TrainingRecords
    jobs: _Jobs
    policy: ImagePolicy
    min_visibility: float
    seed: int
    stage: Stage

    @classmethod
    def of(
        cls,
        source: DatasetInfo,
        plan: BalancePlan,
        counts: Mapping[str, int],
        classic: Classic,
        seed: int,
        stage: Stage,
    ) -> Self:
        """Return what makes the copies; raises EmptyClassError for a stratum without records."""
        policy = ImagePolicy.from_params(classic)
        policy.check()
        training = _TrainingRecords(stage.store, source, by_columns(plan), sorted(counts))
        jobs = _jobs(training, counts, policy, source.digest, seed)
        return cls(training, jobs, policy, classic.min_visibility, seed, stage)

    @property
    def n_shards(self) -> int:
        """How many shards of training records there are."""
        return len(self.training.shards)

    def keep(self, number: int) -> None:
        """Make and stage the copies of a shard, unless they are staged."""
        stem = f"copies-{number:05d}"

        def build() -> _Staged:
            paths: list[str] = []
            for table, places in self.copies(number):
                table = table.append_column(_PLACE, pa.array(places, pa.int64()))
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
                paths.append(f"{self.stage.prefix}/{stem}/{len(paths):05d}.arrow")
                self.stage.store.put(paths[-1], sink.getvalue().to_pybytes())
            return _Staged(paths=tuple(paths))

        self.stage.item(stem, _Staged, build)

    def staged(self, number: int) -> Iterator[tuple[pa.Table, Int]] | None:
        """Return the copies of a shard that are staged, or None."""
        path = f"{self.stage.prefix}/copies-{number:05d}.json"
        staged = read_result(self.stage.store, path, _Staged)
        return None if staged is None else self._read(staged)

    def _read(self, staged: _Staged) -> Iterator[tuple[pa.Table, Int]]:
        for path in staged.paths:
            table = pa.ipc.open_stream(self.stage.store.read(path)).read_all()
            yield table.drop_columns([_PLACE]), table.column(_PLACE).to_numpy()

    def copies(self, number: int) -> Iterator[tuple[pa.Table, Int]]:
        """Yield the copies of a shard's records, about ``BATCH_BYTES`` at a time, and their places among all."""
        jobs, training = self.jobs, self.training
        start = int(jobs.starts[number])
        ends = jobs.starts[number : number + 2]
        places = jobs.by_row[slice(*np.searchsorted(jobs.rows, ends, sorter=jobs.by_row))]
        if not places.size:  # then the shard stays unread
            return
        for parents, _ in training.tables(training.shards[number]):
            n = np.searchsorted(jobs.rows[places], start + parents.num_rows)
            yield from self._portion(parents, places[:n], start)
            places, start = places[n:], start + parents.num_rows

    def _portion(
        self, parents: pa.Table, places: Int, start: int
    ) -> Iterator[tuple[pa.Table, Int]]:
        """Yield the copies of parents that are the rows from ``start`` on."""
        jobs, column = self.jobs, self.training.column
        images = list(image_bytes(parents.column(column), name=column))
        keys = parents["aug_id"].to_pylist()
        targets = ImageTargets.of(parents.schema, column)
        copier = _Copier(self.policy, self.min_visibility, targets)
        rows = jobs.rows[places] - start
        copied: list[_Copy] = []
        n_bytes = first = 0
        for ats in portions([len(images[row]) for row in rows.tolist()]):
            taken, local = places[ats], rows[ats].tolist()
            copies = jobs.copies[taken].tolist()
            copied += copier.of(
                [images[row] for row in local],
                [
                    record_seed(self.seed, keys[row], copy)
                    for row, copy in zip(local, copies, strict=True)
                ],
                jobs.probs[jobs.strata[taken]].tolist(),
                [parents.slice(row, 1).to_pylist()[0] for row in local] if targets else None,
            )
            n_bytes += sum(len(copy.data) for copy in copied[-len(local) :])
            if n_bytes >= BATCH_BYTES or ats.stop == len(places):
                of = places[first : ats.stop]
                yield _to_table(self.training, parents, jobs, of, start, copied, targets), of
                copied, n_bytes, first = [], 0, ats.stop


def _shard_sizes(sizes: Int) -> list[int]:
    """Return the number of copies per shard: a shard is full at ``SHARD_BYTES``."""
    ends, n_bytes = [], 0
    for i, size in enumerate(sizes.tolist()):
        n_bytes += size
        if n_bytes >= SHARD_BYTES or i + 1 == sizes.size:
            ends.append(i + 1)
            n_bytes = 0
    sizes_of: list[int] = np.diff([0, *ends]).tolist()
    return sizes_of


class _Copy(NamedTuple):
    """One changed image."""

    data: bytes
    seed: int
    moved: MovedRecord | None = None  # its targets, if they have changed


def portions(sizes: Sequence[int]) -> Iterator[slice]:
    """Yield slices of places: many small images each, or one large one.

    ``sizes`` are bytes of encoded images.
    """
    begin, n_bytes = 0, 0
    for i, size in enumerate(sizes):
        n_bytes += size
        if n_bytes >= PORTION_BYTES or i + 1 == len(sizes):
            yield slice(begin, i + 1)
            begin, n_bytes = i + 1, 0


class _Copier(NamedTuple):
    """How copies are made."""

    policy: ImagePolicy
    min_visibility: float
    targets: ImageTargets

    def of(
        self,
        encoded: Sequence[bytes],
        seeds: Sequence[int],
        probs: Sequence[float],
        records: Sequence[Mapping[str, Any]] | None,
    ) -> list[_Copy]:
        """Return the copies of encoded images; an unchanged one keeps its bytes.

        ``records`` are given where boxes, masks or keypoints move along.
        """
        images = [decode_checked(data) for data in encoded]
        moved: list[MovedRecord | None] = [None] * len(images)
        if records is None:
            changed = self.policy.batch(images, seeds, probs)
        else:
            changed = []
            for i, (image, record) in enumerate(zip(images, records, strict=True)):
                pixels, moved_targets = self.policy.apply_targets(
                    image,
                    self.targets.read(record, image.shape),
                    seed=seeds[i],
                    prob=probs[i],
                    min_visibility=self.min_visibility,
                )
                changed.append(pixels)
                moved[i] = self.targets.write(record, moved_targets)
        return [
            _Copy(data, seed) if after is before else _Copy(_encoded(after, data), seed, belongings)
            for before, after, data, seed, belongings in zip(
                images, changed, encoded, seeds, moved, strict=True
            )
        ]


def _encoded(pixels: NDArray[np.uint8], like: bytes) -> bytes:
    return encode_like(pixels, like) if is_jpeg(like) else encode_png(pixels)


def _to_table(
    training: _TrainingRecords,
    parents: pa.Table,
    jobs: _Jobs,
    places: Int,
    start: int,
    copied: Sequence[_Copy],
    targets: ImageTargets,
) -> pa.Table:
    """Return copies in the source's columns, with their lineage; ``parents`` are the rows from ``start`` on."""
    rows = pa.array(jobs.rows[places] - start)
    at = parents.column_names.index(training.column)
    field = parents.schema.field(training.column)
    ids = [aug_id.decode() for aug_id in jobs.ids[places].tolist()]
    paths = [
        f"classic/{aug_id}.{'jpg' if is_jpeg(m.data) else 'png'}"
        for aug_id, m in zip(ids, copied, strict=True)
    ]
    lineage = {
        "aug_id": pa.array(ids, pa.string()),
        "aug_parent": parents.column("aug_id").take(rows),
        "aug_seed": pa.array([m.seed for m in copied], pa.int64()),
        "aug_stratum": pa.array([training.strata[k] for k in jobs.strata[places]], pa.string()),
    }
    table = parents.drop_columns([training.column]).take(rows)
    table = targets.replaced(table, [m.moved for m in copied], ids)
    table = table.add_column(at, field, image_array([m.data for m in copied], paths, field.type))
    table = table.drop_columns([name for name in IDS if name in table.column_names])
    for name, values in lineage.items():
        table = table.append_column(name, values)
    return table.replace_schema_metadata(parents.schema.metadata)
