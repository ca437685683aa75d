"""Commands on the latents of a trained model, all made by :func:`_command`."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from typer import Argument, Option

from prefect_augment.cli import options as opt
from prefect_augment.params.base import Params
from prefect_augment.params.latents import LATENT_COMMANDS, LatentCommand

Dest = Annotated[
    str, Argument(help="Folder or URL of the dataset; the model is found or trained below it.")
]
Model = Annotated[str, Option(help="A kind of model; auto: the first that can do it.")]
Part = Annotated[
    opt.Many, Option(help="Only training, validation or holdout; repeatable. All by default.")
]
Out = Annotated[str, Option("--out", help="Folder or URL for the result; else beside the dataset.")]
Minutes = Annotated[float | None, Option(help="Budget of the run that trains the model.")]


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


# Fields of the parameters whose options are called otherwise.
NAMES = {"start": "--from", "end": "--to", "n_steps": "--records", "strengths": "--strength"}
N_PLACES = 3  # shared parameters before a command's own: source, dest, label


def _own_options(params: type[Params] | None) -> list[inspect.Parameter]:
    """Return an option for each field of a use's parameters, described as in the form."""
    options = []
    for name, field in params.model_fields.items() if params else ():
        default, text = field.get_default(call_default_factory=True), field.description or ""
        kind: Any = type(default)
        if kind is list:
            kind = list[type(default[0]) if default else str]  # type: ignore[misc]
            text += " Repeatable."
        elif default:
            text += f" Default: {default}."
        option = Option(NAMES.get(name, f"--{name.replace('_', '-')}"), help=" ".join(text.split()))
        options.append(_parameter(name, None, Annotated[kind | None, option]))
    return options


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _command(use: LatentCommand) -> Callable[..., None]:
    """Make the command of a use: its own options between those that all have."""
    shared = list(inspect.signature(_shared, eval_str=True).parameters.values())
    own = _own_options(use.params)

    def command(**options: Any) -> None:
        own_values = {p.name: options.pop(p.name) for p in own}
        quiet = options.pop("as_json")
        parameters = _shared(**options)
        if use.section:
            opt.lay_over(parameters, use.section, **own_values)
        opt.run_flow(f"latents:{command.__name__}", parameters, "show_latents", as_json=quiet)

    arguments = [
        *shared[:N_PLACES], *own, *shared[N_PLACES:], _parameter("as_json", False, opt.Json)
    ]  # fmt: skip
    command.__name__, command.__doc__ = use.name.replace("-", "_"), use.does
    command.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in arguments}
    return command


COMMANDS = [_command(use) for use in LATENT_COMMANDS.values()]
