"""Sample: candidates of the classes asked for, each with the seed that makes it again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.strata import table_strata
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS, SamplesGiven
from prefect_augment.params import Constraint
from prefect_augment.params.keys import step_key
from prefect_augment.schema.base import DatasetInfo, DatasetRef, ModelRef, Result, ShardInfo
from prefect_augment.shards.parquet import write_shards
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage.staging import Stage
from prefect_augment.storage.store import Store
from prefect_augment.synthesis.draw import (
    candidate_seeds,
    draw_batch,
    draw_by_rules,
    records_of,
)
from prefect_augment.synthesis.model_store import load_model
from prefect_augment.synthesis.novelty import NearRows
from prefect_augment.synthesis.rejection import Rules
from prefect_augment.text import suggestion

__all__ = ["candidate_seeds", "draw_batch", "resample_record", "sample"]

logger = logging.getLogger(__name__)

# Drawn, written and receipted together: bounds memory and what a crash loses.
BATCH_RECORDS = 100_000
# Of images: networks take seconds for as many, and pictures fill memory.
BATCH_IMAGES = 1024
SHARD_BYTES = 128 << 20

Progress = Callable[[float, str], None]


class _Batch(Result):
    """The receipt of one batch of candidates."""

    shards: tuple[ShardInfo, ...]
    n_draws: dict[str, int] = Field(default_factory=dict)  # with rules: ordinals gone through
    passed: dict[str, int] = Field(default_factory=dict)


def sample(
    model: ModelRef,
    *,
    counts: Mapping[str, int],
    seed: int,
    store: Store,
    dataset: DatasetRef,
    given: Mapping[str, Any] | None = None,
    constraints: Sequence[Constraint] = (),
    max_near: float | None = None,
    on_progress: Progress | None = None,
) -> DatasetRef:
    """Draw exactly the candidates asked for, and stage them.

    They are faithful: as the class is. What is best for training is picked by :func:`.filter_candidates`,
    where ``quality.purpose`` is utility.

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
    given : mapping of str to value, optional
        Tables: value that every record has, by column; the others follow it as they do in the model.
        None asks for a missing value.
    constraints : sequence of Constraint
        Tables: what every record keeps. Candidates that do not are passed over, up to a bound;
        ``extra["rules"]`` of the staged facts says which share was accepted.
    max_near : float in [0, 1), optional
        Tables: largest share of records that are nearer to a training record of their stratum than the
        nearest 5 % of validation's are, see :mod:`.near_rows`; the others are passed over. None takes all.
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
        If a count is negative, ``max_near`` no share, a given value or a constraint does not fit the
        columns, or too few draws keep them.
    """
    wanted = _check_counts(counts, model)
    _check_max_near(max_near)
    rules = Rules()
    if given or constraints or max_near is not None:
        rules = _rules(model, store, dataset, given, constraints)
    read = [dataset.key, dataset.digest, model.key, model.digest]
    inputs = [read, wanted, rules.said, list(rules.constraints), max_near]
    key = step_key("sample", inputs=inputs, seed=seed)
    stage = Stage(store, "sample", key)
    info = stage.outcome(DatasetInfo)
    if info is None:
        source = load_info(dataset, store)
        if max_near is not None:
            rules = replace(rules, near=_near_rows(model, store, source, wanted, max_near))
        info = stage.finish(_draw_all(model, wanted, rules, seed, stage, source, on_progress))
    return stage.reference(info, info.part_counts["candidates"])


def _rules(
    model: ModelRef,
    store: Store,
    dataset: DatasetRef,
    given: Mapping[str, Any] | None,
    constraints: Sequence[Constraint],
) -> Rules:
    """Return the rules, checked against the model's columns."""
    _, encoder = load_model(store, model)
    if isinstance(encoder, ImageEncoder):
        raise ParameterError(
            "given, constraints and max_near are about columns, and the model makes images; leave them "
            "out."
        )

    def real() -> pa.Table:
        return read_part(store, load_info(dataset, store), ["training", "validation"])

    return Rules.of(encoder, real, given=given, constraints=constraints)


def _near_rows(
    model: ModelRef, store: Store, info: DatasetInfo, wanted: Mapping[str, int], share: float
) -> NearRows:
    """Return which records stay of those near to a training record."""
    fitted, encoder = load_model(store, model)
    assert isinstance(encoder, TableEncoder)  # the rules have refused images
    training, validation = (
        _encoded(read_part(store, info, [part]), encoder) for part in ("training", "validation")
    )
    strata = [encoder.strata.index(name) for name in wanted]
    return NearRows.of(
        share, fitted, encoder, training=training, validation=validation, strata=strata
    )


