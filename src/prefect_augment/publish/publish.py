"""Publishing: shards first, the manifest last, then the card that follows from it.

Whatever is written before the manifest is invisible to readers and is reused by a rerun. Two runs may
publish to one destination at the same time: each version comes from one of them.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

from prefect_augment.errors import ParameterError, RefusedError, SchemaError
from prefect_augment.experiment.privacy import stored_privacy
from prefect_augment.ingest.schema import plain_name
from prefect_augment.publish.assemble import Assembled, Portion, assemble, check_settings
from prefect_augment.publish.export import check_export, export_newest
from prefect_augment.publish.real_records import Piece
from prefect_augment.publish.shareable import leaks_of, real_values
from prefect_augment.publish.sidecar_files import (
    check_follows,
    copy_files,
    copy_ledger,
    copy_quarantine,
    copy_report,
)
from prefect_augment.registry import check_shard_format
from prefect_augment.report.card import derived_files, refresh_card
from prefect_augment.report.view_model import quotable, redactor
from prefect_augment.schema import (
    ApprovalDecision,
    Commit,
    CorrectedLabels,
    DatasetInfo,
    DatasetRef,
    EncoderInfo,
    Manifest,
    PublishedModel,
    Release,
    ReportRef,
    Result,
    ShardInfo,
    class_counts,
    class_order,
    software_versions,
)
from prefect_augment.shards.staged import load_info
from prefect_augment.shards.stream_writer import write_stream
from prefect_augment.storage import (
    SharedStore,
    Store,
    commit,
    drop_lease,
    find_commit,
    latest_version,
    lease,
    list_versions,
    manifest_path,
    probe_exclusive,
    read_manifest,
    read_result,
)
from prefect_augment.storage.spill import Workspace, give_back, returned_at_once

logger = logging.getLogger(__name__)

MAX_LISTED = 5  # findings in an error


def publish(
    release: Release,
    report: ReportRef | None,
    store: Store,
    *,
    approval: ApprovalDecision | None = None,
    on_progress: Callable[[float, str], None] | None = None,
) -> Commit:
    """Publish a version: real, classic and synthetic records by the recipe, with report and verdict.

    ``created`` is False on the returned commit if a version of the same inputs existed. Raises SchemaError
    if the destination has another schema or label; ParameterError or EmptyClassError if recipe, plan and
    params contradict; IntegrityError for damaged staged records; CommitConflictError if another run
    published meanwhile and this split does not follow from it; StorageError.
    """
    report_progress = on_progress or (lambda fraction, text: None)
    settings, recipe = release.experiment.params.publish, release.recipe
    assert recipe is not None
    info = load_info(release.dataset, store)
    _check(release, info, store)
    published = find_commit(store, release.key)
    if published is None:
        check_destination(store, info)
        published = _write_version(release, report, info, store, approval, report_progress)
    else:
        # The lease of a run killed right after its commit would block removals for a day.
        drop_lease(store, "writing", f"publish-{release.key}")
    refresh_card(store)
    if settings.export:
        report_progress(0.95, f"exporting to {settings.export}")
        export_newest(store, settings.export)
    report_progress(1.0, f"version {published.version}")
    logger.info(
        "%s version %d of %s. %s",
        "Published" if published.created else "Nothing new: the same inputs are",
        published.version,
        store.uri,
        recipe.sentence,
    )
    newest = latest_version(store)
    if newest is not None and newest != published.version:
        logger.warning(
            "The newest version of %s is %d, and readers get that; `prefect-augment rollback %s --to %d` makes version "
            "%d the newest.",
            store.uri,
            newest,
            store.uri,
            published.version,
            published.version,
        )
    return published


def publish_part(release: Release, store: Store, *, part: int, n_parts: int) -> int:
    """Write the shards of every ``n_parts``-th stream of records, which :func:`publish` finds.

    Returns how many streams are this part's; 0 of synthetic records alone, which are searched for real ones before
    they leave. Raises what :func:`publish` raises before it commits.
    """
    info = load_info(release.dataset, store)
    _check(release, info, store)
    shared = "real" in release.experiment.params.publish.origins
    if not shared or find_commit(store, release.key) is not None:
        return 0
    check_destination(store, info)
    # A lease of its own, since another part may end before.
    held = lease(store, "writing", f"publish-{release.key}-{part}")
    with held, returned_at_once(), Workspace() as workspace:
        streams = _Streams(release, info, store, assemble(release, info, store, workspace))
        own = range(part, len(streams.every), n_parts)
        for number in own:
            streams.keep(number)
            give_back()
    return len(own)


def _check(release: Release, info: DatasetInfo, store: Store) -> None:
    """Raise for what contradicts itself, before anything is written."""
    settings, recipe = release.experiment.params.publish, release.recipe
    assert recipe is not None
    check_settings(settings, recipe, release.experiment.plan)
    if why := release.experiment.params.encoder.why_unpublishable:
        raise ParameterError(why)
    if settings.export:
        check_export(store, settings.export)
    check_shard_format(settings.format, modality=info.modality)


def _write_version(
    release: Release,
    report: ReportRef | None,
    info: DatasetInfo,
    store: Store,
    approval: ApprovalDecision | None,
    report_progress: Callable[[float, str], None],
) -> Commit:
    """Write the version's shards and commit its manifest."""
    settings = release.experiment.params.publish
    # The lease keeps garbage collection away from shards that no manifest names yet.
    with lease(store, "writing", f"publish-{release.key}"), returned_at_once():
        if not store.is_local:
            probe_exclusive(store)
        report_progress(0.0, "putting records together")
        with Workspace() as workspace:
            assembled = assemble(release, info, store, workspace)
        shards = _Streams(release, info, store, assembled).write(report_progress)
        fields = _fields(release, assembled, shards, info, store) | {"approval": approval}
        if report is not None:
            fields["notes"] += report.notes
        report_progress(0.9, "writing the manifest")
        build = partial(_manifest, store=store, info=info, report=report, fields=fields)
        if isinstance(store, SharedStore) and set(settings.origins) == {"synthetic"}:
            build = partial(_searched, build, store=store, info=info)
        return commit(store, build, partial(find_commit, store, release.key))


