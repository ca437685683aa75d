"""Erasing source records: a new version without them, and every older trace of them removed.

The order is that of all removals here: the new version is whole and visible before anything goes, and
the manifests of the older ones go before their shards. What is to be erased is kept as an intent in
staging until the last object is gone, so that a run after a kill ends what was begun.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_augment.datatypes import Commit, Fact, ShardFact
from prefect_augment.encoding.keys import aug_ids
from prefect_augment.encoding.labels import label_text
from prefect_augment.errors import EmptyClassError, IntegrityError, ParameterError
from prefect_augment.manifest import (
    Manifest,
    PublishedFile,
    commit_next,
    committed,
    find_commit,
    list_versions,
    manifest_path,
    read_manifest,
)
from prefect_augment.registry import SHARD_FORMATS, load_shard_format
from prefect_augment.shards.formats import open_shard, put_once, read_shard, write_shards
from prefect_augment.shards.parquet import LINEAGE
from prefect_augment.stages.approval import read_decision
from prefect_augment.stages.card import refresh_card
from prefect_augment.stages.holdout import group_names
from prefect_augment.stages.image_columns import GROUP, record_keys
from prefect_augment.stages.layout import kind_of, named_by, removal_order, remove
from prefect_augment.stages.leases import lease
from prefect_augment.staging import read_fact, stage_key
from prefect_augment.storage import Store, sha256_hex

__all__ = ["EraseReport", "erase"]

logger = logging.getLogger(__name__)

FOLDER = "_staging/erase"
_SHOWN = 20


class EraseReport(Fact):
    """What :func:`erase` did."""

    version: int  # the first that lacks the records
    n_erased: dict[str, int]  # origin -> records of the version before
    n_shards_rewritten: int
    n_ledger_entries: int  # removed; fewer than the records where groups or equal records stay
    versions_removed: tuple[int, ...]
    n_objects_removed: int
    notes: tuple[str, ...]


class _Intent(Fact):
    """What is to be erased, until it is."""

    ids: tuple[str, ...]  # hashes: nothing of the records' values stands here
    dataset_key: str  # of the version that lacks them


def erase(
    store: Store, ids: Sequence[str] = (), *, where: Sequence[tuple[str, str]] = ()
) -> EraseReport:
    """Erase source records from every version that is kept.

    A new version lacks them and the copies and classic records made of them; shards that held them are
    written anew, as are those whose category lists hold a value that only they had. All older versions
    go, with their reports, whose pictures may show the records; so does the newest one's report, all
    staged work, which is derived from the records, with its models' checkpoints, and proposals that were
    open. Their entries leave the split ledger. Weights stay as they are.

    Out of reach: the source (the next run brings back what is still in it), quarantine, exports made
    before, copies elsewhere, old object versions that a bucket keeps. Synthetic records stay, and the
    manifest says that their models had seen the erased ones.

    Parameters
    ----------
    store : Store
        The dataset.
    ids : sequence of str
        ``aug_id`` of real records.
    where : sequence of (str, str)
        Column and value: also every real record whose column equals the value, in any kept version.

    Raises
    ------
    ParameterError
        If an id is that of no real record, nothing fits a condition, or a column is not there.
        Nothing is changed then.
    EmptyClassError
        If no record would be left.
    IntegrityError
        If a version cannot be read. Nothing is changed then.
    TransientError
        If another run publishes or removes meanwhile.
    """
    if not ids and not where:
        raise ParameterError("name the records to erase: their aug_id, or a column and its value.")
    request = stage_key("erase", algorithm_version=1, params=[sorted(ids), sorted(where)])
    with lease(store, "removing", f"erase-{request}") as renew:
        finished: dict[str, EraseReport] = {}
        for path in store.list(FOLDER):
            intent = read_fact(store, path, _Intent)
            if intent is not None:
                report = _carry_out(store, intent, path, renew)
                finished.update(dict.fromkeys(intent.ids, report))
        chosen = _choose(store, ids, where, set(finished))
        if not chosen:
            return next(iter(finished.values()))
        newest = read_manifest(store)
        key = stage_key(
            "erase",
            algorithm_version=1,
            params=sorted(chosen),
            inputs=[str(newest.version), newest.content_digest],
        )
        intent = _Intent(ids=tuple(sorted(chosen)), dataset_key=key)
        path = f"{FOLDER}/{key}/intent.json"
        store.put_if_absent(path, intent.to_json())
        return _carry_out(store, intent, path, renew)


# --- which records ----------------------------------------------------------------------------


def _choose(
    store: Store, ids: Sequence[str], where: Sequence[tuple[str, str]], finished: set[str]
) -> set[str]:
    """Return the ids to erase, or say which of them there are not."""
    manifests = [read_manifest(store, version) for version in list_versions(store)]
    if not manifests:
        read_manifest(store)  # says that there is no dataset
    origins: dict[str, str] = {}
    fitting: dict[tuple[str, str], set[str]] = {condition: set() for condition in where}
    for shard in {s.path: s for m in manifests for s in m.shards}.values():
        columns = sorted({name for name, _ in where}) if shard.origin == "real" else []
        table = read_shard(store, shard.path, ["aug_id", *columns])
        origins.update(dict.fromkeys(table["aug_id"].to_pylist(), shard.origin))
        if shard.origin == "real":
            for name, value in where:
                rows = _equal(table[name], name, value)
                fitting[name, value] |= set(table["aug_id"].filter(rows).to_pylist())
    asked = set(ids) - finished
    unknown = sorted(i for i in asked if origins.get(i) != "real")
    if unknown:
        shown = ", ".join(f"{i} ({origins[i]})" if i in origins else i for i in unknown[:_SHOWN])
        more = f" … and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise ParameterError(
            f"{len(unknown)} of {len(asked)} ids are those of no source record in {store.uri}: {shown}{more}. "
            "Nothing was changed. Give the aug_id of records whose aug_origin is real.",
            ids=unknown,
        )
    empty = [f"{name}={value}" for (name, value), found in fitting.items() if not found]
    if empty and not finished:
        raise ParameterError(
            f"no source record of {store.uri} has {', '.join(empty)}. Nothing was changed."
        )
    return asked.union(*fitting.values())


def _equal(column: pa.ChunkedArray, name: str, value: str) -> pa.ChunkedArray:
    """Tell which values equal one that is given as text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        wanted = pa.scalar(value).cast(column.type)
        return pc.fill_null(pc.equal(column, wanted), False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise ParameterError(
            f"column {name!r} is {column.type}, which {value!r} cannot be compared with; name the records by id."
        ) from exc


# --- the version without them -----------------------------------------------------------------


@dataclass
class _Rewritten:
    """What a version becomes; nothing of it names an erased record."""

    shards: tuple[ShardFact, ...]
    ledger: PublishedFile | None
    n_rewritten: int = 0
    n_ledger: int = 0
    n_erased: Counter[str] = field(default_factory=Counter)
    n_train: int = 0  # erased real records that models may have been trained on


def _rewrite(
    store: Store, manifest: Manifest, gone: set[str], renew: Callable[[], None]
) -> _Rewritten:
    """Write what replaces a version's shards and ledger; its own objects stay."""
    lost = _lost_categories(store, manifest, gone, renew)
    made = _Rewritten(shards=(), ledger=None)
    shards: list[ShardFact] = []
    for shard in manifest.shards:
        renew()
        table = read_shard(store, shard.path, sha256=shard.sha256)
        hit = _hit(table, gone)
        n_hit = pc.sum(hit).as_py() or 0
        drop = {
            column: values
            for column, values in lost.items()
            if not values.isdisjoint(_categories(table[column]))
        }
        if not n_hit and not drop:
            shards.append(shard)
            continue
        if (shard.origin, shard.split) == ("real", "train"):
            made.n_train += n_hit
        made.n_erased[shard.origin] += n_hit
        made.n_rewritten += 1
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
            shard_format=_format_of(shard.path),
            classes=manifest.classes,
        )
    if not shards:
        raise EmptyClassError(
            f"no record of {store.uri} would be left; nothing was changed. Delete the folder instead."
        )
    made.shards = tuple(shards)
    made.ledger, made.n_ledger = _rewrite_ledger(store, manifest, gone)
    made.n_erased += Counter()  # drops origins with none
    return made


