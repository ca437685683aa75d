"""Which records of a source can be used, and what their columns are."""

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
from prefect_augment.stages.source import SourceTable

__all__ = ["Labelled", "find_records"]


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
    """

    data: SourceTable
    label: str
    columns: tuple[ColumnFact, ...]
    marked: NDArray[np.bool_] | None = None
    groups: list[str] | None = None


def find_records(
    data: SourceTable, source: Source, *, manifest: Manifest | None = None
) -> Labelled:
    """Return the records that can be used, and what their columns are.

    Raises
    ------
    LabelError
        If there is no label column, or it cannot be a label.
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
    if source.group_column:
        no_group = [name == "" for name in group_names(data.table[source.group_column])]
        data = data.without(
            np.asarray(no_group, dtype=bool), f"no value in group column {source.group_column!r}"
        )
    check_label(data.table[label], name=label)

    marked = None
    if source.holdout_column:
        marked = holdout_marks(data.table[source.holdout_column], source.holdout_column)
    gone = {wish.name for wish in source.columns if wish.kind == "drop"} | {source.holdout_column}
    if source.group_column and source.group_column in gone:
        raise ParameterError(
            f"group column {source.group_column!r} cannot be dropped; the split needs it."
        )
    data = data.with_table(
        select_columns(data.table, [n for n in data.table.column_names if n not in gone])
    )
    wishes = [wish for wish in source.columns if wish.kind != "drop"]
    columns = describe_columns(data.table, label=label, wishes=wishes)
    if not any(column.kind in ("numeric", "category") for column in columns):
        raise InputError(
            f"the source has no column to learn from besides the label {label!r}: "
            + (", ".join(f"{c.name!r} is {c.kind}" for c in columns) or "there is no other")
            + ". Say source.columns where the tool reads one wrongly."
        )
    groups = group_names(data.table[source.group_column]) if source.group_column else None
    return Labelled(data, label, _without_group(columns, source), marked, groups)


def _without_group(columns: Sequence[ColumnFact], source: Source) -> tuple[ColumnFact, ...]:
    """A group is whose record it is, not what it is like: models do not learn it unless told to."""
    wished = {wish.name for wish in source.columns}
    changed = {"kind": "identifier", "note": "group column: says whose record it is"}
    return tuple(
        c.model_copy(update=changed)
        if c.name == source.group_column and c.name not in wished
        else c
        for c in columns
    )
