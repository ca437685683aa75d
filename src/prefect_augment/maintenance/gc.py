"""Garbage collection: remove objects that nothing names; list foreign files and leave them."""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from prefect_augment.errors import ParameterError, StorageError
from prefect_augment.maintenance.layout import (
    kind_of,
    named_by,
    named_in,
    removal_order,
    remove,
    stage_of,
)
from prefect_augment.publish.proposal import FOLDER as PROPOSALS, read_decision
from prefect_augment.report.card import refresh_card
from prefect_augment.schema import INDEX, Result
from prefect_augment.storage import (
    FOLDER as LEASES,
    Store,
    lease,
    list_versions,
    manifest_path,
    modified_at,
    read_manifest,
    store_time,
)

logger = logging.getLogger(__name__)

LEASE = f"{LEASES}/removing-gc.json"
MAX_RECEIPT_BYTES = 64 << 20  # a receipt has a few kB
_VERSION_KINDS = ("shard", "ledger", "report", "quarantine")


class GcLine(Result):
    """Objects of one kind with one fate."""

    kind: str
    reason: str
    n_objects: int
    n_bytes: int


class GcReport(Result):
    """Result of :func:`collect_garbage`, or of its dry run."""

    dry_run: bool
    versions_removed: tuple[int, ...]
    versions_kept: tuple[int, ...]
    n_removed: int
    n_bytes_removed: int
    removed: tuple[GcLine, ...]
    kept: tuple[GcLine, ...]
    unknown: tuple[str, ...]  # foreign files, left


def collect_garbage(
    store: Store,
    *,
    keep_last: int | None = None,
    older_than_days: float = 7.0,
    dry_run: bool = False,
) -> GcReport:
    """Remove objects that no manifest, no open proposal and no stage in use names.

    Proposals, their decisions, looks at the hold-out and foreign files always stay.

    ``keep_last`` removes all but so many versions; none by default. Stages, and objects that no version names yet,
    younger than ``older_than_days`` may belong to a running flow and stay; 0 is for a destination without runs. Ages
    are differences of two times of the store, so a wrong clock, here or there, removes nothing too early. A dry run
    removes nothing; it writes a probe all the same, to read the store's time.

    Raises ParameterError for a number out of range; IntegrityError or SchemaError if a manifest that stays cannot be
    read, so its objects are unknown; TransientError if a run publishes meanwhile.
    """
    if keep_last is not None and keep_last < 1:
        raise ParameterError(f"keep_last is {keep_last}; at least one version has to be kept.")
    if not (math.isfinite(older_than_days) and older_than_days >= 0):
        raise ParameterError(f"older_than_days is {older_than_days}; give a number of days.")
    with ExitStack() as stack:
        renew = None if dry_run else stack.enter_context(lease(store, "removing", "gc"))
        if renew is not None:
            # After a kill the card may name shards of a version that is removed now.
            refresh_card(store)
        # List objects first: whatever is committed later is younger than the listing.
        infos = store.infos()
        cutoff = _cutoff(store, older_than_days)
        plan = _plan(store, infos, keep_last, cutoff)
        gone = dict.fromkeys(map(manifest_path, plan.versions_removed), "beyond --keep-last")
        removed = _lines(gone | plan.removed, infos)
        report = GcReport(
            dry_run=dry_run,
            versions_removed=plan.versions_removed,
            versions_kept=plan.versions_kept,
            n_removed=sum(line.n_objects for line in removed),
            n_bytes_removed=sum(line.n_bytes for line in removed),
            removed=removed,
            kept=_lines(plan.kept, infos),
            unknown=tuple(plan.unknown),
        )
        if renew is not None:
            # A version's manifest goes before its shards, so that no reader opens a manifest whose shards
            # are missing, and what a kill leaves is removed by a later run. A reader that opened the version
            # before may still lose it while reading: choose --keep-last accordingly.
            remove(store, gone, renew)
            remove(store, removal_order(plan.removed, infos), renew)
            _drop_unfinished(store, cutoff)
    logger.info(
        "%s %d objects, %d bytes; %d objects are not of the layout and were left.",
        "Would remove" if dry_run else "Removed",
        report.n_removed,
        report.n_bytes_removed,
        len(report.unknown),
    )
    return report


def _drop_unfinished(store: Store, cutoff: float | None) -> None:
    """Drop the parts of unfinished uploads, if the store lists and deletes them."""
    if cutoff is None:
        return
    try:
        n_dropped = store.abort_unfinished(cutoff)
    except StorageError as exc:
        logger.info("Unfinished uploads were not searched for: %s", exc)
        return
    if n_dropped:
        logger.info("Dropped %d uploads that were never finished.", n_dropped)


def _cutoff(store: Store, older_than_days: float) -> float | None:
    """Return the time before which an object is old; None if the store gives no times."""
    if older_than_days == 0:
        return math.inf
    now = store_time(store)
    return None if now is None else now - older_than_days * 86_400


@dataclass
class _Plan:
    """The fate of every object, with the reason."""

    versions_removed: tuple[int, ...]
    versions_kept: tuple[int, ...]
    removed: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def _lines(fates: Mapping[str, str], infos: Mapping[str, Mapping[str, Any]]) -> tuple[GcLine, ...]:
    n_objects: Counter[tuple[str, str]] = Counter()
    n_bytes: Counter[tuple[str, str]] = Counter()
    for path, reason in fates.items():
        line = kind_of(path) or "", reason
        n_objects[line] += 1
        n_bytes[line] += int(infos.get(path, {}).get("size") or 0)
    return tuple(
        GcLine(kind=kind, reason=reason, n_objects=n, n_bytes=n_bytes[kind, reason])
        for (kind, reason), n in sorted(n_objects.items())
    )


