"""The command line: ``prefect-augment``.

Imports of Prefect and of the numerical libraries happen inside the commands, so that ``--help``
answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from prefect_augment.errors import AugmentError

if TYPE_CHECKING:
    from prefect_augment.datatypes import Fact, RunResult
    from prefect_augment.storage import Store

__all__ = ["app", "main"]

app = typer.Typer(
    name="prefect-augment",
    help="Rebalance labelled datasets, with proof that it helps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")
]
Label = Annotated[str, typer.Option("--label", help="The column that holds the class.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Workers = Annotated[
    int, typer.Option(min=1, help="Arms judged at the same time; never changes a byte.")
]
Version = Annotated[int | None, typer.Option("--version", help="A version other than the latest.")]
ParamsFile = Annotated[
    Path | None,
    typer.Option(
        "--params", exists=True, dir_okay=False, help="YAML with any of the flow's parameters."
    ),
]


def main() -> None:
    """Run the command line; errors of our own end in one clear line and their exit code."""
    try:
        app()
    except AugmentError as exc:
        err.print(f"[bold red]error:[/] {_escape(str(exc))}", highlight=False)
        sys.exit(exc.exit_code)
    except (KeyboardInterrupt, SystemExit) as exc:
        # Typer turns Ctrl-C into an exit with 130, without a word.
        if isinstance(exc, SystemExit) and exc.code != 130:
            raise
        err.print(
            "interrupted: nothing half-visible was left; run the same command again to continue."
        )
        sys.exit(130)


# --- the main job -----------------------------------------------------------------------------


@app.command()
def rebalance(
    source: Annotated[
        str, typer.Argument(help="File, folder, glob or fsspec URL of labelled records.")
    ],
    dest: Annotated[str, typer.Argument(help="Folder or fsspec URL to publish into.")],
    label: Label = "",
    model: Annotated[str, typer.Option(help="auto, none, or a kind of model, e.g. trees.")] = "",
    target: Annotated[
        str, typer.Option(help="median, majority, sqrt, or a number of records per class.")
    ] = "",
    by: Annotated[
        list[str] | None, typer.Option(help="Balance within this column too; repeatable.")
    ] = None,
    holdout: Annotated[str, typer.Option(help="A fraction, or the URI of hold-out records.")] = "",
    group: Annotated[
        str, typer.Option(help="Column whose records stay on one side of the split.")
    ] = "",
    include: Annotated[
        list[str] | None, typer.Option(help="Only files that match, e.g. '*.jpg'; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No files that match, e.g. masks: '*.png'; repeatable.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Budget of the whole run.")] = 0.0,
    steps: Annotated[int, typer.Option(help="Training steps instead of minutes.")] = 0,
    on_no_gain: Annotated[str, typer.Option(help="recipe, fail or publish.")] = "",
    seed: Seed = 0,
    workers: Workers = 2,
    params: ParamsFile = None,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only", help="Show the plan and an estimate; train and publish nothing."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring rare classes up in the way that helps on held-out real data, and publish the result."""
    given: dict[str, Any] = _read_params(params)
    _set(given, "source", uri=source, label=label, group_column=group, **_holdout(holdout))
    _set(given, "source", include=include, exclude=exclude)
    _set(given, "destination", uri=dest)
    _set(given, "balance", by=by, **_target(target))
    _set(given, "budget", minutes=minutes, steps=steps)
    _set(given, "gate", on_no_gain=on_no_gain)
    if model:
        given["model"] = {**given.get("model", {}), "kind": model}
    given.setdefault("compute", {"workers": workers})
    given.setdefault("seed", seed)
    _rebalance(given, plan_only=plan_only, as_json=as_json)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo keeps its data.")] = Path(
        "demo-output"
    ),
    as_json: Json = False,
) -> None:
    """Run the main job on handwritten digits, thinned to be imbalanced: as a table, then as images."""
    started = time.monotonic()
    can_see = all(find_spec(name) for name in ("PIL", "torch"))
    results: dict[str, RunResult] = {}
    with _prefect(quiet=as_json), _parameter_errors():
        from prefect_augment.display import show_demo, show_run
        from prefect_augment.flows.rebalance import rebalance as flow
        from prefect_augment.stages.example import demo_runs

        runs = demo_runs(str(folder), images=can_see)
        for i, (name, given) in enumerate(runs.items()):
            if not as_json:
                title = f"{i + 1} of {len(runs)}, {name}: {given['source'].uri}"
                out.print(f"[bold]{_escape(title)}[/]", soft_wrap=True, highlight=False)
            results[name] = flow(**given)
            if not as_json:
                show_run(out, results[name])
                out.print()
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        parts = {name: result.model_dump(mode="json") for name, result in results.items()}
        print(json.dumps({"images": None, **parts, "seconds": seconds}, ensure_ascii=False))
        return
    places = {name: given["destination"].uri for name, given in runs.items()}
    show_demo(out, results, places, seconds=seconds)
    if not can_see:
        missing = _escape("pip install 'prefect-augment[images,torch]'")
        out.print(f"Images were left out; they need: {missing}", soft_wrap=True, highlight=False)


def _rebalance(given: dict[str, Any], *, plan_only: bool, as_json: bool) -> None:
    with _prefect(quiet=as_json), _parameter_errors():
        from prefect_augment.flows.rebalance import rebalance as flow

        result = flow(**flow.validate_parameters({**given, "plan_only": plan_only}))
    if as_json:
        print(json.dumps(result.model_dump(mode="json"), ensure_ascii=False))
    else:
        from prefect_augment.display import show_run

        show_run(out, result)