def _hit(table: pa.Table, gone: set[str]) -> pa.ChunkedArray:
    """Tell which records are erased, or were made from one that is."""
    ids = pa.array(sorted(gone), pa.string())
    return pc.or_(pc.is_in(table["aug_id"], ids), pc.is_in(table["aug_parent"], ids))


def _lost_categories(
    store: Store, manifest: Manifest, gone: set[str], renew: Callable[[], None]
) -> dict[str, set[Any]]:
    """Return, per category column, the values that only erased records have.

    A shard keeps the whole list of categories, also those that none of its records has, so such a
    value would go on to stand in every shard. What the source declared and nobody had stays.
    """
    erased: dict[str, set[Any]] = {}
    kept: dict[str, set[Any]] = {}
    for shard in manifest.shards:
        renew()
        with open_shard(store, shard.path) as opened:
            names = _category_columns(opened.schema, manifest.label)
            if not names:
                continue
            table = opened.read([*names, "aug_id", "aug_parent"])
        hit = _hit(table, gone)
        for name in names:
            values = table[name].cast(table.schema.field(name).type.value_type)
            erased.setdefault(name, set()).update(values.filter(hit).unique().to_pylist())
            kept.setdefault(name, set()).update(values.filter(pc.invert(hit)).unique().to_pylist())
    lost = {name: values - kept[name] - {None} for name, values in erased.items()}
    return {name: values for name, values in lost.items() if values}


