"""Sample: candidates of the classes asked for, each with the seed that makes it again."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.balancing import suggestion
from prefect_augment.datatypes import DatasetFacts, DatasetRef, Fact, ModelRef, ShardFact
from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.keys import derived_ids
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS, GenerativeModel
from prefect_augment.genmodels.counter_random import seeds_from
from prefect_augment.reading.staged import load_facts
from prefect_augment.shards.parquet import write_shards
from prefect_augment.stages.models import Encoder, load_model
from prefect_augment.staging import Stage, canonical_json, stage_key
from prefect_augment.storage import Store, sha256_hex

__all__ = ["candidate_seeds", "draw_batch", "resample_record", "sample"]

ALGORITHM_VERSION = 1
# Drawn, written and receipted together: bounds memory and what a crash loses.
BATCH_RECORDS = 100_000
# Of models that draw in micro-batches: networks, which take seconds for as many.
BATCH_IMAGES = 1024
SHARD_BYTES = 128 << 20

Progress = Callable[[float, str], None]


class _Batch(Fact):
    """The receipt of one batch of candidates."""

    shards: tuple[ShardFact, ...]


def candidate_seeds(run_seed: int, stratum: str, start: int, n: int) -> NDArray[np.int64]:
    """Return the seeds of a stratum's candidates with ordinals ``start`` to ``start + n - 1``.

    An ordinal's seed depends on nothing else, so that more candidates extend the ones there are.

    Parameters
    ----------
    run_seed : int
        Seed of the run.
    stratum : str
        The stratum's name.
    start, n : int
        The ordinals.

    Returns
    -------
    ndarray of int64, shape (n,)
        All distinct.

    Examples
    --------
    >>> bool((candidate_seeds(7, "sick", 0, 5)[3:] == candidate_seeds(7, "sick", 3, 2)).all())
    True
    """
    key = hashlib.blake2b(canonical_json(["candidate", run_seed, stratum]), digest_size=8).digest()
    return seeds_from(int.from_bytes(key, "little"), start, n)


def sample(
    model: ModelRef,
    *,
    counts: Mapping[str, int],
    seed: int,
    store: Store,
    dataset: DatasetRef,
    on_progress: Progress | None = None,
) -> DatasetRef:
    """Draw exactly the candidates asked for, and stage them.

    Parameters
    ----------
    model : ModelRef
        A trained model.
    counts : mapping of str to int
        Candidates per stratum; 0 draws none.
    seed : int
        The run's seed; each candidate has one of its own, from :func:`candidate_seeds`.
    store : Store
        The root that model and dataset lie under.
    dataset : DatasetRef
        The records that the model was trained on.
    on_progress : callable, optional
        Called with the fraction done and what is being done.

    Returns
    -------
    DatasetRef
        Shards of the source's columns, then aug_id, aug_model, aug_seed, aug_stratum and
        aug_ordinal, in the order of (stratum, ordinal).

    Raises
    ------
    EmptyClassError
        If a stratum cannot be sampled: the model does not know it, or has seen too few records.
    ParameterError
        If a count is negative.
    """
    wanted = _check_counts(counts, model)
    key = stage_key(
        "sample",
        algorithm_version=ALGORITHM_VERSION,
        params=wanted,
        inputs=[dataset.key, dataset.digest, model.key, model.digest],
        seed=seed,
    )
    stage = Stage(store, "sample", key)
    facts = stage.outcome(DatasetFacts)
    if facts is None:
        source = load_facts(dataset, store)
        facts = stage.finish(_draw_all(model, wanted, seed, stage, source, on_progress))
    return stage.reference(facts, facts.part_counts["candidates"])


def resample_record(
    model: ModelRef, aug_seed: int, stratum: str, store: Store, *, ordinal: int = 0
) -> pa.Table:
    """Return a published synthetic record, made again from its lineage.

    Parameters
    ----------
    model : ModelRef
        The model that ``aug_model`` names.
    aug_seed : int
        The record's own seed.
    stratum : str
        The record's class, with its ``balance.by`` values where there are any.
    store : Store
        The root that the model lies under.
    ordinal : int
        The candidate's ordinal; only a numeric identifier depends on it.

    Returns
    -------
    pyarrow.Table
        One record: the source's columns. Images from a network are the same within rounding, see
        :class:`.GenerativeModel`; the stage draws whole micro-batches.
    """
    _check_counts({stratum: 1}, model)
    fitted, encoder = load_model(store, model)
    seeds = np.array([aug_seed], dtype=np.int64)
    code = np.array([encoder.strata.index(stratum)], dtype=np.int64)
    drawn = fitted.sample(code, seeds=seeds)
    table = _records(
        drawn, encoder, model.digest, [stratum], seeds, np.array([ordinal], dtype=np.int64)
    )
    return table.select(encoder.schema.names).replace_schema_metadata(encoder.schema.metadata)


def _check_counts(counts: Mapping[str, int], model: ModelRef) -> dict[str, int]:
    """Return the counts above zero in the model's order, or say which cannot be drawn."""
    for name, n in counts.items():
        if n < 0:
            raise ParameterError(f"{n} candidates are asked of class {name!r}; ask for 0 or more.")
        if n and name not in model.strata:
            raise EmptyClassError(
                f"class {name!r} cannot be sampled: a model needs {MIN_SAMPLED_RECORDS} fit "
                "records of a class; "
                f"{suggestion(name, model.strata)}. Leave it out, or merge it with another class.",
                class_name=name,
            )
    return {name: int(counts[name]) for name in model.strata if counts.get(name)}