def _searched(
    build: Callable[[int, Manifest | None], Manifest],
    version: int,
    parent: Manifest | None,
    *,
    store: SharedStore,
    info: DatasetInfo,
) -> Manifest:
    """Return the manifest of a version that gives no real record away; RefusedError otherwise."""
    manifest = build(version, parent)
    before = {s.path for v in list_versions(store) for s in read_manifest(store, v).shards}
    own = {s.path for s in manifest.shards}
    real = real_values(store, info, manifest)
    pages = {manifest_path(version): manifest.sealed().to_json(), **derived_files(manifest)}
    leaks = leaks_of(store.destination, real, before | own, more=pages)
    if not leaks:
        return manifest
    for path in own - before:
        store.delete(path)
    listed = "; ".join(f"{leak.path} {leak.message}" for leak in leaks[:MAX_LISTED])
    raise RefusedError(
        f"refused, nothing was published: {store.uri} is to be shared, and {len(leaks)} findings show real records: "
        f"{listed}. Remove those files, or report this if they are the version's own."
    )


def _manifest(
    version: int,
    parent: Manifest | None,
    *,
    store: Store,
    info: DatasetInfo,
    report: ReportRef | None,
    fields: dict[str, Any],
) -> Manifest:
    """Write the files of this version number, and return its manifest."""
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
    """Return the manifest's fields that do not depend on the version's number."""
    experiment, candidates = release.experiment, release.experiment.candidates
    publishes_real = "real" in experiment.params.publish.origins
    notes, columns = info.notes, info.columns
    if set(experiment.params.publish.origins) == {"synthetic"}:  # notes quote values
        hide = redactor(quotable(info.label, columns, experiment.plan))
        notes = tuple(map(hide, notes))
        columns = tuple(c.model_copy(update={"note": hide(c.note)}) for c in columns)
    corrected = [CorrectedLabels.model_validate(of) for of in info.extra.get("corrected", ())]
    if not publishes_real:  # a guessed record could be looked up by its id, or by the digest
        hidden = {"source_labels": {}, "digest": ""}
        corrected = [of.model_copy(update=hidden) for of in corrected]
    privacy = None
    if release.lets_synthetic_out:
        privacy = stored_privacy(store, release.dataset, candidates)
    return {
        "dataset_key": release.key,
        "class_counts": class_counts(shards),
        "shards": shards,
        "plan": experiment.plan.classes,
        "recipe": release.recipe,
        "weights": assembled.weights,
        "verdict": release.verdict and release.verdict.without_paths(),
        "filtered": candidates.classes if candidates else (),
        "models": tuple(
            PublishedModel(**m.model_dump(include=set(PublishedModel.model_fields)))
            for m in release.models
        ),
        "encoder": EncoderInfo.of(encoder) if (encoder := experiment.params.encoder).uri else None,
        "params": release.requested,
        # Quarantine holds lines of the source, so it is published only with real records.
        "quarantine": copy_quarantine(store, info) if publishes_real else (),
        "columns": columns,
        "corrected": tuple(corrected),
        "notes": (*notes, *assembled.notes, *([privacy.sentence] if privacy else [])),
    }


# --- what a destination takes -----------------------------------------------------------------


