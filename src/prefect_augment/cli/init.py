"""``prefect-augment init``: a deployment of one's own; ``doctor``: what a run needs."""

import json
import re
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Exit, Option

from prefect_augment.errors import ParameterError

POOL = "local-process"

HEAD = """\
# prefect work-pool create {pool} --type process
# prefect --no-prompt deploy --all
# prefect worker start --pool {pool}
name: {project}

# The package is installed where the worker runs, and the entrypoint finds it there: no code is pulled.
pull: []

deployments:
"""

DEPLOYMENT = """\
  - name: {title}
    description: Balances the dataset in `source` and publishes it to `destination`; unchanged data changes nothing.
    entrypoint: prefect_augment.flows.form:rebalance
    # What is not given here has a default, and the form asks. `tables` and `images` take any of docs/parameters.md.
    parameters: {parameters}
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
        Path, Argument(help="Where prefect.yaml goes; made where it is missing.")
    ] = Path(),
    source: Annotated[
        str, Option(help="Labelled records: file, folder, glob or URL. Empty: the example.")
    ] = "",
    label: Annotated[str, Option(help="The column that holds the class.")] = "",
    dest: Annotated[
        str,
        Option(
            help="Folder or URL to publish into. Empty: below ~/prefect-augment, named after the source."
        ),
    ] = "",
    name: Annotated[str, Option(help="Of the deployment.")] = "balance-dataset",
    schedule: Annotated[str, Option(help="Cron in UTC, e.g. '0 3 * * *'; none by default.")] = "",
) -> None:
    """Write a prefect.yaml that deploys `rebalance` for a source; an existing one is left as it is."""
    path, entry, written = write_project(
        folder, source=source, label=label, dest=dest, name=name, schedule=schedule
    )
    out = Console(highlight=False, soft_wrap=True)
    if not written:
        out.print(f"{path} exists and was left as it is", markup=False)
        if entry not in path.read_text(encoding="utf-8"):
            out.print(
                f"To deploy {_slug(name)}, add below its `deployments:`\n\n{entry}", markup=False
            )
        return
    out.print(f"wrote {path}", markup=False)
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
) -> tuple[Path, str, bool]:
    """Write ``prefect.yaml`` into a folder, unless there is one; return its path, the entry and whether it was written.

    Relative local paths of ``source`` and ``dest`` become absolute, since a run may start in another folder.
    Raises ParameterError if ``name`` has no letter or digit, or ``schedule`` is not cron.
    """
    slug = _slug(name)
    _check_schedule(schedule)
    parameters = {"source": _absolute(source), "label": label, "destination": _absolute(dest)}
    given = {key: value for key, value in parameters.items() if value}
    when = SCHEDULED.format(cron=json.dumps(schedule)) if schedule else UNSCHEDULED
    entry = DEPLOYMENT.format(
        title=slug, parameters=json.dumps(given, ensure_ascii=False), pool=POOL
    )
    project = json.dumps(folder.resolve().name or slug, ensure_ascii=False)
    path = folder / "prefect.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(HEAD.format(pool=POOL, project=project) + entry + when)
    except FileExistsError:
        return path, entry + when, False
    return path, entry + when, True


def _slug(name: str) -> str:
    """Return the deployment's name, in lower case with dashes."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not slug:
        raise ParameterError(
            f"--name {name!r} has no letter and no digit; use letters, digits and dashes."
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


def doctor(
    source: Annotated[str, Option(help="Also list and read this source.")] = "",
    dest: Annotated[
        str, Option(help="Also write, read and delete a probe at this destination.")
    ] = "",
    block: Annotated[
        str, Option(help="Saved Prefect storage block with the credentials for both.")
    ] = "",
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON object as the last line of stdout.")
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
        raise Exit(1)
