"""What a trained model says of records: ``embed``, ``anomalies``, ``reconstruct``, ``interpolate``, ``classify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prefect_augment.commands.shared import (
    Exclude,
    Group,
    Holdout,
    Include,
    Json,
    Label,
    ParamsFile,
    Seed,
    Source,
    Steps,
    holdout_wish,
    lay_over,
    parameter_errors,
    prefect_session,
    print_result,
    read_params,
)

__all__ = ["anomalies", "classify", "embed", "interpolate", "reconstruct"]

Dest = Annotated[
    str,
    typer.Argument(help="Folder or URL of the dataset; the model is found or trained below it."),
]
Model = Annotated[str, typer.Option(help="A kind of model; auto: the first that is able.")]
Part = Annotated[
    list[str] | None, typer.Option(help="Only fit, val or holdout; repeatable. All by default.")
]
Out = Annotated[
    str, typer.Option("--out", help="Folder or URL for the result; else beside the dataset.")
]
Minutes = Annotated[float, typer.Option(help="Budget of the run that trains the model.")]


def embed(
    source: Source,
    dest: Dest,
    label: Label = "",
    model: Model = "",
    part: Part = None,
    out: Out = "",
    holdout: Holdout = "",
    group: Group = "",
    include: Include = None,
    exclude: Exclude = None,
    minutes: Minutes = 0.0,
    steps: Steps = 0,
    seed: Seed = 0,
    params: ParamsFile = None,
    as_json: Json = False,
) -> None:
    """Write a vector per record, for search, clustering and classifiers."""
    given = _given(source, dest, label, model, part, out, holdout, group, include, exclude,
                   minutes, steps, seed, params)  # fmt: skip
    _run("embed", given, as_json=as_json)


def anomalies(
    source: Source,
    dest: Dest,
    label: Label = "",
    train_on: Annotated[
        list[str] | None,
        typer.Option(help="A normal class, which alone is learnt; repeatable. All by default."),
    ] = None,
    normal_share: Annotated[
        float, typer.Option(help="Share of normal val records that may be flagged (0.05).")
    ] = 0.0,
    model: Model = "",
    part: Part = None,
    out: Out = "",
    holdout: Holdout = "",
    group: Group = "",
    include: Include = None,
    exclude: Exclude = None,
    minutes: Minutes = 0.0,
    steps: Steps = 0,
    seed: Seed = 0,
    params: ParamsFile = None,
    as_json: Json = False,
) -> None:
    """Score how strange every record is, and flag those beyond what is normal."""
    given = _given(source, dest, label, model, part, out, holdout, group, include, exclude,
                   minutes, steps, seed, params)  # fmt: skip
    lay_over(given, "anomalies", train_on=train_on, normal_share=normal_share)
    _run("anomalies", given, as_json=as_json)


def reconstruct(
    source: Source,
    dest: Dest,
    label: Label = "",
    model: Model = "",
    part: Part = None,
    out: Out = "",
    holdout: Holdout = "",
    group: Group = "",
    include: Include = None,
    exclude: Exclude = None,
    minutes: Minutes = 0.0,
    steps: Steps = 0,
    seed: Seed = 0,
    params: ParamsFile = None,
    as_json: Json = False,
) -> None:
    """Write every record beside what the model makes of its vector, with the error per column."""
    given = _given(source, dest, label, model, part, out, holdout, group, include, exclude,
                   minutes, steps, seed, params)  # fmt: skip
    _run("reconstruct", given, as_json=as_json)


def interpolate(
    source: Source,
    dest: Dest,
    label: Label = "",
    start: Annotated[
        str, typer.Option("--from", help="A class or an aug_id; the largest class by default.")
    ] = "",
    end: Annotated[
        str, typer.Option("--to", help="A class or an aug_id; the smallest class by default.")
    ] = "",
    n_steps: Annotated[int, typer.Option("--records", help="Records to make (9).")] = 0,
    model: Model = "",
    part: Part = None,
    out: Out = "",
    holdout: Holdout = "",
    group: Group = "",
    include: Include = None,
    exclude: Exclude = None,
    minutes: Minutes = 0.0,
    steps: Steps = 0,
    seed: Seed = 0,
    params: ParamsFile = None,
    as_json: Json = False,
) -> None:
    """Make the records on the way from one to another, or from one class to another."""
    given = _given(source, dest, label, model, part, out, holdout, group, include, exclude,
                   minutes, steps, seed, params)  # fmt: skip
    lay_over(given, "interpolation", start=start, end=end, n_steps=n_steps)
    _run("interpolate", given, as_json=as_json)


def classify(
    source: Source,
    dest: Dest,
    label: Label = "",
    prior: Annotated[
        str, typer.Option(help="balanced: all classes equally likely; observed: as in fit.")
    ] = "",
    model: Model = "",
    part: Part = None,
    out: Out = "",
    holdout: Holdout = "",
    group: Group = "",
    include: Include = None,
    exclude: Exclude = None,
    minutes: Minutes = 0.0,
    steps: Steps = 0,
    seed: Seed = 0,
    params: ParamsFile = None,
    as_json: Json = False,
) -> None:
    """Say of every record in which class the model itself finds it most likely."""
    given = _given(source, dest, label, model, part, out, holdout, group, include, exclude,
                   minutes, steps, seed, params)  # fmt: skip
    lay_over(given, "classification", prior=prior)
    _run("classify", given, as_json=as_json)


def _given(
    source: str,
    dest: str,
    label: str,
    model: str,
    part: list[str] | None,
    out: str,
    holdout: str,
    group: str,
    include: list[str] | None,
    exclude: list[str] | None,
    minutes: float,
    steps: int,
    seed: int,
    params: Path | None,
) -> dict[str, Any]:
    """Return the flow's parameters: those of the file with the options laid over them."""
    given: dict[str, Any] = read_params(params)
    lay_over(given, "source", uri=source, label=label, group_column=group, **holdout_wish(holdout))
    lay_over(given, "source", include=include, exclude=exclude)
    lay_over(given, "destination", uri=dest)
    lay_over(given, "output", parts=part, uri=out)
    lay_over(given, "budget", minutes=minutes, steps=steps)
    if model:
        given["model"] = {**given.get("model", {}), "kind": model}
    given.setdefault("seed", seed)
    return given


def _run(name: str, given: dict[str, Any], *, as_json: bool) -> None:
    """Run a flow, and print what it says."""
    with prefect_session(quiet=as_json), parameter_errors():
        from prefect_augment.flows import latents

        flow = getattr(latents, name)
        result = flow(**flow.validate_parameters(given))
    from prefect_augment.display import show_latents

    print_result(result, show_latents, as_json=as_json)
