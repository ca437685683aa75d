"""The uses of a model's latents in one table: what each does, and what it needs of the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect_augment.latents.adapter import View, open_view
from prefect_augment.latents.anomalies import anomalies
from prefect_augment.latents.attribute_shift import shift_attribute
from prefect_augment.latents.base import Job, Progress
from prefect_augment.latents.capabilities import Ability
from prefect_augment.latents.classify import classify
from prefect_augment.latents.embed import embed
from prefect_augment.latents.interpolate import interpolate
from prefect_augment.latents.reconstruct import denoise, reconstruct
from prefect_augment.params import Output
from prefect_augment.params.base import Params
from prefect_augment.params.latents import LATENT_COMMANDS
from prefect_augment.schema import DatasetRef, LatentRef, LatentUse, ModelRef
from prefect_augment.storage import Store


@dataclass(frozen=True)
class Use:
    """One use of a model's latents; :data:`.LATENT_COMMANDS` has its name and its parameters."""

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
    chosen, known = USES[use], LATENT_COMMANDS[use]
    params = params or (known.params() if known.params else None)
    sections = {known.section: params} if params else {}
    job = Job.of(
        use, dataset=dataset, model=model, store=store, output=output or Output(), out=out,
        params=sections, on_progress=on_progress,
    )  # fmt: skip
    return job.folder.existing() or chosen.work(open_view(job, chosen.ability), params)