def _encoded(
    table: pa.Table, encoder: TableEncoder
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return records in the matrix form, and their strata; -1 for one that the model does not know."""
    index = {name: k for k, name in enumerate(encoder.strata)}
    names = table_strata(table, label=encoder.label, by=encoder.by)
    return encoder.encode(table), np.array([index.get(name, -1) for name in names], dtype=np.int64)


def _check_max_near(share: float | None) -> None:
    if share is not None and not 0 <= share < 1:
        raise ParameterError(
            f"max_near={share} is not a share below 1; choose 0 to pass near records over, 0.05 for as "
            "many as among real ones, or leave it out."
        )


def resample_record(
    model: ModelRef,
    aug_seed: int,
    stratum: str,
    store: Store,
    *,
    ordinal: int = 0,
    given: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Return a published synthetic record, made again from its lineage.

    Parameters
    ----------
    model : ModelRef
        The model that ``aug_model`` names.
    aug_seed : int
        The record's own seed.
    stratum : str
        The class it was drawn for, with its ``balance.by`` values where there are any. That of a row with
        soft labels is not always its label: :func:`.remake_records` finds it by the row's id.
    store : Store
        The root that the model lies under.
    ordinal : int
        The candidate's ordinal; only a numeric identifier depends on it.
    given : mapping of str to value, optional
        What it was sampled with.

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
    if given and isinstance(encoder, TableEncoder) and isinstance(fitted, SamplesGiven):
        values = Rules.of(encoder, encoder.schema.empty_table, given=given).given
        _, drawn = fitted.sample_given(code, seeds=seeds, given=values)
    else:
        drawn = fitted.sample(code, seeds=seeds)
    table = records_of(
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
    rules: Rules,
    seed: int,
    stage: Stage,
    source: DatasetInfo,
    on_progress: Progress | None,
) -> DatasetInfo:
    """Draw batch by batch, each with a receipt, and return what is known of all."""
    fitted, encoder = load_model(stage.store, model)
    total, done = sum(wanted.values()), 0
    shards: list[ShardInfo] = []
    size = BATCH_IMAGES if isinstance(encoder, ImageEncoder) else BATCH_RECORDS
    if rules.compares_records:
        size = max(1, total)  # a record is held against all that come before it
    n_draws, passed, taken = Counter[str](), Counter[str](), rules.taken()
    started = time.monotonic()
    for i, batch in enumerate(_batches(wanted, size)):

        def draw(i: int = i, batch: list[tuple[str, int, int]] = batch) -> _Batch:
            if rules and isinstance(encoder, TableEncoder):
                begun = [(name, n_draws[name], n) for name, _, n in batch]
                table, gone, through = draw_by_rules(
                    fitted, encoder, model.digest, begun, seed, rules, taken
                )
                written = _write(table, stage, i, encoder.label)
                return _Batch(shards=written, n_draws=gone, passed=through)
            table = draw_batch(fitted, encoder, model.digest, batch, seed)
            return _Batch(shards=_write(table, stage, i, encoder.label))

        receipt = stage.item(f"batch-{i:05d}", _Batch, draw)
        shards.extend(receipt.shards)
        n_draws.update(receipt.n_draws)
        passed.update(receipt.passed)
        done += sum(n for _, _, n in batch)
        if on_progress is not None:
            on_progress(done / total, _said(done, total, time.monotonic() - started))
    info = _info(model, wanted, shards, stage, source)
    return _with_rules(info, wanted, rules, n_draws, passed) if rules else info


def _with_rules(
    info: DatasetInfo,
    wanted: Mapping[str, int],
    rules: Rules,
    n_draws: Mapping[str, int],
    passed: Mapping[str, int],
) -> DatasetInfo:
    """Return the facts with what was asked, and how much of what was drawn kept to it."""
    accepted = {name: n / n_draws[name] for name, n in wanted.items()}
    note = "accepted for keeping what was asked: " + ", ".join(
        f"{share:.1%} of the draws of class {name!r}" for name, share in accepted.items()
    )
    found = {
        "given": rules.said,
        "constraints": [rule.model_dump(mode="json") for rule in rules.constraints],
        **({"max_near": rules.near.share} if rules.near is not None else {}),
        "accepted": accepted,
        "passed": dict(passed),
        "said": note,
    }
    logger.info("%s", note)
    return info.model_copy(
        update={"extra": {**info.extra, "rules": found}, "notes": (*info.notes, note)}
    )


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


def _write(table: pa.Table, stage: Stage, i: int, label: str) -> tuple[ShardInfo, ...]:
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


def _info(
    model: ModelRef,
    wanted: Mapping[str, int],
    shards: Sequence[ShardInfo],
    stage: Stage,
    source: DatasetInfo,
) -> DatasetInfo:
    made_by = {"model": model.digest, "strata": dict(wanted), "purpose": "faithful"}
    return stage.info_of(source, shards, part="candidates", extra=made_by)