def _draw_all(
    model: ModelRef,
    wanted: Mapping[str, int],
    seed: int,
    stage: Stage,
    source: DatasetFacts,
    on_progress: Progress | None,
) -> DatasetFacts:
    """Draw batch by batch, each with a receipt, and return what is known of all."""
    fitted, encoder = load_model(stage.store, model)
    total, done = sum(wanted.values()), 0
    shards: list[ShardFact] = []
    size = BATCH_RECORDS if _micro_batch(fitted) == 1 else BATCH_IMAGES
    started = time.monotonic()
    for i, batch in enumerate(_batches(wanted, size)):

        def draw(i: int = i, batch: list[tuple[str, int, int]] = batch) -> _Batch:
            table = draw_batch(fitted, encoder, model.digest, batch, seed)
            return _Batch(shards=_write(table, stage, i, encoder.label))

        shards.extend(stage.item(f"batch-{i:05d}", _Batch, draw).shards)
        done += sum(n for _, _, n in batch)
        if on_progress is not None:
            on_progress(done / total, _said(done, total, time.monotonic() - started))
    return _facts(model, wanted, shards, stage, source)


def _said(done: int, total: int, seconds: float) -> str:
    """Say how far sampling is, how fast, and how long it will take."""
    rate = done / max(seconds, 1e-9)
    text = f"sampling, {done:,} of {total:,} candidates, {rate:,.0f} records/s"
    return text if done >= total else f"{text}, {(total - done) / rate:.0f} s left"


def _batches(wanted: Mapping[str, int], size: int) -> Iterator[list[tuple[str, int, int]]]:
    """Yield lists of (stratum, first ordinal, number), at most ``size`` records each."""
    batch: list[tuple[str, int, int]] = []
    room = size
    for name, n in wanted.items():
        start = 0
        while start < n:
            take = min(n - start, room)
            batch.append((name, start, take))
            start, room = start + take, room - take
            if room == 0:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


def draw_batch(
    fitted: GenerativeModel,
    encoder: Encoder,
    digest: str,
    batch: Sequence[tuple[str, int, int]],
    seed: int,
) -> pa.Table:
    """Return the records of a batch, drawn in whole micro-batches of one stratum each.

    A micro-batch is always the same ordinals of its stratum, so that a record's bits do not depend
    on how many were asked for; what lies beyond the request is drawn and dropped, in the place of
    padding.

    Parameters
    ----------
    fitted : GenerativeModel
    encoder : Encoder
        The model's.
    digest : str
        The checkpoint's.
    batch : sequence of (str, int, int)
        Stratum, first ordinal, number of records.
    seed : int
        The run's.

    Returns
    -------
    pyarrow.Table
        The source's columns, then aug_id, aug_model, aug_seed, aug_stratum and aug_ordinal.
    """
    index = {name: k for k, name in enumerate(encoder.strata)}
    size = _micro_batch(fitted)
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
    return _records(drawn, encoder, digest, strata, seeds[wanted], ordinals[wanted])


def _records(
    drawn: NDArray[Any],
    encoder: Encoder,
    digest: str,
    strata: Sequence[str],
    seeds: NDArray[np.int64],
    ordinals: NDArray[np.int64],
) -> pa.Table:
    """Return drawn records in the source's columns with their lineage."""
    ids = derived_ids("synthetic", digest, list(strata), seeds.tolist())
    if isinstance(encoder, ImageEncoder):
        table = encoder.decode(drawn, strata=strata, aug_ids=ids.to_pylist())
    else:
        table = encoder.decode(drawn, strata=strata, ordinals=ordinals, aug_ids=ids.to_pylist())
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


def _micro_batch(fitted: GenerativeModel) -> int:
    """Return how many records the model computes at once, in places that are part of their bits."""
    return int(getattr(fitted, "micro_batch", 1))


def _write(table: pa.Table, stage: Stage, i: int, label: str) -> tuple[ShardFact, ...]:
    return write_shards(
        stage.store,
        table,
        prefix=stage.prefix,
        stem=f"candidates-{i:05d}",
        split="candidates",
        origin="synthetic",
        label=label,
        max_records=BATCH_RECORDS,
        max_bytes=SHARD_BYTES,
    )


def _facts(
    model: ModelRef,
    wanted: Mapping[str, int],
    shards: Sequence[ShardFact],
    stage: Stage,
    source: DatasetFacts,
) -> DatasetFacts:
    class_counts: Counter[str] = Counter()
    for shard in shards:
        class_counts.update(shard.class_counts)
    return DatasetFacts(
        stage="sample",
        key=stage.key,
        digest=sha256_hex("\n".join(shard.sha256 for shard in shards).encode()),
        label=source.label,
        label_type=source.label_type,
        schema_digest=source.schema_digest,
        columns=source.columns,
        shards=tuple(shards),
        part_counts={"candidates": dict(sorted(class_counts.items()))},
        judged=source.judged,
        group_column=source.group_column,
        modality=source.modality,
        image=source.image,
        extra={"model": model.digest, "strata": dict(wanted)},
    )
