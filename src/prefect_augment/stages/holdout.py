"""A hold-out that the user brings: marked by a column of the source, or at a URI of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.columns import did_you_mean
from prefect_augment.encoding.keys import plain_array
from prefect_augment.encoding.labels import class_names, label_text, missing_labels
from prefect_augment.errors import InputError, LabelError, SchemaError
from prefect_augment.params import Source
from prefect_augment.shards.parquet import select_columns
from prefect_augment.splitting import MIN_JUDGED
from prefect_augment.stages.image_columns import (
    image_columns,
    main_image,
    record_keys,
    with_group_column,
)
from prefect_augment.stages.listing import Listing
from prefect_augment.stages.source import (
    TEXT_FORMATS,
    SourceTable,
    read_source,
    refuse_other_names,
    wider_type,
)
from prefect_augment.stages.usable_images import Images, usable_images

__all__ = ["Holdout", "group_names", "holdout_marks", "in_holdout", "read_holdout"]

logger = logging.getLogger(__name__)

IN_HOLDOUT = frozenset({"true", "1", "yes", "holdout", "hold-out", "hold_out", "test"})
IN_TRAINING = frozenset({"false", "0", "no", "train", "training", "fit", "val", "validation", ""})


def holdout_marks(column: pa.ChunkedArray, name: str) -> NDArray[np.bool_]:
    """Return which records a hold-out column marks, shape (n_records,).

    Raises
    ------
    InputError
        If it holds a value that is neither yes nor no, or puts all records on one side.
    """
    text = [(value or "").strip().casefold() for value in label_text(column).to_pylist()]
    unknown = sorted(set(text) - IN_HOLDOUT - IN_TRAINING)
    if unknown:
        raise InputError(
            f"holdout_column {name!r} holds {', '.join(map(repr, unknown[:5]))}; expected true, 1, holdout or test for "
            "hold-out records and false, 0, train or nothing for the others.",
            column=name,
            values=unknown,
        )
    marks = np.asarray([value in IN_HOLDOUT for value in text], dtype=bool)
    if marks.all() or not marks.any():
        where = "all records" if marks.any() else "no record"
        raise InputError(
            f"holdout_column {name!r} marks {where} as hold-out; expected a part of them.",
            column=name,
        )
    return marks


@dataclass(frozen=True)
class Holdout:
    """Hold-out records of their own, with the source's columns and types.

    Parameters
    ----------
    data : SourceTable
        The records that can be used.
    keys, labels : list of str, length n_records
        Content keys and class names.
    images : Images, optional
        What was found about the images, where the records are images.
    """

    data: SourceTable
    keys: list[str]
    labels: list[str]
    images: Images | None = None


def read_holdout(listing: Listing, source: Source, *, like: pa.Table, label: str) -> Holdout:
    """Return the records at ``source.holdout_uri``.

    A class of the source with fewer than ``MIN_JUDGED`` records may be missing; it is not judged.

    Parameters
    ----------
    listing : Listing
        What lies there.
    source : Source
        How text is read, and which columns are dropped.
    like : pyarrow.Table
        The source's records, with the columns that are published.
    label : str
        The label column.

    Raises
    ------
    SchemaError
        If columns or types are not the source's.
    LabelError
        If there is a class that the source has not, or lacks one that it has.
    """
    data = read_source(listing, source)
    if source.group_pattern:
        data = data.with_table(with_group_column(data.table, source.group_pattern))
    dropped = {wish.name for wish in source.columns if wish.kind == "drop"}
    table = select_columns(
        data.table, [name for name in data.table.column_names if name not in dropped]
    )
    table = _beside_images(table, like, label)
    data = data.with_table(_conformed(table, like, listing))
    data = data.without(
        missing_labels(data.table[label]).to_numpy(zero_copy_only=False), "no label"
    )
    _refuse_other_classes(data.table, like, label, listing.store.uri)
    images = None
    image = main_image(data.table.schema)
    if image:
        data, images = usable_images(data, image, source)
    keys = record_keys(data.table, label=label)
    logger.info("Hold-out: %s records at %s.", data.table.num_rows, listing.store.uri)
    return Holdout(data, keys, label_text(data.table[label]).to_pylist(), images)


def _beside_images(table: pa.Table, like: pa.Table, label: str) -> pa.Table:
    """Bring what an image hold-out has beside image and label to what the source has.

    Boxes or a group that only one of the two has change nothing about how a picture is judged.
    """
    image = main_image(like.schema)
    if not image or image not in image_columns(table.schema):
        return table
    table = select_columns(table, [n for n in table.column_names if n in like.column_names])
    for field in like.schema:
        if field.name not in (image, label, *table.column_names):
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def _conformed(table: pa.Table, like: pa.Table, listing: Listing) -> pa.Table:
    """Return the table with the source's types; CSV types are our own reading and may be widened."""
    where = f"the hold-out {listing.store.uri}"
    refuse_other_names(table, where, like=like, where="the source")
    for field in like.schema:
        found = table.schema.field(field.name).type
        same = found == field.type or (
            listing.format in TEXT_FORMATS and wider_type(found, field.type) == field.type
        )
        if not same and not _same_values(found, field.type):
            raise SchemaError(
                f"column {field.name!r} is {found} in {where} and {field.type} in the source; convert one of them.",
                column=field.name,
                expected=str(field.type),
                found=str(found),
            )
    try:
        return table.select(like.column_names).cast(like.schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise SchemaError(f"{where} does not fit the source's types: {exc}.") from exc


def _same_values(one: pa.DataType, other: pa.DataType) -> bool:
    """Dictionaries of one value type, whatever the width of their codes."""
    t = pa.types
    return bool(
        t.is_dictionary(one)
        and t.is_dictionary(other)
        and (one.value_type, one.ordered) == (other.value_type, other.ordered)
    )


def _refuse_other_classes(holdout: pa.Table, source: pa.Table, label: str, uri: str) -> None:
    theirs, ours = class_names(holdout[label]), class_names(source[label])
    unknown = [name for name in theirs if name not in ours]
    if unknown:
        raise LabelError(
            f"the hold-out {uri} has the class {unknown[0]!r}, which the source has not"
            f"{did_you_mean(unknown[0], ours)}; the source's classes are: {', '.join(map(repr, ours[:40]))}.",
            classes=unknown,
        )
    texts = label_text(source[label]).to_pylist()
    missing = [name for name in ours if name not in theirs and texts.count(name) >= MIN_JUDGED]
    if missing:
        raise LabelError(
            f"the hold-out {uri} has no record of class {missing[0]!r}, of which the source has "
            f"{texts.count(missing[0])}; add some, so that the class can be judged, or use holdout_fraction.",
            classes=missing,
        )


def in_holdout(
    keys: Sequence[str],
    labels: Sequence[str],
    holdout: Holdout,
    *,
    groups: Sequence[str] | None,
    group_column: str,
) -> NDArray[np.bool_]:
    """Return which records of the source are in the hold-out, or share a group with it."""
    there = set(zip(holdout.keys, holdout.labels, strict=True))
    overlap = np.asarray([pair in there for pair in zip(keys, labels, strict=True)], dtype=bool)
    if groups is not None:
        held: set[Any] = set(group_names(holdout.data.table[group_column]))
        overlap |= np.asarray([group in held for group in groups], dtype=bool)
    return overlap


def group_names(column: pa.ChunkedArray) -> list[str]:
    """Return the group of each record as text; empty where there is none."""
    values = plain_array(column)
    return [value or "" for value in values.cast(pa.string()).to_pylist()]
