"""A flow for each use of a trained model's latents, such as embeddings or anomaly scores.

Each finds the model that an earlier run with the same parameters trained below the destination, or
trains it, and leaves its result beside the dataset.
"""

import time
from inspect import Parameter, Signature
from typing import Any

from prefect import Flow

from prefect_augment import params
from prefect_augment.errors import ParameterError
from prefect_augment.flows._flow import flow, named_by_source
from prefect_augment.flows._inputs import check_parameters, ingested, reading
from prefect_augment.latents.capabilities import able_model
from prefect_augment.latents.page import latents_sentence
from prefect_augment.latents.uses import USES
from prefect_augment.params.base import Params
from prefect_augment.params.latents import LATENT_COMMANDS
from prefect_augment.report.run_summary import peak_rss_bytes
from prefect_augment.schema import BalancePlan, Experiment, LatentResult, LatentUse
from prefect_augment.storage import contains
from prefect_augment.tasks._runtime import finish, run
from prefect_augment.tasks.latents import select_classes, use_latents
from prefect_augment.tasks.train import train_model

# What every use takes, before its own params and after them; the words stand in the form.
_BEFORE = {
    "source": (params.Source, "Where the labelled records are. Empty: the built-in example."),
    "destination": (
        params.Destination,
        "Below which the model is found or trained, and beside which the result goes.",
    ),
}
_AFTER = {
    "model": (params.ModelParams, "A model that can do it; auto takes the first such kind."),
    "budget": (params.Budget, "How long the run may train."),
    "output": (params.Output, "Which records are used, and where the result is kept."),
    "seed": (int, "Seed of training."),
}


def _latents_flow(use: LatentUse) -> Flow[..., LatentResult]:
    """Return the flow of a use: its own params, if any, between those that all take."""
    of = LATENT_COMMANDS[use]
    own: dict[str, tuple[Any, str]] = {}
    if of.params:  # the form drops a description that equals the class's own
        own[of.section] = (of.params, f"{(of.params.__doc__ or '').strip()} Optional.")
    sections: dict[str, tuple[Any, str]] = {**_BEFORE, **own, **_AFTER}
    signature = Signature(
        [
            Parameter(
                name,
                Parameter.POSITIONAL_OR_KEYWORD,
                annotation=kind,
                default=params.AutoModel() if name == "model" else kind(),
            )
            for name, (kind, _) in sections.items()
        ],
        return_annotation=LatentResult,
    )

    def run_use(*args: Any, **kwargs: Any) -> LatentResult:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        own_params = bound.arguments.pop(of.section, None)
        return _run(use, own_params, **bound.arguments)

    lines = [f"    {name}: {text}" for name, (_, text) in sections.items()]
    run_use.__doc__ = "\n".join([of.does, "", "Args:", *lines])
    run_use.__name__ = run_use.__qualname__ = of.name.replace("-", "_")
    run_use.__annotations__ = {name: kind for name, (kind, _) in sections.items()}
    run_use.__signature__ = signature  # type: ignore[attr-defined]
    return flow(of.name, named_by_source)(run_use)


def _run(
    use: LatentUse,
    own_params: Params | None,
    *,
    source: params.Source,
    destination: params.Destination,
    model: params.ModelParams,
    budget: params.Budget,
    output: params.Output,
    seed: int,
) -> LatentResult:
    """Read the records, find or train a capable model, and use it."""
    started = time.monotonic()
    ability = USES[use].ability
    run_params = params.RunParams(model=model, budget=budget, seed=seed)
    check_parameters(source, destination, run_params)
    if not isinstance(model, params.AutoModel):  # what auto is depends on the data
        able_model(model, ability)
    if output.uri and source.uri and contains(source.uri.split("*")[0].rstrip("/"), output.uri):
        raise ParameterError(
            f"output.uri {output.uri!r} lies inside the source {source.uri!r}, so the next run would "
            "read its own result; choose another."
        )
    steps = ("ingest", "train", use)
    with reading(source, destination, steps=steps) as (source, destination, _):
        dataset = ingested(source, destination, seed=seed)
        trained_on = dataset
        if isinstance(own_params, params.Anomalies) and own_params.train_on:
            trained_on = run(select_classes, dataset, list(own_params.train_on))
        able = able_model(model, ability, modality=dataset.modality)
        run_params = run_params.model_copy(update={"model": able})
        plan = BalancePlan.without_amounts()
        trained = run(train_model, Experiment(dataset=trained_on, plan=plan, params=run_params))
        ref = run(use_latents, use, dataset, trained, own_params, output=output)
        result = LatentResult(
            uri=f"{ref.root}/{ref.folder}",
            latents=ref,
            model=trained,
            seed=seed,
            seconds=round(time.monotonic() - started, 2),
            peak_rss_bytes=peak_rss_bytes(),
            notes=(*trained.notes, *ref.notes),
        )
        return finish(result, latents_sentence(ref))


embed = _latents_flow("embeddings")
anomalies = _latents_flow("anomalies")
reconstruct = _latents_flow("reconstructions")
denoise = _latents_flow("denoised")
interpolate = _latents_flow("interpolations")
shift_attribute = _latents_flow("shifts")
classify = _latents_flow("classes")
