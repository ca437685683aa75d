"""What a trained model says of records: embed, anomalies, reconstruct, interpolate, classify.

Each finds the model that an earlier run of the same parameters trained below the destination, or
trains it, and leaves its result beside the dataset.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect import flow

from prefect_augment.datatypes import DatasetRef, LatentRef, LatentResult, ModelRef
from prefect_augment.errors import ParameterError
from prefect_augment.flows._inputs import default_destination, default_source, running
from prefect_augment.params import (
    Anomalies,
    AutoModel,
    Budget,
    Classification,
    Destination,
    Interpolation,
    ModelParams,
    Output,
    Source,
)
from prefect_augment.stages.abilities import Ability, able_model
from prefect_augment.stages.checks import check_parameters
from prefect_augment.stages.latents_page import latents_sentence
from prefect_augment.stages.result import peak_rss_bytes
from prefect_augment.storage import contains
from prefect_augment.tasks._runtime import finish, run
from prefect_augment.tasks.ingest import ingest_dataset
from prefect_augment.tasks.latents import (
    classify_records,
    embed_records,
    interpolate_records,
    reconstruct_records,
    score_anomalies,
    select_classes,
)
from prefect_augment.tasks.train import train_model

__all__ = ["anomalies", "classify", "embed", "interpolate", "reconstruct"]


@flow(name="embed", flow_run_name="embed {source.uri}", persist_result=False)
def embed(
    source: Source = Source(),
    destination: Destination = Destination(),
    model: ModelParams = AutoModel(),
    budget: Budget = Budget(),
    output: Output = Output(),
    seed: int = 0,
) -> LatentResult:
    """Write a vector per record, for search, clustering and classifiers.

    Args:
        source: Where the labelled records are. Empty: the built-in example.
        destination: Below which the model is found or trained, and beside which vectors go.
        model: One with a latent space; auto takes the first kind that has one.
        budget: How much effort training may take.
        output: Which records, and where the vectors go.
        seed: Seed of training.
    """
    with _run(source, destination, model, budget, output, seed, "latents") as job:
        return job.end(run(embed_records, job.dataset, job.model, output=output))


@flow(name="anomalies", flow_run_name="anomalies {source.uri}", persist_result=False)
def anomalies(
    source: Source = Source(),
    destination: Destination = Destination(),
    anomalies: Anomalies = Anomalies(),
    model: ModelParams = AutoModel(),
    budget: Budget = Budget(),
    output: Output = Output(),
    seed: int = 0,
) -> LatentResult:
    """Score how strange every record is, and flag those beyond what is normal on val.

    Args:
        source: Where the labelled records are. Empty: the built-in example.
        destination: Below which the model is found or trained, and beside which scores go.
        anomalies: What is normal, and how much of it may be flagged.
        model: One with a latent space; auto takes the first kind that has one.
        budget: How much effort training may take.
        output: Which records, and where the scores go.
        seed: Seed of training.
    """
    only = tuple(anomalies.train_on)
    with _run(source, destination, model, budget, output, seed, "latents", only=only) as job:
        share = anomalies.normal_share
        scored = run(score_anomalies, job.dataset, job.model, normal_share=share, output=output)
        return job.end(scored)


@flow(name="reconstruct", flow_run_name="reconstruct {source.uri}", persist_result=False)
def reconstruct(
    source: Source = Source(),
    destination: Destination = Destination(),
    model: ModelParams = AutoModel(),
    budget: Budget = Budget(),
    output: Output = Output(),
    seed: int = 0,
) -> LatentResult:
    """Write every record beside what the model makes of its vector, with the error per column.

    Args:
        source: Where the labelled records are. Empty: the built-in example.
        destination: Below which the model is found or trained, and beside which the result goes.
        model: One with a latent space; auto takes the first kind that has one.
        budget: How much effort training may take.
        output: Which records, and where the result goes.
        seed: Seed of training.
    """
    with _run(source, destination, model, budget, output, seed, "latents") as job:
        return job.end(run(reconstruct_records, job.dataset, job.model, output=output))


@flow(name="interpolate", flow_run_name="interpolate {source.uri}", persist_result=False)
def interpolate(
    source: Source = Source(),
    destination: Destination = Destination(),
    interpolation: Interpolation = Interpolation(),
    model: ModelParams = AutoModel(),
    budget: Budget = Budget(),
    output: Output = Output(),
    seed: int = 0,
) -> LatentResult:
    """Make the records on the way from one to another, or from one class to another.

    Args:
        source: Where the labelled records are. Empty: the built-in example.
        destination: Below which the model is found or trained, and beside which the strip goes.
        interpolation: From where to where, in how many steps.
        model: One with a latent space; auto takes the first kind that has one.
        budget: How much effort training may take.
        output: Where records are looked for, and where the strip goes.
        seed: Seed of training.
    """
    with _run(source, destination, model, budget, output, seed, "latents") as job:
        return job.end(
            run(interpolate_records, job.dataset, job.model, interpolation, output=output)
        )


@flow(name="classify", flow_run_name="classify {source.uri}", persist_result=False)
def classify(
    source: Source = Source(),
    destination: Destination = Destination(),
    classification: Classification = Classification(),
    model: ModelParams = AutoModel(),
    budget: Budget = Budget(),
    output: Output = Output(),
    seed: int = 0,
) -> LatentResult:
    """Say of every record in which class the model itself finds it most likely.

    Args:
        source: Where the labelled records are. Empty: the built-in example.
        destination: Below which the model is found or trained, and beside which the result goes.
        classification: How likely classes are before a record is seen.
        model: One that knows how likely a record is; auto takes the first kind that does.
        budget: How much effort training may take.
        output: Which records, and where the result goes.
        seed: Seed of training.
    """
    with _run(source, destination, model, budget, output, seed, "likelihoods") as job:
        prior = classification.prior
        return job.end(run(classify_records, job.dataset, job.model, prior=prior, output=output))


@dataclass(frozen=True)
class _Run:
    """A run that has its records and its model."""

    dataset: DatasetRef
    model: ModelRef
    seed: int
    started: float

    def end(self, ref: LatentRef) -> LatentResult:
        """Return what the run says of itself, with a sentence on its page."""
        result = LatentResult(
            uri=f"{ref.root}/{ref.folder}",
            latents=ref,
            model=self.model,
            seed=self.seed,
            seconds=round(time.monotonic() - self.started, 2),
            peak_rss_bytes=peak_rss_bytes(),
            notes=(*self.model.notes, *ref.notes),
        )
        return finish(result, latents_sentence(ref))


@contextmanager
def _run(
    source: Source,
    destination: Destination,
    model: ModelParams,
    budget: Budget,
    output: Output,
    seed: int,
    ability: Ability,
    *,
    only: tuple[str, ...] = (),
) -> Iterator[_Run]:
    """Read the records and find or train a model that is able, on some classes only where asked."""
    started = time.monotonic()
    check_parameters(source=source, destination=destination, budget=budget, model=model)
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
        learnt = run(select_classes, dataset, list(only)) if only else dataset
        trained = run(train_model, learnt, model, budget=budget, seed=seed)
        yield _Run(dataset, trained, seed, started)
