"""Staged records back in memory: what stages read of the stages before them.

:func:`iter_shards` gives them a few megabytes at a time; :func:`read_part` and :func:`read_shards`
give all at once, to those who compute on all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from prefect_augment.errors import IntegrityError
from prefect_augment.schema.base import DatasetInfo, DatasetRef, ShardInfo
from prefect_augment.shards.base import ADVICE, check_count, open_shard, read_shard
from prefect_augment.shards.parquet import write_shards
from prefect_augment.shards.stream_writer import BATCH_BYTES, BATCH_RECORDS
from prefect_augment.storage.staging import Stage, read_result
from prefect_augment.storage.store import Store

__all__ = ["iter_shards", "load_info", "read_part", "read_shards", "write_candidates"]


def load_info(ref: DatasetRef, store: Store) -> DatasetInfo:
    """Return everything known about staged records.

    Raises
    ------
    IntegrityError
        If the stage's outcome is gone, or is not the one that ``ref`` was made from.
    """
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
    """Records of some parts of staged data.

    Parameters
    ----------
    store : Store
        The root that the facts' shards lie under.
    info : DatasetInfo
        Outcome of an ingest, sampling or augmentation stage.
    parts : sequence of str
        Values of ``ShardInfo.split``: training, validation, holdout, candidates …
    columns : sequence of str, optional
        Only these, in this order.

    Returns
    -------
    pyarrow.Table
        Records in the order of the facts' shards; without rows where the parts are empty.

    Raises
    ------
    IntegrityError
        If a shard is missing or damaged.
    """
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
    """Records of these shards, one after the other, with one dictionary per category column.

    Parameters
    ----------
    store : Store
        The root that the shards lie under.
    shards : sequence of ShardInfo
        Which; none gives a table without rows, with the columns of the first of ``like``.
    columns : sequence of str, optional
        Only these, in this order.
    like : sequence of ShardInfo
        Where the columns are taken from when ``shards`` is empty.
    verify : bool
        Check every object's sha256 first.

    Raises
    ------
    IntegrityError
        If a shard is missing or damaged, or there is none to take the columns from.
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
    store: Store,
    shards: Sequence[ShardInfo],
    columns: Sequence[str] | None = None,
    *,
    max_bytes: int = BATCH_BYTES,
    max_records: int = BATCH_RECORDS,
) -> Iterator[pa.Table]:
    """Yield the records of these shards in order, some groups of rows at a time.

    Parameters
    ----------
    store, shards, columns
        As for :func:`read_shards`; tables of different shards may have different dictionaries.
    max_bytes, max_records : int
        About so much is in a table at most; a shard's first one is one group of rows.

    Raises
    ------
    IntegrityError
        If a shard is missing or damaged.
    """
    for result in shards:
        with open_shard(store, result.path, mapped=False) as shard:
            n_groups, start = 1, 0
            while start < len(shard.group_rows):
                groups = range(start, min(start + n_groups, len(shard.group_rows)))
                table = shard.read(columns, groups=groups)
                start = groups.stop
                yield from _slices(table, max_records)
                per_group = max(1, table.nbytes // len(groups))
                n_groups = max(
                    1,
                    min(
                        max_bytes // per_group, max_records * len(groups) // max(1, table.num_rows)
                    ),
                )
                del table


def _slices(table: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, size):
        yield table.slice(start, size)


SHARD_RECORDS = 100_000


SHARD_BYTES = 64 * 2**20


def write_candidates(stage: Stage, table: pa.Table, stem: str, label: str) -> tuple[ShardInfo, ...]:
    """Write records that are no real ones into a stage's folder; return the shards."""
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
