"""The roles of a source's columns, and their descriptions."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from prefect_augment.augmentation.text import is_free_text
from prefect_augment.encoding.columns import (
    ColumnSummary,
    check_columns,
    describe_summaries,
    is_comparable,
    require_columns,
)
from prefect_augment.encoding.labels import check_label_type, find_label
from prefect_augment.encoding.values import value_type
from prefect_augment.errors import InputError, ParameterError
from prefect_augment.ingest.scan import Scan
from prefect_augment.ingest.schema import plain_schema
from prefect_augment.params import Source
from prefect_augment.schema import ColumnInfo, Manifest
from prefect_augment.shards.image_columns import main_image
from prefect_augment.shards.parquet import select_columns
from prefect_augment.sources.images.columns import GROUP, with_group_column

KEPT = "kept in real records, null in synthetic ones"


@dataclass(frozen=True)
class Roles:
    """The role of each source column."""

    label: str
    image: str  # empty in a table
    grouped_by: str  # empty where records are not grouped
    pattern: str  # extracts the group from image paths
    holdout_column: str  # the hold-out column, or empty
    schema: pa.Schema  # of the published columns, in the source's order

    def published_table(self, table: pa.Table) -> pa.Table:
        """Return the published columns of a batch, categories as plain values."""
        if self.pattern and GROUP not in table.column_names:
            table = with_group_column(table, self.pattern)
        return table.select(self.schema.names).cast(plain_schema(self.schema))


class _Columns:
    """A source's columns read one at a time, as codes, to find the label."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self.column_names = scan.schema.names

    def column(self, name: str) -> pa.ChunkedArray:
        kind = plain_schema(self._scan.schema).field(name).type
        chunks = [batch.table[name].combine_chunks() for batch in self._scan.batches()]
        if is_comparable(kind) and not pa.types.is_null(kind):
            chunks = [chunk.dictionary_encode() for chunk in chunks]
        elif not is_comparable(kind):
            chunks = []  # never a label, and what it holds does not matter
        return pa.chunked_array(chunks, chunks[0].type if chunks else kind)


def find_roles(
    scan: Scan, source: Source, *, manifest: Manifest | None = None, label: str = ""
) -> Roles:
    """Return the columns' roles; ``label`` names the label column if an earlier run detected it.

    Raises LabelError without a usable label, ParameterError if a parameter names a missing column or contradicts one.
    """
    schema = scan.schema
    name = source.label or label or (manifest.label if manifest else "")
    label = find_label(schema.empty_table() if name else _Columns(scan), name)
    # Refuse contradictions before records are validated.
    require_columns(schema, [source.holdout_column], what="source.holdout_column")
    require_columns(schema, [source.group_column], what="source.group_column")
    if label in (source.holdout_column, source.group_column):
        raise ParameterError(
            f"column {label!r} is the label and cannot be holdout_column or group_column as well."
        )
    for name in (source.holdout_column, source.group_column):
        if name and not is_comparable(value_type(schema.field(name).type)):
            raise ParameterError(
                f"column {name!r} holds {schema.field(name).type} and cannot be holdout_column or group_column."
            )
    check_columns(schema, label=label, overrides=source.columns)
    check_label_type(schema.field(label).type, name=label)
    whole = schema.empty_table()
    if source.group_pattern:
        whole = with_group_column(whole, source.group_pattern)
    grouped_by = GROUP if source.group_pattern else source.group_column
    image = main_image(schema)
    gone = {override.name for override in source.columns if override.kind == "drop"} | {
        source.holdout_column
    }
    if grouped_by and grouped_by in gone:
        raise ParameterError(f"group column {grouped_by!r} cannot be dropped; the split needs it.")
    if image and image in gone:
        raise ParameterError(f"column {image!r} holds the images and cannot be dropped.")
    # Everything but dropped columns is published, in the source's order.
    published = select_columns(whole, [n for n in whole.column_names if n not in gone])
    return Roles(
        label, image, grouped_by, source.group_pattern, source.holdout_column, published.schema
    )


def describe(
    summaries: dict[str, ColumnSummary], roles: Roles, source: Source
) -> tuple[ColumnInfo, ...]:
    """Describe the published columns; raises InputError if there is none to learn from."""
    overrides = [override for override in source.columns if override.kind != "drop"]
    columns = describe_summaries(roles.schema, summaries, label=roles.label, overrides=overrides)
    # A text classification set has one text and nothing else: copies can be made of it.
    learnable = any(c.kind in ("numeric", "category") or is_free_text(c) for c in columns)
    if not roles.image and not learnable:
        raise InputError(
            f"the source has no column to learn from besides the label {roles.label!r}: "
            + (", ".join(f"{c.name!r} is {c.kind}" for c in columns) or "there is no other")
            + ". Say source.columns where the tool reads one wrongly."
        )
    return _of_images(_without_group(columns, source, roles.grouped_by), roles.image)


def _of_images(columns: Sequence[ColumnInfo], image: str) -> tuple[ColumnInfo, ...]:
    """Mark columns beside images as kept: models and classifiers see pixels alone."""
    if not image:
        return tuple(columns)
    return tuple(
        c.model_copy(update={"kind": "image", "note": ""})
        if c.name == image
        else c.model_copy(update={"note": c.note or KEPT})
        for c in columns
    )


def _without_group(
    columns: Sequence[ColumnInfo], source: Source, grouped_by: str
) -> tuple[ColumnInfo, ...]:
    """Mark the group column as an identifier, which models do not learn, unless an override says otherwise."""
    overridden = {override.name for override in source.columns}
    changed = {"kind": "identifier", "note": "group column: says whose record it is"}
    return tuple(
        c.model_copy(update=changed) if c.name == grouped_by and c.name not in overridden else c
        for c in columns
    )
