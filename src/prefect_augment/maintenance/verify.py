"""``verify``: whether every object of a version exists and is what its manifest says."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Uint64
from prefect_augment.errors import AugmentError
from prefect_augment.maintenance.layout import kind_of
from prefect_augment.publish.real_records import N_ID_BINS, Ids
from prefect_augment.publish.shareable import find_leaks
from prefect_augment.report.card import CARD, card_is_current, refresh_card
from prefect_augment.schema import Manifest, PublishedFile, Result, ShardInfo, class_counts
from prefect_augment.shards.base import ADVICE, label_names, read_shard
from prefect_augment.shards.parquet import LINEAGE
from prefect_augment.storage import SharedStore, Store, manifest_path, read_manifest, sha256_hex
from prefect_augment.storage.keys import hash_ids
from prefect_augment.storage.spill import Workspace
from prefect_augment.storage.workspace import POINTER, is_private

ProblemKind = Literal[
    "missing", "changed", "unreadable", "counts", "ids", "lineage", "manifest", "card",
    # Of --shareable.
    "folder", "record", "value", "oracle", "unread",
]  # fmt: skip


class Problem(Result):
    """One problem, and where it is."""

    path: str
    kind: ProblemKind
    message: str


class VerifyReport(Result):
    """Result of :func:`verify`; ``ok`` if no problem is left."""

    version: int
    ok: bool
    n_objects: int
    n_records: int
    n_bytes: int
    problems: tuple[Problem, ...]
    repaired: tuple[str, ...] = ()


def verify(
    store: Store, version: int | None = None, repair: bool = False, *, shareable: bool = False
) -> VerifyReport:
    """Check that a version is complete and is what its manifest says.

    Checked are every object's size and sha256; in every shard the counts per class, the origin, the
    weights and the lineage; unique ids over the version and parents in it; the manifest's counts; and the
    card of the newest version. Problems are collected, not raised.

    ``version`` is the newest by default. ``repair`` writes an outdated card again; nothing else can be repaired, since
    shards are immutable and stored once. ``shareable`` also searches every file of the destination for real records,
    values of single ones and hashes of them, see :mod:`prefect_augment.publish.shareable`; it needs the workspace.

    Raises IntegrityError or SchemaError if there is no such version, or its manifest cannot be read at all.
    """
    manifest = read_manifest(store, version)
    with Workspace() as workspace:
        findings = _Findings(workspace)
        for shard in manifest.shards:
            findings.attempt(shard.path, partial(_check_shard, store, manifest, shard, findings))
        is_copy = not isinstance(store, SharedStore) and store.exists(POINTER)
        others: list[ShardInfo | PublishedFile] = [*manifest.quarantine, *manifest.report_files]
        others += [file for file in (manifest.ledger, manifest.sources) if file is not None]
        for file in others:
            if not (is_copy and is_private(file.path)):  # in a workspace that is not here
                findings.attempt(file.path, partial(_check_bytes, store, file, findings))
        has_real = any(shard.origin == "real" for shard in manifest.shards)
        _check_ids(store, findings, has_real=has_real)
    if manifest.class_counts != class_counts(manifest.shards):
        message = "the counts per class and origin are not the sums over the shards."
        findings.add(manifest_path(manifest.version), "manifest", message)
    repaired: list[str] = []
    # As an attempt: an older version can be sound even if the newest manifest is damaged.
    findings.attempt(CARD, partial(_check_card, store, repair, repaired, findings))
    if shareable:
        findings.problems += [Problem(**leak.model_dump()) for leak in find_leaks(store, manifest)]
    return VerifyReport(
        version=manifest.version,
        ok=not findings.problems,
        n_objects=findings.n_objects,
        n_records=sum(s.n_records for s in manifest.shards),
        n_bytes=findings.n_bytes,
        problems=tuple(findings.problems),
        repaired=tuple(repaired),
    )


class _Findings:
    """What one verification has collected so far."""

    def __init__(self, workspace: Workspace) -> None:
        self.problems: list[Problem] = []
        self.readable: list[str] = []  # shards whose ids are known
        self.ids, self.parents = Ids(workspace), Ids(workspace)
        self.n_objects = 0
        self.n_bytes = 0
        self.has_all_ids = True

    def add(self, path: str, kind: ProblemKind, message: str) -> None:
        self.problems.append(Problem(path=path, kind=kind, message=message))

    def attempt(self, path: str, check: Callable[[], object]) -> None:
        """Run a check; an unreadable object becomes a problem, so that one does not hide the next."""
        try:
            check()
        except AugmentError as exc:
            self.add(path, "unreadable", exc.message)
            self.has_all_ids = False


def _check_bytes(store: Store, file: ShardInfo | PublishedFile, findings: _Findings) -> bool:
    """Compare an object with its size and digest; return whether it is the published one."""
    path = file.path
    findings.n_objects += 1
    data = store.read_if_there(path)
    if data is None:
        findings.has_all_ids = False
        findings.add(path, "missing", f"{path} is missing; {_advice(path)}.")
        return False
    findings.n_bytes += len(data)
    size = f"{len(data)} bytes instead of {file.n_bytes}"
    if len(data) == file.n_bytes:
        if sha256_hex(data) == file.sha256:
            return True
        size = "the same size, other bytes"
    findings.has_all_ids = False
    message = f"{path} was changed after it was published ({size}); {_advice(path)}."
    findings.add(path, "changed", message)
    return False


def _advice(path: str) -> str:
    """Return how to restore a changed object."""
    kind = kind_of(path)
    if kind == "shard":
        return ADVICE.split(";")[0]
    return f"restore this {kind or 'object'} from a copy; the records of the version do not depend on it"


def _check_shard(store: Store, manifest: Manifest, shard: ShardInfo, findings: _Findings) -> None:
    if not _check_bytes(store, shard, findings):
        return
    table = read_shard(store, shard.path)
    names = table.column_names
    if names[-len(LINEAGE) :] != LINEAGE.names or manifest.label not in names:
        message = f"{shard.path} lacks the label or the lineage columns, or has them elsewhere."
        findings.add(shard.path, "lineage", message)
        findings.has_all_ids = False
        return
    counts = dict(Counter(label_names(table[manifest.label])))
    if table.num_rows != shard.n_records or counts != shard.class_counts:
        message = (
            f"{shard.path} holds {table.num_rows} records ({counts}); the manifest says {shard.n_records} "
            f"({shard.class_counts})."
        )
        findings.add(shard.path, "counts", message)
    for message in _lineage_faults(table, shard):
        findings.add(shard.path, "lineage", f"{shard.path}: {message}")
    findings.readable.append(shard.path)
    for rows, column in ((findings.ids, "aug_id"), (findings.parents, "aug_parent")):
        rows.add(table[column].drop_null())


def _lineage_faults(table: pa.Table, shard: ShardInfo) -> list[str]:
    """Return contradictions in the lineage columns."""
    n = table.num_rows
    nulls = {name: table[name].null_count for name in LINEAGE.names}
    filled = {"aug_id", "aug_origin", "aug_weight"}
    filled |= {"aug_parent"} if shard.origin in ("copy", "classic") else set()
    filled |= {"aug_model", "aug_seed"} if shard.origin == "synthetic" else set()
    faults = [
        f"{nulls[name]} of {n} records have no {name}." for name in sorted(filled) if nulls[name]
    ]
    origins = sorted(set(table["aug_origin"].drop_null().to_pylist()) - {shard.origin})
    if origins:
        faults.append(
            f"it holds records of origin {', '.join(origins)}; the manifest says {shard.origin}."
        )
    weights = table["aug_weight"].drop_null()
    # A real record whose label is doubted may count nothing.
    may_be_0 = shard.origin == "real"
    large = pc.greater_equal(weights, 0.0) if may_be_0 else pc.greater(weights, 0.0)
    if not pc.all(pc.and_(pc.is_finite(weights), large), min_count=0).as_py():
        faults.append(f"some weights are not positive numbers{' or 0' * may_be_0}.")
    return faults


def _suspects(findings: _Findings, *, with_parents: bool) -> Uint64:
    """Hashes that several ids have, and those of parents that no id has."""
    suspects = [np.zeros(0, dtype=np.uint64)]
    for number in range(N_ID_BINS):
        ids = np.sort(findings.ids.hashes.read(number))
        suspects.append(ids[1:][ids[1:] == ids[:-1]])
        if with_parents:
            parents = findings.parents.hashes.read(number)
            suspects.append(parents[~np.isin(parents, ids)])
    return np.unique(np.concatenate(suspects))


def _check_ids(store: Store, findings: _Findings, *, has_real: bool) -> None:
    # A parent may be in an unreadable shard, or was not published.
    with_parents = findings.has_all_ids and has_real
    suspects = _suspects(findings, with_parents=with_parents)
    if not suspects.size:
        return
    # These alone are compared as texts.
    columns: dict[str, list[pa.Array]] = {"aug_id": [], "aug_parent": []}
    for path in findings.readable:
        table = read_shard(store, path, [*columns])
        for name, chunks in columns.items():
            texts = table[name].drop_null()
            chunks += texts.filter(pa.array(np.isin(hash_ids(texts), suspects))).chunks
    ids, parents = (pa.chunked_array(chunks, pa.string()) for chunks in columns.values())
    counted = pc.value_counts(ids)
    twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
    if len(twice):
        findings.add("", "ids", f"{len(twice)} ids occur more than once, e.g. {twice[0].as_py()}.")
    lost = parents.filter(pc.invert(pc.is_in(parents, value_set=ids)))
    if with_parents and len(lost):
        example = lost[0].as_py()
        message = f"{len(lost)} records name a parent that is not in the version, e.g. {example}."
        findings.add("", "ids", message)


def _check_card(store: Store, repair: bool, repaired: list[str], findings: _Findings) -> None:
    if repair and refresh_card(store):
        repaired.append(CARD)
    if not card_is_current(store):
        findings.add(
            CARD,
            "card",
            "README.md or croissant.json lags behind the newest version; run verify with --repair.",
        )
