"""Staged records back in memory: what a step reads of the steps before it."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from prefect_augment.errors import IntegrityError
from prefect_augment.schema import DatasetInfo, DatasetRef, ShardInfo
from prefect_augment.shards.base import (
    ADVICE,
    check_count,
    open_shard,
    read_shard,
    row_groups,
    write_shards,
)
from prefect_augment.shards.stream_writer import BATCH_BYTES, BATCH_RECORDS
from prefect_augment.storage import Stage, Store, read_result


def load_info(ref: DatasetRef, store: Store) -> DatasetInfo:
    """Return the info of staged records; raises IntegrityError if it is gone or not the one ``ref`` names."""
    info = read_result(store, ref.path, DatasetInfo)
    where = f"{store.uri}/{ref.path}"
    if info is None:
        raise IntegrityError(
            f"{where} is gone; run again from ingest, it is made anew.", path=ref.path
        )
    if info.digest != ref.digest:
        raise IntegrityError(
            f"{where} describes other records than the reference does (digest {info.digest[:12]}…, expected "
            f"{ref.digest[:12]}…); run again from ingest.",
            path=ref.path,
        )
    return info


def read_part(
    store: Store, info: DatasetInfo, parts: Sequence[str], columns: Sequence[str] | None = None
) -> pa.Table:
    """Return the records of some parts (training, validation, holdout, candidates …) as :func:`read_shards` does."""
    wanted = [s for s in info.shards if s.split in parts]
    return read_shards(store, wanted, columns, like=info.shards)


def read_shards(
    store: Store,
    shards: Sequence[ShardInfo],
    columns: Sequence[str] | None = None,
    *,
    like: Sequence[ShardInfo] = (),
    verify: bool = False,
) -> pa.Table:
    """Return the records of these shards in order, with one dictionary per category column.

    Without shards the result is an empty table with the columns of the first of ``like``. ``verify``
    checks every object's sha256. Raises IntegrityError if a shard is missing or damaged.
    """
    if not shards:
        if not like:
            raise IntegrityError(
                f"{store.uri}: there is no shard to read; publish or ingest again."
            )
        return read_shard(store, like[0].path, columns).slice(0, 0)
    tables = [read_shard(store, s.path, columns, sha256=s.sha256 if verify else "") for s in shards]
    for shard, table in zip(shards, tables, strict=True):
        check_count(store, shard, table.num_rows)
    try:
        return pa.concat_tables(tables).unify_dictionaries()
    except pa.ArrowException as exc:
        raise IntegrityError(
            f"{store.uri}: {shards[0].path} and the shards after it have not the same columns; {ADVICE}."
        ) from exc


def iter_shards(
    store: Store, shards: Sequence[ShardInfo], columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the records of these shards in order, as tables of about 8 MiB and 65,536 records.

    Dictionaries may differ between shards. Raises IntegrityError if a shard is missing or damaged.
    """
    for info in shards:
        with open_shard(store, info.path, mapped=False) as shard:
            n_groups, start = 1, 0
            while start < len(shard.group_rows):
                groups = range(start, min(start + n_groups, len(shard.group_rows)))
                table = shard.read(columns, groups=groups)
                start = groups.stop
                if table.num_rows:
                    yield from row_groups(table, BATCH_RECORDS)
                per_group = max(1, table.nbytes // len(groups))
                by_records = BATCH_RECORDS * len(groups) // max(1, table.num_rows)
                n_groups = max(1, min(BATCH_BYTES // per_group, by_records))
                del table


SHARD_RECORDS = 100_000
SHARD_BYTES = 64 * 2**20


def write_candidates(stage: Stage, table: pa.Table, stem: str, label: str) -> tuple[ShardInfo, ...]:
    """Write synthetic or rejected records into a stage's folder; return the shards."""
    return write_shards(
        stage.store,
        table,
        prefix=stage.prefix,
        stem=stem,
        split=stem,
        origin="synthetic",
        label=label,
        max_records=SHARD_RECORDS,
        max_bytes=SHARD_BYTES,
    )
