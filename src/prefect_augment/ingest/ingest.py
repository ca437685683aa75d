"""Ingest: a labelled source in, validated and split records out; nothing is written outside ``_staging``.

Invalid records go to quarantine with file, position and reason: records in = records out + quarantined.
Files are read one by one onto local disk, with what the split needs of each record; only groups and near-duplicates
take arrays of all records. If only files were added to a source, only those are read.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from prefect_augment.array_types import Int32
from prefect_augment.errors import InputError
from prefect_augment.ingest.assign import Decision
from prefect_augment.ingest.column_roles import Roles, find_roles
from prefect_augment.ingest.holdout import read_holdout
from prefect_augment.ingest.incremental import (
    Baseline,
    NotReusableError,
    ReusedRecords,
    baselines,
    find_reusable,
)
from prefect_augment.ingest.outcome import Ingested, with_corrected
from prefect_augment.ingest.scan import ParsedFiles, Progress, images_of_part, scan
from prefect_augment.ingest.schema import UNTYPED_FORMATS
from prefect_augment.ingest.validate import Candidates, find_candidates
from prefect_augment.ingest.validate_images import (
    StagedChecks,
    StagedPairs,
    stage_checks,
    stage_pairs,
)
from prefect_augment.ingest.write_index import SplitResult, write_index
from prefect_augment.params import Source
from prefect_augment.params.keys import step_key
from prefect_augment.schema import DatasetInfo, DatasetRef
from prefect_augment.sources.discovery import LAYOUTS, MAGIC, Listing, list_source, with_its_holdout
from prefect_augment.sources.images.scan import Folder, inspect_folder
from prefect_augment.split.corrections import Corrections, read_corrections
from prefect_augment.split.ledger import Ledger
from prefect_augment.split.ledger_io import NEAR_DUPLICATE
from prefect_augment.storage import Stage, Store, contains
from prefect_augment.storage.spill import Workspace, give_back, returned_at_once

logger = logging.getLogger(__name__)

SOURCE, HOLDOUT = "source", "holdout"  # in the names of what parts stage


@dataclass(frozen=True)
class _Job:
    """One ingest: its source, destination and progress callback, and labels that hold in place of the source's."""

    source: Source
    listing: Listing
    holdout: Listing | None
    store: Store
    report: Progress
    corrections: Corrections


