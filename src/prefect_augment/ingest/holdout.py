"""A separate hold-out, at ``source.holdout_uri``."""

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Bool
from prefect_augment.encoding.columns import did_you_mean
from prefect_augment.encoding.labels import class_names
from prefect_augment.errors import LabelError, SchemaError
from prefect_augment.ingest.column_roles import Roles
from prefect_augment.ingest.record_index import RecordIndex
from prefect_augment.ingest.scan import ParsedFiles, scan
from prefect_augment.ingest.schema import (
    UNTYPED_FORMATS,
    plain_schema,
    refuse_other_names,
    shared_type,
)
from prefect_augment.ingest.validate import Candidates, find_candidates
from prefect_augment.ingest.validate_images import StagedChecks
from prefect_augment.params import Source
from prefect_augment.shards.image_columns import image_columns, main_image
from prefect_augment.shards.parquet import select_columns
from prefect_augment.sources.discovery import Listing
from prefect_augment.sources.images.columns import with_group_column
from prefect_augment.split.assignment import MIN_COMPARED
from prefect_augment.split.corrections import Corrections
from prefect_augment.storage.keys import group_ids, shared_names
from prefect_augment.storage.spill import Workspace

logger = logging.getLogger(__name__)


def read_holdout(
    listing: Listing,
    source: Source,
    workspace: Workspace,
    *,
    roles: Roles,
    corrections: Corrections,
    parsed: ParsedFiles,
    checks: StagedChecks,
) -> Candidates:
    """Return the records at ``source.holdout_uri`` as the source's; SchemaError if columns or types differ."""
    scanned = scan(listing, source, workspace, parsed=parsed)
    dropped = {override.name for override in source.columns if override.kind == "drop"}
    where = f"the hold-out {listing.store.uri}"
    plain = plain_schema(roles.schema)

    def chosen(table: pa.Table) -> pa.Table:
        if roles.pattern:
            table = with_group_column(table, roles.pattern)
        table = select_columns(table, [n for n in table.column_names if n not in dropped])
        return _beside_images(table, roles.schema, roles.label)

    def conform(table: pa.Table) -> pa.Table:
        try:
            return chosen(table).select(plain.names).cast(plain)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
            raise SchemaError(f"{where} does not fit the source's types: {exc}.") from exc

    _check_schema(chosen(scanned.schema.empty_table()).schema, roles.schema, listing)
    held = find_candidates(
        scanned, roles, source, conform=conform, corrections=corrections, checks=checks
    )
    logger.info("Hold-out: %s records at %s.", held.n_records, listing.store.uri)
    return held


def _beside_images(table: pa.Table, like: pa.Schema, label: str) -> pa.Table:
    """Give an image hold-out the source's columns beside image and label, which do not affect how it is scored."""
    image = main_image(like)
    if not image or image not in image_columns(table.schema):
        return table
    table = select_columns(table, [n for n in table.column_names if n in like.names])
    for field in like:
        if field.name not in (image, label, *table.column_names):
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def _check_schema(schema: pa.Schema, like: pa.Schema, listing: Listing) -> None:
    """Refuse columns or types that differ from the source's; inferred CSV types may be widened."""
    where = f"the hold-out {listing.store.uri}"
    refuse_other_names(schema, where, like=like, where="the source")
    for field in like:
        actual = schema.field(field.name).type
        is_untyped = listing.format in UNTYPED_FORMATS
        shared = shared_type(field.type, actual, widen=is_untyped)
        if shared is None or (is_untyped and shared != field.type):
            raise SchemaError(
                f"column {field.name!r} is {actual} in {where} and {field.type} in the source; convert one of them.",
                column=field.name,
                expected=str(field.type),
                found=str(actual),
            )


def refuse_other_classes(
    held: Candidates, counts: Mapping[str, int], label_values: pa.Array, uri: str
) -> None:
    """Raise LabelError unless the hold-out has the source's classes, but for those of under ``MIN_COMPARED``."""
    theirs = {name for name in held.label_counts if name}
    ours = [name for name in class_names(label_values) if name in counts]
    unknown = [
        name for name in class_names(held.label_values) if name in theirs and name not in counts
    ]
    if unknown:
        raise LabelError(
            f"the hold-out {uri} has the class {unknown[0]!r}, which the source lacks"
            f"{did_you_mean(unknown[0], ours)}; the source's classes are: {', '.join(map(repr, ours[:40]))}.",
            classes=unknown,
        )
    missing = [name for name in ours if name not in theirs and counts[name] >= MIN_COMPARED]
    if missing:
        raise LabelError(
            f"the hold-out {uri} has no record of class {missing[0]!r}, of which the source has "
            f"{counts[missing[0]]}; add some, so that the class can be compared, or use holdout_fraction.",
            classes=missing,
        )


def in_holdout(index: RecordIndex, held: RecordIndex) -> Bool:
    """Return which records of the source are in the hold-out, or share a group with it."""
    n = len(index)
    ids = group_ids(np.concatenate([index.keys, held.keys]))
    ours, theirs = shared_names(index.labels, held.labels)
    width = len(ours.names) + 1
    overlap = np.isin(ids[:n] * width + ours.codes, ids[n:] * width + theirs.codes)
    if index.groups is not None and held.groups is not None:
        held_names = {name for name in held.groups.counts() if name}
        is_held = np.array([name in held_names for name in index.groups.names.tolist()], dtype=bool)
        overlap |= is_held[index.groups.codes]
    return np.asarray(overlap)
