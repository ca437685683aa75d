"""Looking after a published dataset: what versions there are, what is in them, whether all is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.datatypes import Decision, Fact, Recipe, ShardFact
from prefect_augment.errors import AugmentError
from prefect_augment.manifest import (
    Manifest,
    list_versions,
    manifest_path,
    read_manifest,
)
from prefect_augment.shards.formats import ADVICE, label_names, read_shard
from prefect_augment.shards.parquet import LINEAGE
from prefect_augment.stages.card import CARD, card_is_current, refresh_card
from prefect_augment.storage import Store, sha256_hex

__all__ = [
    "Inspection",
    "Problem",
    "VerifyReport",
    "VersionDiff",
    "VersionFact",
    "diff",
    "inspect",
    "verify",
    "versions",
]

ProblemKind = Literal[
    "missing", "changed", "unreadable", "counts", "ids", "lineage", "manifest", "card"
]


class VersionFact(Fact):
    """One line of the list of versions."""

    version: int
    parent: int | None
    created_at: str
    manifest: str
    n_records: dict[str, int]  # split -> records
    n_origin: dict[str, int]  # origin -> records, over all splits
    n_bytes: int
    decision: Decision | None
    arm: str  # of the recipe


class Inspection(Fact):
    """One version in full, but for its list of shards."""

    version: int
    parent: int | None
    created_at: str
    manifest: str
    content_digest: str
    label: str
    class_counts: dict[str, dict[str, dict[str, int]]]  # split -> class -> origin -> records
    n_shards: int
    n_bytes: int
    n_quarantined: int
    recipe: Recipe
    decision: Decision | None
    reasons: tuple[str, ...]
    report: str
    holdout_uri: str
    software: dict[str, str]
    params: dict[str, Any]
    notes: tuple[str, ...]


class VersionDiff(Fact):
    """What changed from version ``a`` to version ``b``."""

    a: int
    b: int
    count_changes: dict[
        str, dict[str, dict[str, int]]
    ]  # split -> class -> origin -> records, b less a
    n_real_added: int  # real records, by their ids
    n_real_removed: int
    n_real_moved: int  # in another split
    n_shards_shared: int
    params: dict[str, tuple[Any, Any]]  # name.field -> before, after
    recipe: tuple[str, str] | None  # sentences, where they differ
    decision: tuple[str, str] | None


class Problem(Fact):
    """One thing that is wrong, and where."""

    path: str
    kind: ProblemKind
    message: str


class VerifyReport(Fact):
    """Outcome of :func:`verify`; ``ok`` where no problem is left."""

    version: int
    ok: bool
    n_objects: int
    n_records: int
    n_bytes: int
    problems: tuple[Problem, ...]
    repaired: tuple[str, ...] = ()


# --- looking ----------------------------------------------------------------------------------


def versions(store: Store) -> tuple[VersionFact, ...]:
    """Return the published versions, oldest first; empty where there is none.

    Raises
    ------
    IntegrityError, SchemaError
        If a manifest cannot be read; the message names it.
    """
    return tuple(_version_fact(read_manifest(store, version)) for version in list_versions(store))


def _version_fact(manifest: Manifest) -> VersionFact:
    n_records: Counter[str] = Counter()
    n_origin: Counter[str] = Counter()
    for shard in manifest.shards:
        n_records[shard.split] += shard.n_records
        n_origin[shard.origin] += shard.n_records
    return VersionFact(
        version=manifest.version,
        parent=manifest.parent,
        created_at=manifest.created_at,
        manifest=manifest_path(manifest.version),
        n_records=dict(n_records),
        n_origin=dict(n_origin),
        n_bytes=sum(s.n_bytes for s in manifest.shards),
        decision=manifest.verdict.decision if manifest.verdict else None,
        arm=manifest.recipe.arm.name,
    )


def inspect(store: Store, version: int | None = None) -> Inspection:
    """Return what a version holds and how it came about; the newest by default.

    Raises
    ------
    IntegrityError, SchemaError
        If there is no such version, or its manifest cannot be read.
    """
    manifest = read_manifest(store, version)
    return Inspection(
        version=manifest.version,
        parent=manifest.parent,
        created_at=manifest.created_at,
        manifest=manifest_path(manifest.version),
        content_digest=manifest.content_digest,
        label=manifest.label,
        class_counts=manifest.class_counts,
        n_shards=len(manifest.shards),
        n_bytes=sum(s.n_bytes for s in manifest.shards),
        n_quarantined=manifest.n_quarantined,
        recipe=manifest.recipe,
        decision=manifest.verdict.decision if manifest.verdict else None,
        reasons=manifest.verdict.reasons if manifest.verdict else (),
        report=manifest.report,
        holdout_uri=manifest.holdout_uri,
        software=manifest.software,
        params=manifest.params,
        notes=manifest.notes,
    )


def diff(store: Store, a: int, b: int) -> VersionDiff:
    """Return what changed from version ``a`` to version ``b``: counts, real records, params, verdict.

    Raises
    ------
    IntegrityError, SchemaError
        If a version does not exist, or cannot be read.
    """
    before, after = read_manifest(store, a), read_manifest(store, b)
    old, new = _real_splits(store, before), _real_splits(store, after)
    old_params, new_params = dict(_flat(before.params)), dict(_flat(after.params))
    verdicts = [m.verdict.decision if m.verdict else "none" for m in (before, after)]
    return VersionDiff(
        a=a,
        b=b,
        count_changes=_count_changes(before, after),
        n_real_added=len(new.keys() - old.keys()),
        n_real_removed=len(old.keys() - new.keys()),
        n_real_moved=sum(old[i] != new[i] for i in old.keys() & new.keys()),
        n_shards_shared=len({s.path for s in before.shards} & {s.path for s in after.shards}),
        params={
            name: (old_params.get(name), new_params.get(name))
            for name in sorted(old_params.keys() | new_params.keys())
            if old_params.get(name) != new_params.get(name)
        },
        recipe=_changed(before.recipe.sentence, after.recipe.sentence),
        decision=_changed(*verdicts),
    )


def _changed(before: str, after: str) -> tuple[str, str] | None:
    return None if before == after else (before, after)


def _real_splits(store: Store, manifest: Manifest) -> dict[str, str]:
    """Return the split of each real record, by its id."""
    return {
        aug_id: shard.split
        for shard in manifest.shards
        if shard.origin == "real"
        for aug_id in read_shard(store, shard.path, ["aug_id"])["aug_id"].to_pylist()
    }


def _flat(params: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _count_changes(before: Manifest, after: Manifest) -> dict[str, dict[str, dict[str, int]]]:
    changes: Counter[tuple[str, str, str]] = Counter()
    for sign, manifest in ((-1, before), (1, after)):
        for split, classes in manifest.class_counts.items():
            for name, origins in classes.items():
                for origin, n in origins.items():
                    changes[split, name, origin] += sign * n
    nested: dict[str, dict[str, dict[str, int]]] = {}
    for (split, name, origin), n in sorted(changes.items()):
        if n:
            nested.setdefault(split, {}).setdefault(name, {})[origin] = n
    return nested


# --- verifying --------------------------------------------------------------------------------


def verify(store: Store, version: int | None = None, repair: bool = False) -> VerifyReport:
    """Check that a version is all there and is what its manifest says.

    Every object's size and sha256; in every shard the counts per class, the origin, the weights and
    the lineage; ids unique over the version and parents in it; the counts of the manifest against
    those of its shards; the card of the newest version.

    Parameters
    ----------
    store : Store
        The dataset.
    version : int, optional
        The newest by default.
    repair : bool
        Write the card again where it lags. Nothing else can be mended from here: shards are
        immutable and their content is nowhere else.

    Returns
    -------
    VerifyReport
        Problems are collected, not raised: one run names them all.

    Raises
    ------
    IntegrityError, SchemaError
        If there is no such version, or its manifest cannot be read at all.
    """
    manifest = read_manifest(store, version)
    found = _Findings()
    for shard in manifest.shards:
        found.attempt(shard.path, partial(_check_shard, store, manifest, shard, found))
    for path, n_bytes, sha256 in _other_objects(manifest):
        found.attempt(path, partial(_check_bytes, store, path, n_bytes, sha256, found))
    _check_ids(found)
    _check_counts(manifest, found)
    repaired: list[str] = []
    # Also where the newest manifest is damaged: an older version can be sound all the same.
    found.attempt(CARD, partial(_check_card, store, repair, repaired, found))
    return VerifyReport(
        version=manifest.version,
        ok=not found.problems,
        n_objects=found.n_objects,
        n_records=sum(s.n_records for s in manifest.shards),
        n_bytes=found.n_bytes,
        problems=tuple(found.problems),
        repaired=tuple(repaired),
    )


class _Findings:
    """What one verification has seen so far."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.ids: list[pa.ChunkedArray] = []
        self.parents: list[pa.ChunkedArray] = []
        self.n_objects = 0
        self.n_bytes = 0
        self.has_all_ids = True

    def add(self, path: str, kind: ProblemKind, message: str) -> None:
        self.problems.append(Problem(path=path, kind=kind, message=message))

    def attempt(self, path: str, check: Callable[[], object]) -> None:
        """Run a check; what it cannot read becomes a problem, so that one does not hide the next."""
        try:
            check()
        except AugmentError as exc:
            self.add(path, "unreadable", exc.message)
            self.has_all_ids = False


