"""Commands on the latents of a trained model, all made by :func:`_command`."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from prefect_augment.cli.options import (
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
    flow_parameters,
    holdout_params,
    lay_over,
    run_flow,
)

__all__ = [
    "anomalies",
    "classify",
    "denoise",
    "embed",
    "interpolate",
    "reconstruct",
    "shift_attribute",
]

Dest = Annotated[
    str,
    typer.Argument(help="Folder or URL of the dataset; the model is found or trained below it."),
]
Model = Annotated[str, typer.Option(help="A kind of model; auto: the first that can do it.")]
Part = Annotated[
    list[str] | None,
    typer.Option(help="Only training, validation or holdout; repeatable. All by default."),
]
Out = Annotated[
    str, typer.Option("--out", help="Folder or URL for the result; else beside the dataset.")
]
Minutes = Annotated[float | None, typer.Option(help="Budget of the run that trains the model.")]

AsClass = Annotated[
    str, typer.Option(help="A class that all records are decoded as; else their own.")
]

Options = dict[str, dict[str, Any]]  # by the flow's parameter that they are part of


def _shared(
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
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = None,
    params: ParamsFile = None,
) -> dict[str, Any]:
    """Return the parameters that all flows take: the file's, with the options laid over them."""
    parameters = flow_parameters(
        params, dest=dest, seed=seed, model=model, uri=source, label=label, group_column=group,
        include=include, exclude=exclude, **holdout_params(holdout),
    )  # fmt: skip
    lay_over(parameters, "output", parts=part, uri=out)
    lay_over(parameters, "budget", minutes=minutes, steps=steps)
    return parameters


N_PLACES = 3  # shared parameters before a command's own: source, dest, label


def _command(own_options: Callable[..., Options]) -> Callable[..., None]:
    """Make a command of a function that turns its own options into params."""
    shared = list(inspect.signature(_shared, eval_str=True).parameters.values())
    own = list(inspect.signature(own_options, eval_str=True).parameters.values())
    as_json = inspect.Parameter(
        "as_json", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=Json
    )

    def command(**options: Any) -> None:
        own_values = {p.name: options.pop(p.name) for p in own}
        quiet = options.pop("as_json")
        parameters = _shared(**options)
        for group, values in own_options(**own_values).items():
            lay_over(parameters, group, **values)
        run_flow(f"latents:{own_options.__name__}", parameters, "show_latents", as_json=quiet)

    arguments = [*shared[:N_PLACES], *own, *shared[N_PLACES:], as_json]
    command.__name__, command.__doc__ = own_options.__name__, own_options.__doc__
    command.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in arguments}
    return command


@_command
def embed() -> Options:
    """Write a vector per record, for search, clustering and classifiers."""
    return {}


@_command
def anomalies(
    train_on: Annotated[
        list[str] | None,
        typer.Option(help="A normal class, which alone is learnt; repeatable. All by default."),
    ] = None,
    normal_share: Annotated[
        float | None,
        typer.Option(help="Share of normal validation records that may be flagged (0.05)."),
    ] = None,
) -> Options:
    """Score how anomalous every record is, and flag those beyond what is normal."""
    return {"anomalies": {"train_on": train_on, "normal_share": normal_share}}


@_command
def reconstruct(as_class: AsClass = "") -> Options:
    """Write every record beside what the model makes of its vector, with the error per column."""
    return {"reconstruction": {"as_class": as_class}}


@_command
def denoise(
    noise: Annotated[
        float | None,
        typer.Option(help="Standard deviation of the images' noise, white being 1 (0.1)."),
    ] = None,
) -> Options:
    """Write every image without its noise."""
    return {"denoising": {"noise": noise}}


@_command
def interpolate(
    start: Annotated[
        str, typer.Option("--from", help="A class or an aug_id; the largest class by default.")
    ] = "",
    end: Annotated[
        str, typer.Option("--to", help="A class or an aug_id; the smallest class by default.")
    ] = "",
    n_steps: Annotated[int | None, typer.Option("--records", help="Records to make (9).")] = None,
    path: Annotated[
        str, typer.Option(help="class (changes in the middle), or straight; class by default.")
    ] = "",
) -> Options:
    """Make the records between one and another, or between two classes."""
    return {"interpolation": {"start": start, "end": end, "n_steps": n_steps, "path": path}}


@_command
def shift_attribute(
    column: Annotated[
        str, typer.Option(help="The column that holds the attribute; the label by default.")
    ] = "",
    start: Annotated[
        str, typer.Option("--from", help="Away from this value; the most frequent by default.")
    ] = "",
    end: Annotated[
        str, typer.Option("--to", help="Towards this value; the rarest by default.")
    ] = "",
    strength: Annotated[
        list[float] | None,
        typer.Option(help="How much of the difference is added; repeatable (0, 0.5, 1, 1.5)."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A class or an aug_id to shift; repeatable. Those of --from by default."),
    ] = None,
    as_class: AsClass = "",
) -> Options:
    """Add an attribute to records, in several strengths: arithmetic on their latent vectors."""
    return {
        "attribute_shift": {
            "column": column,
            "start": start,
            "end": end,
            "strengths": strength,
            "only": only,
            "as_class": as_class,
        }
    }


@_command
def classify(
    prior: Annotated[
        str,
        typer.Option(
            help="balanced: all classes equally likely; observed: as in the training records."
        ),
    ] = "",
) -> Options:
    """Write the class in which the model itself finds every record most likely."""
    return {"classification": {"prior": prior}}