def ingest(
    source: Source,
    *,
    store: Store,
    seed: int,
    source_options: dict[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> DatasetRef:
    """Read a labelled source, split it by the sticky ledger, and stage its records.

    An unchanged listing is not read again, also when that run's result has been published since. If files
    were only added since the newest version, and its staged records still exist, only the new files are
    read; the staged result is the same as from reading everything. The notes say how many files were read.
    Labels that people corrected with their decisions hold in place of the source's.

    ``seed`` fixes the salt of the first version's split, ``source_options`` are the fsspec storage options
    of source and hold-out, ``on_progress`` gets a fraction in [0, 1] and the current step. ``n_records`` and
    ``class_counts`` count the source's records, without those of a hold-out URI. Raises InputError if the
    source is empty, changed while it was read, lies inside the destination, or overlaps its hold-out with
    ``on_overlap`` "error";
    ParameterError if a parameter names a missing column, or parameters contradict one another.
    """
    report = on_progress or (lambda fraction, text: None)
    job = _job(source, store, source_options, report)
    parents = baselines(store, job.listing, job.source, seed)
    if (done := _done(job, parents)) is not None:
        logger.info("The source has not changed since it was ingested as %s.", done[0].key)
        return _reference(*done)

    store.check_writable()  # now, and not when all has been read
    stage = Stage(store, "ingest", _key(job, parents[0]))
    info = with_corrected(_new_or_all(job, parents[0], stage), job.corrections, store)
    report(1.0, "done")
    for note in info.notes:
        logger.info("%s", note)
    return _reference(stage, stage.finish(info))


def ingest_part(
    source: Source,
    *,
    store: Store,
    seed: int,
    source_options: dict[str, Any] | None = None,
    part: int,
    n_parts: int,
) -> int:
    """Check a part of the source's images, or parse a part of its text files; :func:`ingest` finds what is staged.

    Returns how many images or files are this part's; 0 where all is done, or where records come with their types.
    """
    job = _job(source, store, source_options, lambda fraction, text: None)
    parents = baselines(store, job.listing, job.source, seed)
    if _done(job, parents) is not None:
        return 0
    stage = Stage(store, "ingest", _key(job, parents[0]))
    wanted = None
    with suppress(NotReusableError):
        reused = find_reusable(store, job.listing, parents[0], request=_request(job), folder=None)
        wanted = None if reused is None else reused.wanted
    n = 0
    for name, listing in ((SOURCE, job.listing), (HOLDOUT, job.holdout)):
        if listing is not None and listing.table is None:  # a database is asked once
            some = wanted if listing is job.listing else None
            share: dict[str, Any] = {"wanted": some, "part": part, "n_parts": n_parts}
            if listing.format in UNTYPED_FORMATS:
                n += ParsedFiles(stage, name).keep(listing, job.source, **share)
                continue
            images = images_of_part(listing, job.source, **share)
            name = f"{name}-{part}-of-{n_parts}"
            n += stage_checks(images, stage, name, max_megapixels=source.max_megapixels)
    return n


def near_part(
    source: Source,
    *,
    store: Store,
    seed: int,
    source_options: dict[str, Any] | None = None,
    part: int,
    n_parts: int,
) -> int:
    """Compare a part of the images that all of :func:`ingest_part` have checked, for near-duplicates.

    Returns how many images are compared; 0 where there are none, or all is done.
    """
    job = _job(source, store, source_options, lambda fraction, text: None)
    parents = baselines(store, job.listing, job.source, seed)
    if _done(job, parents) is not None:
        return 0
    stage = Stage(store, "ingest", _key(job, parents[0]))
    return stage_pairs(stage, parents[0].ledger.keys, part=part, n_parts=n_parts)


def _job(
    source: Source, store: Store, source_options: dict[str, Any] | None, report: Progress
) -> _Job:
    """List the source and its hold-out; raise InputError for what lies inside the destination."""
    listing = list_source(source.uri, requested=source.format, options=source_options)
    _refuse_nesting(source.uri, store, listing, what="source")
    source = with_its_holdout(source, listing.denoised)
    holdout_listing = None
    if source.holdout_uri:
        # How image files get their labels says nothing of a hold-out that comes as Parquet.
        holdout_format = "auto" if source.format in LAYOUTS else source.format
        holdout_listing = list_source(
            source.holdout_uri, requested=holdout_format, options=source_options
        )
        _refuse_nesting(source.holdout_uri, store, holdout_listing, what="hold-out")
    return _Job(source, listing, holdout_listing, store, report, read_corrections(store))


def _done(job: _Job, parents: Sequence[Baseline]) -> tuple[Stage, DatasetInfo] | None:
    """Return the outcome of an unchanged source."""
    for parent in parents:
        stage = Stage(job.store, "ingest", _key(job, parent))
        info = stage.outcome(DatasetInfo)
        if info is not None and (
            parent is parents[0] or info.extra["ledger_digest"] == parents[0].ledger.digest
        ):
            return stage, info
    return None


def _new_or_all(job: _Job, parent: Baseline, stage: Stage) -> DatasetInfo:
    """Read only new files where possible, else all."""
    folder = None
    if job.listing.format == "folder":
        folder = inspect_folder(job.listing, job.source)
    n_files = len(job.listing.entries)
    try:
        reused = find_reusable(job.store, job.listing, parent, request=_request(job), folder=folder)
        if reused is not None:
            note = (
                f"{len(reused.wanted)} of {n_files} source files are new and were read; the staged records of the "
                "others were used again"
            )
            return _ingest(job, parent, stage, folder, reused, (note,))
    except NotReusableError as exc:
        note = f"all {n_files} source files were read, known ones too: {exc}"
        return _ingest(job, parent, stage, folder, None, (note,))
    return _ingest(job, parent, stage, folder, None, ())


def _ingest(
    job: _Job,
    parent: Baseline,
    stage: Stage,
    folder: Folder | None,
    reused: ReusedRecords | None,
    notes: tuple[str, ...],
) -> DatasetInfo:
    batches = parent.batches(job.listing)
    with returned_at_once(), Workspace() as workspace:
        checks = StagedChecks(stage)
        candidates = _read(job, workspace, batches, folder, reused, stage, checks)
        held = None
        if job.holdout is not None:
            held = read_holdout(
                job.holdout,
                job.source,
                workspace,
                roles=candidates.roles,
                corrections=job.corrections,
                parsed=ParsedFiles(stage, HOLDOUT),
                checks=checks,
            )
        give_back()
        job.report(0.7, "split")
        split = _split(job, parent, stage, candidates, held, batches, reused)
        give_back()
        job.report(0.8, "write")
        return Ingested(
            source=job.source,
            stage=stage,
            workspace=workspace,
            candidates=candidates,
            held=held,
            split=split,
            batches=batches,
            reused=reused,
            request=_request(job),
            notes=notes,
        ).write()


def _split(
    job: _Job,
    parent: Baseline,
    stage: Stage,
    candidates: Candidates,
    held: Candidates | None,
    batches: Int32,
    reused: ReusedRecords | None,
) -> SplitResult:
    """Split all records and write the indexes; the memory is released on return."""
    decision = Decision(
        candidates,
        [] if reused is None else reused.indexes(job.store),
        held,
        ledger=_of_kind(parent.ledger, candidates.roles),
        source=job.source,
        batches=batches,
        likely=StagedPairs(stage),
    )
    return write_index(decision, candidates, held, batches=batches, stage=stage)


def _read(
    job: _Job,
    workspace: Workspace,
    batches: Int32,
    folder: Folder | None,
    reused: ReusedRecords | None,
    stage: Stage,
    checks: StagedChecks,
) -> Candidates:
    """Read the files and validate the records."""
    read = scan(
        job.listing,
        job.source,
        workspace,
        batches=batches,
        wanted=None if reused is None else reused.wanted,
        known=None if reused is None else reused.schema,
        folder=folder,
        parsed=ParsedFiles(stage, SOURCE),
        on_progress=lambda f, text: job.report(0.4 * f, text),
    )
    if reused is not None and not read.schema.equals(reused.schema, check_metadata=True):
        raise NotReusableError("the new files make the type of a column wider")
    roles = find_roles(
        read,
        job.source,
        manifest=job.listing.manifest,
        label="" if reused is None else reused.info.label,
    )
    return find_candidates(
        read,
        roles,
        job.source,
        corrections=job.corrections,
        may_be_empty=reused is not None,
        in_bins=True,
        checks=checks,
        on_progress=lambda f, text: job.report(0.4 + 0.3 * f, text),
    )


def _of_kind(ledger: Ledger, roles: Roles) -> Ledger:
    """Return the ledger with the unit for these roles; refuse a change of unit."""
    unit = NEAR_DUPLICATE if roles.image and not roles.grouped_by else ledger.unit
    if len(ledger.keys) == 0:
        return replace(ledger, unit=unit)
    if unit != ledger.unit or (ledger.unit == NEAR_DUPLICATE and not roles.image):
        was = "images" if ledger.unit == NEAR_DUPLICATE else "a split by record"
        raise InputError(
            f"the dataset's earlier version had {was}, and the source now holds "
            f"{'images' if roles.image else 'no images'}; publish to another destination."
        )
    return ledger


def _refuse_nesting(uri: str, store: Store, listing: Listing, *, what: str) -> None:
    """Refuse a source and destination of which one contains the other."""
    uri = listing.store.uri if any(sign in uri for sign in MAGIC) else uri
    if listing.manifest is not None and contains(uri, store.uri) and contains(store.uri, uri):
        return  # our own dataset, balanced again in place: read through its manifest alone
    if contains(uri, store.uri):
        raise InputError(
            f"the destination {store.uri} lies inside the {what} {uri}, so the next run would read its own output; "
            f"choose a destination outside the {what}."
        )
    if contains(store.uri, uri):
        raise InputError(
            f"the {what} {uri} lies inside the destination {store.uri}, whose folder belongs to the published "
            f"dataset; choose a destination beside the {what}."
        )


def _request(job: _Job, *inputs: Any) -> str:
    """Return the key of everything that staged records depend on; without inputs, except the source's files."""
    holdout = None if job.holdout is None else job.holdout.identity
    corrected = [job.corrections.digest] if job.corrections else []
    fixed = [job.listing.format, job.listing.manifest is not None, holdout, *corrected]
    # The seed matters through the salt alone, and that is in the ledger.
    return step_key("ingest", {"source": job.source}, inputs=[*fixed, *inputs])


def _key(job: _Job, parent: Baseline) -> str:
    batches = parent.batches(job.listing).tolist()
    return _request(job, job.listing.identity, batches, parent.ledger.digest)


def _reference(stage: Stage, info: DatasetInfo) -> DatasetRef:
    counts: Counter[str] = Counter()
    for part, of_class in info.part_counts.items():
        if not (part == "holdout" and info.holdout_uri):
            counts.update(of_class)
    return stage.reference(info, counts)
