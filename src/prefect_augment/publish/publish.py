"""Publishing: shards first, the manifest last, then the card that follows from it.

Whatever is written before the manifest is invisible to readers and is found again by a rerun. Two
runs may publish to one destination at the same time: each version is the work of one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from prefect_augment.errors import SchemaError
from prefect_augment.experiment.privacy import stored_privacy
from prefect_augment.params import Publish
from prefect_augment.publish.assemble import Assembled, Portion, assemble, check_settings
from prefect_augment.publish.export import check_export, export_newest
from prefect_augment.publish.sidecar_files import (
    check_follows,
    copy_files,
    copy_ledger,
    copy_quarantine,
    copy_report,
)
from prefect_augment.registry import check_shard_format
from prefect_augment.report.card import refresh_card
from prefect_augment.schema.base import (
    ApprovalDecision,
    Commit,
    DatasetInfo,
    DatasetRef,
    ModelRef,
    ReportRef,
    ShardInfo,
    class_order,
)
from prefect_augment.schema.manifest import Manifest, PublishedModel, software_versions
from prefect_augment.schema.report import Release
from prefect_augment.shards.staged import load_info
from prefect_augment.shards.stream_writer import write_stream
from prefect_augment.storage.leases import drop_lease, lease
from prefect_augment.storage.manifests import (
    commit,
    find_commit,
    latest_version,
    probe_exclusive,
    read_manifest,
)
from prefect_augment.storage.spill import Workspace, give_back, returned_at_once
from prefect_augment.storage.store import Store

__all__ = ["check_destination", "publish"]

logger = logging.getLogger(__name__)


def publish(
    release: Release,
    report: ReportRef | None,
    store: Store,
    *,
    approval: ApprovalDecision | None = None,
    on_progress: Callable[[float, str], None] | None = None,
) -> Commit:
    """Publish a version: what the recipe has of real, classic and synthetic records, with its proof.

    Parameters
    ----------
    release : Release
        What the version is made of. Its experiment has candidates where the recipe has synthetic records.
    report : ReportRef, optional
        Its files are copied beside the version.
    store : Store
        The destination.
    approval : ApprovalDecision, optional
        Who let the version out, for the record.
    on_progress : callable, optional
        ``(fraction in [0, 1], what is being done)``.

    Returns
    -------
    Commit
        ``created`` is False where a version of the same inputs was there already.

    Raises
    ------
    SchemaError
        If the destination holds a dataset of another schema or label.
    ParameterError, EmptyClassError
        If recipe, plan and params do not fit together.
    IntegrityError
        If staged records are missing or damaged.
    CommitConflictError
        If another run published meanwhile, and what is here does not follow from it.
    StorageError
        If the destination cannot be written.
    """
    say = on_progress or (lambda fraction, text: None)
    settings, recipe = release.experiment.params.publish, release.recipe
    assert recipe is not None
    info = load_info(release.dataset, store)
    check_settings(settings, recipe, release.experiment.plan)
    if settings.export:
        check_export(store, settings.export)
    check_shard_format(settings.format, modality=info.modality)
    key = release.key
    done = find_commit(store, key)
    if done is None:
        check_destination(store, info)
        # Shards that are there already, of an older version or of a killed run, stay until they are named.
        with lease(store, "writing", f"publish-{key}"), returned_at_once():
            if not store.is_local:
                probe_exclusive(store)
            say(0.0, "putting records together")
            with Workspace() as workspace:
                assembled = assemble(release, info, store, workspace)
            shards = _write_portions(store, assembled.portions, info, settings, say)
            fields = _fields(release, assembled, shards, info, store)
            fields |= {"approval": approval}
            if report is not None:
                fields["notes"] += report.notes
            say(0.9, "writing the manifest")
            build = partial(_manifest, store=store, info=info, report=report, fields=fields)
            done = commit(store, build, dataset_key=key)
    else:
        # A run that was killed right after its commit would keep removals out for a day.
        drop_lease(store, "writing", f"publish-{key}")
    refresh_card(store)
    if settings.export:
        say(0.95, f"exporting to {settings.export}")
        export_newest(store, settings.export)
    say(1.0, f"version {done.version}")
    logger.info(
        "%s version %d of %s. %s",
        "Published" if done.created else "Nothing new: the same inputs are",
        done.version,
        store.uri,
        recipe.sentence,
    )
    newest = latest_version(store)
    if newest is not None and newest != done.version:
        logger.warning(
            "The newest version of %s is %d, and readers get that; `prefect-augment rollback %s --to %d` makes version "
            "%d the newest.",
            store.uri,
            newest,
            store.uri,
            done.version,
            done.version,
        )
    return done


def _manifest(
    version: int,
    parent: Manifest | None,
    *,
    store: Store,
    info: DatasetInfo,
    report: ReportRef | None,
    fields: dict[str, Any],
) -> Manifest:
    """Write what lies under the version's number, and return its manifest."""
    check_follows(store, info, parent)
    files = copy_report(store, report, version)
    pages = [f.path for f in files if f.path.endswith("/report.html")]
    return Manifest(
        version=version,
        parent=parent.version if parent else None,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        label=info.label,
        label_type=info.label_type,
        source_schema=info.schema_digest,
        columns=info.columns,
        ledger=copy_ledger(store, info, version),
        sources=copy_files(store, info, version),
        ingest=f"_staging/{info.stage}/{info.key}/outcome.json" if info.files else "",
        report=pages[0] if pages else "",
        report_files=files,
        n_quarantined=info.n_quarantined,
        holdout_uri=info.holdout_uri,
        holdout_digest=info.holdout_digest,
        software=software_versions(),
        **fields,
    )


