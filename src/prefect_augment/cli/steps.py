"""Parts of the main job alone: ``augment``, ``train``, ``evaluate``, ``profile``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from prefect_augment.cli.options import (
    By,
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
    Target,
    Workers,
    block_options,
    holdout_params,
    in_file,
    lay_over,
    lay_seed,
    out,
    parameter_errors,
    prefect_session,
    print_result,
    read_params,
    target_params,
)
from prefect_augment.errors import RefusedError

__all__ = ["augment", "check_policy", "evaluate", "profile", "train"]


OptionalDest = Annotated[
    str, typer.Argument(help="Folder or fsspec URL to publish into; not needed for --preview.")
]
Policy = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Images: a pipeline of albumentations as YAML."),
]


def augment(
    source: Source,
    dest: OptionalDest = "",
    label: Label = "",
    target: Target = "",
    by: By = None,
    holdout: Holdout = "",
    group: Group = "",
    include: Include = None,
    exclude: Exclude = None,
    seed: Seed = None,
    params: ParamsFile = None,
    policy: Policy = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Show the plan; publish nothing.")
    ] = False,
    preview: Annotated[
        Path | None,
        typer.Option(
            help="Images: write a sheet of what the policy makes of some (PNG); no more.",
            dir_okay=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring rare classes up by SMOTE or changed copies of images alone; whether it helps is not judged."""
    given: dict[str, Any] = read_params(params)
    lay_over(
        given, "source", uri=source, label=label, group_column=group, **holdout_params(holdout)
    )
    lay_over(given, "source", include=include, exclude=exclude)
    lay_over(given, "destination", uri=dest)
    lay_over(given, "balance", by=by, **target_params(target))
    if policy is not None:
        lay_over(given, "classic", policy=policy.read_text())
    lay_seed(given, seed)
    if preview is not None:
        _preview(given, preview)
        return
    if not dest and "destination" not in given:
        raise typer.BadParameter(
            "it is missing; give a folder or URL to publish into.", param_hint="DEST"
        )
    with prefect_session(quiet=as_json), parameter_errors():
        from prefect_augment.flows.augment import augment as flow

        result = flow(**flow.validate_parameters({**given, "plan_only": plan_only}))
    from prefect_augment.cli.formatting import show_run

    print_result(result, show_run, as_json=as_json)


def _preview(given: dict[str, Any], path: Path) -> None:
    from prefect_augment.params import Classic, Source
    from prefect_augment.report.contact_sheets import preview

    with parameter_errors():
        source, classic = Source(**given.get("source", {})), Classic(**given.get("classic", {}))
    options = block_options(source.storage_block)
    path.write_bytes(preview(source, classic, seed=given["seed"], source_options=options))
    out.print(f"{path}: originals, and below them each operation of the policy.", highlight=False)


def train(
    source: Source,
    dest: Annotated[
        str, typer.Argument(help="The later rebalance's folder or URL; the model waits there.")
    ],
    label: Label = "",
    model: Annotated[str, typer.Option(help="auto, or a kind of model, e.g. trees.")] = "",
    holdout: Holdout = "",
    group: Group = "",
    include: Include = None,
    exclude: Exclude = None,
    by: By = None,
    minutes: Annotated[float | None, typer.Option(help="Budget of the whole later run.")] = None,
    steps: Steps = None,
    seed: Seed = None,
    params: ParamsFile = None,
    as_json: Json = False,
) -> None:
    """Train the generative model alone; `rebalance` with the same options finds and uses it."""
    given: dict[str, Any] = read_params(params)
    lay_over(
        given, "source", uri=source, label=label, group_column=group, **holdout_params(holdout)
    )
    lay_over(given, "source", include=include, exclude=exclude)
    lay_over(given, "destination", uri=dest)
    lay_over(given, "balance", by=by)
    lay_over(given, "budget", minutes=minutes, steps=steps)
    if model:
        given["model"] = {**in_file(given, "model"), "kind": model}
    lay_seed(given, seed)
    with prefect_session(quiet=as_json), parameter_errors():
        from prefect_augment.flows.train import train as flow

        result = flow(**flow.validate_parameters(given))
    from prefect_augment.cli.formatting import show_training

    print_result(result, show_training, as_json=as_json)


