"""Draw and stage the candidates of each class, each with the seed that reproduces it."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from prefect_augment.array_types import Float, Int
from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.strata import table_strata
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS
from prefect_augment.params import Constraint
from prefect_augment.params.keys import step_key
from prefect_augment.registry import load_model_class
from prefect_augment.schema import DatasetInfo, DatasetRef, Modality, ModelRef, Result, ShardInfo
from prefect_augment.shards.base import write_shards
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Stage, Store
from prefect_augment.synthesis.draw import draw_batch, draw_by_rules
from prefect_augment.synthesis.model_store import load_model
from prefect_augment.synthesis.novelty import NearRows
from prefect_augment.synthesis.rejection import Rules
from prefect_augment.text import suggestion

logger = logging.getLogger(__name__)

# Drawn, written and receipted together: bounds the memory, and the loss in a crash.
BATCH_RECORDS = 100_000
# Of images: a network takes seconds for as many, and images fill memory.
BATCH_IMAGES = 1024
SHARD_BYTES = 128 << 20

Progress = Callable[[float, str], None]


class _Batch(Result):
    """Receipt of one batch of candidates."""

    shards: tuple[ShardInfo, ...]
    n_draws: dict[str, int] = Field(default_factory=dict)  # with rules: ordinals examined
    passed: dict[str, int] = Field(default_factory=dict)


def sample(
    model: ModelRef,
    *,
    counts: Mapping[str, int],
    seed: int,
    store: Store,
    dataset: DatasetRef,
    conditions: Mapping[str, Any] | None = None,
    constraints: Sequence[Constraint] = (),
    max_near: float | None = None,
    on_progress: Progress | None = None,
) -> DatasetRef:
    """Draw exactly the requested candidates, and stage them.

    They follow the class as the model learnt it. :func:`.filter_candidates` selects the most useful
    ones where ``quality.purpose`` is utility. The arguments are those of
    :func:`prefect_augment.tasks.sample.sample_classes`, and the root that model and dataset lie under;
    ``conditions``, ``constraints`` and ``max_near`` (see :mod:`.novelty`) are of tables. Records that
    break a constraint are rejected, up to a bound; ``extra["rules"]`` of the staged info has the
    accepted share.

    The shards have the source's columns, then aug_id, aug_model, aug_seed, aug_stratum and aug_ordinal,
    in the order of (stratum, ordinal). Raises EmptyClassError if the model does not know a stratum, or
    has seen too few of its records; ParameterError for a negative count too.
    """
    wanted = _check_counts(counts, model)
    if max_near is not None and not 0 <= max_near < 1:
        raise ParameterError(
            f"max_near={max_near} is not a share below 1; choose 0 to reject near records, 0.05 for "
            "as many as among real ones, or leave it out."
        )
    rules = Rules()
    if conditions or constraints or max_near is not None:
        rules = _rules(model, store, dataset, conditions, constraints)
    stage = _stage(model, wanted, seed, store, dataset, rules, max_near)
    info = stage.outcome(DatasetInfo)
    if info is None:
        source = load_info(dataset, store)
        if max_near is not None:
            rules = replace(rules, near=_measure_near(model, store, source, wanted, max_near))
        info = stage.finish(_draw_all(model, wanted, rules, seed, stage, source, on_progress))
    return stage.reference(info, info.part_counts["candidates"])


def n_batches(counts: Mapping[str, int], modality: Modality) -> int:
    """Return how many batches :func:`sample` draws, each of which may be drawn by :func:`draw_part`."""
    size = BATCH_IMAGES if modality == "image" else BATCH_RECORDS
    return -(-sum(counts.values()) // size)


def draw_part(
    model: ModelRef,
    *,
    counts: Mapping[str, int],
    seed: int,
    store: Store,
    dataset: DatasetRef,
    part: int,
    n_parts: int,
) -> int:
    """Draw and stage every ``n_parts``-th batch, which :func:`sample` with the same arguments finds.

    Not for draws with conditions, constraints or ``max_near``, whose batches depend on one another. Parts take the
    GPUs of a machine in turn. Returns how many batches are this part's.
    """
    wanted = _check_counts(counts, model)
    stage = _stage(model, wanted, seed, store, dataset, Rules(), None)
    if stage.outcome(DatasetInfo) is not None:
        return 0
    with ExitStack() as stack:
        if load_model_class(model.kind).trained_in_steps:
            # Imported here: it loads torch, which trees do without.
            from prefect_augment.nn.devices import gpu_in_turn

            stack.enter_context(gpu_in_turn(part))
        return _draw_own(model, wanted, seed, stage, part, n_parts)


def _draw_own(
    model: ModelRef, wanted: Mapping[str, int], seed: int, stage: Stage, part: int, n_parts: int
) -> int:
    """Draw and stage the batches of a part; return how many they are."""
    fitted, encoder = load_model(stage.store, model)
    size = BATCH_IMAGES if isinstance(encoder, ImageEncoder) else BATCH_RECORDS
    own = [one for one in enumerate(_batches(wanted, size)) if one[0] % n_parts == part]
    for i, batch in own:

        def draw(i: int = i, batch: list[tuple[str, int, int]] = batch) -> _Batch:
            table = draw_batch(fitted, encoder, model.digest, batch, seed)
            return _Batch(shards=_write(table, stage, i, encoder.label))

        stage.item(f"batch-{i:05d}", _Batch, draw)
    return len(own)


def _stage(
    model: ModelRef,
    wanted: Mapping[str, int],
    seed: int,
    store: Store,
    dataset: DatasetRef,
    rules: Rules,
    max_near: float | None,
) -> Stage:
    read = [dataset.key, dataset.digest, model.key, model.digest]
    inputs = [read, wanted, rules.values_json, list(rules.constraints), max_near]
    return Stage(store, "sample", step_key("sample", inputs=inputs, seed=seed))


def _rules(
    model: ModelRef,
    store: Store,
    dataset: DatasetRef,
    conditions: Mapping[str, Any] | None,
    constraints: Sequence[Constraint],
) -> Rules:
    """The rules, checked against the model's columns."""
    _, encoder = load_model(store, model)
    if isinstance(encoder, ImageEncoder):
        raise ParameterError(
            "column values, constraints and max_near apply to tables, and the model makes images; "
            "leave them out."
        )

    def real() -> pa.Table:
        return read_part(store, load_info(dataset, store), ["training", "validation"])

    return Rules.of(encoder, real, conditions=conditions, constraints=constraints)


