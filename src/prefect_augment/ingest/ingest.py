"""Ingest: a labelled source in, validated and split records out; nothing is written outside ``_staging``.

Invalid records go to quarantine with file, position and reason: records in = records out + quarantined.
Files are read one by one onto local disk, with what the split needs of each record; only groups and near-duplicates
take arrays of all records. If only files were added to a source, only those are read.
"""

import logging
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

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
    stage_checks,
    stage_pairs,
    staged_pairs,
)
from prefect_augment.ingest.write_shards import SplitResult, write_index
from prefect_augment.params import Source
from prefect_augment.params.keys import step_key
from prefect_augment.schema import DatasetInfo, DatasetRef
from prefect_augment.sources.discovery import LAYOUTS, MAGIC, Listing, list_source, with_its_holdout
from prefect_augment.sources.images.files import ImageFiles
from prefect_augment.sources.images.scan import inspect_folder
from prefect_augment.split.corrections import read_corrections
from prefect_augment.split.ledger import Ledger
from prefect_augment.split.ledger_io import NEAR_DUPLICATE
from prefect_augment.storage import Stage, Store, contains
from prefect_augment.storage.spill import Workspace, give_back, returned_at_once

logger = logging.getLogger(__name__)

SOURCE, HOLDOUT = "source", "holdout"  # in the names of what parts stage


class _Job:
    """One ingest: its source and hold-out, the split that it continues, and labels that people corrected."""

    def __init__(
        self,
        source: Source,
        store: Store,
        seed: int,
        options: dict[str, Any] | None,
        on_progress: Progress | None = None,
    ) -> None:
        """List the source and its hold-out; raise InputError for what lies inside the destination."""
        self.listing = list_source(source.uri, requested=source.format, options=options)
        _refuse_nesting(source.uri, store, self.listing, what="source")
        self.source = source = with_its_holdout(source, self.listing.denoised)
        self.holdout: Listing | None = None
        if source.holdout_uri:
            # How image files get their labels says nothing of a hold-out that comes as Parquet.
            kind = "auto" if source.format in LAYOUTS else source.format
            self.holdout = list_source(source.holdout_uri, requested=kind, options=options)
            _refuse_nesting(source.holdout_uri, store, self.holdout, what="hold-out")
        self.store = store
        self.report = on_progress or (lambda fraction, text: None)
        self.corrections = read_corrections(store)
        self._parents = baselines(store, self.listing, self.source, seed)
        self.parent = self._parents[0]
        self.stage = self._stage(self.parent)

    def request(self, *inputs: Any) -> str:
        """Return the key of everything that staged records depend on; without inputs, except the source's files."""
        holdout = None if self.holdout is None else self.holdout.identity
        corrected = [self.corrections.digest] if self.corrections else []
        fixed = [self.listing.format, self.listing.manifest is not None, holdout, *corrected]
        # The seed matters through the salt alone, and that is in the ledger.
        return step_key("ingest", {"source": self.source}, inputs=[*fixed, *inputs])

    def _stage(self, parent: Baseline) -> Stage:
        batches = parent.batches(self.listing).tolist()
        key = self.request(self.listing.identity, batches, parent.ledger.digest)
        return Stage(self.store, "ingest", key)

    def done(self) -> tuple[Stage, DatasetInfo] | None:
        """Return the outcome of an unchanged source."""
        for parent in self._parents:
            stage = self._stage(parent)
            info = stage.outcome(DatasetInfo)
            if info is not None and (
                parent is self.parent or info.extra["ledger_digest"] == self.parent.ledger.digest
            ):
                return stage, info
        return None

    def reusable(self, folder: ImageFiles | None) -> ReusedRecords | None:
        """Return the records that need not be read again; NotReusableError as of :func:`find_reusable`."""
        return find_reusable(
            self.store, self.listing, self.parent, request=self.request(), folder=folder
        )


