"""Versions of a published dataset: the list, the content of one, and the difference of two."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from prefect_augment.catalogue.croissant import render_croissant
from prefect_augment.catalogue.provenance import render_provenance
from prefect_augment.errors import ParameterError
from prefect_augment.schema import Decision, Look, Manifest, Recipe, Result
from prefect_augment.shards.base import read_shard
from prefect_augment.storage import Store, list_versions, manifest_path, read_manifest


class VersionInfo(Result):
    """One line of the list of versions."""

    version: int
    parent: int | None
    created_at: str
    manifest: str
    n_records: dict[str, int]  # split -> records
    n_origin: dict[str, int]  # origin -> records, over all splits
    n_bytes: int
    decision: Decision | None
    strategy: str  # of the recipe


class Inspection(Result):
    """One version in full, without its list of shards."""

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
    answers: tuple[str, ...]
    reasons: tuple[str, ...]
    look: Look | None  # which look at the hold-out it was
    report: str
    holdout_uri: str
    software: dict[str, str]
    params: dict[str, Any]
    notes: tuple[str, ...]


class VersionDiff(Result):
    """What changed from version ``a`` to version ``b``."""

    a: int
    b: int
    # split -> class -> origin -> records, b less a
    count_changes: dict[str, dict[str, dict[str, int]]]
    n_real_added: int  # real records, by their ids
    n_real_removed: int
    n_real_moved: int  # in another split
    n_shards_shared: int
    params: dict[str, tuple[Any, Any]]  # name.field -> before, after
    recipe: tuple[str, str] | None  # sentences, where they differ
    decision: tuple[str, str] | None


VOCABULARIES = {"croissant": render_croissant, "prov": render_provenance}


# --- looking ----------------------------------------------------------------------------------


def versions(store: Store) -> tuple[VersionInfo, ...]:
    """Return the published versions, oldest first.

    Raises IntegrityError or SchemaError for a manifest that cannot be read.
    """
    infos = []
    for manifest in (read_manifest(store, version) for version in list_versions(store)):
        n_records, n_origin = Counter[str](), Counter[str]()
        for shard in manifest.shards:
            n_records[shard.split] += shard.n_records
            n_origin[shard.origin] += shard.n_records
        info = VersionInfo(
            version=manifest.version,
            parent=manifest.parent,
            created_at=manifest.created_at,
            manifest=manifest_path(manifest.version),
            n_records=n_records,
            n_origin=n_origin,
            n_bytes=sum(s.n_bytes for s in manifest.shards),
            decision=manifest.verdict.decision if manifest.verdict else None,
            strategy=manifest.recipe.strategy.name,
        )
        infos.append(info)
    return tuple(infos)


def rendered(store: Store, version: int | None, vocabulary: str) -> str:
    """Return a version, the newest by default, as Croissant (``croissant``) or as PROV-JSON (``prov``).

    Raises ParameterError for another vocabulary, and the errors of :func:`versions`.
    """
    if vocabulary not in VOCABULARIES:
        raise ParameterError(
            f"--as {vocabulary!r} is unknown; choose of {', '.join(VOCABULARIES)}."
        )
    return VOCABULARIES[vocabulary](read_manifest(store, version)).decode()


def inspect(store: Store, version: int | None = None) -> Inspection:
    """Return a version's content and history; the newest by default.

    Raises IntegrityError or SchemaError if there is no such version, or its manifest cannot be read.
    """
    manifest = read_manifest(store, version)
    own = Inspection.model_fields.keys() & Manifest.model_fields.keys()
    verdict = manifest.verdict
    return Inspection(
        **{name: getattr(manifest, name) for name in own},
        manifest=manifest_path(manifest.version),
        n_shards=len(manifest.shards),
        n_bytes=sum(s.n_bytes for s in manifest.shards),
        decision=verdict.decision if verdict else None,
        answers=verdict.answers if verdict else (),
        reasons=verdict.reasons if verdict else (),
        look=verdict.look if verdict else None,
    )


def diff(store: Store, a: int, b: int) -> VersionDiff:
    """Return the changes from version ``a`` to version ``b``: counts, real records, params, verdict.

    Raises IntegrityError or SchemaError if a version does not exist, or cannot be read.
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