def _other_objects(manifest: Manifest) -> Iterator[tuple[str, int, str]]:
    """Path, size and sha256 of what the version has beside its shards."""
    for shard in manifest.quarantine:
        yield shard.path, shard.n_bytes, shard.sha256
    beside = [file for file in (manifest.ledger, manifest.sources) if file is not None]
    for file in (*manifest.report_files, *beside):
        yield file.path, file.n_bytes, file.sha256


def _check_bytes(store: Store, path: str, n_bytes: int, sha256: str, found: _Findings) -> bool:
    """Compare the object with its size and digest; return whether it is the published one."""
    found.n_objects += 1
    try:
        data = store.read(path)
    except FileNotFoundError:
        found.has_all_ids = False
        found.add(path, "missing", f"{path} is missing; {_advice(path)}.")
        return False
    found.n_bytes += len(data)
    if len(data) == n_bytes and sha256_hex(data) == sha256:
        return True
    size = (
        f"{len(data)} bytes instead of {n_bytes}"
        if len(data) != n_bytes
        else "the same size, other bytes"
    )
    found.has_all_ids = False
    found.add(
        path,
        "changed",
        f"{path} was changed after it was published ({size}); {_advice(path)}.",
    )
    return False


def _advice(path: str) -> str:
    """What to do about an object that is not what it was."""
    if path.startswith("data/"):
        return ADVICE.split(";")[0]
    what = {"_splits/": "ledger", "_reports/": "report", "_quarantine/": "quarantine"}
    kind = next((word for start, word in what.items() if path.startswith(start)), "object")
    return f"restore this {kind} from a copy; the records of the version do not depend on it"


