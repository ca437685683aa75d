"""Train: encoder and model fitted on the fit records, kept as a checkpoint by digest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.datatypes import BalancePlan, DatasetRef, ModelRef
from prefect_augment.encoding.tables import TableEncoder, table_strata
from prefect_augment.errors import EmptyClassError, IntegrityError, ParameterError
from prefect_augment.genmodels.base import (
    MIN_SAMPLED_RECORDS,
    FitContext,
    GenerativeModel,
    TableData,
    TableSpec,
)
from prefect_augment.params import Budget, ModelParams
from prefect_augment.reading.staged import load_facts, read_part
from prefect_augment.registry import load_model_class, model_params, resolve_model
from prefect_augment.staging import Stage, stage_key
from prefect_augment.storage import Store
from prefect_augment.training.checkpoints import load_checkpoint, save_checkpoint

__all__ = ["fit_table_model", "load_model", "table_spec", "train"]

logger = logging.getLogger(__name__)

ALGORITHM_VERSION = 1

Progress = Callable[[float, str], None]


def train(
    dataset: DatasetRef,
    *,
    model: ModelParams,
    plan: BalancePlan,
    budget: Budget,
    seed: int,
    store: Store,
    on_progress: Progress | None = None,
) -> ModelRef:
    """Fit encoder and model on the fit records; val and hold-out are not read.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records.
    model : ModelParams
        The kind of model and its params.
    plan : BalancePlan
        Says by which further columns classes are divided into strata.
    budget : Budget
        Training effort, for models that are trained in steps.
    seed : int
        Seed of everything random in training.
    store : Store
        The root that the dataset lies under.
    on_progress : callable, optional
        Called with the fraction done and what is being done.

    Returns
    -------
    ModelRef
        ``strata`` are those with at least ``MIN_SAMPLED_RECORDS`` fit records; the notes say which
        were left out.

    Raises
    ------
    ParameterError
        If no model is wanted, or the budget is too small for one step.
    EmptyClassError
        If there is no fit record.
    """
    kind, params = resolve_model(model), model_params(model)
    model_class = load_model_class(model)
    _check_budget(model_class, budget, kind)
    by = list(plan.classes[0].by) if plan.classes else []
    effort = [budget.steps, budget.batch_size] if model_class.trained_in_steps else []
    key = stage_key(
        "train",
        algorithm_version=ALGORITHM_VERSION,
        params=[kind, params, by, effort],
        inputs=[dataset.key, dataset.digest],
        seed=seed,
    )
    stage = Stage(store, "train", key)
    found = stage.outcome(ModelRef)
    if found is not None:
        return found
    facts = load_facts(dataset, store)
    table = read_part(store, facts, ["fit"])
    if table.num_rows == 0:
        raise EmptyClassError(
            "there are 0 fit records, so no model can be trained; give a larger source."
        )
    table = table.sort_by("aug_id")
    encoder = TableEncoder.fit(table, columns=facts.columns, label=facts.label, by=by)
    X, strata = encoder.encode(table), _strata_codes(table, encoder)
    spec = table_spec(encoder, strata)
    fitted = fit_table_model(X, strata, spec, model, seed, budget=budget, on_progress=on_progress)
    return stage.finish(_keep(fitted, encoder, spec, stage, kind=str(kind), n_fit=table.num_rows))


def fit_table_model(
    X: NDArray[np.float64],
    strata: NDArray[np.int64],
    spec: TableSpec,
    params: ModelParams,
    seed: int,
    *,
    budget: Budget | None = None,
    on_progress: Progress | None = None,
) -> GenerativeModel:
    """Return a model fitted on records in memory: for one fold, and behind :func:`train`.

    Parameters
    ----------
    X : ndarray of float64, shape (n_records, n_columns)
        The matrix form.
    strata : ndarray of int64, shape (n_records,)
        Each record's stratum, an index into ``spec.classes``.
    spec : TableSpec
        From :func:`table_spec`; its ``class_counts`` are of these records.
    params : ModelParams
        Which model.
    seed : int
        Seed of everything random in training.
    budget : Budget, optional
        For models that are trained in steps.
    on_progress : callable, optional
        Called with the fraction done and what is being done.
    """
    budget = budget or Budget()
    model_class = load_model_class(params)
    _check_budget(model_class, budget, resolve_model(params))
    n_steps = budget.steps if model_class.trained_in_steps else spec.n_columns

    def report(step: int, scalars: Mapping[str, float]) -> None:
        if on_progress is not None:
            on_progress(min(1.0, step / max(1, n_steps)), f"training, step {step} of {n_steps}")

    model: GenerativeModel = model_class.build(model_params(params), spec)
    device = "cpu" if budget.device == "auto" else budget.device
    context = FitContext(seed=seed, steps=budget.steps, device=device, report=report)
    model.fit(TableData(X, np.asarray(strata, dtype=np.int64)), context)
    return model


def table_spec(
    encoder: TableEncoder, strata: NDArray[np.int64], names: tuple[str, ...] = ()
) -> TableSpec:
    """Return what a model needs to know of encoded records.

    Parameters
    ----------
    encoder : TableEncoder
        Gives the columns.
    strata : ndarray of int64, shape (n_records,)
        Indices into ``names``.
    names : tuple of str, optional
        Strata; the encoder's own where not given.
    """
    names = names or encoder.strata
    counts = np.bincount(strata, minlength=len(names))
    return TableSpec(
        names=encoder.names,
        is_category=tuple(bool(c) for c in encoder.is_category),
        n_levels=tuple(int(n) for n in encoder.n_levels),
        classes=names,
        class_counts=tuple(int(n) for n in counts),
    )


def load_model(store: Store, ref: ModelRef) -> tuple[GenerativeModel, TableEncoder]:
    """Return a trained model and its encoder.

    Raises
    ------
    IntegrityError
        If a file is missing or not what the reference names.
    """
    config, arrays = load_checkpoint(store, ref)
    path = _encoder_path(ref.config, ref.encoder_digest)
    try:
        encoder = TableEncoder.from_json(store.read(path))
    except FileNotFoundError as exc:
        raise IntegrityError(
            f"{store.uri}/{path} is missing; restore it from a copy, or train again.", path=path
        ) from exc
    if encoder.digest != ref.encoder_digest:
        raise IntegrityError(
            f"{store.uri}/{path} is not the encoder {ref.encoder_digest[:12]} that the model was "
            "trained with; "
            "restore it from a copy, or train again.",
            path=path,
        )
    return load_model_class(ref.kind).from_state(config["model"], arrays, device="cpu"), encoder


def _check_budget(model_class: Any, budget: Budget, kind: str | None) -> None:
    if model_class.trained_in_steps and budget.steps < 1:
        raise ParameterError(
            f"model {kind!r} is trained in steps and budget.steps is 0, too little for one step; "
            "give budget.steps, or choose model kind 'trees'."
        )


def _strata_codes(table: pa.Table, encoder: TableEncoder) -> NDArray[np.int64]:
    index = {name: k for k, name in enumerate(encoder.strata)}
    names = table_strata(table, label=encoder.label, by=encoder.by)
    return np.array([index[name] for name in names], dtype=np.int64)


def _keep(
    model: GenerativeModel,
    encoder: TableEncoder,
    spec: TableSpec,
    stage: Stage,
    *,
    kind: str,
    n_fit: int,
) -> ModelRef:
    """Store encoder and checkpoint; return the reference to both."""
    config, arrays = model.state()
    # The encoder's digest is part of the checkpoint, so that aug_model names all that made a
    # record.
    config = {"kind": kind, "encoder": encoder.digest, "model": config}
    digest, (checkpoint, written) = save_checkpoint(stage.store, stage.prefix, config, arrays)
    stage.store.put(_encoder_path(written, encoder.digest), encoder.to_json())
    counts = dict(zip(spec.classes, spec.class_counts, strict=True))
    notes = tuple(
        f"class {name!r} has {n} fit records and is not sampled: a model needs "
        f"{MIN_SAMPLED_RECORDS}"
        for name, n in counts.items()
        if n < MIN_SAMPLED_RECORDS
    )
    for note in notes:
        logger.info("%s", note)
    return ModelRef(
        root=stage.store.uri,
        path=stage.outcome_path,
        key=stage.key,
        kind=kind,
        digest=digest,
        encoder_digest=encoder.digest,
        checkpoint=checkpoint,
        config=written,
        strata=tuple(name for name, n in counts.items() if n >= MIN_SAMPLED_RECORDS),
        n_fit=n_fit,
        steps=model.n_steps,
        notes=notes,
    )


def _encoder_path(config: str, digest: str) -> str:
    """Return where a model's encoder lies: beside its configuration."""
    return f"{config.rpartition('/')[0]}/encoder-{digest[:12]}.json"