def _plan(
    store: Store,
    infos: Mapping[str, Mapping[str, Any]],
    keep_last: int | None,
    cutoff: float | None,
) -> _Plan:
    existing = list_versions(store)
    stay = existing if keep_last is None else existing[-keep_last:]
    plan = _Plan(versions_removed=tuple(v for v in existing if v not in stay), versions_kept=stay)
    named = {
        "named by a version": _named(store, stay),
        "named by an open proposal": _open_proposals(store, infos, cutoff),
    }
    going = {manifest_path(version) for version in plan.versions_removed}
    # A damaged manifest names nothing, so its objects wait to be old.
    dropped = {path for manifest in going for path in named_in(store.read(manifest))}
    stages = _stages(store, infos, named, cutoff)
    for path, info in infos.items():
        kind = kind_of(path)
        if kind is None:
            plan.unknown.append(path)
        elif kind in ("card", "pointer", "look", "proposal"):
            plan.kept[path] = "always kept"
        elif kind == "manifest":
            if path not in going:
                plan.kept[path] = "a version that stays"
        elif path == LEASE:
            continue  # this run's own
        elif kind == "stage" and stage_of(path) in stages:
            plan.kept[path] = stages[stage_of(path)]
        elif kind in _VERSION_KINDS and (reasons := [r for r, ps in named.items() if path in ps]):
            plan.kept[path] = reasons[0]
        elif kind == "latents" and f"{'/'.join(path.split('/')[:2])}/{INDEX}" in infos:
            plan.kept[path] = "a whole result of a model's latents"
        elif kind in _VERSION_KINDS and path in dropped:
            plan.removed[path] = "of a version that goes"
        elif kind != "stage" and (reason := _young(info, cutoff)):
            plan.kept[path] = reason
        else:
            plan.removed[path] = "named by nothing, and old"
    return plan


def _young(info: Mapping[str, Any], cutoff: float | None) -> str:
    """Return why an object may still be in use; empty if it is old."""
    if cutoff == math.inf:
        return ""
    written = modified_at(info)
    if cutoff is None or written is None:
        return "of unknown age"
    return "written to lately" if written > cutoff else ""


def _named(store: Store, versions: Sequence[int]) -> set[str]:
    """Return the paths that versions name; of their ingests only the newest one's, where the next run starts."""
    manifests = [read_manifest(store, version) for version in versions]
    older, newest = ({m.ingest for m in some} for some in (manifests[:-1], manifests[-1:]))
    return {path for m in manifests for path in named_by(m)} - (older - newest)


def _open_proposals(
    store: Store, infos: Mapping[str, Mapping[str, Any]], cutoff: float | None
) -> set[str]:
    """Return the paths that open proposals name, and recently approved ones, which may be in publication."""
    paths: set[str] = set()
    published = {read_manifest(store, version).dataset_key for version in list_versions(store)}
    for path in store.list(PROPOSALS):
        if kind_of(path) != "proposal" or ".decision" in path:
            continue
        proposal_id = path.rsplit("/", 1)[-1].removesuffix(".json")
        decision = read_decision(store, proposal_id)
        if proposal_id in published or (decision and decision.decision == "reject"):
            continue
        start = f"{PROPOSALS}/{proposal_id}.dec"
        decisions = [info for p, info in infos.items() if p.startswith(start)]
        if decision is None or any(_young(info, cutoff) for info in decisions):
            paths |= named_in(store.read(path))
    return paths


def _stages(
    store: Store,
    infos: Mapping[str, Mapping[str, Any]],
    named: dict[str, set[str]],
    cutoff: float | None,
) -> dict[str, str]:
    """Return the stages that stay, with the reason, and add to ``named`` the paths in their receipts.

    A stage stays as a whole if a run writes to it, if something names an object of it, or if a receipt of
    a stage that stays does.
    """
    objects: dict[str, list[str]] = defaultdict(list)
    for path in infos:
        if kind_of(path) == "stage":
            objects[stage_of(path)].append(path)
    stay: dict[str, str] = {}
    for stage, paths in objects.items():
        if age := next(filter(None, (_young(infos[path], cutoff) for path in paths)), ""):
            stay[stage] = age
    for reason, paths_named in list(named.items()):
        for stage in _stages_of(paths_named, objects):
            stay.setdefault(stage, reason)
    waiting = list(stay)
    while waiting:
        stage = waiting.pop()
        receipts_name = {
            text
            for path in objects[stage]
            if path.endswith(".json") and int(infos[path].get("size") or 0) <= MAX_RECEIPT_BYTES
            # A resumed training drops older checkpoints meanwhile.
            for text in named_in(store.read_if_there(path) or b"null")
        }
        named.setdefault("named by a stage that stays", set()).update(receipts_name)
        for other in _stages_of(receipts_name, objects):
            if other not in stay:
                stay[other] = "named by a stage that stays"
                waiting.append(other)
    return stay


def _stages_of(paths: Iterable[str], objects: Mapping[str, Any]) -> set[str]:
    return {stage_of(p) for p in paths if p.startswith("_staging/")} & objects.keys()