@app.command()
def evaluate(
    real: Annotated[str, typer.Argument(help="Real records.")],
    synthetic: Annotated[
        str, typer.Argument(help="Records that another tool made, with the same columns.")
    ],
    label: Label = "",
    holdout: Annotated[str, typer.Option(help="A fraction, or the URI of hold-out records.")] = "",
    report: Annotated[str, typer.Option(help="Folder or URL for the report.")] = "evaluation",
    seed: Seed = 0,
    workers: Workers = 2,
    params: ParamsFile = None,
    as_json: Json = False,
) -> None:
    """Judge synthetic records from anywhere: do they help, do they copy, do they fit their class."""
    given: dict[str, Any] = _read_params(params)
    _set(given, "source", uri=real, label=label, **_holdout(holdout))
    _set(given, "destination", uri=report)
    given.update({"synthetic": synthetic, "compute": {"workers": workers}, "seed": seed})
    with _prefect(quiet=as_json), _parameter_errors():
        from prefect_augment.flows.evaluate import evaluate as flow

        result = flow(**flow.validate_parameters(given))
    if as_json:
        print(json.dumps(result.model_dump(mode="json"), ensure_ascii=False))
    else:
        from prefect_augment.display import show_evaluation

        show_evaluation(out, result)


@app.command()
def profile(
    source: Annotated[
        str, typer.Argument(help="File, folder, glob or fsspec URL of labelled records.")
    ],
    label: Label = "",
    params: ParamsFile = None,
    as_json: Json = False,
) -> None:
    """Say what was found in a source: columns, types, classes, sizes, troubles. Writes nothing."""
    from prefect_augment.params import Source
    from prefect_augment.stages.profile import profile as look

    given = (
        _read_params(params).get("source", {})
        | {"uri": source}
        | ({"label": label} if label else {})
    )
    with _parameter_errors():
        found = look(Source(**given))
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), ensure_ascii=False))
    else:
        from prefect_augment.display import show_profile

        show_profile(out, found)
    if not found.usable:
        raise typer.Exit(2)


# --- published datasets -----------------------------------------------------------------------


@app.command()
def versions(dest: str, as_json: Json = False) -> None:
    """List the versions of a published dataset."""
    from prefect_augment.stages.maintain import versions as list_versions

    _print_facts(list_versions(_store(dest)), as_json=as_json)


@app.command()
def inspect(
    dest: str,
    version: Version = None,
    diff: Annotated[
        int | None, typer.Option("--diff", help="Compare with this version instead of showing one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show one version of a published dataset, or what changed between two."""
    from prefect_augment.manifest import latest_version
    from prefect_augment.stages import maintain

    store = _store(dest)
    if diff is None:
        fact: Fact = maintain.inspect(store, version)
    else:
        fact = maintain.diff(store, diff, version or latest_version(store) or diff)
    _print_facts([fact], as_json=as_json)


@app.command()
def verify(
    dest: str,
    version: Version = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Rewrite what can be derived again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every shard of a version against its manifest; exit 1 if anything is wrong."""
    from prefect_augment.stages.maintain import verify as check

    found = check(_store(dest), version, repair=repair)
    _print_facts([found], as_json=as_json)
    if found.problems:
        raise typer.Exit(1)


# --- helpers ----------------------------------------------------------------------------------


def _store(uri: str) -> Store:
    from prefect_augment.storage import open_store

    return open_store(uri)


def _print_facts(facts: Any, *, as_json: bool) -> None:
    if as_json:
        data = [fact.model_dump(mode="json") for fact in facts]
        print(json.dumps(data[0] if len(data) == 1 else data, ensure_ascii=False))
    else:
        from prefect_augment.display import show_fact

        for fact in facts:
            show_fact(out, fact)


def _read_params(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    from prefect_augment.errors import ParameterError

    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as exc:
        raise ParameterError(f"{path} is not readable YAML: {exc}") from exc
    if not isinstance(data, dict):
        raise ParameterError(f"{path} must hold a mapping such as 'balance: {{target: median}}'.")
    return data


def _set(given: dict[str, Any], group: str, **values: Any) -> None:
    """Lay options that were given over the parameters file; empty ones leave it as it is."""
    values = {name: value for name, value in values.items() if value}
    if values or group in given:
        given[group] = {**given.get(group, {}), **values}


def _holdout(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        return {"holdout_fraction": float(text)}
    except ValueError:
        return {"holdout_uri": text}


def _target(text: str) -> dict[str, Any]:
    return {"target": "count", "count": int(text)} if text.isdigit() else {"target": text}


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@contextmanager
def _parameter_errors() -> Iterator[None]:
    """Turn pydantic's and Prefect's parameter errors into ours: one line per field, exit 2."""
    from pydantic import ValidationError

    from prefect_augment.errors import ParameterError

    try:
        yield
    except ValidationError as exc:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()]
        raise ParameterError("; ".join(lines)) from exc


@contextmanager
def _prefect(*, quiet: bool) -> Iterator[None]:
    """Keep Prefect's own lines off the screen and show ours; the user's settings win."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    logger = logging.getLogger("prefect_augment")
    if not quiet:
        from rich.logging import RichHandler

        logger.addHandler(RichHandler(console=err, show_path=False, show_level=False))
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Prefect's console handler on the root would say everything twice

    from prefect.exceptions import ParameterTypeError

    from prefect_augment.errors import ParameterError

    try:
        yield
    except ParameterTypeError as exc:
        raise ParameterError(" ".join(str(exc).split())) from exc


if __name__ == "__main__":
    main()