def ingest(
    source: Source,
    *,
    store: Store,
    seed: int,
    source_options: dict[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> DatasetRef:
    """Read a labelled source, split it by the sticky ledger, and stage its records.

    An unchanged source is not read again. If files were only added since the newest version, only those are read, with
    the same result. Labels that people corrected hold in place of the source's.

    ``seed`` fixes the salt of the first version's split; ``on_progress`` gets a fraction in [0, 1] and the current
    step. ``n_records`` and ``class_counts`` leave out a hold-out of another URI. Raises InputError if the source is
    empty, changed while it was read, lies inside the destination, or overlaps its hold-out with ``on_overlap`` "error";
    ParameterError if a parameter names a missing column, or parameters contradict one another.
    """
    job = _Job(source, store, seed, source_options, on_progress)
    if (done := job.done()) is not None:
        logger.info("The source has not changed since it was ingested as %s.", done[0].key)
        return _reference(*done)

    store.check_writable()  # now, and not when all has been read
    info = with_corrected(_new_or_all(job), job.corrections, store)
    job.report(1.0, "done")
    for note in info.notes:
        logger.info("%s", note)
    return _reference(job.stage, job.stage.finish(info))


def ingest_part(
    source: Source,
    *,
    store: Store,
    seed: int,
    source_options: dict[str, Any] | None = None,
    part: int,
    n_parts: int,
) -> int:
    """Check a part of the source's images, or parse a part of its text files, for :func:`ingest`; return how many."""
    job = _Job(source, store, seed, source_options)
    if job.done() is not None:
        return 0
    wanted = None
    with suppress(NotReusableError):
        reused = job.reusable(folder=None)
        wanted = None if reused is None else reused.wanted
    n = 0
    for name, listing in ((SOURCE, job.listing), (HOLDOUT, job.holdout)):
        if listing is not None and listing.table is None:  # a database is asked once
            some = wanted if listing is job.listing else None
            share: dict[str, Any] = {"wanted": some, "part": part, "n_parts": n_parts}
            if listing.format in UNTYPED_FORMATS:
                n += ParsedFiles(job.stage, name).keep(listing, job.source, **share)
                continue
            images = images_of_part(listing, job.source, **share)
            name = f"{name}-{part}-of-{n_parts}"
            n += stage_checks(images, job.stage, name, max_megapixels=source.max_megapixels)
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
    """Compare a part of the images that :func:`ingest_part` has checked, for near-duplicates; return how many."""
    job = _Job(source, store, seed, source_options)
    if job.done() is not None:
        return 0
    return stage_pairs(job.stage, job.parent.ledger.keys, part=part, n_parts=n_parts)


def _new_or_all(job: _Job) -> DatasetInfo:
    """Read only new files where possible, else all."""
    folder = None
    if job.listing.format == "folder":
        folder = inspect_folder(job.listing, job.source)
    n_files = len(job.listing.entries)
    try:
        reused = job.reusable(folder)
        if reused is None:
            return _ingest(job, folder, None, ())
        note = (
            f"{len(reused.wanted)} of {n_files} source files are new and were read; the staged records of the "
            "others were used again"
        )
        return _ingest(job, folder, reused, (note,))
    except NotReusableError as exc:
        note = f"all {n_files} source files were read, known ones too: {exc}"
        return _ingest(job, folder, None, (note,))


def _ingest(
    job: _Job, folder: ImageFiles | None, reused: ReusedRecords | None, notes: tuple[str, ...]
) -> DatasetInfo:
    with returned_at_once(), Workspace() as workspace:
        checks = StagedChecks(job.stage)
        candidates = _read(job, workspace, folder, reused, checks)
        held = None
        if job.holdout is not None:
            held = read_holdout(
                job.holdout,
                job.source,
                workspace,
                roles=candidates.roles,
                corrections=job.corrections,
                parsed=ParsedFiles(job.stage, HOLDOUT),
                checks=checks,
            )
        give_back()
        job.report(0.7, "split")
        split = _split(job, candidates, held, reused)
        give_back()
        job.report(0.8, "write")
        return Ingested(
            source=job.source,
            stage=job.stage,
            candidates=candidates,
            held=held,
            split=split,
            reused=reused,
            request=job.request(),
            notes=notes,
        ).write()


def _read(
    job: _Job,
    workspace: Workspace,
    folder: ImageFiles | None,
    reused: ReusedRecords | None,
    checks: StagedChecks,
) -> Candidates:
    read = scan(
        job.listing,
        job.source,
        workspace,
        batches=job.parent.batches(job.listing),
        wanted=None if reused is None else reused.wanted,
        known=None if reused is None else reused.schema,
        folder=folder,
        parsed=ParsedFiles(job.stage, SOURCE),
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


def _split(
    job: _Job, candidates: Candidates, held: Candidates | None, reused: ReusedRecords | None
) -> SplitResult:
    """Split all records and write the indexes; the memory is released on return."""
    decision = Decision(
        candidates,
        [] if reused is None else reused.indexes(job.store),
        held,
        parent=_of_kind(job.parent.ledger, candidates.roles),
        source=job.source,
        likely=partial(staged_pairs, job.stage),
    )
    return write_index(decision, job.stage)


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


def _reference(stage: Stage, info: DatasetInfo) -> DatasetRef:
    counts: Counter[str] = Counter()
    for part, of_class in info.part_counts.items():
        if not (part == "holdout" and info.holdout_uri):
            counts.update(of_class)
    return stage.reference(info, counts)
