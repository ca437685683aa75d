"""Ingest: a labelled source in, validated and split records out.

What cannot be used goes to quarantine with file, position and reason, and the run goes on. Records
in are records out plus quarantined ones. Nothing outside ``_staging`` is written.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.datatypes import DatasetFacts, DatasetRef, ImageFacts, ShardFact
from prefect_augment.encoding.keys import aug_ids, occurrence_numbers
from prefect_augment.encoding.labels import check_label, class_names, label_text
from prefect_augment.errors import InputError
from prefect_augment.params import Source
from prefect_augment.shards.parquet import take_rows, write_shards
from prefect_augment.splitting import MIN_JUDGED, PARTS, Assignment, Ledger, assign
from prefect_augment.stages.holdout import Holdout, in_holdout, read_holdout
from prefect_augment.stages.image_columns import record_keys, record_variants
from prefect_augment.stages.image_reading import by_folder
from prefect_augment.stages.ledger import NEAR_DUPLICATE, inherited_ledgers, write_ledger
from prefect_augment.stages.listing import LAYOUTS, MAGIC, Listing, list_source
from prefect_augment.stages.near_split import (
    NearClusters,
    assign_clusters,
    count_near,
    find_clusters,
)
from prefect_augment.stages.source import Progress, Quarantined, SourceTable, read_source
from prefect_augment.stages.usable import Labelled, find_records
from prefect_augment.stages.usable_images import image_notes
from prefect_augment.staging import Stage, canonical_json, stage_key
from prefect_augment.storage import Store, contains, sha256_hex

__all__ = ["ALGORITHM_VERSION", "ingest"]

logger = logging.getLogger(__name__)

ALGORITHM_VERSION = 2
# Staged shards are ours alone to read: large enough to be few, small enough to be built in memory.
SHARD_RECORDS = 1_000_000
SHARD_BYTES = 256 << 20


def ingest(
    source: Source,
    *,
    store: Store,
    seed: int,
    source_options: dict[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> DatasetRef:
    """Read a labelled source, split it by the sticky ledger, and stage its records.

    A source that has not changed since an earlier run (by its listing) is not read again, also when
    that run's result has been published since.

    Parameters
    ----------
    source : Source
        Where the records are, which column holds the class, how they are split.
    store : Store
        The destination; its newest version's ledger is inherited.
    seed : int
        Fixes the salt of the first version's split.
    source_options : dict, optional
        fsspec storage options of source and hold-out.
    on_progress : callable, optional
        Called with a fraction in [0, 1] and what is being done.

    Returns
    -------
    DatasetRef
        ``n_records`` and ``class_counts`` count the source's records; those of a hold-out URI are in
        the facts' ``part_counts`` only.

    Raises
    ------
    InputError
        If the source cannot be used: nothing there, changed while read, inside the destination,
        overlapping its hold-out. ``SchemaError`` and ``LabelError`` are kinds of it.
    ParameterError
        If a parameter names a column that is not there, or parameters contradict one another.
    """
    report = on_progress or (lambda fraction, text: None)
    listing = list_source(source.uri, wished=source.format, options=source_options)
    _refuse_nesting(source.uri, store, listing, what="source")
    holdout_listing = None
    if source.holdout_uri:
        # How image files get their labels says nothing of a hold-out that comes as Parquet.
        wished = "auto" if source.format in LAYOUTS else source.format
        holdout_listing = list_source(source.holdout_uri, wished=wished, options=source_options)
        _refuse_nesting(source.holdout_uri, store, holdout_listing, what="hold-out")

    ledgers = inherited_ledgers(store, listing, source, seed)
    for ledger in ledgers:
        stage = Stage(store, "ingest", _key(source, listing, holdout_listing, ledger))
        facts = stage.outcome(DatasetFacts)
        if facts is not None and (
            ledger is ledgers[0] or facts.extra["ledger_digest"] == ledgers[0].digest
        ):
            logger.info("The source has not changed since it was ingested as %s.", stage.key)
            return _reference(stage, facts)

    store.check_writable()  # now, and not when all has been read
    data = read_source(listing, source, on_progress=lambda f, text: report(0.4 * f, text))
    found = find_records(
        data,
        source,
        manifest=listing.manifest,
        on_progress=lambda f, text: report(0.4 + 0.3 * f, text),
    )
    ledger = _of_kind(ledgers[0], found)
    holdout = None
    if holdout_listing is not None:
        holdout = read_holdout(holdout_listing, source, like=found.data.table, label=found.label)
    stage = Stage(store, "ingest", _key(source, listing, holdout_listing, ledgers[0]))
    is_loose = listing.format == "folder"
    report(0.7, "split")
    facts = _Ingestion(source, stage, ledger, found, holdout, is_loose=is_loose).run()
    report(1.0, "done")
    for note in facts.notes:
        logger.info("%s", note)
    return _reference(stage, stage.finish(facts))


def _of_kind(ledger: Ledger, found: Labelled) -> Ledger:
    """Return the ledger for what the source turned out to hold; refuse to go on with another kind."""
    unit = NEAR_DUPLICATE if found.images is not None and found.groups is None else ledger.unit
    if not ledger.keys:
        return replace(ledger, unit=unit)
    if unit != ledger.unit or (ledger.unit == NEAR_DUPLICATE and found.images is None):
        was = "images" if ledger.unit == NEAR_DUPLICATE else "a split by record"
        raise InputError(
            f"the dataset's earlier version had {was}, and the source now holds "
            f"{'images' if found.images is not None else 'no images'}; publish to another destination."
        )
    return ledger


def _refuse_nesting(uri: str, store: Store, listing: Listing, *, what: str) -> None:
    """Refuse a source and a destination one of which would swallow the other's objects."""
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


