"""A version without erased records: its shards, their category lists, and its split ledger."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_augment.encoding.labels import label_text
from prefect_augment.encoding.record_ids import derived_ids, record_keys
from prefect_augment.errors import EmptyClassError
from prefect_augment.ingest.validate import group_names
from prefect_augment.schema import Manifest, PublishedFile, ShardInfo
from prefect_augment.shards.base import format_of, open_shard, put_once, read_shard, write_shards
from prefect_augment.shards.parquet import LINEAGE
from prefect_augment.sources.images.columns import GROUP
from prefect_augment.split.ledger_io import with_keys
from prefect_augment.storage import Store, list_versions, read_manifest, sha256_hex


@dataclass
class Rewritten:
    """The new content of a version, without any trace of erased records."""

    shards: tuple[ShardInfo, ...]
    ledger: PublishedFile | None
    n_rewritten: int = 0
    n_ledger: int = 0
    n_erased: Counter[str] = field(default_factory=Counter)
    n_train: int = 0  # erased real records that models may have been trained on


def rewrite(
    store: Store, manifest: Manifest, gone: set[str], renew: Callable[[], None]
) -> Rewritten:
    """Write the replacements of a version's shards and ledger; the old objects stay."""
    lost = _lost_categories(store, manifest, gone, renew)
    result = Rewritten(shards=(), ledger=None)
    shards: list[ShardInfo] = []
    for shard in manifest.shards:
        renew()
        table = read_shard(store, shard.path, sha256=shard.sha256)
        hit = erased_rows(table, gone)
        n_hit = pc.sum(hit).as_py() or 0
        drop = {
            name: values
            for name, values in lost.items()
            if any(not values.isdisjoint(c.dictionary.to_pylist()) for c in table[name].chunks)
        }
        if not n_hit and not drop:
            shards.append(shard)
            continue
        if (shard.origin, shard.split) == ("real", "train"):
            result.n_train += n_hit
        result.n_erased[shard.origin] += n_hit
        result.n_rewritten += 1
        kept = _without_categories(table.filter(pc.invert(hit)), drop)
        shards += write_shards(
            store,
            kept,
            prefix="data",
            stem=f"{shard.split}-{shard.origin}",
            split=shard.split,
            origin=shard.origin,
            label=manifest.label,
            max_records=max(1, shard.n_records),
            max_bytes=1 << 62,
            shard_format=format_of(shard.path),
            classes=manifest.classes,
        )
    if not shards:
        raise EmptyClassError(
            f"no record of {store.uri} would be left; nothing was changed. Delete the folder instead."
        )
    result.shards = tuple(shards)
    result.ledger, result.n_ledger = rewrite_ledger(store, manifest, gone)
    result.n_erased += Counter()  # drops origins with none
    return result


def erased_rows(table: pa.Table, gone: set[str]) -> pa.ChunkedArray:
    """Return which records are erased, or were made from an erased one."""
    ids = pa.array(sorted(gone), pa.string())
    return pc.or_(pc.is_in(table["aug_id"], ids), pc.is_in(table["aug_parent"], ids))


def _lost_categories(
    store: Store, manifest: Manifest, gone: set[str], renew: Callable[[], None]
) -> dict[str, set[Any]]:
    """Return, per category column, the values that only erased records have.

    A shard keeps the whole list of categories, so such a value would stay in every shard. Values that the
    source declared and no record had stay.
    """
    erased: dict[str, set[Any]] = {}
    kept: dict[str, set[Any]] = {}
    for shard in manifest.shards:
        renew()
        with open_shard(store, shard.path) as opened:
            # A class stays, even without records.
            categories = [f.name for f in opened.schema if pa.types.is_dictionary(f.type)]
            names = [name for name in categories if name != manifest.label]
            if not names:
                continue
            table = opened.read([*names, "aug_id", "aug_parent"])
        hit = erased_rows(table, gone)
        for name in names:
            values = table[name].cast(table.schema.field(name).type.value_type)
            erased.setdefault(name, set()).update(values.filter(hit).unique().to_pylist())
            kept.setdefault(name, set()).update(values.filter(pc.invert(hit)).unique().to_pylist())
    lost = {name: values - kept[name] - {None} for name, values in erased.items()}
    return {name: values for name, values in lost.items() if values}


def _without_categories(table: pa.Table, drop: dict[str, set[Any]]) -> pa.Table:
    table = table.unify_dictionaries()
    for name, values in drop.items():
        at = table.column_names.index(name)
        kind = table.schema.field(at).type
        chunks = []
        for chunk in table[name].chunks:
            left = [v for v in chunk.dictionary.to_pylist() if v not in values]
            dictionary = pa.array(left, kind.value_type)
            codes = pc.index_in(chunk.cast(kind.value_type), value_set=dictionary)
            chunks.append(
                pa.DictionaryArray.from_arrays(
                    codes.cast(kind.index_type), dictionary, ordered=kind.ordered
                )
            )
        table = table.set_column(at, table.schema.field(at), pa.chunked_array(chunks, kind))
    return table


