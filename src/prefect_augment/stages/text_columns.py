"""Columns of free text: in classic records their parent's, changed; what no learner reads otherwise."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.augmentation.texts import Change
from prefect_augment.datatypes import ColumnFact, DatasetFacts, DatasetRef
from prefect_augment.encoding.keys import derived_ids
from prefect_augment.errors import InputError
from prefect_augment.reading.staged import iter_shards, load_facts
from prefect_augment.storage import Store

__all__ = ["check_judgeable", "is_free_text", "is_learnable", "with_texts"]


def is_free_text(column: ColumnFact) -> bool:
    """Tell whether a column holds texts of which hardly any two are equal."""
    return column.kind == "opaque" and "string" in column.arrow_type


def is_learnable(facts: DatasetFacts) -> bool:
    """Tell whether records hold anything that learners and models read."""
    return facts.image is not None or any(c.kind in ("numeric", "category") for c in facts.columns)


def check_judgeable(dataset: DatasetRef, store: Store) -> None:
    """Refuse records that hold nothing that learners or models read.

    Raises
    ------
    InputError
        If free text is all there is.
    """
    if not is_learnable(load_facts(dataset, store)):
        raise InputError(
            "besides the label the source holds free text alone, which neither models nor the judge read; bring rare "
            "classes up with the flow augment (classic.text 'light', classic.table 'oversampling'), or add columns of "
            "numbers, such as an embedding of the text."
        )


def with_texts(
    table: pa.Table, source: DatasetFacts, change: Change | None, store: Store
) -> pa.Table:
    """Return classic records with their parents' texts, changed under a seed of the record's own.

    Parameters
    ----------
    table : Table
        Records with ``aug_id`` and ``aug_parent``; their columns of free text are empty.
    source : DatasetFacts
        The parents.
    change : callable or None
        From a text and a seed; None leaves the columns empty.
    store : Store
        Where the parents lie.

    Returns
    -------
    Table
        A text that is missing or empty stays so.
    """
    columns = [c.name for c in source.columns if is_free_text(c)]
    if change is None or not columns:
        return table
    parents = table["aug_parent"].unique()
    shards = [shard for shard in source.shards if shard.split in ("fit", "val")]
    texts: dict[str, dict[str, str | None]] = {}
    for part in iter_shards(store, shards, ["aug_id", *columns]):
        for record in part.filter(pc.is_in(part["aug_id"], value_set=parents)).to_pylist():
            texts[record.pop("aug_id")] = record
    ids, of = table["aug_id"].to_pylist(), table["aug_parent"].to_pylist()
    for name in columns:
        seeds = [int(s[:15], 16) for s in derived_ids("classic text", ids, name).to_pylist()]
        made = [
            change(text, seed) if (text := texts[parent][name]) else text
            for parent, seed in zip(of, seeds, strict=True)
        ]
        at, field = table.column_names.index(name), table.schema.field(name)
        table = table.set_column(at, field, pa.array(made, field.type))
    return table
