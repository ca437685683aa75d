"""Draw records of a model in the source's columns, with the seeds that reproduce them."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Array, Int
from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.genmodels.base import GenerativeModel
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.params.keys import canonical_json
from prefect_augment.synthesis.model_store import Encoder


def candidate_seeds(
    run_seed: int, stratum: str, start: int, n: int, conditions: Mapping[str, Any] | None = None
) -> Int:
    """Seeds of a stratum's candidates ``start`` to ``start + n - 1``, all distinct.

    A seed depends only on the run's seed, the stratum, the ordinal and the requested column values
    as JSON. More candidates therefore extend the existing ones.

    >>> bool((candidate_seeds(7, "sick", 0, 5)[3:] == candidate_seeds(7, "sick", 3, 2)).all())
    True
    """
    named = ["candidate", run_seed, stratum, *([dict(conditions)] if conditions else [])]
    key = hashlib.blake2b(canonical_json(named), digest_size=8).digest()
    return seeds_from(int.from_bytes(key, "little"), start, n)


def draw_batch(
    fitted: GenerativeModel,
    encoder: Encoder,
    digest: str,
    batch: Sequence[tuple[str, int, int]],
    seed: int,
) -> pa.Table:
    """Draw a batch of (stratum, first ordinal, count) in whole micro-batches of one stratum each.

    A micro-batch always holds the same ordinals of its stratum, so a record's bits do not depend on
    the batch. Records beyond the request take the place of padding and are dropped. Returns the
    source's columns, then aug_id, aug_model, aug_seed, aug_stratum and aug_ordinal.
    """
    index = {name: k for k, name in enumerate(encoder.strata)}
    size = micro_batch(fitted)
    whole = [
        (name, start - start % size, -(-(start + n) // size) * size) for name, start, n in batch
    ]
    seeds = np.concatenate([candidate_seeds(seed, name, lo, hi - lo) for name, lo, hi in whole])
    codes = np.concatenate([np.full(hi - lo, index[name]) for name, lo, hi in whole])
    ordinals = np.concatenate([np.arange(lo, hi) for _, lo, hi in whole])
    wanted = np.concatenate(
        [
            (np.arange(lo, hi) >= start) & (np.arange(lo, hi) < start + n)
            for (_, start, n), (_, lo, hi) in zip(batch, whole, strict=True)
        ]
    )
    drawn = fitted.sample(codes.astype(np.int64), seeds=seeds)[wanted]
    strata = [name for name, _, n in batch for _ in range(n)]
    return records_of(drawn, encoder, digest, strata, seeds[wanted], ordinals[wanted])


def records_of(
    drawn: Array,
    encoder: Encoder,
    digest: str,
    strata: Sequence[str],
    seeds: Int,
    ordinals: Int,
    given: Collection[str] = (),
) -> pa.Table:
    """Decode drawn records to the source's columns and append their lineage.

    ``given`` are columns whose value was asked for.
    """
    ids = derived_ids("synthetic", digest, list(strata), seeds.tolist())
    if isinstance(encoder, ImageEncoder):
        table = encoder.decode(drawn, strata=strata, aug_ids=ids.to_pylist())
    else:
        table = encoder.decode(
            drawn, strata=strata, ordinals=ordinals, aug_ids=ids.to_pylist(), given=given
        )
    lineage = {
        "aug_id": ids,
        "aug_model": pa.array([digest] * len(strata), pa.string()),
        "aug_seed": pa.array(seeds, pa.int64()),
        "aug_stratum": pa.array(list(strata), pa.string()),
        "aug_ordinal": pa.array(ordinals, pa.int64()),
    }
    for name, column in lineage.items():
        table = table.append_column(name, column)
    return table


def micro_batch(fitted: GenerativeModel) -> int:
    """Number of records the model computes at once; a record's place in it affects its bits."""
    return int(getattr(fitted, "micro_batch", 1))
