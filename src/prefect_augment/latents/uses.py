"""The uses of a model's latents in one table: what each does, and what it needs of the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect_augment.latents.adapter import View, open_view
from prefect_augment.latents.anomalies import anomalies
from prefect_augment.latents.attribute_shift import shift_attribute
from prefect_augment.latents.base import Job
from prefect_augment.latents.capabilities import Ability
from prefect_augment.latents.classify import classify
from prefect_augment.latents.embed import embed
from prefect_augment.latents.interpolate import interpolate
from prefect_augment.latents.reconstruct import denoise, reconstruct
from prefect_augment.schema import LatentRef, LatentUse


@dataclass(frozen=True)
class Use:
    """One use of a model's latents; ``params.latents.LATENT_COMMANDS`` has its name and its parameters."""

    work: Callable[[View, Any], LatentRef]
    ability: Ability = "latents"


USES: dict[LatentUse, Use] = {
    "embeddings": Use(embed),
    "anomalies": Use(anomalies),
    "reconstructions": Use(reconstruct),
    "denoised": Use(denoise, "denoising"),
    "interpolations": Use(interpolate),
    "shifts": Use(shift_attribute),
    "classes": Use(classify, "likelihoods"),
}


def use_latents(job: Job) -> LatentRef:
    """Apply the model to the records, or return the existing result; ParameterError if it lacks the ability."""
    use = USES[job.use]
    return job.folder.existing() or use.work(open_view(job, use.ability), job.params)
