"""Latents: a trained model's vectors, scores and reconstructions of records."""

from collections.abc import Sequence

from prefect_augment.latents import inputs, uses
from prefect_augment.latents.base import Job
from prefect_augment.latents.page import latents_page
from prefect_augment.params import Destination, Output
from prefect_augment.params.base import Params
from prefect_augment.registry import load_model_class
from prefect_augment.schema import DatasetRef, LatentRef, LatentUse, ModelRef
from prefect_augment.tasks._display import artifact_key, dataset_slug, markdown_artifact, progress
from prefect_augment.tasks._limits import gpu_slot
from prefect_augment.tasks._runtime import open_block_store, open_destination, open_root, step


@step("open {destination.uri}")
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
    ref = inputs.version_records(open_destination(destination), version or None)
    return ref.model_copy(update={"block": destination.storage_block})


@step(lambda p: f"select {', '.join(p['classes'])}")
def select_classes(dataset: DatasetRef, classes: Sequence[str]) -> DatasetRef:
    """Stage the training and validation records of some classes, to train a model on these alone.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records.
    classes : sequence of str

    Returns
    -------
    DatasetRef
        Records with the ids and parts that they have in ``dataset``.
    """
    ref = inputs.select_classes(dataset, classes=classes, store=open_root(dataset))
    return ref.model_copy(update={"block": dataset.block})


@step(lambda p: f"{p['use']} of {dataset_slug(p['dataset'].root)} by {p['model'].kind}")
def use_latents(
    use: LatentUse,
    dataset: DatasetRef,
    model: ModelRef,
    params: Params | None = None,
    *,
    output: Output | None = None,
) -> LatentRef:
    """Apply a trained model to staged records, and show the result on the run's page.

    Parameters
    ----------
    use : {"embeddings", "anomalies", "reconstructions", "denoised", "interpolations", "shifts", "classes"}
        See :mod:`prefect_augment.latents.uses`.
    dataset : DatasetRef
        Ingested records, candidates, or a published version, with the columns that the model learnt.
    model : ModelRef
        A model with the ability that the use needs.
    params : Params, optional
        ``Anomalies``, ``Reconstruction``, ``Denoising``, ``Interpolation``, ``AttributeShift`` or
        ``Classification``, with their defaults if None.
    output : Output, optional
        Beside the dataset by default.

    Returns
    -------
    LatentRef
        A summary, and Parquet for ``open_latents``.
    """
    output = output or Output()
    network = load_model_class(model.kind, modality=dataset.modality).trained_in_steps
    with progress(use, dataset.root) as report, gpu_slot(network=network):
        store = open_root(dataset)
        out = open_block_store(output.uri, output.storage_block) if output.uri else None
        job = Job.of(
            use, dataset, model, store, params=params, output=output, out=out, on_progress=report
        )
        ref = uses.use_latents(job)
        key = artifact_key(ref.use, dataset_slug(dataset.root))
        markdown_artifact(key, latents_page(ref, out or store), ref.use.capitalize())
        block = output.storage_block if output.uri else dataset.block
        return ref.model_copy(update={"block": block})
