"""Fit encoder and model on the training records, and store them as a checkpoint by digest."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Bool, Float
from prefect_augment.encoding.codecs import Codec, NumberCodec
from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.rare_values import (
    MAX_NUMBERS,
    MIN_LEVEL_RECORDS,
    RareValues,
    count_values,
    without_rare_levels,
)
from prefect_augment.encoding.strata import codes_of, table_strata
from prefect_augment.encoding.subsample import n_training_records, read_training_records
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.encoding.values import plain
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.genmodels.base import (
    Calibrates,
    FitContext,
    GenerativeModel,
    ImageData,
    ImageSpec,
    TableData,
    TableSpec,
)
from prefect_augment.nn.budget import Calibration
from prefect_augment.params import Budget, ModelParams
from prefect_augment.params.keys import step_key
from prefect_augment.registry import load_model_class, model_params, resolve_model
from prefect_augment.schema import Experiment, Modality, ModelRef
from prefect_augment.shards.staged import iter_shards, load_info
from prefect_augment.storage import Stage, Store
from prefect_augment.storage.spill import give_back
from prefect_augment.synthesis.model_store import (
    EncodedRecords,
    Encoder,
    image_spec,
    keep_model,
    table_spec,
)
from prefect_augment.synthesis.ranks import check_devices, fit_on_ranks
from prefect_augment.synthesis.resume import Resume
from prefect_augment.synthesis.reuse import find_previous, keep_training
from prefect_augment.synthesis.training_budget import (
    announce,
    calibrate,
    check_budget,
    context_of,
    effective_budget,
)

logger = logging.getLogger(__name__)

# By default no image model is trained on a CPU for larger images or fewer images seen, where none
# helped (research/images.md, section 9).
MAX_CPU_SIZE = 32
MIN_IMAGES = 200_000

_UNITS: dict[Modality, str] = {"table": "rows", "image": "images"}  # in progress

Progress = Callable[[float, str], None]


def train(experiment: Experiment, store: Store, *, on_progress: Progress | None = None) -> ModelRef:
    """Fit encoder and model on the training records; validation and hold-out are not read.

    A previous model of most of these records is reused while no class has grown by more than
    ``budget.reuse_growth`` and its encoder's domain holds. A model trained in steps leaves two
    kinds of receipts: the calibration that turns minutes into steps, and checkpoints that resume an
    interrupted run. ``strata`` of the result are those with at least ``MIN_SAMPLED_RECORDS`` training
    records; the notes name the others.

    Raises ParameterError if the params name no model, or the budget is too small for one step;
    EmptyClassError if there is no training record.
    """
    job = _Job(experiment, store)
    return job.stage.run(ModelRef, lambda: _train(job, on_progress))


def _train(job: "_Job", on_progress: Progress | None) -> ModelRef:
    records, dataset = job.records(), job.dataset
    previous = find_previous(
        job.stage, records, request=job.request, dataset=dataset, growth=job.budget.reuse_growth
    )
    if previous is not None:
        return previous
    fitted: GenerativeModel = job.model_class.build(job.params, records.spec)
    n_ranks = job.budget.devices if job.model_class.trained_in_steps else 1
    if n_ranks > 1:
        check_devices(job.budget)
    context = job.context(fitted, records.data)
    n_steps = context.steps or getattr(records.spec, "n_columns", 1)
    report = _progress(on_progress, n_steps, unit=_UNITS[job.info.modality])
    resume = Resume(job.stage)
    context = resume.context(
        replace(context, report=report, checkpoint_seconds=job.budget.checkpoint_seconds)
    )
    if n_ranks > 1:
        fitted = fit_on_ranks(fitted, records.data, context, n_ranks)
    else:
        fitted.fit(records.data, context)
    resume.finish()
    keep_training(job.stage, request=job.request, dataset=dataset, counts=records.counts)
    outcome = job.stage.finish(keep_model(fitted, job.stage, records, kind=job.kind))
    resume.clear()
    return outcome


def find_model(experiment: Experiment, store: Store) -> ModelRef | None:
    """The model that :func:`train` would find trained already, or None."""
    return _Job(experiment, store).stage.outcome(ModelRef)


def why_no_image_model(experiment: Experiment, store: Store) -> str:
    """Reason why ``auto`` should train no image model here, as a sentence; empty where it should.

    Where the image size does not decide, this measures the speed once; :func:`train` reuses the
    receipt.
    """
    job = _Job(experiment, store)
    if job.info.modality != "image" or not job.model_class.trained_in_steps:
        return ""
    # Imported here: it loads torch, which tables do without.
    from prefect_augment.nn.devices import choose_device

    if choose_device(job.budget.device).name != "cpu":
        return ""
    width, height = job.info.image.most_common_size if job.info.image else (0, 0)
    if max(width, height) > MAX_CPU_SIZE:
        return (
            f"images are {width}×{height} px, and on a CPU no generator is known to help above "
            f"{MAX_CPU_SIZE} px; ask for one by name to train it all the same."
        )
    records = job.records()
    fitted = job.model_class.build(job.params, records.spec)
    try:
        calibration = job.calibration(fitted, records.data)
    except ParameterError as exc:  # not even one step fits
        return str(exc)
    if calibration is not None and calibration.n_images < MIN_IMAGES:
        return (
            f"the budget lets a generator see about {calibration.n_images:,} images on this CPU, "
            f"and below {MIN_IMAGES:,} none is known to help; raise budget.minutes, or ask for one "
            "by name to train it all the same."
        )
    return ""


def fit_model(
    data: TableData | ImageData,
    spec: TableSpec | ImageSpec,
    params: ModelParams,
    seed: int,
    *,
    budget: Budget | None = None,
    share: float = 1.0,
    min_level_records: int = MIN_LEVEL_RECORDS,
) -> GenerativeModel:
    """Fit a model on records in memory; nothing is stored, so nothing can be resumed.

    ``spec`` comes from :func:`.table_spec` or :func:`.image_spec`, with the counts of these
    records. ``budget`` is for models trained in steps; a pilot takes only a ``share`` of those that
    a whole training would find useful, however large the budget is. Levels that fewer than
    ``min_level_records`` records have are not learnt.
    """
    budget = budget or Budget()
    modality: Modality = "image" if isinstance(spec, ImageSpec) else "table"
    model_class = load_model_class(params, modality=modality)
    check_budget(model_class, budget, resolve_model(params, modality=modality))
    model: GenerativeModel = model_class.build(model_params(params, modality=modality), spec)
    if isinstance(data, TableData) and isinstance(spec, TableSpec):
        data = _learnable(data, np.array(spec.is_category, dtype=bool), min_level_records, seed)
    calibration = None
    if isinstance(model, Calibrates):
        calibration = calibrate(model, data, budget, seed, share=share)
    model.fit(data, context_of(budget, seed, calibration))
    return model


def _learnable(data: TableData, is_category: Bool, min_records: int, seed: int) -> TableData:
    """The records as a model sees them: without levels of few records."""
    X = without_rare_levels(data.X, data.y, is_category, min_records=min_records, seed=seed)
    return TableData(X, data.y)


class _Job:
    """One training run: its stage, inputs and ``request``, the key of all of it but the records."""

    def __init__(self, experiment: Experiment, store: Store) -> None:
        wanted, self.dataset = experiment.params, experiment.dataset
        self.budget, self.seed = wanted.budget, wanted.seed
        self.min_level_records = wanted.quality.min_level_records
        self.info = info = load_info(self.dataset, store)
        self.params: Any = model_params(wanted.model, modality=info.modality)
        self.kind = str(resolve_model(wanted.model, modality=info.modality))
        self.model_class: Any = load_model_class(wanted.model, modality=info.modality)
        check_budget(self.model_class, self.budget, self.kind)
        self.by = list(experiment.plan.classes[0].by) if experiment.plan.classes else []
        in_steps = self.model_class.trained_in_steps
        budget = effective_budget(self.budget) if in_steps else Budget()
        most, n_training = _most(self.model_class), n_training_records(info)
        inputs: list[Any] = [self.kind, self.by, most if 0 < most < n_training else 0]
        if info.modality == "table" and n_training > MAX_NUMBERS:
            inputs.append(MAX_NUMBERS)
        if in_steps and self.budget.devices > 1:
            inputs.append({"devices": self.budget.devices})

        def key(budget: Budget, *records: str) -> str:
            sections = {"model": self.params, "quality": wanted.quality, "budget": budget}
            return step_key("train", sections, inputs=[*inputs, *records], seed=self.seed)

        self.request = key(budget)
        budget = budget.model_copy(update={"reuse_growth": self.budget.reuse_growth})
        self.stage = Stage(store, "train", key(budget, self.dataset.key, self.dataset.digest))

    def records(self) -> EncodedRecords:
        """Read and encode the training records, in the order of their ids."""
        table, notes = read_training_records(
            self.stage.store, self.info, by=self.by, most=_most(self.model_class), seed=self.seed
        )
        if table.num_rows == 0:
            raise EmptyClassError(
                "there are 0 training records, so no model can be trained; give a larger source."
            )
        encoder = self._encoder(table)
        names = table_strata(table, label=encoder.label, by=encoder.by)
        strata = codes_of(names, encoder.strata)
        data: Any = encoder.encode(table)
        del table
        give_back()  # free memory for training
        if isinstance(encoder, ImageEncoder):
            spec = image_spec(encoder, strata)
            return EncodedRecords(encoder, spec, ImageData(data, strata), notes=notes)
        least, is_category = self.min_level_records, encoder.is_category
        rare = RareValues.of(data, is_category, min_records=least)
        if len(data) < n_training_records(self.info):
            rare = self._with_all_numbers(rare, encoder, data)
        learnable = _learnable(TableData(data, strata), is_category, least, self.seed)
        return EncodedRecords(encoder, table_spec(encoder, strata), learnable, rare, notes)

    def _with_all_numbers(
        self, rare: RareValues, encoder: TableEncoder, learnt: Float
    ) -> RareValues:
        """Count the numbers of all training records, a column at a time, not of those learnt alone."""
        store, shards = self.stage.store, [s for s in self.info.shards if s.split == "training"]
        numbers = dict(rare.numbers)
        for j, name in enumerate(encoder.names):
            if encoder.is_category[j] or self.min_level_records == 1:
                continue
            codec = encoder.codec(name)

            def batches(name: str = name, codec: Codec = codec) -> Iterator[Float]:
                for table in iter_shards(store, shards, [name]):
                    yield codec.encode(plain(table[name]))

            # A draw of such a column meets no value but those learnt, save by a chance of about 1 in 2^50.
            free = isinstance(codec, NumberCodec) and codec.is_free
            values, counts = count_values(batches, learnt[:, j], most=MAX_NUMBERS if free else 0)
            numbers.pop(j, None)
            if (counts == 1).any():
                numbers[j] = values, counts == 1
        return replace(rare, numbers=numbers)

    def _encoder(self, table: pa.Table) -> Encoder:
        info = self.info
        if info.image is None:
            return TableEncoder.fit(table, columns=info.columns, label=info.label, by=self.by)
        return ImageEncoder.fit(
            table,
            column=info.image.column,
            label=info.label,
            by=self.by,
            size=getattr(self.params, "size", 0) or None,
            image_size=getattr(self.params, "output_size", 0),
            columns=[column.name for column in info.columns],
        )

    def context(self, fitted: GenerativeModel, data: TableData | ImageData) -> FitContext:
        """Training context, from the calibration if the model has one."""
        calibration = self.calibration(fitted, data)
        announce(self.kind, data, self.budget, calibration)
        return context_of(self.budget, self.seed, calibration)

    def calibration(
        self, fitted: GenerativeModel, data: TableData | ImageData
    ) -> Calibration | None:
        """Receipt of how this run is trained; measured if there is none yet."""
        if not isinstance(fitted, Calibrates):
            return None
        model: Calibrates = fitted  # for the closure, where the check above is forgotten
        return self.stage.item(
            "calibration", Calibration, lambda: calibrate(model, data, self.budget, self.seed)
        )


def _most(model_class: Any) -> int:
    """Largest training set of the model; 0 for no limit."""
    return int(getattr(model_class, "max_training_records", 0))


def _progress(
    on_progress: Progress | None, n_steps: int, *, unit: str
) -> Callable[[int, Mapping[str, float]], None]:
    """Report callback of models: step and scalars become a fraction and a message."""
    started = time.monotonic()

    def report(step: int, scalars: Mapping[str, float]) -> None:
        if on_progress is None:
            return
        done = min(1.0, step / max(1, n_steps))
        words = [f"{'column' if 'columns' in scalars else 'step'} {step} of {n_steps}"]
        if "seconds_left" in scalars:
            words += [
                f"loss {scalars['loss']:.4f}",
                f"{scalars['records_per_second']:.0f} {unit}/s",
            ]
            seconds = scalars["seconds_left"]
        elif 0 < done < 1:
            seconds = (time.monotonic() - started) * (1 - done) / done
        else:
            seconds = 0.0
        if seconds:  # first: the run's page shows about thirty letters
            words.insert(0, f"{seconds:.0f} s left")
        on_progress(done, ", ".join(words))

    return report
