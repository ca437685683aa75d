"""Commands on the latents of a trained model, all made by :func:`_command`."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from typer import Argument, Option

from prefect_augment.cli import options as opt

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
    str, Argument(help="Folder or URL of the dataset; the model is found or trained below it.")
]
Model = Annotated[str, Option(help="A kind of model; auto: the first that can do it.")]
Part = Annotated[
    opt.Many, Option(help="Only training, validation or holdout; repeatable. All by default.")
]
Out = Annotated[str, Option("--out", help="Folder or URL for the result; else beside the dataset.")]
Minutes = Annotated[float | None, Option(help="Budget of the run that trains the model.")]

AsClass = Annotated[str, Option(help="A class that all records are decoded as; else their own.")]

Options = dict[str, dict[str, Any]]  # by the flow's parameter that they are part of


def _shared(
    source: opt.Source,
    dest: Dest,
    label: opt.Label = "",
    model: Model = "",
    part: Part = None,
    out: Out = "",
    holdout: opt.Holdout = "",
    group: opt.Group = "",
    include: opt.Include = None,
    exclude: opt.Exclude = None,
    minutes: Minutes = None,
    steps: opt.Steps = None,
    seed: opt.Seed = None,
    params: opt.ParamsFile = None,
) -> dict[str, Any]:
    """Return the parameters that all flows take: the file's, with the options laid over them."""
    parameters = opt.flow_parameters(
        params, dest=dest, seed=seed, model=model, uri=source, label=label, group_column=group,
        include=include, exclude=exclude, **opt.holdout_params(holdout),
    )  # fmt: skip
    opt.lay_over(parameters, "output", parts=part, uri=out)
    opt.lay_over(parameters, "budget", minutes=minutes, steps=steps)
    return parameters


N_PLACES = 3  # shared parameters before a command's own: source, dest, label


def _command(own_options: Callable[..., Options]) -> Callable[..., None]:
    """Make a command of a function that turns its own options into params."""
    shared = list(inspect.signature(_shared, eval_str=True).parameters.values())
    own = list(inspect.signature(own_options, eval_str=True).parameters.values())
    as_json = inspect.Parameter(
        "as_json", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=opt.Json
    )

    def command(**options: Any) -> None:
        own_values = {p.name: options.pop(p.name) for p in own}
        quiet = options.pop("as_json")
        parameters = _shared(**options)
        for group, values in own_options(**own_values).items():
            opt.lay_over(parameters, group, **values)
        opt.run_flow(f"latents:{own_options.__name__}", parameters, "show_latents", as_json=quiet)

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
        opt.Many, Option(help="A normal class, which alone is learnt; repeatable. All by default.")
    ] = None,
    normal_share: Annotated[
        float | None, Option(help="Share of normal validation records that may be flagged (0.05).")
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
        float | None, Option(help="Standard deviation of the images' noise, white being 1 (0.1).")
    ] = None,
) -> Options:
    """Write every image without its noise."""
    return {"denoising": {"noise": noise}}


@_command
def interpolate(
    start: Annotated[
        str, Option("--from", help="A class or an aug_id; the largest class by default.")
    ] = "",
    end: Annotated[
        str, Option("--to", help="A class or an aug_id; the smallest class by default.")
    ] = "",
    n_steps: Annotated[int | None, Option("--records", help="Records to make (9).")] = None,
    path: Annotated[
        str, Option(help="class (changes in the middle), or straight; class by default.")
    ] = "",
) -> Options:
    """Make the records between one and another, or between two classes."""
    return {"interpolation": {"start": start, "end": end, "n_steps": n_steps, "path": path}}


@_command
def shift_attribute(
    column: Annotated[
        str, Option(help="The column that holds the attribute; the label by default.")
    ] = "",
    start: Annotated[
        str, Option("--from", help="Away from this value; the most frequent by default.")
    ] = "",
    end: Annotated[str, Option("--to", help="Towards this value; the rarest by default.")] = "",
    strength: Annotated[
        list[float] | None,
        Option(help="How much of the difference is added; repeatable (0, 0.5, 1, 1.5)."),
    ] = None,
    only: Annotated[
        opt.Many,
        Option(help="A class or an aug_id to shift; repeatable. Those of --from by default."),
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
        Option(help="balanced: all classes equally likely; observed: as in the training records."),
    ] = "",
) -> Options:
    """Write the class in which the model itself finds every record most likely."""
    return {"classification": {"prior": prior}}
