"""``prefect-augment init``: a project with an own flow and its deployment; ``doctor``: what a run needs."""

import importlib.util
import json
import keyword
import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prefect_augment.errors import ParameterError

__all__ = ["doctor", "init", "write_project"]

POOL = "local-process"

FLOW = '''"""Balances a labelled dataset and publishes it, version by version; yours to change."""

from prefect import flow
from prefect_augment import Balance, Destination, Source, rebalance

SOURCE = Source({source})
DESTINATION = Destination({destination})


@flow(name={title})
def {name}(
    source: Source = SOURCE, destination: Destination = DESTINATION, balance: Balance = Balance()
) -> str:
    """Balance the dataset, prove that it helps, and publish a version.

    Args:
        source: Where the labelled records are. Empty: the built-in example.
        destination: Where the balanced dataset is published.
        balance: How many records each class should have.
    """
    # Steps of your own go before this line, to write the source, ...
    result = rebalance(source=source, destination=destination, balance=balance)
    # ... and after it, to train: open_dataset(destination.uri).to_pandas() and .sample_weight().
    return result.manifest


if __name__ == "__main__":
    print({name}())
'''

HEAD = """\
# prefect work-pool create {pool} --type process
# prefect --no-prompt deploy --all
# prefect worker start --pool {pool}
name: {project}

# Without `pull` a worker on this machine loads the flow from this folder. A worker elsewhere clones it:
# pull:
#   - prefect.deployments.steps.git_clone:
#       repository: https://example.com/you/this-repository.git
#       branch: main

deployments:
"""

DEPLOYMENT = """\
  - name: {title}
    description: Balances the dataset in `source` and publishes it to `destination`; unchanged data changes nothing.
    entrypoint: {entrypoint}
    # What is not given here has the flow's own default; the form asks for the rest.
    parameters: {{}}
    tags: [augment]
    work_pool:
      name: {pool}
    # Two runs that publish to one destination wait for each other.
    concurrency_limit:
      limit: 1
      collision_strategy: ENQUEUE
"""

SCHEDULED = """\
    schedules:
      - cron: {cron}
        timezone: UTC
        active: true
"""
UNSCHEDULED = """\
    # Every night at three: schedules: [{cron: "0 3 * * *", timezone: UTC, active: true}]
    schedules: []
"""


def init(
    folder: Annotated[
        Path, typer.Argument(help="Your repository; made where it is missing.")
    ] = Path(),
    source: Annotated[
        str, typer.Option(help="Labelled records: file, folder, glob or URL. Empty: the example.")
    ] = "",
    label: Annotated[str, typer.Option(help="The column that holds the class.")] = "",
    dest: Annotated[
        str, typer.Option(help="Folder or URL to publish into. Empty: ~/prefect-augment/NAME.")
    ] = "",
    name: Annotated[str, typer.Option(help="Of the flow and its deployment.")] = "balance-dataset",
    schedule: Annotated[
        str, typer.Option(help="Cron in UTC, e.g. '0 3 * * *'; none by default.")
    ] = "",
) -> None:
    """Write a flow and a prefect.yaml that deploys it; what exists is left as it is."""
    written, kept = write_project(
        folder, source=source, label=label, dest=dest, name=name, schedule=schedule
    )
    out = Console(highlight=False, soft_wrap=True)
    for path in written:
        out.print(f"wrote {path}", markup=False)
    for path in kept:
        out.print(f"{path} exists and was left as it is", markup=False)
    entry = _deployment(_slug(name), schedule)
    if any(path.name == "prefect.yaml" for path in kept):
        if _entrypoint(_slug(name)) in (folder / "prefect.yaml").read_text(encoding="utf-8"):
            return
        out.print(f"To deploy {_slug(name)}, add below its `deployments:`\n\n{entry}", markup=False)
    elif written:
        place = "" if folder.resolve() == Path.cwd() else f"  cd {folder}\n"
        out.print(
            f"\nNext, where PREFECT_API_URL names your server:\n{place}"
            f"  prefect work-pool create {POOL} --type process\n"
            "  prefect --no-prompt deploy --all\n"
            f"  prefect worker start --pool {POOL}",
            markup=False,
        )


