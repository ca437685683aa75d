"""``prefect-augment rebalance`` and ``demo``: the main job."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from prefect_augment.cli.before_run import parameter_errors
from prefect_augment.cli.options import (
    By,
    Dest,
    Exclude,
    Group,
    Holdout,
    Include,
    Json,
    Label,
    ParamsFile,
    Quick,
    Seed,
    Source,
    Steps,
    Target,
    Workers,
    flow_parameters,
    holdout_params,
    lay_over,
    live_progress,
    make_quick,
    out,
    prefect_session,
    run_flow,
    say_what_quick_left_out,
    target_params,
)

if TYPE_CHECKING:
    from prefect_augment.schema import RunResult


def rebalance(
    source: Source,
    dest: Dest,
    label: Label = "",
    model: Annotated[str, typer.Option(help="auto, none, or a kind of model, e.g. trees.")] = "",
    target: Target = "",
    by: By = None,
    holdout: Holdout = "",
    group: Group = "",
    include: Include = None,
    exclude: Exclude = None,
    minutes: Annotated[float | None, typer.Option(help="Budget of the whole run.")] = None,
    steps: Steps = None,
    on_no_gain: Annotated[str, typer.Option(help="recipe, fail or publish.")] = "",
    require_approval: Annotated[
        bool,
        typer.Option(
            "--require-approval", help="Leave a proposal for `prefect-augment approve` instead."
        ),
    ] = False,
    seed: Seed = None,
    workers: Workers = None,
    params: ParamsFile = None,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only", help="Show the plan and an estimate; train and publish nothing."
        ),
    ] = False,
    quick: Quick = False,
    as_json: Json = False,
) -> None:
    """Bring rare classes up in the way that helps on held-out real data, and publish the result."""
    parameters = flow_parameters(
        params, dest=dest, seed=seed, model=model, uri=source, label=label, group_column=group,
        include=include, exclude=exclude, **holdout_params(holdout),
    )  # fmt: skip
    lay_over(parameters, "balance", by=by, **target_params(target))
    lay_over(parameters, "budget", minutes=minutes, steps=steps)
    lay_over(parameters, "evaluation", on_no_gain=on_no_gain)
    lay_over(parameters, "approval", ask=require_approval)
    lay_over(parameters, "compute", workers=workers)
    if quick:
        make_quick(parameters)
    parameters["plan_only"] = plan_only
    run_flow("rebalance:rebalance", parameters, "show_run", as_json=as_json)
    if quick and not as_json:
        say_what_quick_left_out(parameters)


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
    with prefect_session(quiet=as_json), parameter_errors():
        from prefect_augment.cli.formatting import show_demo, show_run
        from prefect_augment.examples import demo_runs
        from prefect_augment.flows.rebalance import rebalance as flow
        from prefect_augment.tasks._display import listening

        runs = demo_runs(str(folder), images=can_see)
        for i, (name, parameters) in enumerate(runs.items()):
            if not as_json:
                title = f"{i + 1} of {len(runs)}, {name}: {parameters['source'].uri}"
                out.print(f"[bold]{escape(title)}[/]", soft_wrap=True, highlight=False)
            with live_progress(quiet=as_json) as listener, listening(listener):
                results[name] = flow(**parameters)
            if not as_json:
                show_run(out, results[name])
                out.print()
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        parts = {name: result.model_dump(mode="json") for name, result in results.items()}
        print(json.dumps({"images": None, **parts, "seconds": seconds}, ensure_ascii=False))
        return
    places = {name: run["destination"].uri for name, run in runs.items()}
    show_demo(out, results, places, seconds=seconds)
    if not can_see:
        missing = escape("pip install 'prefect-augment[images,torch]'")
        out.print(f"Images were left out; they need: {missing}", soft_wrap=True, highlight=False)
