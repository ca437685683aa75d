"""Draw and stage the candidates of each class, each with the seed that reproduces it."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
from pydantic import Field

from prefect_augment.array_types import Float, Int
from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.strata import codes_of, table_strata
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS, GenerativeModel
from prefect_augment.params import Constraint
from prefect_augment.params.keys import step_key
from prefect_augment.registry import load_model_class
from prefect_augment.schema import DatasetInfo, DatasetRef, Modality, ModelRef, Result, ShardInfo
from prefect_augment.shards.base import write_shards
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Stage, Store
from prefect_augment.synthesis.draw import candidate_seeds, draw_batch, records_of
from prefect_augment.synthesis.model_store import Encoder, load_model
from prefect_augment.synthesis.novelty import NearRows
from prefect_augment.synthesis.rejection import Kept, Keys, Rules, draw_kept
from prefect_augment.text import suggestion

logger = logging.getLogger(__name__)

# Drawn, written and receipted together: bounds the memory, and the loss in a crash.
BATCH_RECORDS = 100_000
# Of images: a network takes seconds for as many, and images fill memory.
BATCH_IMAGES = 1024
SHARD_BYTES = 128 << 20

Progress = Callable[[float, str], None]
Batch = list[tuple[str, int, int]]  # stratum, first ordinal and count


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
    if max_near is not None and not 0 <= max_near < 1:
        raise ParameterError(
            f"max_near={max_near} is not a share below 1; choose 0 to reject near records, 0.05 for "
            "as many as among real ones, or leave it out."
        )
    draws = Draws(model, counts, seed, store, dataset)
    if conditions or constraints or max_near is not None:
        draws.restrict(conditions, constraints, max_near)
    info = draws.stage.run(DatasetInfo, lambda: draws.all(on_progress))
    return draws.stage.reference(info, info.part_counts["candidates"])


def n_batches(counts: Mapping[str, int], modality: Modality) -> int:
    """Return how many batches :func:`sample` draws, each of which may be drawn by :meth:`Draws.draw_part`."""
    size = BATCH_IMAGES if modality == "image" else BATCH_RECORDS
    return -(-sum(counts.values()) // size)


class Draws:
    """The draws of a model, batch by batch, each with a receipt."""

    def __init__(
        self,
        model: ModelRef,
        counts: Mapping[str, int],
        seed: int,
        store: Store,
        dataset: DatasetRef,
    ) -> None:
        self.wanted = _check_counts(counts, model)
        self.model, self.seed, self.store, self.dataset = model, seed, store, dataset
        self.rules = Rules()
        self.max_near: float | None = None
        # With rules: ordinals examined by stratum, draws that each rule let through, unique keys.
        self.n_draws, self.passed = Counter[str](), Counter[str]()
        self.taken: Keys = []

    def restrict(
        self,
        conditions: Mapping[str, Any] | None,
        constraints: Sequence[Constraint],
        max_near: float | None,
    ) -> None:
        """Keep rules, checked against the model's columns."""
        encoder = self.loaded[1]
        if isinstance(encoder, ImageEncoder):
            raise ParameterError(
                "column values, constraints and max_near apply to tables, and the model makes images; "
                "leave them out."
            )

        def real() -> pa.Table:
            return read_part(self.store, self.source, ["training", "validation"])

        self.rules = Rules.of(encoder, real, conditions=conditions, constraints=constraints)
        self.max_near = max_near

    @cached_property
    def stage(self) -> Stage:
        """The stage, once the rules are known."""
        read = [self.dataset.key, self.dataset.digest, self.model.key, self.model.digest]
        rules = [self.rules.values_json, list(self.rules.constraints), self.max_near]
        key = step_key("sample", inputs=[read, self.wanted, *rules], seed=self.seed)
        return Stage(self.store, "sample", key)

    @cached_property
    def source(self) -> DatasetInfo:
        """The real records."""
        return load_info(self.dataset, self.store)

    @cached_property
    def loaded(self) -> tuple[GenerativeModel, Encoder]:
        """Model and encoder."""
        return load_model(self.store, self.model)

    def batches(self) -> list[tuple[int, Batch]]:
        """All batches with their numbers."""
        size = BATCH_IMAGES if isinstance(self.loaded[1], ImageEncoder) else BATCH_RECORDS
        if self.rules.compares_records:
            size = max(1, sum(self.wanted.values()))  # each record is compared with all before it
        return list(enumerate(_batches(self.wanted, size)))

    def staged(self, i: int, batch: Batch) -> _Batch:
        """The receipt of a batch, drawn and staged if there is none yet."""
        return self.stage.item(f"batch-{i:05d}", _Batch, partial(self._draw, i, batch))

    def all(self, on_progress: Progress | None) -> DatasetInfo:
        """Draw all batches and return the info of them."""
        if self.max_near is not None:
            self.rules = replace(self.rules, near=self._measure_near(self.max_near))
        self.taken = self.rules.taken()
        total, done = sum(self.wanted.values()), 0
        shards: list[ShardInfo] = []
        started = time.monotonic()
        for i, batch in self.batches():
            receipt = self.staged(i, batch)
            shards.extend(receipt.shards)
            self.n_draws.update(receipt.n_draws)
            self.passed.update(receipt.passed)
            done += sum(n for _, _, n in batch)
            if on_progress is not None:
                on_progress(done / total, _progress_text(done, total, time.monotonic() - started))
        lineage = {"model": self.model.digest, "strata": self.wanted, "purpose": "faithful"}
        info = self.stage.info_of(self.source, shards, part="candidates", extra=lineage)
        return self._with_rules(info) if self.rules else info

    def draw_part(self, part: int, n_parts: int) -> int:
        """Draw and stage every ``n_parts``-th batch, which :func:`sample` with the same arguments finds.

        Not for draws with conditions, constraints or ``max_near``, whose batches depend on one another. Parts
        take the GPUs of a machine in turn. Returns how many batches are this part's.
        """
        if self.stage.outcome(DatasetInfo) is not None:
            return 0
        gpu: AbstractContextManager[object] = nullcontext()
        if load_model_class(self.model.kind).trained_in_steps:
            # Imported here: it loads torch, which trees do without.
            from prefect_augment.nn.devices import gpu_in_turn

            gpu = gpu_in_turn(part)
        with gpu:
            own = self.batches()[part::n_parts]
            for i, batch in own:
                self.staged(i, batch)
        return len(own)

    def _draw(self, i: int, batch: Batch) -> _Batch:
        fitted, encoder = self.loaded
        n_draws, passed = dict[str, int](), Counter[str]()
        if self.rules:
            tables = []
            for name, _, n in batch:
                table, kept = self._kept(name, n)
                tables.append(table)
                n_draws[name] = kept.n_draws
                passed.update(kept.passed)
            table = pa.concat_tables(tables)
        else:
            table = draw_batch(fitted, encoder, self.model.digest, batch, self.seed)
        shards = write_shards(
            self.store,
            table,
            prefix=self.stage.prefix,
            stem=f"candidates-{i:05d}",
            split="candidates",
            origin="synthetic",
            label=encoder.label,
            max_records=BATCH_RECORDS,
            max_bytes=SHARD_BYTES,
        )
        return _Batch(shards=shards, n_draws=n_draws, passed=dict(passed))

    def _kept(self, stratum: str, n: int) -> tuple[pa.Table, Kept]:
        """The next records of a stratum that keep the rules; raises if too few draws do."""
        fitted, encoder = self.loaded
        assert isinstance(encoder, TableEncoder)  # restrict has refused images
        rules, start = self.rules, self.n_draws[stratum]
        seeds_of = partial(candidate_seeds, self.seed, stratum, conditions=rules.values_json)
        kept = draw_kept(
            fitted,
            encoder,
            rules,
            stratum=stratum,
            start=start,
            n=n,
            seeds_of=seeds_of,
            taken=self.taken,
        )
        given = [encoder.names[j] for j in rules.values]
        strata, digest = [stratum] * n, self.model.digest
        return records_of(kept.X, encoder, digest, strata, kept.seeds, kept.ordinals, given), kept

    def _measure_near(self, share: float) -> NearRows:
        """Measure the model's draws, to limit the share near to a training record."""
        fitted, encoder = self.loaded
        assert isinstance(encoder, TableEncoder)  # restrict has refused images
        training, validation = (
            _encoded(read_part(self.store, self.source, [part]), encoder)
            for part in ("training", "validation")
        )
        strata = [encoder.strata.index(name) for name in self.wanted]
        return NearRows.of(
            share, fitted, encoder, training=training, validation=validation, strata=strata
        )

    def _with_rules(self, info: DatasetInfo) -> DatasetInfo:
        """The info with the rules and the share of draws they accepted."""
        accepted = {name: n / self.n_draws[name] for name, n in self.wanted.items()}
        note = "accepted by the rules: " + ", ".join(
            f"{share:.1%} of the draws of class {name!r}" for name, share in accepted.items()
        )
        rules = {
            "given": self.rules.values_json,
            "constraints": [rule.model_dump(mode="json") for rule in self.rules.constraints],
            **({} if self.max_near is None else {"max_near": self.max_near}),
            "accepted": accepted,
            "passed": dict(self.passed),
            "said": note,
        }
        logger.info("%s", note)
        extra = {**info.extra, "rules": rules}
        return info.model_copy(update={"extra": extra, "notes": (*info.notes, note)})


def _encoded(table: pa.Table, encoder: TableEncoder) -> tuple[Float, Int]:
    """Records in the matrix form, and their strata; -1 for one that the model does not know."""
    names = table_strata(table, label=encoder.label, by=encoder.by)
    return encoder.encode(table), codes_of(names, encoder.strata)


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
                f"records of a class; {suggestion(name, model.strata)}. Leave it out, or merge it "
                "with another class.",
                class_name=name,
            )
    return {name: int(counts[name]) for name in model.strata if counts.get(name)}


def _progress_text(done: int, total: int, seconds: float) -> str:
    """Progress message: how far, how fast, and the time left."""
    rate = done / max(seconds, 1e-9)
    text = f"sampling, {done:,} of {total:,} candidates, {rate:,.0f} records/s"
    return text if done >= total else f"{text}, {(total - done) / rate:.0f} s left"


def _batches(wanted: Mapping[str, int], size: int) -> Iterator[Batch]:
    """Yield lists of (stratum, first ordinal, count) with at most ``size`` records each."""
    batch: Batch = []
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
