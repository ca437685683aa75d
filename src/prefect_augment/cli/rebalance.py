"""``prefect-augment rebalance`` and ``demo``: the main job."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape
from typer import Argument, Option

from prefect_augment.cli import options as opt
from prefect_augment.cli.before_run import parameter_errors

if TYPE_CHECKING:
    from prefect_augment.schema import RunResult


def rebalance(
    source: opt.Source,
    dest: opt.Dest,
    label: opt.Label = "",
    model: Annotated[str, Option(help="auto, none, or a kind of model, e.g. trees.")] = "",
    target: opt.Target = "",
    by: opt.By = None,
    holdout: opt.Holdout = "",
    group: opt.Group = "",
    include: opt.Include = None,
    exclude: opt.Exclude = None,
    minutes: Annotated[float | None, Option(help="Budget of the whole run.")] = None,
    steps: opt.Steps = None,
    on_no_gain: Annotated[str, Option(help="recipe, fail or publish.")] = "",
    require_approval: Annotated[
        bool,
        Option(
            "--require-approval", help="Leave a proposal for `prefect-augment approve` instead."
        ),
    ] = False,
    seed: opt.Seed = None,
    workers: opt.Workers = None,
    params: opt.ParamsFile = None,
    plan_only: Annotated[
        bool,
        Option("--plan-only", help="Show the plan and an estimate; train and publish nothing."),
    ] = False,
    quick: opt.Quick = False,
    as_json: opt.Json = False,
) -> None:
    """Bring rare classes up in the way that helps on held-out real data, and publish the result."""
    parameters = opt.flow_parameters(
        params, dest=dest, seed=seed, model=model, uri=source, label=label, group_column=group,
        include=include, exclude=exclude, **opt.holdout_params(holdout),
    )  # fmt: skip
    opt.lay_over(parameters, "balance", by=by, **opt.target_params(target))
    opt.lay_over(parameters, "budget", minutes=minutes, steps=steps)
    opt.lay_over(parameters, "evaluation", on_no_gain=on_no_gain)
    opt.lay_over(parameters, "approval", ask=require_approval)
    opt.lay_over(parameters, "compute", workers=workers)
    if quick:
        opt.make_quick(parameters)
    parameters["plan_only"] = plan_only
    opt.run_flow("rebalance:rebalance", parameters, "show_run", as_json=as_json)
    if quick and not as_json:
        opt.say_what_quick_left_out(parameters)


def demo(
    folder: Annotated[Path, Argument(help="Where the demo keeps its data.")] = Path("demo-output"),
    as_json: opt.Json = False,
) -> None:
    """Run the main job on handwritten digits, thinned to be imbalanced: as a table, then as images."""
    started = time.monotonic()
    can_see = all(find_spec(name) for name in ("PIL", "torch"))
    results: dict[str, RunResult] = {}
    with opt.prefect_session(quiet=as_json), parameter_errors():
        from prefect_augment.cli.formatting import show_demo, show_run
        from prefect_augment.examples import demo_runs
        from prefect_augment.flows.rebalance import rebalance as flow
        from prefect_augment.tasks._display import listening

        runs = demo_runs(str(folder), images=can_see)
        for i, (name, parameters) in enumerate(runs.items()):
            if not as_json:
                title = f"{i + 1} of {len(runs)}, {name}: {parameters['source'].uri}"
                opt.out.print(f"[bold]{escape(title)}[/]", soft_wrap=True, highlight=False)
            with opt.live_progress(quiet=as_json) as listener, listening(listener):
                results[name] = flow(**parameters)
            if not as_json:
                show_run(opt.out, results[name])
                opt.out.print()
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        parts = {name: result.model_dump(mode="json") for name, result in results.items()}
        print(json.dumps({"images": None, **parts, "seconds": seconds}, ensure_ascii=False))
        return
    places = {name: run["destination"].uri for name, run in runs.items()}
    show_demo(opt.out, results, places, seconds=seconds)
    if not can_see:
        missing = escape("pip install 'prefect-augment[images,torch]'")
        opt.out.print(
            f"Images were left out; they need: {missing}", soft_wrap=True, highlight=False
        )
