"""Serves all flows from this process, for people without work pools: `python deployments/serve.py`.

Runs are subprocesses of this one, at most two at a time (--limit); Ctrl-C ends it. The deployments are those
of prefect.yaml, with the same parameters and schedules; `--no-schedules` leaves these out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Schedule

PREFECT_YAML = Path(__file__).resolve().parents[1] / "prefect.yaml"


def deployments(path: Path = PREFECT_YAML, *, schedules: bool = True) -> list[RunnerDeployment]:
    """The deployments of a prefect.yaml, to be served without a work pool."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
    return [_deployment(entry, schedules=schedules) for entry in entries]


def _deployment(entry: dict[str, Any], *, schedules: bool) -> RunnerDeployment:
    module, name = entry["entrypoint"].split(":")
    flow = getattr(import_module(module), name)
    given = [_schedule(s) for s in entry["schedules"]] if schedules else []
    return flow.to_deployment(
        name=entry["name"],
        description=entry["description"],
        parameters=entry["parameters"],
        tags=entry["tags"],
        schedules=given,
        concurrency_limit=ConcurrencyLimitConfig(**entry["concurrency_limit"]),
    )


def _schedule(entry: dict[str, Any]) -> Schedule:
    cron = CronSchedule(cron=entry["cron"], timezone=entry["timezone"])  # checks both
    return Schedule(
        cron=cron.cron, timezone=cron.timezone, active=entry["active"], slug=entry.get("slug")
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=2, help="runs at the same time (2)")
    parser.add_argument("--no-schedules", action="store_true", help="run only what is asked for")
    given = parser.parse_args(arguments)
    serve(*deployments(schedules=not given.no_schedules), limit=given.limit)


if __name__ == "__main__":
    main()