def _fields(
    release: Release,
    assembled: Assembled,
    shards: tuple[ShardInfo, ...],
    info: DatasetInfo,
    store: Store,
) -> dict[str, Any]:
    """Return what the manifest says of a version, whatever its number."""
    experiment, candidates = release.experiment, release.experiment.candidates
    publishes_real = "real" in experiment.params.publish.origins
    return {
        "dataset_key": release.key,
        "class_counts": _class_counts(shards),
        "shards": shards,
        "plan": experiment.plan.classes,
        "recipe": release.recipe,
        "weights": assembled.weights,
        "verdict": release.verdict and release.verdict.without_paths(),
        "filtered": candidates.classes if candidates else (),
        "models": tuple(_model(m) for m in release.models),
        "params": release.requested,
        # Quarantine holds the source's own lines: it stays behind where no real record goes out.
        "quarantine": copy_quarantine(store, info) if publishes_real else (),
        "notes": (*info.notes, *assembled.notes, *_privacy(store, release)),
    }


# --- what a destination takes -----------------------------------------------------------------


def check_destination(store: Store, dataset: DatasetRef | DatasetInfo) -> None:
    """Refuse a destination whose dataset is another one; to be called before anything is trained.

    Parameters
    ----------
    store : Store
        The destination.
    dataset : DatasetRef or DatasetInfo
        Outcome of ingest.

    Raises
    ------
    SchemaError
        If its newest version has another label column, another type of it, or other columns.
    CommitConflictError
        If its records were split in another way.
    """
    info = load_info(dataset, store) if isinstance(dataset, DatasetRef) else dataset
    latest = latest_version(store)
    if latest is None:
        return
    there = read_manifest(store, latest)
    advice = "choose another destination, or a source with the same columns"
    if (there.label, there.label_type) != (info.label, info.label_type):
        raise SchemaError(
            f"{store.uri} holds a dataset labelled by {there.label!r} ({there.label_type}), the source is labelled by "
            f"{info.label!r} ({info.label_type}); {advice}."
        )
    if there.source_schema != info.schema_digest:
        raise SchemaError(
            f"{store.uri} holds a dataset of another schema: {_difference(there, info)}; {advice}."
        )
    check_follows(store, info, there)


def _difference(there: Manifest, info: DatasetInfo) -> str:
    old = {c.name: c.arrow_type for c in there.columns}
    new = {c.name: c.arrow_type for c in info.columns}
    said = [f"column {name!r} is new" for name in new if name not in old]
    said += [f"column {name!r} is gone" for name in old if name not in new]
    said += [
        f"column {name!r} was {old[name]} and is {new[name]}"
        for name in new
        if name in old and old[name] != new[name]
    ]
    return "; ".join(said) or "the columns are in another order, or differ in what their types hold"


# --- what is written --------------------------------------------------------------------------


def _write_portions(
    store: Store,
    portions: Sequence[Portion],
    info: DatasetInfo,
    publish: Publish,
    say: Callable[[float, str], None],
) -> tuple[ShardInfo, ...]:
    """Write the shards; of real records those of one staged shard, so that the same ones keep their names."""
    shards: list[ShardInfo] = []
    classes = class_order({name for portion in portions for name in portion.labels})
    total = sum(stream.n_records for portion in portions for stream in portion.streams)
    done = 0
    for portion in portions:
        for stream in portion.streams:
            say(0.1 + 0.8 * done / total, f"writing {portion.split} {portion.origin}")
            shards += write_stream(
                store,
                stream.tables(),
                n_records=stream.n_records,
                n_bytes=stream.n_bytes,
                prefix="data",
                stem=f"{portion.split}-{portion.origin}",
                split=portion.split,
                origin=portion.origin,
                label=info.label,
                max_records=publish.shard_records,
                max_bytes=publish.shard_mib << 20,
                shard_format=publish.format,
                classes=classes,
            )
            done += stream.n_records
            give_back()  # the next one is of another size
    return tuple(shards)


def _privacy(store: Store, release: Release) -> tuple[str, ...]:
    """Return what published synthetic records give away, in words, where that was measured."""
    if release.recipe is None or not any(release.recipe.synthetic.values()):
        return ()
    found = stored_privacy(store, release.dataset, release.experiment.candidates)
    return (found.sentence,) if found else ()


def _class_counts(shards: Sequence[ShardInfo]) -> dict[str, dict[str, dict[str, int]]]:
    """Return split -> class -> origin -> records."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for shard in shards:
        classes = counts.setdefault(shard.split, {})
        for name, n in shard.class_counts.items():
            origins = classes.setdefault(name, {})
            origins[shard.origin] = origins.get(shard.origin, 0) + n
    return counts


def _model(model: ModelRef) -> PublishedModel:
    fields = model.model_dump()
    return PublishedModel(**{name: fields[name] for name in PublishedModel.model_fields})
