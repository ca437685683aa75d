"""Options and helpers that the commands share."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from rich.console import Console
from typer import Argument, Option

from prefect_augment.cli.before_run import check_before_run, parameter_errors
from prefect_augment.errors import AugmentError, ParameterError

if TYPE_CHECKING:
    from prefect_augment.schema import Result
    from prefect_augment.storage import Store

out = Console()
err = Console(stderr=True)

Source = Annotated[str, Argument(help="File, folder, glob or fsspec URL of labelled records.")]
Dest = Annotated[str, Argument(help="Folder or fsspec URL to publish into.")]
Target = Annotated[str, Option(help="median, majority, sqrt, or a number of records per class.")]
Many = list[str] | None
By = Annotated[Many, Option(help="Balance within this column too; repeatable.")]
Holdout = Annotated[str, Option(help="A fraction, or the URI of hold-out records.")]
Group = Annotated[str, Option(help="Column whose records stay on one side of the split.")]
Include = Annotated[Many, Option(help="Only files that match, e.g. '*.jpg'; repeatable.")]
Exclude = Annotated[Many, Option(help="No files that match, e.g. masks: '*.png'; repeatable.")]
Block = Annotated[str, Option(help="Saved Prefect storage block with the credentials.")]
Steps = Annotated[int | None, Option(help="Training steps instead of minutes.")]
Json = Annotated[bool, Option("--json", help="Print one JSON object as the last line of stdout.")]
Label = Annotated[str, Option("--label", help="The column that holds the class.")]
Seed = Annotated[int | None, Option(help="Seed of everything random; 0 by default.")]
Workers = Annotated[
    int | None,
    Option(
        min=1,
        help="Strategies scored at the same time, 2 by default; with --steps no byte depends on it.",
    ),
]
Quick = Annotated[
    bool,
    Option(
        "--quick",
        help="A first answer in about two minutes: no generative model, one seed, two settings per strategy.",
    ),
]
Version = Annotated[int | None, Option("--version", help="A version other than the latest.")]
ParamsFile = Annotated[
    Path | None,
    Option("--params", exists=True, dir_okay=False, help="YAML with any of the flow's parameters."),
]

# What --quick sets where neither an option nor the parameters file does.
QUICK: dict[str, dict[str, Any]] = {
    "model": {"kind": "none"},
    "budget": {"minutes": 2},
    "evaluation": {"n_seeds": 1, "n_settings": 2},
}

R = TypeVar("R", bound="Result")


# --- params -----------------------------------------------------------------------------------


def read_params(path: Path | None) -> dict[str, Any]:
    """Return the content of a parameters file; empty without one."""
    if path is None:
        return {}
    from prefect_augment.text import load_yaml

    try:
        data = load_yaml(path.read_bytes())
    except ValueError as exc:
        raise ParameterError(f"{path} is not readable YAML: {exc}.") from exc
    if not isinstance(data, dict):
        raise ParameterError(f"{path} must hold a mapping such as 'balance: {{target: median}}'.")
    return data


def lay_over(parameters: dict[str, Any], group: str, **values: Any) -> None:
    """Replace values of the parameters file by options; empty options replace nothing, zeros do."""
    values = {n: v for n, v in values.items() if v or type(v) in (int, float)}
    if values or group in parameters:
        parameters[group] = {**in_file(parameters, group), **values}


def make_quick(parameters: dict[str, Any], *, without: str = "") -> None:
    """Set what makes a run short, below options and the parameters file; ``without`` a section."""
    for group, values in QUICK.items():
        if group != without:
            parameters[group] = {**values, **in_file(parameters, group)}


def say_what_quick_left_out(parameters: Mapping[str, Any]) -> None:
    """Print what the run without ``--quick`` does beside."""
    left_out = "more settings and seeds"
    if parameters.get("model") == QUICK["model"]:
        left_out = f"synthetic records (on tables also soft labels), {left_out}"
    look = ""
    if not parameters.get("plan_only"):
        look = " This run has read the hold-out once: a later one in the same folder is a further look."
    text = f"[bold]Quick[/]: leave out --quick to try {left_out} too.{look}"
    out.print(text, soft_wrap=True, highlight=False)


def in_file(parameters: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return a group of the parameters file; ParameterError if it is no mapping."""
    values = parameters.get(group, {})
    if not isinstance(values, dict):
        raise ParameterError(
            f"{group!r} in the parameters file is {'empty' if values is None else repr(values)}; remove the line, or "
            f"give it values: '{group}: {{name: value}}'."
        )
    return values


def flow_parameters(
    file: Path | None, *, dest: str, seed: int | None, model: str = "", **source: Any
) -> dict[str, Any]:
    """Return the parameters file with the options that most flows have laid over it."""
    parameters = read_params(file)
    lay_over(parameters, "source", **source)
    lay_over(parameters, "destination", uri=dest)
    if model:
        parameters["model"] = {**in_file(parameters, "model"), "kind": model}
    parameters["seed"] = parameters.get("seed", 0) if seed is None else seed
    return parameters