def check_destination(store: Store, dataset: DatasetRef | DatasetInfo) -> None:
    """Refuse a destination that holds another dataset; call it before anything is trained.

    Raises SchemaError if its newest version has another label column, label type or other columns, and
    CommitConflictError if its records were split in another way.
    """
    info = load_info(dataset, store) if isinstance(dataset, DatasetRef) else dataset
    latest = latest_version(store)
    if latest is None:
        return
    published = read_manifest(store, latest)
    advice = "choose another destination, or a source with the same columns"
    label_type = plain_name(info.label_type)
    if (published.label, plain_name(published.label_type)) != (info.label, label_type):
        raise SchemaError(
            f"{store.uri} holds a dataset labelled by {published.label!r} ({published.label_type}), the source is "
            f"labelled by {info.label!r} ({info.label_type}); {advice}."
        )
    if published.source_schema != info.schema_digest and not _same_types(published, info):
        raise SchemaError(
            f"{store.uri} holds a dataset of another schema: {_difference(published, info)}; {advice}."
        )
    check_follows(store, info, published)


def _same_types(published: Manifest, info: DatasetInfo) -> bool:
    """Tell whether the types differ only in how wide their offsets are, which the digest of older versions had."""
    old = [(c.name, plain_name(c.arrow_type)) for c in published.columns]
    is_old = any(plain_name(c.arrow_type) != c.arrow_type for c in published.columns)
    is_old = is_old or plain_name(published.label_type) != published.label_type
    return is_old and old == [(c.name, plain_name(c.arrow_type)) for c in info.columns]


def _difference(published: Manifest, info: DatasetInfo) -> str:
    old = {c.name: c.arrow_type for c in published.columns}
    new = {c.name: c.arrow_type for c in info.columns}
    changes = [f"column {name!r} is new" for name in new if name not in old]
    changes += [f"column {name!r} is gone" for name in old if name not in new]
    changes += [
        f"column {name!r} was {old[name]} and is {new[name]}"
        for name in new
        if name in old and old[name] != new[name]
    ]
    return (
        "; ".join(changes) or "the columns are in another order, or differ in what their types hold"
    )


# --- what is written --------------------------------------------------------------------------


class _Written(Result):
    """The receipt of a stream that another task has written."""

    shards: tuple[ShardInfo, ...]


@dataclass(frozen=True)
class _Streams:
    """The records of a version, each staged shard's real ones separately, so that equal ones keep their names."""

    release: Release
    info: DatasetInfo
    store: Store
    assembled: Assembled

    @cached_property
    def every(self) -> list[tuple[Portion, Piece]]:
        """All streams, in order."""
        return [(p, piece) for p in self.assembled.portions for piece in p.source.pieces]

    def write(self, report_progress: Callable[[float, str], None]) -> tuple[ShardInfo, ...]:
        """Write the shards of all streams, but for those that are there."""
        shards: list[ShardInfo] = []
        total = sum(stream.n_records for _, stream in self.every)
        done = 0
        for number, (portion, stream) in enumerate(self.every):
            report_progress(
                0.1 + 0.8 * done / total, f"writing {portion.split} {portion.source.origin}"
            )
            kept = self._kept(number)
            shards += self._shards(number) if kept is None else kept
            done += stream.n_records
            give_back()  # freed blocks rarely fit the next stream
        return tuple(shards)

    def keep(self, number: int) -> None:
        """Write the shards of a stream and a receipt, unless they are there."""
        if self._kept(number) is None:
            receipt = _Written(shards=self._shards(number))
            self.store.put(self._receipt(number), receipt.to_json())

    def _kept(self, number: int) -> tuple[ShardInfo, ...] | None:
        """Return the shards that another task has written, None where one is not there any more."""
        written = read_result(self.store, self._receipt(number), _Written)
        if written and all(self.store.holds(shard.path, shard.n_bytes) for shard in written.shards):
            return written.shards
        return None

    def _receipt(self, number: int) -> str:
        return f"_staging/publish/{self.release.key}/stream-{number:05d}.json"

    def _shards(self, number: int) -> tuple[ShardInfo, ...]:
        portion, stream = self.every[number]
        settings = self.release.experiment.params.publish
        return write_stream(
            self.store,
            portion.tables(stream),
            n_records=stream.n_records,
            n_bytes=stream.n_bytes,
            prefix="data",
            stem=f"{portion.split}-{portion.source.origin}",
            split=portion.split,
            origin=portion.source.origin,
            label=self.info.label,
            max_records=settings.shard_records,
            max_bytes=settings.shard_mib << 20,
            shard_format=settings.format,
            classes=class_order(
                {name for p in self.assembled.portions for name in p.source.labels}
            ),
        )