def _category_columns(schema: pa.Schema, label: str) -> list[str]:
    # A class stays one, also where it has no record left.
    return [f.name for f in schema if pa.types.is_dictionary(f.type) and f.name != label]


def _categories(column: pa.ChunkedArray) -> set[Any]:
    return {value for chunk in column.chunks for value in chunk.dictionary.to_pylist()}


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


def _format_of(path: str) -> str:
    return next(
        (name for name in SHARD_FORMATS if path.endswith(load_shard_format(name).ending)), "parquet"
    )


# --- the ledger -------------------------------------------------------------------------------


def _rewrite_ledger(
    store: Store, manifest: Manifest, gone: set[str]
) -> tuple[PublishedFile | None, int]:
    """Write the ledger without the erased records; return it and how many entries it lost."""
    if manifest.ledger is None:
        return None, 0
    table = read_shard(store, manifest.ledger.path, sha256=manifest.ledger.sha256)
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
    left = _renamed_clusters(table.filter(pa.array(keep, pa.bool_())))
    sink = io.BytesIO()
    pq.write_table(left, sink, compression="zstd")
    data = sink.getvalue()
    digest = sha256_hex(data)
    path = f"_splits/v{manifest.version + 1:08d}-{digest[:12]}.parquet"
    put_once(store, path, data)
    return PublishedFile(path=path, n_bytes=len(data), sha256=digest), n_dropped


def _erased(store: Store, gone: set[str]) -> list[tuple[str, pa.Table]]:
    """Return the records to erase with their split, each once, as the newest version has them."""
    waiting, found, seen = set(gone), [], set()
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
                found.append((shard.split, table))
    return found


def _kept_rows(table: pa.Table, label: str, erased: Sequence[tuple[str, pa.Table]]) -> list[bool]:
    """Tell which entries stay: of equal records, as many go as are erased, on the side they are on."""
    # (key, class) -> aug_id and side of the erased records
    going: dict[tuple[str, str], list[tuple[str, bool]]] = {}
    for split, records in erased:
        user = records.select([c for c in records.column_names if c not in LINEAGE.names])
        pairs = zip(
            record_keys(user, label=label), label_text(user[label]).to_pylist(), strict=True
        )
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
    """Return the ledger's rows of some of the records that have one key and class.

    An aug_id numbers equal records in the order of their occurrences, but counts those that an earlier
    erasure took; so where the number does not tell, any entry of the same side will do.
    """
    ids = aug_ids([key] * len(entries), [name] * len(entries)).to_pylist()
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
    """Name a near-duplicate cluster by a member that is left, where the one that named it is gone."""
    if "cluster" not in table.column_names:
        return table
    keys, clusters = table["key"].to_pylist(), table["cluster"].to_pylist()
    there = set(keys)
    names: dict[str, str] = {}
    for key, cluster in sorted(zip(keys, clusters, strict=True)):
        names.setdefault(cluster, cluster if cluster in there else key)
    at = table.column_names.index("cluster")
    renamed = pa.array([names[c] for c in clusters], table.schema.field(at).type)
    return table.set_column(at, table.schema.field(at), renamed)


# --- carrying it out --------------------------------------------------------------------------


