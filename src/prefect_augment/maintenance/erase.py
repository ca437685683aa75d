"""Erasing source records: a new version without them, and removal of every older trace of them.

As in all removals, the new version is complete and visible before anything is removed, and older
manifests go before their shards. An intent in staging lives until the last object is removed, so that
a run after a kill finishes the erasure.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.errors import EmptyClassError, IntegrityError, ParameterError
from prefect_augment.maintenance.erase_shards import Rewritten, erased_keys, erased_rows, rewrite
from prefect_augment.maintenance.layout import kind_of, named_by, removal_order, remove
from prefect_augment.params.keys import step_key
from prefect_augment.publish.proposal import read_decision
from prefect_augment.report.card import refresh_card
from prefect_augment.schema import Commit, CorrectedLabels, Manifest, Result, class_counts
from prefect_augment.shards.base import read_shard
from prefect_augment.shards.parquet import LINEAGE
from prefect_augment.split.corrections import forget_corrections
from prefect_augment.storage import (
    Store,
    commit,
    committed,
    find_commit,
    lease,
    list_versions,
    manifest_path,
    read_manifest,
    read_result,
)

logger = logging.getLogger(__name__)

FOLDER = "_staging/erase"
_MAX_LISTED = 20
_HOLDS_RECORDS = ("shard", "ledger", "report", "quarantine", "latents", "stage", "temporary")


class EraseReport(Result):
    """Result of :func:`erase`."""

    version: int  # the first that lacks the records
    n_erased: dict[str, int]  # origin -> records of the version before
    n_shards_rewritten: int
    n_ledger_entries: int  # removed; fewer than the records where groups or equal records stay
    versions_removed: tuple[int, ...]
    n_objects_removed: int
    notes: tuple[str, ...]


class _Intent(Result):
    """What is to be erased, until it is done."""

    ids: tuple[str, ...]  # hashes, none of the records' values
    dataset_key: str  # of the version that lacks them


def erase(
    store: Store, ids: Sequence[str] = (), *, where: Sequence[tuple[str, str]] = ()
) -> EraseReport:
    """Erase source records from every version that is kept.

    The new version lacks them and the copies and classic records made of them. Shards that held them are
    rewritten, as are those whose category lists hold a value that only they had. All older versions go with
    their reports, whose images may show the records; so do the newest version's report, all staged work
    with its models' checkpoints, embeddings and other latents beside the dataset, and open proposals.
    Their entries leave the split ledger, and corrections of their labels the decisions: a record with equal values
    that stays gets the source's label again. Weights stay as they are.

    Out of reach: the source (the next run ingests what is still in it), quarantine, earlier exports,
    embeddings and copies elsewhere, and old object versions that a bucket keeps. Synthetic records stay,
    and the manifest notes that their models had seen the erased ones.

    ``ids`` are the ``aug_id`` of real records; ``where`` names columns and values, and so every real record whose
    column equals the value, in any kept version.

    Raises ParameterError if an id is that of no real record, no record meets a condition, or a column does not exist,
    and IntegrityError if a version cannot be read: nothing is changed then. EmptyClassError if no record would be
    left; TransientError if another run publishes or removes meanwhile.
    """
    if not ids and not where:
        raise ParameterError("name the records to erase: their aug_id, or a column and its value.")
    ours = sorted({name for name, _ in where} & set(LINEAGE.names))
    if ours:
        raise ParameterError(
            f"{', '.join(ours)} is a lineage column, and where takes columns of the source; name single records by "
            "their aug_id (--ids)."
        )
    request = step_key("erase", inputs=[sorted(ids), sorted(where)])
    with lease(store, "removing", f"erase-{request}") as renew:
        finished: dict[str, EraseReport] = {}
        for path in store.list(FOLDER):
            intent = read_result(store, path, _Intent)
            if intent is not None:
                report = _carry_out(store, intent, path, renew)
                finished.update(dict.fromkeys(intent.ids, report))
        chosen = _choose(store, ids, where, set(finished))
        if not chosen:
            return next(iter(finished.values()))
        newest = read_manifest(store)
        key = step_key("erase", inputs=[sorted(chosen), newest.version, newest.content_digest])
        intent = _Intent(ids=tuple(sorted(chosen)), dataset_key=key)
        path = f"{FOLDER}/{key}/intent.json"
        store.put_if_absent(path, intent.to_json())
        return _carry_out(store, intent, path, renew)


# --- which records ----------------------------------------------------------------------------


def _choose(
    store: Store, ids: Sequence[str], where: Sequence[tuple[str, str]], finished: set[str]
) -> set[str]:
    """Return the ids to erase; ParameterError for unknown ids or conditions that no record meets."""
    manifests = [read_manifest(store, version) for version in list_versions(store)]
    if not manifests:
        read_manifest(store)  # raises that there is no dataset
    origins: dict[str, str] = {}
    matches: dict[tuple[str, str], set[str]] = {condition: set() for condition in where}
    for shard in {s.path: s for m in manifests for s in m.shards}.values():
        columns = sorted({name for name, _ in where}) if shard.origin == "real" else []
        table = read_shard(store, shard.path, ["aug_id", *columns])
        origins.update(dict.fromkeys(table["aug_id"].to_pylist(), shard.origin))
        if shard.origin == "real":
            for name, value in where:
                rows = _equal(table[name], name, value)
                matches[name, value] |= set(table["aug_id"].filter(rows).to_pylist())
    requested = set(ids) - finished
    unknown = sorted(i for i in requested if origins.get(i) != "real")
    if unknown:
        shown = ", ".join(
            f"{i} ({origins[i]})" if i in origins else i for i in unknown[:_MAX_LISTED]
        )
        more = f" … and {len(unknown) - _MAX_LISTED} more" if len(unknown) > _MAX_LISTED else ""
        raise ParameterError(
            f"{len(unknown)} of {len(requested)} ids are those of no source record in {store.uri}: {shown}{more}. "
            "Nothing was changed. Give the aug_id of records whose aug_origin is real.",
            ids=unknown,
        )
    empty = [f"{name}={value}" for (name, value), records in matches.items() if not records]
    if empty and not finished:
        raise ParameterError(
            f"no source record of {store.uri} has {', '.join(empty)}. Nothing was changed."
        )
    return requested.union(*matches.values())


def _equal(column: pa.ChunkedArray, name: str, value: str) -> pa.ChunkedArray:
    """Return which values equal one that is given as text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        scalar = pa.scalar(value).cast(column.type)
        return pc.fill_null(pc.equal(column, scalar), False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise ParameterError(
            f"column {name!r} is {column.type}, which {value!r} cannot be compared with; name the records by id."
        ) from exc


# --- carrying it out --------------------------------------------------------------------------


def _carry_out(store: Store, intent: _Intent, path: str, renew: Callable[[], None]) -> EraseReport:
    """Publish the version without the records if it does not exist yet, then remove all traces."""
    gone = set(intent.ids)
    state: dict[str, Rewritten] = {}

    def build(version: int, parent: Manifest | None) -> Manifest:
        if parent is None:
            raise IntegrityError(f"{store.uri} lost all its versions meanwhile.")
        state["rewritten"] = rewrite(store, parent, gone, renew)
        return _manifest(version, parent, intent, state["rewritten"])

    find = partial(_find, store, intent, gone)
    try:
        done = commit(store, build, find)
    except (EmptyClassError, IntegrityError):
        store.delete(path)  # impossible, so no later run has to try
        raise
    # The card of the version before names shards that are removed now.
    refresh_card(store)
    # Older versions, which are removed below, tell the records' keys.
    forget_corrections(store, gone, partial(erased_keys, store, gone))
    going = tuple(v for v in list_versions(store) if v < done.version)
    infos = store.infos()
    staying = [read_manifest(store, v) for v in list_versions(store) if v not in going]
    named = {path for manifest in staying for path in named_by(manifest)}
    paths = [
        p for p in infos if p not in named and not p.startswith(f"{FOLDER}/") and _goes(store, p)
    ]
    # As in gc: manifests first, so that no reader finds one whose shards are missing.
    remove(store, map(manifest_path, going), renew)
    remove(store, removal_order(paths, infos), renew)
    notes = read_manifest(store, done.version).notes
    store.delete(path)
    logger.info("Version %d of %s lacks the erased records.", done.version, store.uri)
    rewritten = state.get("rewritten") or Rewritten(shards=(), ledger=None)
    return EraseReport(
        version=done.version,
        n_erased=dict(rewritten.n_erased),
        n_shards_rewritten=rewritten.n_rewritten,
        n_ledger_entries=rewritten.n_ledger,
        versions_removed=going,
        n_objects_removed=len(paths) + len(going),
        notes=tuple(note for note in notes if note.startswith(_heading(done.version))),
    )


def _goes(store: Store, path: str) -> bool:
    """Whether an object that no version names may hold, or wait for, erased records."""
    kind = kind_of(path)
    if kind == "proposal":
        return ".decision" not in path and (
            read_decision(store, path.rsplit("/", 1)[-1].removesuffix(".json")) is None
        )
    return kind in _HOLDS_RECORDS


def _find(store: Store, intent: _Intent, gone: set[str]) -> Commit | None:
    """Return the newest version if it lacks the records and follows an erasure of them."""
    newest = read_manifest(store)
    if newest.dataset_key == intent.dataset_key:
        return committed(store, newest, created=False)
    if find_commit(store, intent.dataset_key) is None:
        return None
    for shard in newest.shards:
        table = read_shard(store, shard.path, ["aug_id", "aug_parent"])
        if pc.any(erased_rows(table, gone), min_count=0).as_py():
            return None
    return committed(store, newest, created=False)


def _heading(version: int) -> str:
    return f"Erased in version {version}: "


def _manifest(version: int, parent: Manifest, intent: _Intent, rewritten: Rewritten) -> Manifest:
    gone = set(intent.ids)
    doubted = {name: n for name, n in parent.recipe.doubted.items() if name not in gone}
    return parent.model_copy(
        update={
            "version": version,
            "parent": parent.version,
            "recipe": parent.recipe.model_copy(update={"doubted": doubted}),
            "corrected": tuple(_without(of, gone) for of in parent.corrected),
            "dataset_key": intent.dataset_key,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "class_counts": class_counts(rewritten.shards),
            "shards": rewritten.shards,
            "ledger": rewritten.ledger,
            "ingest": "",
            "report": "",
            "report_files": (),
            "notes": (*(f"{_heading(version)}{n}" for n in _notes(rewritten)), *parent.notes),
        }
    )


def _without(corrected: CorrectedLabels, gone: set[str]) -> CorrectedLabels:
    left = {name: label for name, label in corrected.source_labels.items() if name not in gone}
    n_gone = len(corrected.source_labels) - len(left)
    return corrected.model_copy(
        update={"source_labels": left, "n_records": corrected.n_records - n_gone}
    )


def _notes(rewritten: Rewritten) -> Iterator[str]:
    n = {origin: rewritten.n_erased.get(origin, 0) for origin in ("real", "copy", "classic")}
    yield (
        f"{n['real']} source records of the version before, and {n['copy'] + n['classic']} records made from them "
        f"({n['copy']} copies, {n['classic']} classic). Older versions, reports and staged work were removed. Plan, "
        "recipe and verdict are those of the records before; weights were not scaled anew."
    )
    if rewritten.n_train and any(s.origin == "synthetic" for s in rewritten.shards):
        yield (
            f"the synthetic records stay; their models had seen {rewritten.n_train} of the erased records, and their "
            "checkpoints were removed."
        )
