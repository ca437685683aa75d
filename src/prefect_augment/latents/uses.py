"""The uses of a model's latents in one table: what each needs of the model, and its parameters."""

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
from prefect_augment.schema import DatasetRef, LatentRef, LatentUse, ModelRef
from prefect_augment.storage import Store


@dataclass(frozen=True)
class Use:
    """One use of a model's latents."""

    command: str  # name of its flow and its command
    does: str  # a sentence for the form
    work: Callable[[Job, Any, Progress | None], LatentRef]
    params: type[Params] | None = None
    section: str = ""  # name of its parameters in flows and keys, if any
    ability: Ability = "latents"


USES: dict[LatentUse, Use] = {
    "embeddings": Use(
        "embed", "Write a vector per record, for search, clustering and classifiers.", embed
    ),
    "anomalies": Use(
        "anomalies",
        "Score how anomalous every record is, and flag those beyond what is normal on validation records.",
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
    """Apply a trained model to staged records, or return the existing result.

    The arguments are those of :func:`prefect_augment.tasks.latents.use_latents`. ``store`` is the root of
    dataset and model; the result goes to ``out``, or beside the dataset. Raises ParameterError if the model
    lacks the ability, or no record is in the requested parts.
    """
    chosen = USES[use]
    params = params or (chosen.params() if chosen.params else None)
    sections = {chosen.section: params} if params else {}
    job = Job.of(
        use, dataset=dataset, model=model, store=store, output=output, out=out, params=sections
    )
    return job.folder.existing() or chosen.work(job, params, on_progress)