def _carry_out(store: Store, intent: _Intent, path: str, renew: Callable[[], None]) -> EraseReport:
    """Publish the version without the records where there is none yet, then remove all else."""
    gone = set(intent.ids)
    state: dict[str, _Rewritten] = {}

    def build(version: int, parent: Manifest | None) -> Manifest:
        if parent is None:
            raise IntegrityError(f"{store.uri} lost all its versions meanwhile.")
        state["made"] = _rewrite(store, parent, gone, renew)
        return _manifest(version, parent, intent, state["made"])

    find = partial(_find, store, intent, gone)
    try:
        done = commit_next(store, build, find)
    except (EmptyClassError, IntegrityError):
        store.delete(path)  # it cannot be done, so no later run is to try
        raise
    # The card of the version before names shards that go.
    refresh_card(store)
    going = tuple(v for v in list_versions(store) if v < done.version)
    infos = store.infos()
    stay = {
        p for v in list_versions(store) if v not in going for p in named_by(read_manifest(store, v))
    }
    paths = [
        p for p in infos if p not in stay and not p.startswith(f"{FOLDER}/") and _goes(store, p)
    ]
    # As in gc: manifests first, so that no reader finds one whose shards are missing.
    remove(store, map(manifest_path, going), renew)
    remove(store, removal_order(paths, infos), renew)
    notes = read_manifest(store, done.version).notes
    store.delete(path)
    logger.info("Version %d of %s lacks the erased records.", done.version, store.uri)
    made = state.get("made")
    return EraseReport(
        version=done.version,
        n_erased=dict(made.n_erased) if made else {},
        n_shards_rewritten=made.n_rewritten if made else 0,
        n_ledger_entries=made.n_ledger if made else 0,
        versions_removed=going,
        n_objects_removed=len(paths) + len(going),
        notes=tuple(note for note in notes if note.startswith(_heading(done.version))),
    )


def _goes(store: Store, path: str) -> bool:
    """Tell whether an object that no version names may hold, or wait for, what is erased."""
    kind = kind_of(path)
    if kind == "proposal":
        return ".decision" not in path and (
            read_decision(store, path.rsplit("/", 1)[-1].removesuffix(".json")) is None
        )
    return kind in ("shard", "ledger", "report", "quarantine", "stage", "temporary")


def _find(store: Store, intent: _Intent, gone: set[str]) -> Commit | None:
    """Return the newest version where it lacks the records and an erasure of theirs is behind it."""
    newest = read_manifest(store)
    if newest.dataset_key == intent.dataset_key:
        return committed(store, newest, created=False)
    if find_commit(store, intent.dataset_key) is None or any(_held(store, newest, gone)):
        return None
    return committed(store, newest, created=False)


def _held(store: Store, manifest: Manifest, gone: set[str]) -> Iterator[bool]:
    for shard in manifest.shards:
        table = read_shard(store, shard.path, ["aug_id", "aug_parent"])
        yield bool(pc.any(_hit(table, gone), min_count=0).as_py())


def _heading(version: int) -> str:
    return f"Erased in version {version}: "


def _manifest(version: int, parent: Manifest, intent: _Intent, made: _Rewritten) -> Manifest:
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for shard in made.shards:
        for name, n in shard.class_counts.items():
            origins = counts.setdefault(shard.split, {}).setdefault(name, {})
            origins[shard.origin] = origins.get(shard.origin, 0) + n
    return parent.model_copy(
        update={
            "version": version,
            "parent": parent.version,
            "dataset_key": intent.dataset_key,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "class_counts": counts,
            "shards": made.shards,
            "ledger": made.ledger,
            "ingest": "",
            "report": "",
            "report_files": (),
            "notes": (*(f"{_heading(version)}{n}" for n in _notes(made)), *parent.notes),
        }
    )


def _notes(made: _Rewritten) -> Iterator[str]:
    n = {origin: made.n_erased.get(origin, 0) for origin in ("real", "copy", "classic")}
    yield (
        f"{n['real']} source records of the version before, and {n['copy'] + n['classic']} records made from them "
        f"({n['copy']} copies, {n['classic']} classic). Older versions, reports and staged work were removed. Plan, "
        "recipe and verdict are those of the records before; weights were not scaled anew."
    )
    if made.n_train and any(s.origin == "synthetic" for s in made.shards):
        yield (
            f"the synthetic records stay; their models had seen {made.n_train} of the erased records, and their "
            "checkpoints were removed."
        )
