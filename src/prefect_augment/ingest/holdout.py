"""A separate hold-out, at ``source.holdout_uri``."""

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Array, Bool
from prefect_augment.encoding.columns import did_you_mean
from prefect_augment.encoding.labels import class_names
from prefect_augment.errors import LabelError, SchemaError
from prefect_augment.ingest.column_roles import Roles
from prefect_augment.ingest.scan import ParsedFiles, scan
from prefect_augment.ingest.schema import (
    UNTYPED_FORMATS,
    plain_name,
    plain_schema,
    refuse_other_names,
    wider_type,
)
from prefect_augment.ingest.validate import Candidates, Rows, find_candidates
from prefect_augment.ingest.validate_images import StagedChecks
from prefect_augment.params import Source
from prefect_augment.shards.image_columns import image_columns, main_image
from prefect_augment.shards.parquet import select_columns
from prefect_augment.sources.discovery import Listing
from prefect_augment.sources.images.columns import with_group_column
from prefect_augment.split.corrections import Corrections
from prefect_augment.split.record_split import MIN_COMPARED
from prefect_augment.storage.keys import Coded, group_ids
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
    """Return the records at ``source.holdout_uri``, with the source's columns and types.

    Raises SchemaError if columns or types differ from the source's.
    """
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
    """Give an image hold-out the source's columns beside image and label.

    Boxes or groups that only one of the two has do not affect how images are scored.
    """
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
        same = actual == field.type or (
            listing.format in UNTYPED_FORMATS and wider_type(actual, field.type) == field.type
        )
        same = same or plain_name(str(actual)) == plain_name(str(field.type))
        if not same and not _same_values(actual, field.type):
            raise SchemaError(
                f"column {field.name!r} is {actual} in {where} and {field.type} in the source; convert one of them.",
                column=field.name,
                expected=str(field.type),
                found=str(actual),
            )


def _same_values(one: pa.DataType, other: pa.DataType) -> bool:
    """Tell whether two dictionary types differ only in the width of their codes."""
    t = pa.types
    return bool(
        t.is_dictionary(one)
        and t.is_dictionary(other)
        and (one.value_type, one.ordered) == (other.value_type, other.ordered)
    )


def refuse_other_classes(
    held: Candidates, counts: Mapping[str, int], label_values: pa.Array, uri: str
) -> None:
    """Raise LabelError unless the hold-out has the source's classes.

    A class with fewer than ``MIN_COMPARED`` source records may be missing; it is not scored.
    """
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


def in_holdout(keys: Array, labels: Coded, groups: Coded | None, held: Rows) -> Bool:
    """Return which records of the source are in the hold-out, or share a group with it."""
    n = len(keys)
    ids = group_ids(np.concatenate([keys, held.keys]))
    names = {name: i for i, name in enumerate(labels.names.tolist())}
    theirs = np.array([names.get(name, -1) for name in held.labels.names.tolist()], dtype=np.int64)
    width = len(names) + 1
    there = ids[n:] * width + (theirs[held.labels.codes] if len(held.labels) else 0)
    overlap = np.isin(ids[:n] * width + labels.codes, there)
    if groups is not None and held.groups is not None:
        held_names = {name for name in held.groups.counts() if name}
        is_held = np.array([name in held_names for name in groups.names.tolist()], dtype=bool)
        overlap |= is_held[groups.codes]
    return np.asarray(overlap)