def _check_shard(store: Store, manifest: Manifest, shard: ShardFact, found: _Findings) -> None:
    if not _check_bytes(store, shard.path, shard.n_bytes, shard.sha256, found):
        return
    table = read_shard(store, shard.path)
    if (
        table.column_names[-len(LINEAGE) :] != LINEAGE.names
        or manifest.label not in table.column_names
    ):
        found.add(
            shard.path,
            "lineage",
            f"{shard.path} lacks the label or the lineage columns, or has them elsewhere.",
        )
        found.has_all_ids = False
        return
    counts = dict(Counter(label_names(table[manifest.label])))
    if table.num_rows != shard.n_records or counts != shard.class_counts:
        found.add(
            shard.path,
            "counts",
            f"{shard.path} holds {table.num_rows} records ({counts}); the manifest says {shard.n_records} "
            f"({shard.class_counts}).",
        )
    for message in _lineage_faults(table, shard):
        found.add(shard.path, "lineage", f"{shard.path}: {message}")
    found.ids.append(table["aug_id"])
    found.parents.append(table["aug_parent"])


def _lineage_faults(table: pa.Table, shard: ShardFact) -> list[str]:
    """What the lineage columns say that cannot be."""
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
    usable = pc.and_(pc.is_finite(weights), pc.greater(weights, 0.0))
    if not pc.all(usable, min_count=0).as_py():
        faults.append("some weights are not positive numbers.")
    return faults


def _check_ids(found: _Findings) -> None:
    ids = pa.chunked_array([c for column in found.ids for c in column.chunks], pa.string())
    counted = pc.value_counts(ids)
    twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
    if len(twice):
        found.add("", "ids", f"{len(twice)} ids occur more than once, e.g. {twice[0].as_py()}.")
    if not found.has_all_ids:
        return  # a parent may be in what could not be read
    parents = pa.chunked_array(
        [c for column in found.parents for c in column.chunks], pa.string()
    ).drop_null()
    lost = parents.filter(pc.invert(pc.is_in(parents, value_set=ids)))
    if len(lost):
        found.add(
            "",
            "ids",
            f"{len(lost)} records name a parent that is not in the version, e.g. {lost[0].as_py()}.",
        )


def _check_counts(manifest: Manifest, found: _Findings) -> None:
    """Compare the manifest's own sums with those over its shards."""
    summed: Counter[tuple[str, str, str]] = Counter()
    for shard in manifest.shards:
        for name, n in shard.class_counts.items():
            summed[shard.split, name, shard.origin] += n
    said = {
        (split, name, origin): n
        for split, classes in manifest.class_counts.items()
        for name, origins in classes.items()
        for origin, n in origins.items()
    }
    if said != dict(summed):
        found.add(
            manifest_path(manifest.version),
            "manifest",
            "the counts per class and origin are not the sums over the shards.",
        )


def _check_card(store: Store, repair: bool, repaired: list[str], found: _Findings) -> None:
    if repair and refresh_card(store):
        repaired.append(CARD)
    if not card_is_current(store):
        found.add(
            CARD, "card", "README.md lags behind the newest version; run verify with --repair."
        )