FAIL_ON = {"no-gain": ("evaluation", "on_no_gain"), "leak": ("quality", "on_leak")}


def evaluate(
    real: Annotated[str, typer.Argument(help="Real records.")],
    synthetic: Annotated[
        str, typer.Argument(help="Records that another tool made, with the same columns.")
    ],
    label: Label = "",
    holdout: Annotated[
        str, typer.Option(help="Real records that the other tool never had: file, folder or URL.")
    ] = "",
    group: Group = "",
    include: Include = None,
    exclude: Exclude = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="no-gain or leak: end with 3 where that is found; repeatable."),
    ] = None,
    report: Annotated[str, typer.Option(help="Folder or URL for the report.")] = "evaluation",
    minutes: Annotated[float | None, typer.Option(help="Budget of the whole run.")] = None,
    seed: Seed = None,
    workers: Workers = None,
    params: ParamsFile = None,
    as_json: Json = False,
) -> None:
    """Judge synthetic records from anywhere: do they help, copy, fit their class, leak what they were made from.

    Ends with 0 whatever the verdict, and with 3 where --fail-on names what was found.
    """
    given: dict[str, Any] = read_params(params)
    lay_over(given, "source", uri=real, label=label, group_column=group, **holdout_params(holdout))
    lay_over(given, "source", include=include, exclude=exclude)
    lay_over(given, "destination", uri=report)
    lay_over(given, "budget", minutes=minutes)
    unknown = sorted(set(fail_on or ()) - FAIL_ON.keys())
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r}; expected no-gain or leak.", param_hint="--fail-on"
        )
    lay_over(given, "quality", **({"purpose": "faithful"} | in_file(given, "quality")))
    for what in fail_on or ():
        section, field = FAIL_ON[what]
        lay_over(given, section, **{field: "fail"})
    given["synthetic"] = synthetic
    lay_over(given, "compute", workers=workers)
    lay_seed(given, seed)
    with prefect_session(quiet=as_json), parameter_errors():
        from prefect_augment.flows.evaluate import evaluate as flow

        refused = None
        try:
            result = flow(**flow.validate_parameters(given))
        except RefusedError as exc:  # what was found is printed all the same
            result, refused = exc.values["result"], exc
    from prefect_augment.cli.formatting import show_evaluation

    print_result(result, show_evaluation, as_json=as_json)
    if refused is not None:
        raise refused


def check_policy(
    source: Source,
    dest: Annotated[
        str,
        typer.Argument(
            help="A later rebalance's or augment's folder or URL; records are staged there."
        ),
    ],
    label: Label = "",
    image: Annotated[str, typer.Option(help="A preset: natural, characters, medical …")] = "",
    policy: Policy = None,
    include: Include = None,
    exclude: Exclude = None,
    seed: Seed = None,
    params: ParamsFile = None,
    as_json: Json = False,
) -> None:
    """Say how often each operation on images makes one another class's, in a small classifier's eyes.

    Ends with 3 where one does and `classic.on_label_damage` is `refuse`.
    """
    given: dict[str, Any] = read_params(params)
    lay_over(given, "source", uri=source, label=label, include=include, exclude=exclude)
    lay_over(given, "destination", uri=dest)
    lay_over(given, "classic", image=image, policy=policy.read_text() if policy else "")
    lay_seed(given, seed)
    with prefect_session(quiet=as_json), parameter_errors():
        from prefect_augment.flows.check_policy import check_policy as flow

        result = flow(**flow.validate_parameters(given))
    from prefect_augment.cli.formatting import show_policy

    print_result(result, show_policy, as_json=as_json)


def profile(
    source: Source,
    label: Label = "",
    params: ParamsFile = None,
    as_json: Json = False,
) -> None:
    """Say what was found in a source: columns, types, classes, sizes, troubles. Writes nothing."""
    from prefect_augment.params import Source
    from prefect_augment.report.profile import profile as look

    given = (
        in_file(read_params(params), "source")
        | {"uri": source}
        | ({"label": label} if label else {})
    )
    with parameter_errors():
        wish = Source(**given)
    found = look(wish, source_options=block_options(wish.storage_block))
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), ensure_ascii=False))
    else:
        from prefect_augment.cli.formatting import show_profile

        show_profile(out, found)
    if not found.usable:
        raise typer.Exit(2)
