"""Classic copies of images: one real record each, with new bytes in its image column.

The recipe gives the number per stratum. Which record a copy comes from and how it looks depend only
on the records' ids and the seed. Records are read in portions, and copies are sorted by id through
local files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.array_types import ByteString, Float, Int
from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed
from prefect_augment.encoding.annotations import ImageTargets, MovedRecord
from prefect_augment.encoding.arrays import by_columns
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
from prefect_augment.schema import BalancePlan, DatasetInfo, ShardInfo
from prefect_augment.shards.staged import iter_shards
from prefect_augment.shards.stream_writer import (
    BATCH_BYTES,
    BATCH_RECORDS,
    Reordered,
    cut,
    write_stream,
)
from prefect_augment.storage import Stage, Store

SHARD_RECORDS, SHARD_BYTES = 1_000_000, 128 * 1024 * 1024
# Of encoded images: dozens of thumbnails, or one large image, because decoded ones take memory.
PORTION_BYTES = 32 * 1024
IDS = ("aug_id", "content_key")  # of staged records, beside the source's columns


class _Jobs(NamedTuple):
    """The copies to make, sorted by id."""

    ids: ByteString  # (n_copies,) 32 hexadecimal digits
    rows: Int  # (n_copies,) places among the training records
    copies: Int  # (n_copies,) number of the copy of its record, from 0
    strata: Int  # (n_copies,) places in the strata of _TrainingRecords
    probs: Float  # (n_strata,)


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
        return [s for s in self.source.shards if s.split in ("training", "validation")]

    @property
    def column(self) -> str:
        """The image column."""
        if self.source.image is None:
            raise SchemaError("the staged records name no image column; ingest the source again.")
        return self.source.image.column

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[tuple[pa.Table, Int]]:
        """Yield the records in portions, each with its strata's places."""
        index = {name: k for k, name in enumerate(self.strata)}
        for shard in self.shards:
            if columns is None and not self._has_any(shard, index):
                continue
            for table in iter_shards(self.store, [shard], columns):
                codes = self._codes(table, index)
                rows = np.flatnonzero(codes >= 0)
                if rows.size:
                    yield table.take(pa.array(rows)), codes[rows]

    def _has_any(self, shard: ShardInfo, index: Mapping[str, int]) -> bool:
        columns = [*dict.fromkeys([self.source.label, *self.by])]
        return any(
            np.any(self._codes(table, index) >= 0)
            for table in iter_shards(self.store, [shard], columns)
        )

    def _codes(self, table: pa.Table, index: Mapping[str, int]) -> Int:
        names = table_strata(table, label=self.source.label, by=self.by)
        return np.array([index.get(name, -1) for name in names], dtype=np.int64)

    def expected_bytes(self, n_copies: int) -> int:
        """Estimate the bytes of so many copies from the mean size of a record."""
        n = sum(shard.n_records for shard in self.shards)
        return n_copies * sum(shard.n_bytes for shard in self.shards) // max(1, n)


def make_image_copies(
    source: DatasetInfo,
    plan: BalancePlan,
    counts: Mapping[str, int],
    classic: Classic,
    seed: int,
    stage: Stage,
) -> DatasetInfo:
    """Make the copies and write their shards.

    The records of a stratum take turns, in an order drawn from the seed, so more copies extend fewer.
    Policies leave some records unchanged (``classic.image_prob``); here that probability is raised so
    that the unchanged share of real records and copies together is the same as with the policy on the
    fly. An unchanged copy keeps its parent's bytes; others are written as 8-bit PNG, or as JPEG of
    quality 95 if the parent is a JPEG. Boxes, masks and keypoints move with the image; a box that
    leaves it is dropped with all its columns (``classic.min_visibility``).
    """
    policy = ImagePolicy.from_params(classic)
    policy.check()
    training = _TrainingRecords(stage.store, source, by_columns(plan), sorted(counts))
    jobs = _jobs(training, counts, policy, source.digest, seed)
    shards: list[ShardInfo] = []
    with Reordered(len(jobs.ids), training.expected_bytes(len(jobs.ids))) as spill:
        sizes = _make_all(training, jobs, policy, classic.min_visibility, seed, spill)
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
    for table, table_codes in training.tables(columns):
        keys.append(_as_bytes(table["aug_id"]))
        # Ranks depend on the seed: in the order of ids the same records would always come first.
        ranks.append(_as_bytes(derived_ids("classic order", table["aug_id"].to_pylist(), seed)))
        codes.append(table_codes)
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
    return _Jobs(joined[order], row, copy, stratum, probs)


def _as_bytes(ids: Any) -> ByteString:
    return np.array(ids.to_pylist(), dtype="S32")


# --- their bytes ------------------------------------------------------------------------------


def _make_all(
    training: _TrainingRecords,
    jobs: _Jobs,
    policy: ImagePolicy,
    min_visibility: float,
    seed: int,
    spill: Reordered,
) -> Int:
    """Make the copies portion by portion; return the bytes of each in the order of their ids."""
    by_row = np.argsort(jobs.rows, kind="stable")
    rows = jobs.rows[by_row]
    sizes = np.zeros(rows.size, dtype=np.int64)
    start = 0
    for parents, _ in training.tables():
        images = list(image_bytes(parents.column(training.column), name=training.column))
        keys = parents["aug_id"].to_pylist()
        targets = ImageTargets.of(parents.schema, training.column)
        low, high = np.searchsorted(rows, [start, start + parents.num_rows])
        copier = _Copier(policy, min_visibility, targets)
        places: list[int] = []
        copied: list[_Copy] = []
        n_bytes = 0
        for ats in portions([len(images[int(row) - start]) for row in rows[low:high]], low):
            taken = by_row[ats]
            local = (rows[ats] - start).tolist()
            copies = jobs.copies[taken].tolist()
            copied += copier.of(
                [images[row] for row in local],
                [
                    record_seed(seed, keys[row], copy)
                    for row, copy in zip(local, copies, strict=True)
                ],
                jobs.probs[jobs.strata[taken]].tolist(),
                [parents.slice(row, 1).to_pylist()[0] for row in local] if targets else None,
            )
            places += taken.tolist()
            n_bytes += sum(len(copy.data) for copy in copied[-len(local) :])
            if n_bytes >= BATCH_BYTES or ats.stop == high:
                of = np.array(places)
                sizes[of] = [len(m.data) for m in copied]
                spill.add(_to_table(training, parents, jobs, of, start, copied, targets), of)
                places, copied, n_bytes = [], [], 0
        start += parents.num_rows
    return sizes


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


def portions(sizes: Sequence[int], first: int = 0) -> Iterator[slice]:
    """Yield slices of places from ``first`` on: many small images each, or one large one.

    ``sizes`` are bytes of encoded images.
    """
    begin, n_bytes = 0, 0
    for i, size in enumerate(sizes):
        n_bytes += size
        if n_bytes >= PORTION_BYTES or i + 1 == len(sizes):
            yield slice(first + begin, first + i + 1)
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
