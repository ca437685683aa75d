"""The main job (``rebalance``, ``demo``), and its parts alone: ``augment``, ``train``, ``evaluate``, ``profile``."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape
from typer import Argument, BadParameter, Exit, Option

from prefect_augment.cli import options as opt
from prefect_augment.cli.before_run import parameter_errors
from prefect_augment.errors import RefusedError

if TYPE_CHECKING:
    from prefect_augment.schema import RunResult

OptionalDest = Annotated[
    str, Argument(help="Folder or fsspec URL to publish into; not needed for --preview.")
]
Policy = Annotated[
    Path | None,
    Option(exists=True, dir_okay=False, help="Images: a pipeline of albumentations as YAML."),
]


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


def augment(
    source: opt.Source,
    dest: OptionalDest = "",
    label: opt.Label = "",
    target: opt.Target = "",
    by: opt.By = None,
    holdout: opt.Holdout = "",
    group: opt.Group = "",
    include: opt.Include = None,
    exclude: opt.Exclude = None,
    seed: opt.Seed = None,
    params: opt.ParamsFile = None,
    policy: Policy = None,
    plan_only: Annotated[
        bool, Option("--plan-only", help="Show the plan; publish nothing.")
    ] = False,
    preview: Annotated[
        Path | None,
        Option(
            help="Images: only write a sheet of some changed by the policy (PNG).", dir_okay=False
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Bring rare classes up by SMOTE or changed copies of images alone; whether it helps is not measured."""
    parameters = opt.flow_parameters(
        params, dest=dest, seed=seed, uri=source, label=label, group_column=group,
        include=include, exclude=exclude, **opt.holdout_params(holdout),
    )  # fmt: skip
    opt.lay_over(parameters, "balance", by=by, **opt.target_params(target))
    if policy is not None:
        opt.lay_over(parameters, "classic", policy=policy.read_text())
    if preview is not None:
        _preview(parameters, preview)
        return
    if not dest and "destination" not in parameters:
        raise BadParameter(
            "it is missing; give a folder or URL to publish into.", param_hint="DEST"
        )
    parameters["plan_only"] = plan_only
    opt.run_flow("augment:augment", parameters, "show_run", as_json=as_json)


def _preview(parameters: dict[str, Any], path: Path) -> None:
    from prefect_augment.params import Classic, Source
    from prefect_augment.report.contact_sheets import preview

    with parameter_errors():
        source = Source(**parameters.get("source", {}))
        classic = Classic(**parameters.get("classic", {}))
    options = opt.block_options(source.storage_block)
    path.write_bytes(preview(source, classic, seed=parameters["seed"], source_options=options))
    opt.out.print(
        f"{path}: originals, and below them each operation of the policy.", highlight=False
    )


def train(
    source: opt.Source,
    dest: Annotated[
        str, Argument(help="The later rebalance's folder or URL; the model waits there.")
    ],
    label: opt.Label = "",
    model: Annotated[str, Option(help="auto, or a kind of model, e.g. trees.")] = "",
    holdout: opt.Holdout = "",
    group: opt.Group = "",
    include: opt.Include = None,
    exclude: opt.Exclude = None,
    by: opt.By = None,
    minutes: Annotated[float | None, Option(help="Budget of the whole later run.")] = None,
    steps: opt.Steps = None,
    seed: opt.Seed = None,
    params: opt.ParamsFile = None,
    as_json: opt.Json = False,
) -> None:
    """Train the generative model alone; `rebalance` with the same options finds and uses it."""
    parameters = opt.flow_parameters(
        params, dest=dest, seed=seed, model=model, uri=source, label=label, group_column=group,
        include=include, exclude=exclude, **opt.holdout_params(holdout),
    )  # fmt: skip
    opt.lay_over(parameters, "balance", by=by)
    opt.lay_over(parameters, "budget", minutes=minutes, steps=steps)
    opt.run_flow("train:train", parameters, "show_training", as_json=as_json)


FAIL_ON = {"no-gain": ("evaluation", "on_no_gain"), "leak": ("quality", "on_leak")}


