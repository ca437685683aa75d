"""Which records of a source can be used, and what their columns are.

Images are decoded here, once, for ingest, profile and a hold-out alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_augment.datatypes import ColumnFact
from prefect_augment.encoding.columns import (
    check_wishes,
    describe_columns,
    is_comparable,
    require_columns,
    value_type_of,
)
from prefect_augment.encoding.labels import (
    check_label,
    check_label_type,
    find_label,
    missing_labels,
)
from prefect_augment.errors import InputError, ParameterError
from prefect_augment.manifest import Manifest
from prefect_augment.params import Source
from prefect_augment.shards.parquet import select_columns
from prefect_augment.stages.holdout import group_names, holdout_marks
from prefect_augment.stages.image_columns import GROUP, main_image, with_group_column
from prefect_augment.stages.source import Progress, SourceTable
from prefect_augment.stages.usable_images import Images, usable_images

__all__ = ["Labelled", "find_records"]

KEPT = "kept in real records, null in synthetic ones"


@dataclass(frozen=True)
class Labelled:
    """Records with a label, in the columns that are published.

    Parameters
    ----------
    data : SourceTable
        The records; what has no label or group is among its rejected.
    label : str
        The label column.
    columns : tuple of ColumnFact
        Of all others.
    marked : ndarray of bool, shape (n_records,), or None
        Hold-out records, where a column of the source says it.
    groups : list of str, length n_records, or None
        Groups as text, where records are grouped.
    group_column : str
        Where they stand; empty where records are not grouped.
    images : Images, optional
        What was found about the images, where the records are images.
    """

    data: SourceTable
    label: str
    columns: tuple[ColumnFact, ...]
    marked: NDArray[np.bool_] | None = None
    groups: list[str] | None = None
    group_column: str = ""
    images: Images | None = None


def find_records(
    data: SourceTable,
    source: Source,
    *,
    manifest: Manifest | None = None,
    on_progress: Progress | None = None,
) -> Labelled:
    """Return the records that can be used, and what their columns are.

    Raises
    ------
    LabelError
        If there is no label column, or it cannot be a label.
    ParameterError
        If a parameter names a column that is not there, or parameters contradict one another.
    """
    label = find_label(data.table, source.label or (manifest.label if manifest else ""))
    require_columns(data.table, [source.holdout_column], what="source.holdout_column")
    require_columns(data.table, [source.group_column], what="source.group_column")
    if label in (source.holdout_column, source.group_column):
        raise ParameterError(
            f"column {label!r} is the label and cannot be holdout_column or group_column as well."
        )
    for name in (source.holdout_column, source.group_column):
        if name and not is_comparable(value_type_of(data.table.schema.field(name).type)):
            kind = data.table.schema.field(name).type
            raise ParameterError(
                f"column {name!r} holds {kind} and cannot be holdout_column or group_column."
            )
    check_wishes(data.table, label=label, wishes=source.columns)
    check_label_type(data.table.schema.field(label).type, name=label)
    data = data.without(
        missing_labels(data.table[label]).to_numpy(zero_copy_only=False), "no label"
    )
    if source.group_pattern:
        data = data.with_table(with_group_column(data.table, source.group_pattern))
    grouped_by = GROUP if source.group_pattern else source.group_column
    if grouped_by:
        no_group = [name == "" for name in group_names(data.table[grouped_by])]
        reason = (
            "source.group_pattern does not match its path"
            if source.group_pattern
            else f"no value in group column {grouped_by!r}"
        )
        data = data.without(np.asarray(no_group, dtype=bool), reason)
    image = main_image(data.table.schema)
    images = None
    if image and data.table.num_rows:
        data, images = usable_images(data, image, source, on_progress=on_progress)
    check_label(data.table[label], name=label)

    marked = None
    if source.holdout_column:
        marked = holdout_marks(data.table[source.holdout_column], source.holdout_column)
    gone = {wish.name for wish in source.columns if wish.kind == "drop"} | {source.holdout_column}
    if grouped_by and grouped_by in gone:
        raise ParameterError(f"group column {grouped_by!r} cannot be dropped; the split needs it.")
    if image and image in gone:
        raise ParameterError(f"column {image!r} holds the images and cannot be dropped.")
    data = data.with_table(
        select_columns(data.table, [n for n in data.table.column_names if n not in gone])
    )
    wishes = [wish for wish in source.columns if wish.kind != "drop"]
    columns = describe_columns(data.table, label=label, wishes=wishes)
    if not image and not any(column.kind in ("numeric", "category") for column in columns):
        raise InputError(
            f"the source has no column to learn from besides the label {label!r}: "
            + (", ".join(f"{c.name!r} is {c.kind}" for c in columns) or "there is no other")
            + ". Say source.columns where the tool reads one wrongly."
        )
    groups = group_names(data.table[grouped_by]) if grouped_by else None
    columns = _of_images(_without_group(columns, source, grouped_by), image)
    return Labelled(data, label, columns, marked, groups, grouped_by, images)


def _of_images(columns: Sequence[ColumnFact], image: str) -> tuple[ColumnFact, ...]:
    """Beside images, other columns are kept as they are: models and learners see the pixels alone."""
    if not image:
        return tuple(columns)
    return tuple(
        c.model_copy(update={"kind": "image", "note": ""})
        if c.name == image
        else c.model_copy(update={"note": c.note or KEPT})
        for c in columns
    )


def _without_group(
    columns: Sequence[ColumnFact], source: Source, grouped_by: str
) -> tuple[ColumnFact, ...]:
    """A group is whose record it is, not what it is like: models do not learn it unless told to."""
    wished = {wish.name for wish in source.columns}
    changed = {"kind": "identifier", "note": "group column: says whose record it is"}
    return tuple(
        c.model_copy(update=changed) if c.name == grouped_by and c.name not in wished else c
        for c in columns
    )
