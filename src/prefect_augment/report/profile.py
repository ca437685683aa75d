"""Profile of a source before anything is done with it. Writes nothing."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.encoding.columns import ColumnSummary, describe_summaries, is_comparable
from prefect_augment.encoding.labels import check_classes, class_names, label_text, missing_labels
from prefect_augment.encoding.values import value_type
from prefect_augment.errors import InputError, ParameterError
from prefect_augment.ingest.column_roles import describe, find_roles
from prefect_augment.ingest.outcome import too_small
from prefect_augment.ingest.quarantine import by_reason
from prefect_augment.ingest.scan import Scan, scan
from prefect_augment.ingest.validate import Candidates, find_candidates
from prefect_augment.ingest.validate_images import image_info, image_notes
from prefect_augment.params import Source
from prefect_augment.schema import ImageInfo, Profile
from prefect_augment.sources.discovery import list_source
from prefect_augment.sources.images.files import MASKS
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
            fields = _valid_fields(source, candidates, workspace)
        except (InputError, ParameterError) as exc:
            fields = _invalid_fields(source, source_scan, workspace, str(exc))
        reasons = by_reason(source_scan.quarantine.table())
    counts, image = fields["class_counts"], fields.get("image")
    fields["notes"] = sorted(fields["notes"], key=lambda note: not note.startswith(MASKS))
    return Profile(
        source=source.uri,
        format=listing.format,
        n_files=len(listing.entries),
        n_bytes=sum(max(0, entry.n_bytes) for entry in listing.entries),
        imbalance_ratio=max(counts.values()) / min(counts.values()) if counts else 0.0,
        n_quarantined=sum(reasons.values()),
        quarantine=reasons,
        modality="image" if image else "table",
        **fields,
    )


def _valid_fields(source: Source, candidates: Candidates, workspace: Workspace) -> dict[str, Any]:
    counts, label = candidates.label_counts, candidates.roles.label
    n, values = candidates.n_records, candidates.label_values
    used = [bool(text) and text in counts for text in label_text(values).to_pylist()]
    check_classes(values.filter(pa.array(used, pa.bool_())), n, n, name=label)
    if candidates.holdout_column is not None:
        candidates.holdout_column.check()
    summaries = _summaries(candidates.roles.schema, label, workspace)
    for batch in candidates.batches():
        for name, summary in summaries.items():
            summary.add(batch.table[name])
    columns = describe(summaries, candidates.roles, source)
    ordered = {name: counts[name] for name in class_names(values) if name in counts}
    image = _image_info(candidates)
    return {
        "is_valid": True,
        "label": label,
        "n_records": n,
        "columns": columns,
        "class_counts": ordered,
        "image": image,
        "notes": [
            *too_small(ordered),
            *(f"column {c.name!r} ({c.kind}): {c.note}" for c in columns if c.note),
            *candidates.scan.all_notes(),
            *image_notes(image),
        ],
    }


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


def _invalid_fields(
    source: Source, source_scan: Scan, workspace: Workspace, problem: str
) -> dict[str, Any]:
    """Fields despite a problem with the label or a parameter."""
    label = source.label if source.label in source_scan.schema.names else ""
    counts: Counter[str] = Counter()
    summaries = _summaries(source_scan.schema, label, workspace)
    is_flat = bool(label) and is_comparable(value_type(source_scan.schema.field(label).type))
    n_records = 0
    for batch in source_scan.batches():
        table = batch.table
        if is_flat:
            table = table.filter(pc.invert(missing_labels(table[label])))
            for item in label_text(table[label]).value_counts().to_pylist():
                counts[item["values"]] += item["counts"]
        n_records += table.num_rows
        for name, summary in summaries.items():
            summary.add(table[name])
    return {
        "is_valid": False,
        "label": label,
        "n_records": n_records,
        "columns": describe_summaries(source_scan.schema, summaries, label=label),
        "class_counts": dict(counts.most_common(100)),
        "notes": [problem, *source_scan.all_notes()],
    }