def holdout_params(text: str) -> dict[str, Any]:
    """Parse a fraction, or the URI of hold-out records."""
    if not text:
        return {}
    try:
        return {"holdout_fraction": float(text)}
    except ValueError:
        return {"holdout_uri": text}


def target_params(text: str) -> dict[str, Any]:
    """Parse a rule, or a number of records per class."""
    return {"target": "count", "count": int(text)} if text.isdigit() else {"target": text}


# --- runs and results -------------------------------------------------------------------------


@contextmanager
def prefect_session(*, quiet: bool) -> Iterator[None]:
    """Hide Prefect's log lines and show ours, unless the user's settings differ."""
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"  # what a server gets of it
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    logger = logging.getLogger("prefect_augment")
    if not quiet:
        from rich.logging import RichHandler

        logger.addHandler(RichHandler(console=err, show_path=False, show_level=False))
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Prefect's console handler on the root would repeat each line

    import httpx
    from prefect.exceptions import ParameterTypeError, PrefectHTTPStatusError

    try:
        yield
    except ParameterTypeError as exc:
        raise ParameterError(" ".join(str(exc).split())) from exc
    except (httpx.TransportError, PrefectHTTPStatusError) as exc:
        raise _no_server(exc) from exc
    except RuntimeError as exc:
        if "Failed to reach API" not in str(exc):
            raise
        raise _no_server(exc) from exc


def _no_server(exc: Exception) -> AugmentError:
    from prefect.settings import PREFECT_API_URL

    where = PREFECT_API_URL.value() or "the temporary one"
    why = (str(exc) or type(exc).__name__).splitlines()[0]
    return AugmentError(
        f"the Prefect server ({where}) does not answer as expected: {why}. Start it, correct PREFECT_API_URL or "
        "PREFECT_API_KEY, or unset PREFECT_API_URL, and run the same command again to continue."
    )


@contextmanager
def live_progress(*, quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """Show a run's progress: a bar that lives on a terminal, a line per step in a log; yield who is told of it."""
    if quiet:
        yield lambda done, text: None
    elif err.is_terminal:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        columns = (SpinnerColumn(), BarColumn(20), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=err, transient=True) as bars:
            bar = bars.add_task("starting", total=1.0)
            yield lambda done, text: bars.update(bar, completed=done, description=text)
    else:
        step = ""

        def say(_: float, text: str) -> None:
            nonlocal step
            before, step = step, text.partition(" · ")[0].partition(":")[0]
            if step != before and not step.startswith("stopped"):  # the error says it
                err.print(text, soft_wrap=True, highlight=False, markup=False)

        yield say


def run_flow(name: str, parameters: Mapping[str, Any], show: str, *, as_json: bool) -> None:
    """Run ``module:flow`` of :mod:`prefect_augment.flows`, and print its result by ``formatting.show``."""
    check_before_run(parameters)
    module, _, attribute = name.partition(":")
    # The bar comes first: the imports take seconds.
    with (
        live_progress(quiet=as_json) as listener,
        prefect_session(quiet=as_json),
        parameter_errors(),
    ):
        flow = getattr(import_module(f"prefect_augment.flows.{module}"), attribute)
        listening = import_module("prefect_augment.tasks._display").listening
        with listening(listener):
            result = flow(**flow.validate_parameters(parameters))
    formatting = import_module("prefect_augment.cli.formatting")
    print_result(result, getattr(formatting, show), as_json=as_json)


def print_result(result: R, show: Callable[[Console, R], None], *, as_json: bool) -> None:
    """Print a run's result as one JSON object, or for people."""
    if as_json:
        print(json.dumps(result.model_dump(mode="json"), ensure_ascii=False))
    else:
        show(out, result)


def print_json(result: Result, *, as_json: bool) -> None:
    """Print any result as one JSON object, or for people."""
    from prefect_augment.cli.formatting import show_result

    print_result(result, show_result, as_json=as_json)


def print_infos(info: Iterable[Result], *, as_json: bool) -> None:
    """Print results as one JSON list, or for people."""
    if as_json:
        data = [result.model_dump(mode="json") for result in info]
        print(json.dumps(data, ensure_ascii=False))
    else:
        for result in info:
            print_json(result, as_json=False)


def open_root(uri: str, block: str = "", *, only_reads: bool = False) -> Store:
    """Open a published dataset's folder and its workspace, with the credentials of a block if named.

    ``only_reads`` takes a copy without its workspace too.
    """
    from prefect_augment.storage import open_store, with_workspace

    store = open_store(uri, options=block_options(block))
    return with_workspace(store, required=not only_reads)


def block_options(block: str) -> dict[str, Any]:
    """Return the fsspec options of a saved Prefect block; none without a name."""
    if not block:
        return {}  # without Prefect, which takes seconds to import
    from prefect_augment.tasks._blocks import storage_options

    return storage_options(block)
