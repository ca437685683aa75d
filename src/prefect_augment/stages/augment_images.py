"""Classic copies of images: what :func:`~prefect_augment.stages.augment.augment` does for images.

A copy is one real record under the policy: its columns, its label, new bytes in its image column.
How many a stratum gets is the recipe's; which record they come from, and how each looks, depends on
nothing but the records' ids and the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from prefect_augment.augmentation.images import ImagePolicy, record_seed
from prefect_augment.datatypes import BalancePlan, DatasetFacts, ShardFact
from prefect_augment.encoding.images import image_array
from prefect_augment.encoding.keys import derived_ids
from prefect_augment.encoding.pixels import (
    decode_image,
    encode_jpeg,
    encode_png,
    image_bytes,
    is_jpeg,
)
from prefect_augment.encoding.strata import table_strata
from prefect_augment.errors import EmptyClassError, SchemaError
from prefect_augment.params import Classic
from prefect_augment.shards.parquet import read_shard, write_shards
from prefect_augment.stages.records import by_columns
from prefect_augment.staging import Stage
from prefect_augment.storage import Store, sha256_hex

__all__ = ["make_image_copies"]

SHARD_RECORDS, SHARD_BYTES = 1_000_000, 128 * 1024 * 1024
IDS = ("aug_id", "content_key")  # of staged records, beside the source's columns


class _Job(NamedTuple):
    """One copy to make: of which row of the parents, and how."""

    aug_id: str
    row: int
    stratum: str
    seed: int
    prob: float


def make_image_copies(
    source: DatasetFacts,
    plan: BalancePlan,
    wanted: Mapping[str, int],
    classic: Classic,
    seed: int,
    stage: Stage,
) -> DatasetFacts:
    """Make the copies, put their shards, and return what is known of them.

    The records of a stratum take turns, in an order drawn from the seed, so that more copies add to
    fewer. Policies pass over some records (``classic.image_prob``); here that probability is raised
    so far that the share it leaves of real records and copies together is the same as where the
    policy runs on the fly. A copy that is passed over keeps its parent's bytes, others are written
    as 8-bit PNG, or as JPEG of quality 95 where the parent is a JPEG.
    """
    policy = ImagePolicy.from_params(classic)
    policy.check()
    label, by = source.label, by_columns(plan)
    column = _image_column(source)
    parents = _read_parents(stage.store, source, label, by, wanted)
    jobs = _jobs(parents, label, by, wanted, policy, source.digest, seed)
    shards: list[ShardFact] = []
    for table in _batches(parents, jobs, column, policy):
        shards += write_shards(
            stage.store,
            table,
            prefix=stage.prefix,
            stem=f"classic-{len(shards):05d}",
            split="train",
            origin="classic",
            label=label,
            max_records=SHARD_RECORDS,
            max_bytes=2 * SHARD_BYTES,  # one shard each: a batch is cut at SHARD_BYTES
        )
    class_counts: Counter[str] = Counter()
    for shard in shards:
        class_counts.update(shard.class_counts)
    return DatasetFacts(
        stage="augment",
        key=stage.key,
        digest=sha256_hex("\n".join(shard.sha256 for shard in shards).encode()),
        label=label,
        label_type=source.label_type,
        schema_digest=source.schema_digest,
        columns=source.columns,
        shards=tuple(shards),
        part_counts={"classic": dict(class_counts)},
        judged=source.judged,
        group_column=source.group_column,
        modality="image",
        image=source.image,
        notes=(policy.rule,),
        extra={"policy": policy.digest},
    )


def _image_column(source: DatasetFacts) -> str:
    if source.image is None:
        raise SchemaError("the staged records name no image column; ingest the source again.")
    return source.image.column


# --- which records ----------------------------------------------------------------------------


def _read_parents(
    store: Store, source: DatasetFacts, label: str, by: Sequence[str], wanted: Mapping[str, int]
) -> pa.Table:
    """Return the training records of the wanted strata, shard by shard: the others stay unread."""
    parts: list[pa.Table] = []
    for shard in source.shards:
        if shard.split not in ("fit", "val"):
            continue
        names = table_strata(
            read_shard(store, shard.path, columns=[label, *by]), label=label, by=by
        )
        mask = np.array([name in wanted for name in names], dtype=bool)
        if mask.any() or not parts:
            parts.append(read_shard(store, shard.path).filter(pa.array(mask)))
    return pa.concat_tables(parts).unify_dictionaries()


def _jobs(
    parents: pa.Table,
    label: str,
    by: Sequence[str],
    wanted: Mapping[str, int],
    policy: ImagePolicy,
    digest: str,
    seed: int,
) -> list[_Job]:
    """Return the copies to make, sorted by id."""
    keys: list[str] = parents.column("aug_id").to_pylist()
    # A rank of its own: in the order of the ids, the same records would come first under every seed.
    ranks = derived_ids("classic order", keys, seed).to_pylist() if keys else []
    rows: dict[str, list[int]] = {name: [] for name in wanted}
    for row, name in enumerate(table_strata(parents, label=label, by=by)):
        rows[name].append(row)
    jobs = []
    for name, n in sorted(wanted.items()):
        members = sorted(rows[name], key=lambda row: ranks[row])
        if not members:
            raise EmptyClassError(
                f"class {name!r} has no training record to make {n} classic copies of; lower its "
                "target, or leave it out of the recipe.",
                stratum=name,
            )
        prob = min(1.0, policy.prob * (len(members) + n) / n)
        drawn = [(members[i % len(members)], i // len(members)) for i in range(n)]
        copies = [copy for _, copy in drawn]
        of = [keys[row] for row, _ in drawn]
        ids = derived_ids("classic", of, name, digest, policy.digest, seed, copies).to_pylist()
        for (row, copy), aug_id in zip(drawn, ids, strict=True):
            jobs.append(_Job(aug_id, row, name, record_seed(seed, keys[row], copy), prob))
    return sorted(jobs)


# --- their bytes ------------------------------------------------------------------------------


def _batches(
    parents: pa.Table, jobs: Sequence[_Job], column: str, policy: ImagePolicy
) -> Iterator[pa.Table]:
    """Yield the copies in order, as many at a time as a shard holds."""
    images = list(image_bytes(parents.column(column), name=column))
    made: list[bytes] = []
    start, n_bytes = 0, 0
    for i, job in enumerate(jobs):
        made.append(_copy(images[job.row], job, policy))
        n_bytes += len(made[-1])
        if n_bytes >= SHARD_BYTES or i + 1 == len(jobs):
            yield _to_table(parents, jobs[start : i + 1], made, column)
            made, start, n_bytes = [], i + 1, 0


def _copy(data: bytes, job: _Job, policy: ImagePolicy) -> bytes:
    image = decode_image(data, max_pixels=None)
    changed = policy.apply(image, seed=job.seed, prob=job.prob)
    if changed is image:
        return data
    return encode_jpeg(changed) if is_jpeg(data) else encode_png(changed)


def _to_table(
    parents: pa.Table, jobs: Sequence[_Job], made: Sequence[bytes], column: str
) -> pa.Table:
    """Return the copies in the source's columns, with their lineage."""
    rows = pa.array([job.row for job in jobs], pa.int64())
    place = parents.column_names.index(column)
    field = parents.schema.field(column)
    paths = [
        f"classic/{job.aug_id}.{'jpg' if is_jpeg(data) else 'png'}"
        for job, data in zip(jobs, made, strict=True)
    ]
    lineage = {
        "aug_id": pa.array([job.aug_id for job in jobs], pa.string()),
        "aug_parent": parents.column("aug_id").take(rows),
        "aug_seed": pa.array([job.seed for job in jobs], pa.int64()),
        "aug_stratum": pa.array([job.stratum for job in jobs], pa.string()),
    }
    table = parents.drop_columns([column]).take(rows)
    table = table.add_column(place, field, image_array(made, paths, field.type))
    table = table.drop_columns([name for name in IDS if name in table.column_names])
    for name, values in lineage.items():
        table = table.append_column(name, values)
    return table.replace_schema_metadata(parents.schema.metadata)