def _key(source: Source, listing: Listing, holdout: Listing | None, ledger: Ledger) -> str:
    wishes = source.model_dump(mode="json", exclude={"uri", "holdout_uri", "storage_block"})
    found = {
        "format": listing.format,
        "is_ours": listing.manifest is not None,
        "source": listing.identity,
        "holdout": None if holdout is None else holdout.identity,
    }
    # The seed matters through the salt alone, and that is in the ledger.
    return stage_key(
        "ingest",
        algorithm_version=ALGORITHM_VERSION,
        params=[wishes, found],
        inputs=[ledger.digest],
    )


def _reference(stage: Stage, facts: DatasetFacts) -> DatasetRef:
    counts: Counter[str] = Counter()
    for part, of_class in facts.part_counts.items():
        if not (part == "holdout" and facts.holdout_uri):
            counts.update(of_class)
    return stage.reference(facts, counts)


# --- splitting and writing --------------------------------------------------------------------


class _Ingestion:
    """One ingest after reading: split, write, say what was done."""

    def __init__(
        self,
        source: Source,
        stage: Stage,
        ledger: Ledger,
        found: Labelled,
        holdout: Holdout | None,
        *,
        is_loose: bool,
    ) -> None:
        self.source, self.stage, self.ledger = source, stage, ledger
        self.label, self.columns, self.holdout = found.label, found.columns, holdout
        self.found, self.is_loose = found, is_loose
        self.keys: list[str] = record_keys(found.data.table, label=found.label)
        self.labels: list[str] = label_text(found.data.table[found.label]).to_pylist()
        self.clusters: NearClusters | None = None

    def run(self) -> DatasetFacts:
        """Write the stage's objects and return its outcome."""
        self._settle_overlap()
        self._settle_twins()
        self._sort()
        self._find_clusters()
        assignment = self._assign()
        occurrences = occurrence_numbers(self.keys, self.labels, order=assignment.occurrences)
        ids = aug_ids(self.keys, self.labels, occurrences)
        shards = [
            shard
            for p, part in enumerate(PARTS)
            for shard in self._write(
                part, self.found.data.table, ids, self.keys, np.flatnonzero(assignment.parts == p)
            )
        ]
        given: tuple[ShardFact, ...] = ()
        if self.holdout is not None:
            theirs = aug_ids(self.holdout.keys, self.holdout.labels)
            rows = np.arange(len(theirs))
            given = self._write("holdout", self.holdout.data.table, theirs, self.holdout.keys, rows)
        return self._facts(assignment, (*shards, *given), given)

    def _settle_overlap(self) -> None:
        if self.holdout is None:
            return
        overlap = in_holdout(
            self.keys,
            self.labels,
            self.holdout,
            groups=self.found.groups,
            group_column=self.found.group_column,
        )
        if overlap.any() and self.source.on_overlap == "error":
            n, total = int(overlap.sum()), len(overlap)
            raise InputError(
                f"{n} of the source's {total} records are also in the hold-out {self.source.holdout_uri} (equal values "
                "and label, or the same group): the comparison would judge what was trained on. Take them out, or set "
                "source.on_overlap to 'drop' to quarantine them.",
                n_overlap=n,
            )
        self._reject(overlap, "in hold-out")
        if self.found.data.table.num_rows == 0:
            raise InputError(
                "every record of the source is also in the hold-out; nothing is left to train on."
            )
        check_label(self.found.data.table[self.label], name=self.label)

    def _settle_twins(self) -> None:
        """An image on both sides of the user's own marks is in the hold-out, as one at its URI would be."""
        marked = self.found.marked
        if marked is None or self.found.images is None or self.found.groups is not None:
            return
        held = {key for key, mark in zip(self.keys, marked.tolist(), strict=True) if mark}
        overlap = ~marked & np.asarray([key in held for key in self.keys], dtype=bool)
        if overlap.any() and self.source.on_overlap == "error":
            raise InputError(
                f"{int(overlap.sum())} images that {self.source.holdout_column!r} marks as training are byte for byte "
                "also marked as hold-out: the comparison would judge what was trained on. Take them out, or set "
                "source.on_overlap to 'drop' to quarantine them.",
                n_overlap=int(overlap.sum()),
            )
        self._reject(overlap, "in hold-out")

    def _reject(self, unusable: NDArray[np.bool_], reason: str) -> None:
        self._keep(np.flatnonzero(~unusable), self.found.data.without(unusable, reason))

    def _keep(self, rows: NDArray[np.intp], data: SourceTable) -> None:
        """Go on with these rows, in this order; ``data`` has been brought into it already."""
        marked, groups, images = self.found.marked, self.found.groups, self.found.images
        self.keys = [self.keys[i] for i in rows]
        self.labels = [self.labels[i] for i in rows]
        self.found = Labelled(
            data,
            self.label,
            self.columns,
            None if marked is None else marked[rows],
            None if groups is None else [groups[i] for i in rows],
            self.found.group_column,
            None if images is None else images.take(rows),
        )
        if self.clusters is not None:
            self.clusters = self.clusters.take(rows)

    def _sort(self) -> None:
        """Bring the records into an order of their own, so that theirs in the source changes nothing."""
        table = self.found.data.table
        marked = (
            np.zeros(table.num_rows, dtype=bool) if self.found.marked is None else self.found.marked
        )
        variants = record_variants(table, label=self.label)
        names = ["key", "label", "marked", "variant"]
        rank = pa.table([self.keys, self.labels, pa.array(marked), pa.array(variants)], names=names)
        order = pc.sort_indices(rank, sort_keys=[(name, "ascending") for name in names]).to_numpy()
        data = self.found.data
        self._keep(
            order,
            SourceTable(
                take_rows(table, order),
                data.paths,
                data.file_index[order],
                data.positions[order],
                data.files,
                data.rejected,
                data.notes,
            ),
        )

    def _find_clusters(self) -> None:
        """Find near-duplicate images, where no group says what belongs together."""
        if self.found.images is None or self.found.groups is not None:
            return
        self.clusters = find_clusters(
            self.keys, self.found.images.thumbs, ledger=self.ledger, marked=self.found.marked
        )
        is_bridge = self.clusters.is_bridge
        self._reject(is_bridge, "bridge")

    def _assign(self) -> Assignment:
        wishes: dict[str, Any] = {
            "ledger": self.ledger,
            "holdout_fraction": 0.0 if self.holdout is not None else self.source.holdout_fraction,
            "val_fraction": self.source.val_fraction,
            "marked": self.found.marked,
        }
        if self.clusters is not None and self.found.images is not None:
            thumbs = self.found.images.thumbs
            return assign_clusters(self.keys, self.labels, self.clusters, thumbs, **wishes)
        return assign(self.keys, self.labels, groups=self.found.groups, **wishes)

    def _write(
        self,
        part: str,
        table: pa.Table,
        ids: pa.StringArray,
        keys: Sequence[str],
        rows: NDArray[np.intp],
    ) -> tuple[ShardFact, ...]:
        """Write these rows as the shards of a part, sorted by ``aug_id``."""
        rows = rows[
            np.argsort(
                ids.take(pa.array(rows)).to_numpy(zero_copy_only=False).astype("S32"), kind="stable"
            )
        ]
        chosen = take_rows(table, rows)
        chosen = chosen.append_column("aug_id", ids.take(pa.array(rows)))
        chosen = chosen.append_column("content_key", pa.array([keys[i] for i in rows], pa.string()))
        return write_shards(
            self.stage.store,
            chosen,
            prefix=self.stage.prefix,
            stem=part,
            split=part,
            origin="real",
            label=self.label,
            max_records=SHARD_RECORDS,
            max_bytes=SHARD_BYTES,
        )

    # --- what was done ---

    @property
    def _is_grouped(self) -> bool:
        return self.found.groups is not None or self.clusters is not None

    def _facts(
        self, assignment: Assignment, shards: tuple[ShardFact, ...], given: tuple[ShardFact, ...]
    ) -> DatasetFacts:
        table = self.found.data.table
        counts = {part: _sum_counts([s for s in shards if s.split == part]) for part in PARTS}
        judged = tuple(
            k for k in class_names(table[self.label]) if all(counts[part].get(k) for part in PARTS)
        )
        theirs = () if self.holdout is None else self.holdout.data.rejected
        quarantined = [
            *self.found.data.rejected,
            *(Quarantined(f"hold-out {q.path}", q.position, q.reason, q.record) for q in theirs),
        ]
        image = self._image_facts()
        occurring = Counter([*self.keys, *(self.holdout.keys if self.holdout else ())])
        return DatasetFacts(
            stage="ingest",
            key=self.stage.key,
            digest=sha256_hex("".join(s.sha256 for s in shards).encode()),
            label=self.label,
            label_type=str(table.schema.field(self.label).type),
            schema_digest=sha256_hex(canonical_json([[f.name, str(f.type)] for f in table.schema])),
            columns=self.columns,
            shards=shards,
            part_counts=counts,
            judged=judged,
            n_quarantined=len(quarantined),
            quarantine=self._write_quarantine(quarantined),
            sources=by_folder(self.found.data.files) if self.is_loose else self.found.data.files,
            holdout_uri=self.source.holdout_uri,
            holdout_digest=sha256_hex("".join(s.sha256 for s in given).encode()) if given else "",
            ledger=write_ledger(self.stage.store, assignment.ledger, prefix=self.stage.prefix),
            group_column=self.found.group_column,
            n_twins=sum(n for n in occurring.values() if n > 1),
            modality="table" if self.found.images is None else "image",
            image=image,
            notes=(*self._notes(assignment, counts, judged, quarantined), *image_notes(image)),
            extra={
                "ledger_digest": assignment.ledger.digest,
                "n_new": assignment.n_new,
                "n_quarantined_holdout": len(theirs),
            },
        )

    def _image_facts(self) -> ImageFacts | None:
        images = self.found.images
        theirs = None if self.holdout is None else self.holdout.images
        if images is None:
            return None
        found = {}
        if self.clusters is not None:
            sizes = np.unique(self.clusters.names, return_counts=True)[1]
            found = {
                "n_clusters": int((sizes > 1).sum()),
                "n_clustered": int(sizes[sizes > 1].sum()),
                "largest_cluster": int(sizes.max()),
            }
        if self.holdout is not None and theirs is not None:
            levels = np.zeros(len(self.keys), dtype=np.int64)
            found["n_near_holdout"] = count_near(
                self.keys,
                images.thumbs,
                levels if self.clusters is None else self.clusters.levels,
                self.holdout.keys,
                theirs.thumbs,
            )
        return images.facts(**found)

    def _write_quarantine(self, quarantined: Sequence[Quarantined]) -> tuple[ShardFact, ...]:
        rows = sorted(quarantined, key=lambda q: (q.path, q.position))
        table = pa.table(
            {
                "file": pa.array([q.path for q in rows], pa.string()),
                "position": pa.array([q.position for q in rows], pa.int64()),
                "reason": pa.array([q.reason for q in rows], pa.string()),
                "record": pa.array([q.record for q in rows], pa.string()),
            }
        )
        return write_shards(
            self.stage.store,
            table,
            prefix=self.stage.prefix,
            stem="quarantine",
            split="quarantine",
            origin="real",
            label="",
            max_records=SHARD_RECORDS,
            max_bytes=SHARD_BYTES,
        )

    def _notes(
        self,
        assignment: Assignment,
        counts: dict[str, dict[str, int]],
        judged: Sequence[str],
        quarantined: Sequence[Quarantined],
    ) -> tuple[str, ...]:
        notes = list(self.found.data.notes)
        notes += [f"hold-out: {note}" for note in (self.holdout.data.notes if self.holdout else ())]
        notes += [f"quarantined {n} records: {reason}" for reason, n in _by_reason(quarantined)]
        notes += [f"column {c.name!r} ({c.kind}): {c.note}" for c in self.columns if c.note]
        for name, n in Counter(self.labels).items():
            if name not in judged:
                notes.append(_why_not_judged(name, n, counts, grouped=self._is_grouped))
        if not judged:
            notes.append(
                f"no class has the {MIN_JUDGED} records that stand in all parts, so no arm can be judged"
            )
        if assignment.n_kept_against_mark:
            notes.append(
                f"{assignment.n_kept_against_mark} records keep the part of an earlier version, although the hold-out "
                "column now says otherwise"
            )
        return tuple(notes)


def _sum_counts(shards: Sequence[ShardFact]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard.class_counts)
    return dict(total)


def _by_reason(quarantined: Sequence[Quarantined]) -> list[tuple[str, int]]:
    """Reasons with their counts, most frequent first."""
    return Counter(q.reason for q in quarantined).most_common()


def _why_not_judged(name: str, n: int, counts: dict[str, dict[str, int]], *, grouped: bool) -> str:
    where = ", ".join(f"{counts[part].get(name, 0)} in {part}" for part in PARTS)
    if n < MIN_JUDGED:
        return (
            f"class {name!r} has {n} records, fewer than the {MIN_JUDGED} needed to stand in all parts: "
            "it is not judged"
        )
    why = (
        "its groups are too few or too large"
        if grouped
        else "the split that was given leaves a part without it"
    )
    return f"class {name!r} is not judged: {why} ({where})"
