"""The uses of a model's latents, in one table: what each needs of the model, and what it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect_augment.latents.anomalies import anomalies
from prefect_augment.latents.attribute_shift import shift_attribute
from prefect_augment.latents.base import Job, Progress
from prefect_augment.latents.capabilities import Ability
from prefect_augment.latents.classify import classify
from prefect_augment.latents.embed import embed
from prefect_augment.latents.interpolate import interpolate
from prefect_augment.latents.reconstruct import denoise, reconstruct
from prefect_augment.params import (
    Anomalies,
    AttributeShift,
    Classification,
    Denoising,
    Interpolation,
    Output,
    Reconstruction,
)
from prefect_augment.params.base import Params
from prefect_augment.schema.base import DatasetRef, LatentRef, LatentUse, ModelRef
from prefect_augment.storage.store import Store

__all__ = ["USES", "Use", "use_latents"]


@dataclass(frozen=True)
class Use:
    """One use: what the model has to be able to, what the use takes, and what does it.

    Attributes
    ----------
    command : str
        The name of its flow and its command.
    does : str
        What it does, in a sentence.
    work : callable
        ``(job, params, on_progress) -> LatentRef``.
    params : type of Params, optional
    section : str
        The name of its parameters, in flows and in keys; empty where it takes none.
    ability : str
        Of :mod:`prefect_augment.latents.capabilities`.
    """

    command: str
    does: str
    work: Callable[[Job, Any, Progress | None], LatentRef]
    params: type[Params] | None = None
    section: str = ""
    ability: Ability = "latents"


USES: dict[LatentUse, Use] = {
    "embeddings": Use(
        "embed", "Write a vector per record, for search, clustering and classifiers.", embed
    ),
    "anomalies": Use(
        "anomalies",
        "Score how strange every record is, and flag those beyond what is normal on validation records.",
        anomalies,
        Anomalies,
        "anomalies",
    ),
    "reconstructions": Use(
        "reconstruct",
        "Write every record beside what the model makes of its vector, with the error per column.",
        reconstruct,
        Reconstruction,
        "reconstruction",
    ),
    "denoised": Use(
        "denoise",
        "Write every image without its noise.",
        denoise,
        Denoising,
        "denoising",
        "denoising",
    ),
    "interpolations": Use(
        "interpolate",
        "Make the records between one and another, or between two classes.",
        interpolate,
        Interpolation,
        "interpolation",
    ),
    "shifts": Use(
        "shift-attribute",
        "Add an attribute to records, in several strengths: arithmetic on their latent vectors.",
        shift_attribute,
        AttributeShift,
        "attribute_shift",
    ),
    "classes": Use(
        "classify",
        "Write the class in which the model itself finds every record most likely.",
        classify,
        Classification,
        "classification",
        "likelihoods",
    ),
}


def use_latents(
    use: LatentUse,
    dataset: DatasetRef,
    model: ModelRef,
    store: Store,
    *,
    params: Params | None = None,
    output: Output | None = None,
    out: Store | None = None,
    on_progress: Progress | None = None,
) -> LatentRef:
    """Put a trained model to use on staged records; what was made before is found again.

    Parameters
    ----------
    use : str
        A name of :data:`USES`; the folder beside the dataset is called like it, with an underscore.
    dataset : DatasetRef
        Any staged records with the columns that the model was trained on: ingested ones, candidates, a
        published version.
    model : ModelRef
        A model with the ability that the use needs.
    store : Store
        The root that dataset and model lie under.
    params : Params, optional
        Of the class that the use takes; its defaults where not given.
    output : Output, optional
        Which parts are read, of records that are divided into training, validation and hold-out.
    out : Store, optional
        Where the result goes; beside the dataset where not given.
    on_progress : callable, optional
        Called with the fraction done and what is being done.

    Returns
    -------
    LatentRef
        Where the result is, and what sums it up; each use says what its columns are.

    Raises
    ------
    ParameterError
        If the model lacks the ability, or no record is in the parts that are asked for.
    """
    chosen = USES[use]
    params = params or (chosen.params() if chosen.params else None)
    sections = {chosen.section: params} if params else {}
    job = Job.of(
        use, dataset=dataset, model=model, store=store, output=output, out=out, params=sections
    )
    known = job.folder.found()
    return known if known is not None else chosen.work(job, params, on_progress)