def _measure_near(
    model: ModelRef, store: Store, info: DatasetInfo, wanted: Mapping[str, int], share: float
) -> NearRows:
    """Measure the model's draws, to limit the share near to a training record."""
    fitted, encoder = load_model(store, model)
    assert isinstance(encoder, TableEncoder)  # _rules has refused images
    training, validation = (
        _encoded(read_part(store, info, [part]), encoder) for part in ("training", "validation")
    )
    strata = [encoder.strata.index(name) for name in wanted]
    return NearRows.of(
        share, fitted, encoder, training=training, validation=validation, strata=strata
    )


def _encoded(table: pa.Table, encoder: TableEncoder) -> tuple[Float, Int]:
    """Records in the matrix form, and their strata; -1 for one that the model does not know."""
    index = {name: k for k, name in enumerate(encoder.strata)}
    names = table_strata(table, label=encoder.label, by=encoder.by)
    return encoder.encode(table), np.array([index.get(name, -1) for name in names], dtype=np.int64)


def _check_counts(counts: Mapping[str, int], model: ModelRef) -> dict[str, int]:
    """Counts above zero in the model's order; raises for a class that cannot be drawn."""
    for name, n in counts.items():
        if n < 0:
            raise ParameterError(
                f"{n} candidates are requested of class {name!r}; request 0 or more."
            )
        if n and name not in model.strata:
            raise EmptyClassError(
                f"class {name!r} cannot be sampled: a model needs {MIN_SAMPLED_RECORDS} training "
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
    """Draw batch by batch, each with a receipt, and return the info of all."""
    fitted, encoder = load_model(stage.store, model)
    total, done = sum(wanted.values()), 0
    shards: list[ShardInfo] = []
    size = BATCH_IMAGES if isinstance(encoder, ImageEncoder) else BATCH_RECORDS
    if rules.compares_records:
        size = max(1, total)  # each record is compared with all before it
    n_draws, passed, taken = Counter[str](), Counter[str](), rules.taken()
    started = time.monotonic()
    for i, batch in enumerate(_batches(wanted, size)):

        def draw(i: int = i, batch: list[tuple[str, int, int]] = batch) -> _Batch:
            if rules and isinstance(encoder, TableEncoder):
                remaining = [(name, n_draws[name], n) for name, _, n in batch]
                table, draws, accepted = draw_by_rules(
                    fitted, encoder, model.digest, remaining, seed, rules, taken
                )
                written = _write(table, stage, i, encoder.label)
                return _Batch(shards=written, n_draws=draws, passed=accepted)
            table = draw_batch(fitted, encoder, model.digest, batch, seed)
            return _Batch(shards=_write(table, stage, i, encoder.label))

        receipt = stage.item(f"batch-{i:05d}", _Batch, draw)
        shards.extend(receipt.shards)
        n_draws.update(receipt.n_draws)
        passed.update(receipt.passed)
        done += sum(n for _, _, n in batch)
        if on_progress is not None:
            on_progress(done / total, _progress_text(done, total, time.monotonic() - started))
    lineage = {"model": model.digest, "strata": dict(wanted), "purpose": "faithful"}
    info = stage.info_of(source, shards, part="candidates", extra=lineage)
    return _with_rules(info, wanted, rules, n_draws, passed) if rules else info


def _with_rules(
    info: DatasetInfo,
    wanted: Mapping[str, int],
    rules: Rules,
    n_draws: Mapping[str, int],
    passed: Mapping[str, int],
) -> DatasetInfo:
    """The info with the rules and the share of draws they accepted."""
    accepted = {name: n / n_draws[name] for name, n in wanted.items()}
    note = "accepted by the rules: " + ", ".join(
        f"{share:.1%} of the draws of class {name!r}" for name, share in accepted.items()
    )
    rules_info = {
        "given": rules.values_json,
        "constraints": [rule.model_dump(mode="json") for rule in rules.constraints],
        **({"max_near": rules.near.share} if rules.near is not None else {}),
        "accepted": accepted,
        "passed": dict(passed),
        "said": note,
    }
    logger.info("%s", note)
    return info.model_copy(
        update={"extra": {**info.extra, "rules": rules_info}, "notes": (*info.notes, note)}
    )


def _progress_text(done: int, total: int, seconds: float) -> str:
    """Progress message: how far, how fast, and the time left."""
    rate = done / max(seconds, 1e-9)
    text = f"sampling, {done:,} of {total:,} candidates, {rate:,.0f} records/s"
    return text if done >= total else f"{text}, {(total - done) / rate:.0f} s left"


def _batches(wanted: Mapping[str, int], size: int) -> Iterator[list[tuple[str, int, int]]]:
    """Yield lists of (stratum, first ordinal, count) with at most ``size`` records each."""
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
