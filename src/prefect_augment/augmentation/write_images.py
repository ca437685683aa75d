"""Classic copies of images: one real record each, with new bytes in its image column.

The recipe gives the number per stratum. Which record a copy comes from and how it looks depend only
on the records' ids and the seed. Records are read in portions, and copies are sorted by id through
local files. Workers of an engine make and stage the copies of different shards, which are then found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import ByteString, Float, Int
from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed
from prefect_augment.encoding.annotations import ImageTargets, MovedRecord
from prefect_augment.encoding.arrays import TRAINED_ON, by_columns
from prefect_augment.encoding.images import image_array
from prefect_augment.encoding.pixels import decode_checked, encode_like, image_bytes, is_jpeg
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.encoding.strata import codes_of, table_strata
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
from prefect_augment.storage import Stage, read_result

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
    strata: Int  # (n_copies,) places in CopyMaker.strata
    probs: Float  # (n_strata,)
    starts: Int  # (n_shards + 1,) row of the first training record of each shard


class _Staged(Result):
    """The receipt of a shard's copies, made before by another task."""

    paths: tuple[str, ...]


class _Copy(NamedTuple):
    data: bytes
    seed: int
    moved: MovedRecord | None  # its targets, if they have changed


def make_image_copies(maker: "CopyMaker") -> DatasetInfo:
    """Make the copies and write their shards.

    The records of a stratum take turns, in an order drawn from the seed, so more copies extend fewer. Policies leave
    some records unchanged (``classic.image_prob``); here that probability is raised so that the unchanged share of real
    records and copies together is the same as with the policy on the fly. An unchanged copy keeps its parent's bytes;
    others are written as 8-bit PNG, or as JPEG of quality 95 if the parent is a JPEG. Boxes, masks and keypoints move
    with the image; a box that leaves it is dropped with all its columns (``classic.min_visibility``).
    """
    stage, source, n = maker.stage, maker.source, len(maker.jobs.ids)
    n_real = sum(shard.n_records for shard in maker.shards)
    expected = n * sum(shard.n_bytes for shard in maker.shards) // max(1, n_real)
    sizes = np.zeros(n, dtype=np.int64)
    shards: list[ShardInfo] = []
    with Reordered(n, expected) as spill:
        for number in range(len(maker.shards)):
            for table, places in maker.staged(number) or maker.copies(number):
                images = image_bytes(table.column(maker.column), name=maker.column)
                sizes[places] = [len(data) for data in images]
                spill.add(table, places)
        cuts = [part.stop - part.start for part in portions(sizes.tolist(), SHARD_BYTES)]
        for n, tables in cut(spill.tables(), cuts):
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
        source,
        shards,
        part="classic",
        notes=(maker.policy.rule,),
        extra={"policy": maker.policy.info},
    )


