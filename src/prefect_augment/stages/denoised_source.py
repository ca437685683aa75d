"""Denoised images as a source: the folder that ``denoise`` leaves, with the split that it has."""

from __future__ import annotations

from pydantic import ValidationError

from prefect_augment.datatypes import LatentFacts, ShardFact
from prefect_augment.params import Source
from prefect_augment.reading.latents import INDEX
from prefect_augment.storage import Store

__all__ = ["PART", "denoised_shards", "with_its_holdout"]

PART = "aug_split"  # the column that says which part a record is of


def denoised_shards(store: Store) -> tuple[ShardFact, ...] | None:
    """Return the shards of real records, where the folder is what ``denoise`` left; else None."""
    if not store.exists(INDEX):
        return None
    try:
        facts = LatentFacts.model_validate_json(store.read(INDEX))
    except ValidationError:  # another tool's file of that name
        return None
    if facts.use != "denoised":
        return None
    return tuple(shard for shard in facts.shards if shard.origin == "real")


def with_its_holdout(source: Source, shards: tuple[ShardFact, ...]) -> Source:
    """Return the source with the denoised hold-out as its hold-out, where it does not name another.

    The model that took the noise out has learnt from the other parts.
    """
    parts = {shard.split for shard in shards}
    is_divided = "holdout" in parts and len(parts) > 1
    if source.holdout_column or source.holdout_uri or not is_divided:
        return source
    return source.model_copy(update={"holdout_column": PART})
