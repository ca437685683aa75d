"""Profile of a source before anything is done with it. Writes nothing."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.encoding.columns import (
    ColumnSummary,
    describe_summaries,
    is_comparable,
    value_type_of,
)
from prefect_augment.encoding.labels import check_classes, class_names, label_text, missing_labels
from prefect_augment.errors import InputError, ParameterError
from prefect_augment.ingest.column_roles import describe, find_roles
from prefect_augment.ingest.quarantine import by_reason
from prefect_augment.ingest.scan import Scan, scan
from prefect_augment.ingest.validate import Candidates, find_candidates
from prefect_augment.ingest.validate_images import image_info, image_notes
from prefect_augment.params import Source
from prefect_augment.schema import ColumnInfo, ImageInfo, Profile
from prefect_augment.sources.discovery import Listing, list_source
from prefect_augment.sources.images.files import MASKS
from prefect_augment.split.assignment import MIN_COMPARED
from prefect_augment.split.ledger import Ledger
from prefect_augment.split.near_split import find_clusters
from prefect_augment.storage.spill import Workspace


def profile(source: Source, *, source_options: dict[str, Any] | None = None) -> Profile:
    """Columns, types, classes, sizes and problems of a source.

    Problems with the label or the parameters, which ingest would refuse, are notes here, so that
    the rest can be seen. InputError if there are no records, or the files do not fit together.
    """
    listing = list_source(source.uri, requested=source.format, options=source_options)
    with Workspace() as workspace:
        source_scan = scan(listing, source, workspace)
        try:
            roles = find_roles(source_scan, source, manifest=listing.manifest)
            candidates = find_candidates(source_scan, roles, source)
            return _valid_profile(source, listing, candidates, workspace)
        except (InputError, ParameterError) as exc:
            return _invalid_profile(source, listing, source_scan, workspace, str(exc))


def _valid_profile(
    source: Source, listing: Listing, candidates: Candidates, workspace: Workspace
) -> Profile:
    counts = candidates.label_counts
    names = [name for name in counts if name]
    n = candidates.n_records
    check_classes(_used(candidates.label_values, names), n, n, name=candidates.roles.label)
    if candidates.holdout_column is not None:
        candidates.holdout_column.check()
    summaries = _summaries(candidates.roles.schema, candidates.roles.label, workspace)
    for batch in candidates.batches():
        for name, summary in summaries.items():
            summary.add(batch.table[name])
    columns = describe(summaries, candidates.roles, source)
    ordered = {
        name: counts[name] for name in class_names(candidates.label_values) if name in counts
    }
    small = [name for name, n in ordered.items() if n < MIN_COMPARED]
    notes = [f"column {c.name!r} ({c.kind}): {c.note}" for c in columns if c.note]
    image = _image_info(candidates)
    if small:
        notes.insert(
            0,
            f"fewer than {MIN_COMPARED} records, so trained on but not compared: {', '.join(map(repr, small))}",
        )
    return _profile(
        source,
        listing,
        candidates.scan,
        n_records=n,
        label=candidates.roles.label,
        columns=columns,
        counts=ordered,
        is_valid=True,
        notes=[*notes, *candidates.scan.all_notes(), *image_notes(image)],
        image=image,
    )


def _used(values: pa.Array, names: list[str]) -> pa.Array:
    texts = label_text(values).to_pylist()
    return values.filter(pa.array([text in names for text in texts], pa.bool_()))


def _summaries(schema: pa.Schema, label: str, workspace: Workspace) -> dict[str, ColumnSummary]:
    return {f.name: ColumnSummary(f.type, workspace) for f in schema if f.name != label}


def _image_info(candidates: Candidates) -> ImageInfo | None:
    """Counts of the images and of their near-duplicates, as a first version would find them."""
    images = candidates.images
    if images is None:
        return None
    every, ledger = candidates.every, Ledger("")
    clusters = find_clusters(every.keys, images.thumbs, ledger=ledger, thumb_rows=every.thumb_rows)
    return image_info(images.column, images.traits, images.distinct_traits, clusters=clusters.names)


def _invalid_profile(
    source: Source, listing: Listing, source_scan: Scan, workspace: Workspace, problem: str
) -> Profile:
    """A profile despite a problem with the label or a parameter."""
    label = source.label if source.label in source_scan.schema.names else ""
    counts: Counter[str] = Counter()
    summaries = _summaries(source_scan.schema, label, workspace)
    is_flat = bool(label) and is_comparable(value_type_of(source_scan.schema.field(label).type))
    n_records = n_missing = 0
    for batch in source_scan.batches():
        table = batch.table
        if is_flat:
            missing = missing_labels(table[label])
            n_missing += pc.sum(missing).as_py() or 0
            table = table.filter(pc.invert(missing))
            for item in label_text(table[label]).value_counts().to_pylist():
                counts[item["values"]] += item["counts"]
        n_records += table.num_rows
        for name, summary in summaries.items():
            summary.add(table[name])
    return _profile(
        source,
        listing,
        source_scan,
        n_records=n_records,
        label=label,
        columns=describe_summaries(source_scan.schema, summaries, label=label),
        counts=dict(counts.most_common(100)),
        is_valid=False,
        notes=[problem, *source_scan.all_notes()],
    )


def _profile(
    source: Source,
    listing: Listing,
    source_scan: Scan,
    *,
    n_records: int,
    label: str,
    columns: tuple[ColumnInfo, ...],
    counts: dict[str, int],
    is_valid: bool,
    notes: list[str],
    image: ImageInfo | None = None,
) -> Profile:
    reasons = by_reason(source_scan.quarantine.table())
    return Profile(
        source=source.uri,
        format=listing.format,
        label=label,
        is_valid=is_valid,
        n_files=len(listing.entries),
        n_bytes=sum(max(0, entry.n_bytes) for entry in listing.entries),
        n_records=n_records,
        columns=columns,
        class_counts=counts,
        imbalance_ratio=max(counts.values()) / min(counts.values()) if counts else 0.0,
        n_quarantined=sum(reasons.values()),
        quarantine=dict(reasons),
        modality="table" if image is None else "image",
        image=image,
        notes=tuple(sorted(notes, key=lambda note: not note.startswith(MASKS))),
    )
