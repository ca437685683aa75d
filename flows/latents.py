"""What a trained model says of records, or makes of them: embed, anomalies, reconstruct, and so on.

Each finds the model that an earlier run of the same parameters trained below the destination, or
trains it, and leaves its result beside the dataset. What all of them take and do is :func:`_use`.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import Flow, flow

from prefect_augment.errors import ParameterError
from prefect_augment.flows._inputs import (
    check_parameters,
    default_destination,
    default_source,
    running,
)
from prefect_augment.latents.capabilities import Ability, able_model
from prefect_augment.latents.page import latents_sentence
from prefect_augment.params import (
    Anomalies,
    AttributeShift,
    AutoModel,
    Budget,
    Classification,
    Denoising,
    Destination,
    Interpolation,
    ModelParams,
    Output,
    Reconstruction,
    RunParams,
    Source,
)
from prefect_augment.report.run_summary import peak_rss_bytes
from prefect_augment.schema.base import BalancePlan, DatasetRef, LatentResult
from prefect_augment.schema.experiment import Experiment
from prefect_augment.storage.store import contains
from prefect_augment.tasks._runtime import finish, run
from prefect_augment.tasks.ingest import ingest_dataset
from prefect_augment.tasks.latents import (
    classify_records,
    denoise_records,
    embed_records,
    interpolate_records,
    reconstruct_records,
    score_anomalies,
    select_classes,
    shift_records,
)
from prefect_augment.tasks.train import train_model

__all__ = [
    "anomalies",
    "classify",
    "denoise",
    "embed",
    "interpolate",
    "reconstruct",
    "shift_attribute",
]


@dataclass(frozen=True)
class _Run:
    """A run that has read its records."""

    dataset: DatasetRef
    params: RunParams
    output: Output
    started: float

    def use(self, task: Any, *wishes: Any, only: Sequence[str] = (), **given: Any) -> LatentResult:
        """Find or train the model, on some classes only where asked, and put it to use."""
        learnt = run(select_classes, self.dataset, list(only)) if only else self.dataset
        plan = BalancePlan.without_amounts()
        model = run(train_model, Experiment(dataset=learnt, plan=plan, params=self.params))
        ref = run(task, self.dataset, model, *wishes, output=self.output, **given)
        result = LatentResult(
            uri=f"{ref.root}/{ref.folder}",
            latents=ref,
            model=model,
            seed=self.params.seed,
            seconds=round(time.monotonic() - self.started, 2),
            peak_rss_bytes=peak_rss_bytes(),
            notes=(*model.notes, *ref.notes),
        )
        return finish(result, latents_sentence(ref))


# What every use takes, before its own wish and after it; the words stand in the form.
_BEFORE = {
    "source": (Source, Source(), "Where the labelled records are. Empty: the built-in example."),
    "destination": (
        Destination,
        Destination(),
        "Below which the model is found or trained, and beside which the result goes.",
    ),
}
_AFTER = {
    "model": (ModelParams, AutoModel(), "One that is able; auto takes the first kind that is."),
    "budget": (Budget, Budget(), "How much effort the run may take."),
    "output": (Output, Output(), "Which records are used, and where the result is kept."),
    "seed": (int, 0, "Seed of training."),
}


def _use(
    ability: Ability,
) -> Callable[[Callable[..., LatentResult]], Flow[..., LatentResult]]:
    """Make a flow of what is done with the records, which may take one wish of its own."""

    def decorate(work: Callable[..., LatentResult]) -> Flow[..., LatentResult]:
        own = list(inspect.signature(work, eval_str=True).parameters.values())[1:]
        signature = inspect.Signature(
            [*_parameters(_BEFORE), *own, *_parameters(_AFTER)], return_annotation=LatentResult
        )

        @functools.wraps(work)
        def use(*args: Any, **kwargs: Any) -> LatentResult:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            wishes = {p.name: bound.arguments.pop(p.name) for p in own}
            return _run(ability, lambda job: work(job, **wishes), **bound.arguments)

        words = [f"    {name}: {text}" for name, (*_, text) in (_BEFORE | _AFTER).items()]
        doc = inspect.getdoc(work) or ""
        use.__doc__ = "\n".join([doc, *([] if own else ["", "Args:"]), *words])
        use.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        use.__signature__ = signature  # type: ignore[attr-defined]
        del use.__wrapped__
        name = work.__name__.replace("_", "-")
        return flow(name=name, flow_run_name=f"{name} {{source.uri}}", persist_result=False)(use)

    return decorate


def _parameters(given: dict[str, tuple[Any, Any, str]]) -> list[inspect.Parameter]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [
        inspect.Parameter(name, kind, annotation=annotation, default=default)
        for name, (annotation, default, _) in given.items()
    ]


def _run(
    ability: Ability,
    work: Callable[[_Run], LatentResult],
    *,
    source: Source,
    destination: Destination,
    model: ModelParams,
    budget: Budget,
    output: Output,
    seed: int,
) -> LatentResult:
    """Read the records, and do the work with a model that is able."""
    started = time.monotonic()
    params = RunParams(model=model, budget=budget, seed=seed)
    check_parameters(source, destination, params)
    if not isinstance(model, AutoModel):  # what auto is depends on the data
        able_model(model, ability)
    destination = default_destination(destination, source)
    if output.uri and source.uri and contains(source.uri.split("*")[0].rstrip("/"), output.uri):
        raise ParameterError(
            f"output.uri {output.uri!r} lies inside the source {source.uri!r}, so the next run would "
            "read its own result; choose another."
        )
    with running(destination, publishes=False):
        source = default_source(source, destination)
        dataset = run(ingest_dataset, source, destination, seed=seed)
        model = able_model(model, ability, modality=dataset.modality)
        return work(_Run(dataset, params.model_copy(update={"model": model}), output, started))


# --- the flows ------------------------------------------------------------------------------------


@_use("latents")
def embed(job: _Run) -> LatentResult:
    """Write a vector per record, for search, clustering and classifiers."""
    return job.use(embed_records)


@_use("latents")
def anomalies(job: _Run, anomalies: Anomalies = Anomalies()) -> LatentResult:
    """Score how strange every record is, and flag those beyond what is normal on validation records.

    Args:
        anomalies: What is normal, and how much of it may be flagged.
    """
    share = anomalies.normal_share
    return job.use(score_anomalies, only=anomalies.train_on, normal_share=share)


@_use("latents")
def reconstruct(job: _Run, reconstruction: Reconstruction = Reconstruction()) -> LatentResult:
    """Write every record beside what the model makes of its vector, with the error per column.

    Args:
        reconstruction: As what records are reconstructed.
    """
    return job.use(reconstruct_records, as_class=reconstruction.as_class)


@_use("denoising")
def denoise(job: _Run, denoising: Denoising = Denoising()) -> LatentResult:
    """Write every image without its noise.

    Args:
        denoising: How much noise the images hold.
    """
    return job.use(denoise_records, noise=denoising.noise)


@_use("latents")
def interpolate(job: _Run, interpolation: Interpolation = Interpolation()) -> LatentResult:
    """Make the records on the way from one to another, or from one class to another.

    Args:
        interpolation: Between which records or classes, and in how many steps.
    """
    return job.use(interpolate_records, interpolation)


@_use("latents")
def shift_attribute(job: _Run, shift: AttributeShift = AttributeShift()) -> LatentResult:
    """Add an attribute to records, in several strengths: arithmetic on their latent vectors.

    Args:
        shift: Which attribute, of which records, and how much of it.
    """
    return job.use(shift_records, shift)


@_use("likelihoods")
def classify(job: _Run, classification: Classification = Classification()) -> LatentResult:
    """Say of every record in which class the model itself finds it most likely.

    Args:
        classification: What is held likely before a record is looked at.
    """
    return job.use(classify_records, prior=classification.prior)
