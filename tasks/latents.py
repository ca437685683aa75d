"""Latents: what a trained model says of records, or makes of them: vectors, scores, reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from prefect import task

from prefect_augment.latents.anomalies import anomalies
from prefect_augment.latents.attribute_shift import shift_attribute
from prefect_augment.latents.classify import classify
from prefect_augment.latents.denoise import denoise
from prefect_augment.latents.embed import embed
from prefect_augment.latents.inputs import select_classes as select
from prefect_augment.latents.inputs import version_records
from prefect_augment.latents.interpolate import interpolate
from prefect_augment.latents.page import latents_page
from prefect_augment.latents.reconstruct import reconstruct
from prefect_augment.params import AttributeShift, Destination, Interpolation, Output
from prefect_augment.registry import load_model_class
from prefect_augment.schema.base import DatasetRef, LatentRef, ModelRef
from prefect_augment.storage.store import Store
from prefect_augment.tasks._limits import gpu_slot
from prefect_augment.tasks._runtime import (
    TASK_OPTIONS,
    artifact_key,
    dataset_slug,
    markdown_artifact,
    named,
    open_block_store,
    open_destination,
    progress,
    run_log,
)

__all__ = [
    "classify_records",
    "denoise_records",
    "embed_records",
    "interpolate_records",
    "open_version",
    "reconstruct_records",
    "score_anomalies",
    "select_classes",
    "shift_records",
]


def _named(verb: str) -> Callable[..., str]:
    return named(lambda p: f"{verb} {dataset_slug(p['dataset'].root)} by {p['model'].kind}")


@task(name="open_version", task_run_name="open {destination.uri}", **TASK_OPTIONS)
def open_version(destination: Destination, version: int = 0) -> DatasetRef:
    """Refer to the records of a published version, synthetic ones included, so that tasks can read them.

    Parameters
    ----------
    destination : Destination
        The published dataset.
    version : int
        0 for the newest.

    Returns
    -------
    DatasetRef
        Nothing is copied; the parts are train and holdout.
    """
    with run_log():
        ref = version_records(open_destination(destination), version or None)
        return ref.model_copy(update={"block": destination.storage_block})


@task(
    name="select_classes",
    task_run_name=named(lambda p: f"select {', '.join(p['classes'])}"),
    **TASK_OPTIONS,
)
def select_classes(dataset: DatasetRef, classes: Sequence[str]) -> DatasetRef:
    """Stage the training and validation records of some classes, for a model that is to know no others.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records.
    classes : sequence of str
        Their names.

    Returns
    -------
    DatasetRef
        Records with the ids and parts that they have in ``dataset``.
    """
    with run_log():
        store = open_block_store(dataset.root, dataset.block)
        ref = select(dataset, classes=classes, store=store)
        return ref.model_copy(update={"block": dataset.block})


@task(name="embed_records", task_run_name=_named("embed"), **TASK_OPTIONS)
def embed_records(
    dataset: DatasetRef, model: ModelRef, *, output: Output | None = None
) -> LatentRef:
    """Write the latent vector of every record.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records, candidates, or a published version.
    model : ModelRef
        A model with a latent space, trained on the same columns.
    output : Output, optional
        Which parts, and where to; beside the dataset by default.

    Returns
    -------
    LatentRef
        Parquet of vectors; read by ``open_latents``.
    """
    with _use(dataset, model, output, "embed") as (given, shown):
        return shown(embed(dataset, **given))


@task(name="score_anomalies", task_run_name=_named("score anomalies of"), **TASK_OPTIONS)
def score_anomalies(
    dataset: DatasetRef,
    model: ModelRef,
    *,
    normal_share: float = 0.05,
    output: Output | None = None,
) -> LatentRef:
    """Score every record, flag those beyond a threshold from validation, and rank all.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records.
    model : ModelRef
        A model with a latent space; the classes that it was trained on are normal.
    normal_share : float
        Share of the normal validation records that may be beyond the threshold.
    output : Output, optional
        Which parts, and where to; beside the dataset by default.

    Returns
    -------
    LatentRef
        Parquet of scores, flags and ranks; ``found`` has the threshold and counts.
    """
    with _use(dataset, model, output, "anomalies") as (given, shown):
        return shown(anomalies(dataset, normal_share=normal_share, **given))


@task(name="reconstruct_records", task_run_name=_named("reconstruct"), **TASK_OPTIONS)
def reconstruct_records(
    dataset: DatasetRef, model: ModelRef, *, as_class: str = "", output: Output | None = None
) -> LatentRef:
    """Write every record beside what the model makes of its latent vector.

    Parameters
    ----------
    dataset : DatasetRef
        Staged records.
    model : ModelRef
        A model with a latent space.
    as_class : str
        Class that all vectors are decoded as; each record's own where empty.
    output : Output, optional
        Which parts, and where to; beside the dataset by default.

    Returns
    -------
    LatentRef
        Parquet of originals, reconstructions and errors.
    """
    with _use(dataset, model, output, "reconstruct") as (given, shown):
        return shown(reconstruct(dataset, as_class=as_class, **given))


@task(name="denoise_records", task_run_name=_named("denoise"), **TASK_OPTIONS)
def denoise_records(
    dataset: DatasetRef,
    model: ModelRef,
    *,
    noise: float = 0.1,
    output: Output | None = None,
) -> LatentRef:
    """Write every image without its noise, beside the other columns of the source.

    Parameters
    ----------
    dataset : DatasetRef
        Images: ingested ones, or a published version.
    model : ModelRef
        A model that takes noise out.
    noise : float
        Standard deviation of the noise in the images, white being 1.
    output : Output, optional
        Which parts, and where to; beside the dataset by default.

    Returns
    -------
    LatentRef
        Parquet of images; ``found`` has what noise of that size does to some records, and what is left.
    """
    with _use(dataset, model, output, "denoise") as (given, shown):
        return shown(denoise(dataset, noise=noise, **given))


@task(name="interpolate_records", task_run_name=_named("interpolate in"), **TASK_OPTIONS)
def interpolate_records(
    dataset: DatasetRef,
    model: ModelRef,
    wish: Interpolation | None = None,
    *,
    output: Output | None = None,
) -> LatentRef:
    """Make the records on the way from one to another, or from one class to another.

    Parameters
    ----------
    dataset : DatasetRef
        Staged records.
    model : ModelRef
        A model with a latent space.
    wish : Interpolation, optional
        From where to where; from the largest class to the smallest by default.
    output : Output, optional
        Where to; beside the dataset by default.

    Returns
    -------
    LatentRef
        Parquet of the strip, the two records first and last.
    """
    with _use(dataset, model, output, "interpolate") as (given, shown):
        given.pop("on_progress")
        return shown(interpolate(dataset, wish=wish, **given))


@task(name="shift_records", task_run_name=_named("shift an attribute of"), **TASK_OPTIONS)
def shift_records(
    dataset: DatasetRef,
    model: ModelRef,
    wish: AttributeShift | None = None,
    *,
    output: Output | None = None,
) -> LatentRef:
    """Add an attribute to the latent vectors of records, in several strengths, and decode them.

    Parameters
    ----------
    dataset : DatasetRef
        Staged records; the direction comes from the training records among them.
    model : ModelRef
        A model with a latent space.
    wish : AttributeShift, optional
        Which attribute, which records, which strengths; from the largest class towards the smallest by
        default.
    output : Output, optional
        Which parts, and where to; beside the dataset by default.

    Returns
    -------
    LatentRef
        Parquet with a row per record and strength; ``found`` has how well the direction tells the two
        values apart on validation records.
    """
    with _use(dataset, model, output, "shift attribute") as (given, shown):
        return shown(shift_attribute(dataset, wish=wish, **given))


@task(name="classify_records", task_run_name=_named("classify"), **TASK_OPTIONS)
def classify_records(
    dataset: DatasetRef,
    model: ModelRef,
    *,
    prior: Literal["balanced", "observed"] = "balanced",
    output: Output | None = None,
) -> LatentRef:
    """Write the class in which the model finds each record most likely.

    Parameters
    ----------
    dataset : DatasetRef
        Staged records.
    model : ModelRef
        A model that knows how likely a record is in a class.
    prior : {"balanced", "observed"}
        How likely classes are before a record is seen.
    output : Output, optional
        Which parts, and where to; beside the dataset by default.

    Returns
    -------
    LatentRef
        Parquet of predictions; ``found`` has accuracy and balanced accuracy per part.
    """
    with _use(dataset, model, output, "classify") as (given, shown):
        return shown(classify(dataset, prior=prior, **given))


@contextmanager
def _use(
    dataset: DatasetRef, model: ModelRef, output: Output | None, name: str
) -> Iterator[tuple[dict[str, Any], Callable[[LatentRef], LatentRef]]]:
    """Give what every use takes, and what shows its result on the run's page."""
    output = output or Output()
    network = load_model_class(model.kind, modality=dataset.modality).trained_in_steps
    with run_log(), progress(name, dataset.root) as report, gpu_slot(network=network):
        store = open_block_store(dataset.root, dataset.block)
        out = open_block_store(output.uri, output.storage_block) if output.uri else None

        def shown(ref: LatentRef) -> LatentRef:
            _show(ref, out or store, dataset)
            block = output.storage_block if output.uri else dataset.block
            return ref.model_copy(update={"block": block})

        given = {
            "model": model, "store": store, "output": output, "out": out, "on_progress": report,
        }  # fmt: skip
        yield given, shown


def _show(ref: LatentRef, out: Store, dataset: DatasetRef) -> None:
    key = artifact_key(dataset_slug(dataset.root), ref.use)
    markdown_artifact(key, latents_page(ref, out), ref.use.capitalize())