@dataclass(frozen=True)
class CopyMaker:
    """Makes the copies of one shard of training records after the other.

    ``counts`` are copies per stratum. Raises ParameterError for a policy that fails, and EmptyClassError
    for a stratum without records.
    """

    source: DatasetInfo
    plan: BalancePlan
    counts: Mapping[str, int]
    classic: Classic
    seed: int
    stage: Stage

    @cached_property
    def policy(self) -> ImagePolicy:
        """What changes the images."""
        policy = ImagePolicy.from_params(self.classic)
        policy.check()
        return policy

    @cached_property
    def strata(self) -> list[str]:
        """The requested strata."""
        return sorted(self.counts)

    @cached_property
    def shards(self) -> list[ShardInfo]:
        """Shards that may hold records of them; the others stay unread."""
        return [s for s in self.source.shards if s.split in TRAINED_ON]

    @property
    def column(self) -> str:
        """The image column."""
        if self.source.image is None:
            raise SchemaError("the staged records name no image column; ingest the source again.")
        return self.source.image.column

    def _tables(
        self, shard: ShardInfo, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[pa.Table, Int]]:
        """Yield a shard's records of the requested strata in portions, each with its strata's places."""
        for table in iter_shards(self.stage.store, [shard], columns):
            names = table_strata(table, label=self.source.label, by=by_columns(self.plan))
            codes = codes_of(names, self.strata)
            rows = np.flatnonzero(codes >= 0)
            if rows.size:
                yield table.take(pa.array(rows)), codes[rows]

    @cached_property
    def jobs(self) -> _Jobs:
        """The copies to make."""
        columns = [*dict.fromkeys(["aug_id", self.source.label, *by_columns(self.plan)])]
        keys, ranks = [np.zeros(0, dtype="S32")], [np.zeros(0, dtype="S32")]
        codes = [np.zeros(0, dtype=np.int64)]
        starts = [0]
        for shard in self.shards:
            starts.append(starts[-1])
            for table, table_codes in self._tables(shard, columns):
                keys.append(_as_bytes(table["aug_id"]))
                # Ranks depend on the seed: in the order of ids the same records would always come first.
                ranks.append(_as_bytes(derived_ids("classic order", table["aug_id"], self.seed)))
                codes.append(table_codes)
                starts[-1] += table.num_rows
        parents, ranked, strata = np.concatenate(keys), np.concatenate(ranks), np.concatenate(codes)
        ids = [np.zeros(0, dtype="S32")]
        places = [np.zeros((3, 0), dtype=np.int64)]  # row, number of the copy, stratum
        probs = np.zeros(len(self.strata))
        for code, name in enumerate(self.strata):
            n = self.counts[name]
            members = np.flatnonzero(strata == code)
            if not members.size:
                raise EmptyClassError(
                    f"class {name!r} has no training record to make {n} classic copies of; lower its "
                    "target, or leave it out of the recipe.",
                    stratum=name,
                )
            members = members[np.argsort(ranked[members], kind="stable")]
            probs[code] = min(1.0, self.policy.prob * (members.size + n) / n)
            for start in range(0, n, BATCH_RECORDS):
                turns = np.arange(start, min(n, start + BATCH_RECORDS))
                drawn, numbers = members[turns % members.size], turns // members.size
                texts = [key.decode() for key in parents[drawn].tolist()]
                digests = self.source.digest, self.policy.digest
                lineage = (texts, name, *digests, self.seed, numbers.tolist())
                ids.append(_as_bytes(derived_ids("classic", *lineage)))
                places.append(np.stack([drawn, numbers, np.full(turns.size, code)]))
        joined = np.concatenate(ids)
        order = np.argsort(joined)
        rows, copies, of = np.concatenate(places, axis=1)[:, order]
        by_row = np.argsort(rows, kind="stable")
        return _Jobs(joined[order], rows, by_row, copies, of, probs, np.array(starts))

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
        if staged is None:
            return None
        tables = (pa.ipc.open_stream(self.stage.store.read(p)).read_all() for p in staged.paths)
        return ((table.drop_columns([_PLACE]), table[_PLACE].to_numpy()) for table in tables)

    def copies(self, number: int) -> Iterator[tuple[pa.Table, Int]]:
        """Yield the copies of a shard's records, about ``BATCH_BYTES`` at a time, and their places among all."""
        jobs = self.jobs
        start = int(jobs.starts[number])
        ends = jobs.starts[number : number + 2]
        places = jobs.by_row[slice(*np.searchsorted(jobs.rows, ends, sorter=jobs.by_row))]
        if not places.size:  # then the shard stays unread
            return
        for parents, _ in self._tables(self.shards[number]):
            n = np.searchsorted(jobs.rows[places], start + parents.num_rows)
            yield from self._portion(parents, places[:n], start)
            places, start = places[n:], start + parents.num_rows

    def _portion(
        self, parents: pa.Table, places: Int, start: int
    ) -> Iterator[tuple[pa.Table, Int]]:
        """Yield the copies of parents that are the rows from ``start`` on."""
        jobs = self.jobs
        images = list(image_bytes(parents.column(self.column), name=self.column))
        keys = parents["aug_id"].to_pylist()
        targets = ImageTargets.of(parents.schema, self.column)
        rows = jobs.rows[places] - start
        copied: list[_Copy] = []
        n_bytes = first = 0
        for ats in portions([len(images[row]) for row in rows.tolist()], PORTION_BYTES):
            taken, local = places[ats], rows[ats].tolist()
            copies = zip(local, jobs.copies[taken].tolist(), strict=True)
            copied += self._changed(
                [images[row] for row in local],
                [record_seed(self.seed, keys[row], copy) for row, copy in copies],
                jobs.probs[jobs.strata[taken]].tolist(),
                [parents.slice(row, 1).to_pylist()[0] for row in local] if targets else None,
                targets,
            )
            n_bytes += sum(len(copy.data) for copy in copied[-len(local) :])
            if n_bytes >= BATCH_BYTES or ats.stop == len(places):
                of = slice(first, ats.stop)
                yield self._to_table(parents, places[of], rows[of], copied, targets), places[of]
                copied, n_bytes, first = [], 0, ats.stop

    def _changed(
        self,
        encoded: Sequence[bytes],
        seeds: Sequence[int],
        probs: Sequence[float],
        records: Sequence[Mapping[str, Any]] | None,
        targets: ImageTargets,
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
                    targets.read(record, image.shape, self.classic.min_visibility),
                    seed=seeds[i],
                    prob=probs[i],
                )
                changed.append(pixels)
                moved[i] = targets.write(record, moved_targets)
        return [
            _Copy(data, seed, None)
            if after is before
            else _Copy(encode_like(after, data), seed, belongings)
            for before, after, data, seed, belongings in zip(
                images, changed, encoded, seeds, moved, strict=True
            )
        ]

    def _to_table(
        self,
        parents: pa.Table,
        places: Int,
        rows: Int,
        copied: Sequence[_Copy],
        targets: ImageTargets,
    ) -> pa.Table:
        """Return copies of some rows of ``parents`` in the source's columns, with their lineage."""
        at = parents.column_names.index(self.column)
        field = parents.schema.field(self.column)
        ids = [aug_id.decode() for aug_id in self.jobs.ids[places].tolist()]
        paths = [
            f"classic/{aug_id}.{'jpg' if is_jpeg(m.data) else 'png'}"
            for aug_id, m in zip(ids, copied, strict=True)
        ]
        strata = [self.strata[k] for k in self.jobs.strata[places]]
        images = image_array([m.data for m in copied], paths, field.type)
        table = parents.drop_columns([self.column]).take(pa.array(rows))
        parent_ids = table["aug_id"]
        table = targets.replaced(table, [m.moved for m in copied], ids).add_column(
            at, field, images
        )
        table = table.drop_columns([name for name in IDS if name in table.column_names])
        for name, values in (
            ("aug_id", pa.array(ids, pa.string())),
            ("aug_parent", parent_ids),
            ("aug_seed", pa.array([m.seed for m in copied], pa.int64())),
            ("aug_stratum", pa.array(strata, pa.string())),
        ):
            table = table.append_column(name, values)
        return table.replace_schema_metadata(parents.schema.metadata)


def _as_bytes(ids: Any) -> ByteString:
    return np.array(ids.to_pylist(), dtype="S32")


def portions(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Yield slices of places whose sizes in bytes fill ``most``: many small images each, or one large one."""
    begin, n_bytes = 0, 0
    for i, size in enumerate(sizes):
        n_bytes += size
        if n_bytes >= most or i + 1 == len(sizes):
            yield slice(begin, i + 1)
            begin, n_bytes = i + 1, 0