def rewrite_ledger(
    store: Store, manifest: Manifest, gone: set[str]
) -> tuple[PublishedFile | None, int]:
    """Write the ledger without the erased records; return it and the number of removed entries."""
    if manifest.ledger is None:
        return None, 0
    table = read_shard(store, manifest.ledger.path, sha256=manifest.ledger.sha256)
    table = with_keys(store, table, opens=True)
    unit = ((table.schema.metadata or {}).get(b"unit") or b"record").decode()
    kind, _, column = unit.partition(":")
    erased = _erased(store, gone)
    if kind in ("group", "pattern"):
        lost = _gone_groups(store, manifest, erased, column if kind == "group" else GROUP, gone)
        keep = [key not in lost for key in table["key"].to_pylist()]
    else:
        keep = _kept_rows(table, manifest.label, erased)
    n_dropped = keep.count(False)
    if not n_dropped:
        return manifest.ledger, 0
    remaining = _renamed_clusters(table.filter(pa.array(keep, pa.bool_())))
    sink = io.BytesIO()
    pq.write_table(with_keys(store, remaining, opens=False), sink, compression="zstd")
    data = sink.getvalue()
    digest = sha256_hex(data)
    path = f"_splits/v{manifest.version + 1:08d}-{digest[:12]}.parquet"
    put_once(store, path, data)
    return PublishedFile(path=path, n_bytes=len(data), sha256=digest), n_dropped


def _erased(store: Store, gone: set[str]) -> list[tuple[str, pa.Table]]:
    """Return the records to erase with their split, each once, in their newest version."""
    waiting, tables, seen = set(gone), [], set()
    for version in reversed(list_versions(store)):
        for shard in read_manifest(store, version).shards:
            if shard.origin != "real" or shard.path in seen:
                continue
            seen.add(shard.path)
            ids = read_shard(store, shard.path, ["aug_id"])["aug_id"]
            if not waiting.isdisjoint(ids.to_pylist()):
                rows = pc.is_in(ids, pa.array(sorted(waiting), pa.string()))
                table = read_shard(store, shard.path).filter(rows)
                waiting -= set(table["aug_id"].to_pylist())
                tables.append((shard.split, table))
    return tables


def erased_keys(store: Store, gone: set[str]) -> set[str]:
    """Return the content keys of the records to erase."""
    label = read_manifest(store).label
    return {
        key
        for _, records in _erased(store, gone)
        for key in record_keys(_of_source(records), label=label)
    }


def _of_source(records: pa.Table) -> pa.Table:
    return records.select([c for c in records.column_names if c not in LINEAGE.names])


def _kept_rows(table: pa.Table, label: str, erased: Sequence[tuple[str, pa.Table]]) -> list[bool]:
    """Return which entries stay: of equal records as many go as are erased, in the same split."""
    # (key, class) -> aug_id and side of the erased records
    going: dict[tuple[str, str], list[tuple[str, bool]]] = {}
    for split, records in erased:
        user = _of_source(records)
        names = label_text(user[label]).to_pylist()
        pairs = zip(record_keys(user, label=label), names, strict=True)
        for pair, aug_id in zip(pairs, records["aug_id"].to_pylist(), strict=True):
            going.setdefault(pair, []).append((aug_id, split == "holdout"))
    rows: dict[tuple[str, str], list[tuple[int, int, bool]]] = {}
    columns = [table[name].to_pylist() for name in ("key", "label", "occurrence", "part")]
    for row, (key, name, occurrence, part) in enumerate(zip(*columns, strict=True)):
        if (key, name) in going:
            rows.setdefault((key, name), []).append((occurrence, row, part == "holdout"))
    keep = [True] * table.num_rows
    for (key, name), entries in rows.items():
        for row in _rows_of(key, name, sorted(entries), going[key, name]):
            keep[row] = False
    return keep


def _rows_of(
    key: str, name: str, entries: list[tuple[int, int, bool]], going: list[tuple[str, bool]]
) -> list[int]:
    """Return the ledger's rows of some of the records with one key and class.

    An aug_id numbers equal records in the order of their occurrences, including those of earlier erasures.
    Where the number does not decide, any entry of the same side is taken.
    """
    ids = derived_ids("real", key, name, range(len(entries))).to_pylist()
    left = {(aug_id, side): row for aug_id, (_, row, side) in zip(ids, entries, strict=True)}
    rows = [left.pop(record) for record in going if record in left]
    for _, side in [record for record in going if record[0] not in ids]:
        any_of_side = next((other for other in left if other[1] == side), None)
        if any_of_side is not None:
            rows.append(left.pop(any_of_side))
    return rows


def _gone_groups(
    store: Store,
    manifest: Manifest,
    erased: Sequence[tuple[str, pa.Table]],
    column: str,
    gone: set[str],
) -> set[str]:
    """Return the groups that lose their last record."""
    groups = {
        g for _, table in erased if column in table.column_names for g in group_names(table[column])
    }
    for shard in manifest.shards:
        if shard.origin == "real" and groups:
            table = read_shard(store, shard.path, ["aug_id", column])
            names = zip(group_names(table[column]), table["aug_id"].to_pylist(), strict=True)
            groups -= {name for name, aug_id in names if aug_id not in gone}
    return groups


def _renamed_clusters(table: pa.Table) -> pa.Table:
    """Name a near-duplicate cluster by a remaining member if its name-giving record is gone."""
    if "cluster" not in table.column_names:
        return table
    keys, clusters = table["key"].to_pylist(), table["cluster"].to_pylist()
    remaining = set(keys)
    names: dict[str, str] = {}
    for key, cluster in sorted(zip(keys, clusters, strict=True)):
        names.setdefault(cluster, cluster if cluster in remaining else key)
    at = table.column_names.index("cluster")
    renamed = pa.array([names[c] for c in clusters], table.schema.field(at).type)
    return table.set_column(at, table.schema.field(at), renamed)