def write_project(
    folder: Path,
    *,
    source: str = "",
    label: str = "",
    dest: str = "",
    name: str = "balance-dataset",
    schedule: str = "",
) -> tuple[list[Path], list[Path]]:
    """Write ``prefect.yaml`` and ``flows/<name>.py`` into a folder; return the written and the existing paths.

    Nothing is overwritten. Relative local paths of ``source`` and ``dest`` become absolute, since a run may start
    in another folder. Raises ParameterError if ``name`` cannot name a module, or ``schedule`` is not cron.
    """
    slug = _slug(name)
    module = slug.replace("-", "_")
    _check_schedule(schedule)
    flow = FLOW.format(
        source=_arguments(uri=_absolute(source), label=label),
        destination=_arguments(uri=_absolute(dest) or f"~/prefect-augment/{slug}"),
        name=module,
        title=json.dumps(slug),
    )
    project = json.dumps(folder.resolve().name or slug, ensure_ascii=False)
    content = {
        folder / "flows" / f"{module}.py": flow,
        folder / "prefect.yaml": HEAD.format(pool=POOL, project=project)
        + _deployment(slug, schedule),
    }
    written, kept = [], []
    for path, text in content.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            written.append(path)
        except FileExistsError:
            kept.append(path)
    return written, kept


def _deployment(slug: str, schedule: str) -> str:
    when = SCHEDULED.format(cron=json.dumps(schedule)) if schedule else UNSCHEDULED
    return DEPLOYMENT.format(title=slug, entrypoint=_entrypoint(slug), pool=POOL) + when


def _entrypoint(slug: str) -> str:
    module = slug.replace("-", "_")
    return f"flows/{module}.py:{module}"


def _slug(name: str) -> str:
    """Return the deployment's name, in lower case with dashes; the flow's has underscores."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    module = slug.replace("-", "_")
    if not module.isidentifier() or keyword.iskeyword(module):
        raise ParameterError(
            f"--name {name!r} cannot name a flow; use letters, digits and dashes, starting with a letter."
        )
    # Prefect puts flows/ first on the import path, where the file would hide the package.
    if module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None:
        raise ParameterError(
            f"--name {name!r} is the name of a Python package, which flows/{module}.py would hide; "
            f"choose another, e.g. balance-{slug}."
        )
    return slug


def _check_schedule(schedule: str) -> None:
    if not schedule:
        return
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=schedule, timezone="UTC")
    except ValueError as exc:  # also pydantic's
        raise ParameterError(
            f"--schedule {schedule!r} is not cron; give five fields such as '0 3 * * *' (nightly at three)."
        ) from exc


def _absolute(uri: str) -> str:
    return uri if not uri or "://" in uri or uri.startswith("~") else str(Path(uri).absolute())


def _arguments(**values: str) -> str:
    return ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items() if value
    )


def doctor(
    source: Annotated[str, typer.Option(help="Also list and read this source.")] = "",
    dest: Annotated[
        str, typer.Option(help="Also write, read and delete a probe at this destination.")
    ] = "",
    block: Annotated[
        str, typer.Option(help="Saved Prefect storage block with the credentials for both.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")
    ] = False,
) -> None:
    """Check Python, Prefect, storage, GPU, memory and extras; exit 1 for any problem."""
    from prefect_augment.cli import doctor_checks

    checks = doctor_checks.check_all(source, dest, block)
    status = doctor_checks.worst(checks)
    if as_json:
        result = {"status": status, "checks": [check.model_dump(mode="json") for check in checks]}
        print(json.dumps(result, ensure_ascii=False))
    else:
        from prefect_augment.cli.formatting import show_checks

        show_checks(Console(), checks)
    if status == "problem":
        raise typer.Exit(1)