def evaluate(
    real: Annotated[str, Argument(help="Real records.")],
    synthetic: Annotated[
        str, Argument(help="Records that another tool made, with the same columns.")
    ],
    label: opt.Label = "",
    holdout: Annotated[
        str, Option(help="Real records that the other tool never had: file, folder or URL.")
    ] = "",
    group: opt.Group = "",
    include: opt.Include = None,
    exclude: opt.Exclude = None,
    fail_on: Annotated[
        opt.Many, Option(help="no-gain or leak: end with 3 in that case; repeatable.")
    ] = None,
    report: Annotated[str, Option(help="Folder or URL for the report.")] = "evaluation",
    minutes: Annotated[float | None, Option(help="Budget of the whole run.")] = None,
    seed: opt.Seed = None,
    workers: opt.Workers = None,
    params: opt.ParamsFile = None,
    quick: opt.Quick = False,
    as_json: opt.Json = False,
) -> None:
    """Evaluate synthetic records from anywhere: do they help, copy, fit their class, leak their training records.

    Ends with 0 whatever the verdict, and with 3 if --fail-on names the finding.
    """
    parameters = opt.flow_parameters(
        params, dest=report, seed=seed, uri=real, label=label, group_column=group,
        include=include, exclude=exclude, **opt.holdout_params(holdout),
    )  # fmt: skip
    opt.lay_over(parameters, "budget", minutes=minutes)
    unknown = sorted(set(fail_on or ()) - FAIL_ON.keys())
    if unknown:
        raise BadParameter(f"{unknown[0]!r}; expected no-gain or leak.", param_hint="--fail-on")
    opt.lay_over(
        parameters, "quality", **({"purpose": "faithful"} | opt.in_file(parameters, "quality"))
    )
    for finding in fail_on or ():
        section, field = FAIL_ON[finding]
        opt.lay_over(parameters, section, **{field: "fail"})
    opt.lay_over(parameters, "compute", workers=workers)
    if quick:
        opt.make_quick(parameters, without="model")
    parameters["synthetic"] = synthetic
    try:
        opt.run_flow("evaluate:evaluate", parameters, "show_evaluation", as_json=as_json)
    except RefusedError as exc:  # the result is printed all the same
        from prefect_augment.cli.formatting import show_evaluation

        opt.print_result(exc.values["result"], show_evaluation, as_json=as_json)
        raise
    if quick and not as_json:
        opt.say_what_quick_left_out(parameters)


def check_policy(
    source: opt.Source,
    dest: Annotated[
        str,
        Argument(help="A later rebalance's or augment's folder or URL; records are staged there."),
    ],
    label: opt.Label = "",
    image: Annotated[str, Option(help="A preset: natural, characters, medical …")] = "",
    policy: Policy = None,
    include: opt.Include = None,
    exclude: opt.Exclude = None,
    seed: opt.Seed = None,
    params: opt.ParamsFile = None,
    as_json: opt.Json = False,
) -> None:
    """Show how often each operation on images makes a small classifier see another class.

    Ends with 3 if one does and `classic.on_label_damage` is `refuse`.
    """
    parameters = opt.flow_parameters(
        params, dest=dest, seed=seed, uri=source, label=label, include=include, exclude=exclude
    )
    text = policy.read_text() if policy else ""
    opt.lay_over(parameters, "classic", image=image, policy=text)
    opt.run_flow("augment:check_policy", parameters, "show_policy", as_json=as_json)


def profile(
    source: opt.Source,
    label: opt.Label = "",
    params: opt.ParamsFile = None,
    as_json: opt.Json = False,
) -> None:
    """Show the columns, types, classes, sizes and problems of a source. Writes nothing."""
    from prefect_augment.params import Source
    from prefect_augment.report.profile import profile as read_profile

    parameters = opt.read_params(params)
    opt.lay_over(parameters, "source", uri=source, label=label)
    with parameter_errors():
        requested = Source(**parameters["source"])
    result = read_profile(requested, source_options=opt.block_options(requested.storage_block))
    from prefect_augment.cli.formatting import show_profile

    opt.print_result(result, show_profile, as_json=as_json)
    if not result.is_valid:
        raise Exit(2)
