"""A version without erased records: its shards, without what only those records had, and its ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.datatypes import ShardFact
from prefect_augment.errors import EmptyClassError
from prefect_augment.manifest import (
    Manifest,
    PublishedFile,
)
from prefect_augment.registry import SHARD_FORMATS, load_shard_format
from prefect_augment.shards.formats import open_shard, read_shard, write_shards
from prefect_augment.stages.erase_ledger import rewrite_ledger
from prefect_augment.storage import Store

__all__ = ["Rewritten", "erased_rows", "rewrite"]


@dataclass
class Rewritten:
    """What a version becomes; nothing of it names an erased record."""

    shards: tuple[ShardFact, ...]
    ledger: PublishedFile | None
    n_rewritten: int = 0
    n_ledger: int = 0
    n_erased: Counter[str] = field(default_factory=Counter)
    n_train: int = 0  # erased real records that models may have been trained on


def rewrite(
    store: Store, manifest: Manifest, gone: set[str], renew: Callable[[], None]
) -> Rewritten:
    """Write what replaces a version's shards and ledger; its own objects stay."""
    lost = _lost_categories(store, manifest, gone, renew)
    made = Rewritten(shards=(), ledger=None)
    shards: list[ShardFact] = []
    for shard in manifest.shards:
        renew()
        table = read_shard(store, shard.path, sha256=shard.sha256)
        hit = erased_rows(table, gone)
        n_hit = pc.sum(hit).as_py() or 0
        drop = {
            column: values
            for column, values in lost.items()
            if not values.isdisjoint(_categories(table[column]))
        }
        if not n_hit and not drop:
            shards.append(shard)
            continue
        if (shard.origin, shard.split) == ("real", "train"):
            made.n_train += n_hit
        made.n_erased[shard.origin] += n_hit
        made.n_rewritten += 1
        kept = _without_categories(table.filter(pc.invert(hit)), drop)
        shards += write_shards(
            store,
            kept,
            prefix="data",
            stem=f"{shard.split}-{shard.origin}",
            split=shard.split,
            origin=shard.origin,
            label=manifest.label,
            max_records=max(1, shard.n_records),
            max_bytes=1 << 62,
            shard_format=_format_of(shard.path),
            classes=manifest.classes,
        )
    if not shards:
        raise EmptyClassError(
            f"no record of {store.uri} would be left; nothing was changed. Delete the folder instead."
        )
    made.shards = tuple(shards)
    made.ledger, made.n_ledger = rewrite_ledger(store, manifest, gone)
    made.n_erased += Counter()  # drops origins with none
    return made


def erased_rows(table: pa.Table, gone: set[str]) -> pa.ChunkedArray:
    """Tell which records are erased, or were made from one that is."""
    ids = pa.array(sorted(gone), pa.string())
    return pc.or_(pc.is_in(table["aug_id"], ids), pc.is_in(table["aug_parent"], ids))


def _lost_categories(
    store: Store, manifest: Manifest, gone: set[str], renew: Callable[[], None]
) -> dict[str, set[Any]]:
    """Return, per category column, the values that only erased records have.

    A shard keeps the whole list of categories, also those that none of its records has, so such a
    value would go on to stand in every shard. What the source declared and nobody had stays.
    """
    erased: dict[str, set[Any]] = {}
    kept: dict[str, set[Any]] = {}
    for shard in manifest.shards:
        renew()
        with open_shard(store, shard.path) as opened:
            names = _category_columns(opened.schema, manifest.label)
            if not names:
                continue
            table = opened.read([*names, "aug_id", "aug_parent"])
        hit = erased_rows(table, gone)
        for name in names:
            values = table[name].cast(table.schema.field(name).type.value_type)
            erased.setdefault(name, set()).update(values.filter(hit).unique().to_pylist())
            kept.setdefault(name, set()).update(values.filter(pc.invert(hit)).unique().to_pylist())
    lost = {name: values - kept[name] - {None} for name, values in erased.items()}
    return {name: values for name, values in lost.items() if values}


def _category_columns(schema: pa.Schema, label: str) -> list[str]:
    # A class stays one, also where it has no record left.
    return [f.name for f in schema if pa.types.is_dictionary(f.type) and f.name != label]


def _categories(column: pa.ChunkedArray) -> set[Any]:
    return {value for chunk in column.chunks for value in chunk.dictionary.to_pylist()}


def _without_categories(table: pa.Table, drop: dict[str, set[Any]]) -> pa.Table:
    table = table.unify_dictionaries()
    for name, values in drop.items():
        at = table.column_names.index(name)
        kind = table.schema.field(at).type
        chunks = []
        for chunk in table[name].chunks:
            left = [v for v in chunk.dictionary.to_pylist() if v not in values]
            dictionary = pa.array(left, kind.value_type)
            codes = pc.index_in(chunk.cast(kind.value_type), value_set=dictionary)
            chunks.append(
                pa.DictionaryArray.from_arrays(
                    codes.cast(kind.index_type), dictionary, ordered=kind.ordered
                )
            )
        table = table.set_column(at, table.schema.field(at), pa.chunked_array(chunks, kind))
    return table


def _format_of(path: str) -> str:
    return next(
        (name for name in SHARD_FORMATS if path.endswith(load_shard_format(name).ending)), "parquet"
    )
