"""prefect.yaml names flows and parameters that exist."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule

CONTENT = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text(encoding="utf-8"))

# What a person fills in; a deployment with a schedule has to do without.
ASKED_IN_THE_FORM = {"source": {"uri": "real.parquet"}, "synthetic": "synthetic.parquet"}


@pytest.fixture(params=CONTENT["deployments"], ids=lambda deployment: deployment["name"])
def deployment(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


def test_nothing_is_pulled_because_the_package_is_installed() -> None:
    """A process worker runs in an empty folder, where an entrypoint that is a file crashes."""
    assert CONTENT["pull"] == []


def test_deployments_cover_both_flows() -> None:
    assert {deployment["entrypoint"] for deployment in CONTENT["deployments"]} == {
        "prefect_augment.flows.rebalance:rebalance",
        "prefect_augment.flows.evaluate:evaluate",
    }


def test_entrypoint_takes_the_parameters_of_its_deployment(deployment: dict[str, Any]) -> None:
    module, name = deployment["entrypoint"].split(":")
    flow = getattr(import_module(module), name)
    assert isinstance(flow, Flow)
    asked = {} if deployment["schedules"] else ASKED_IN_THE_FORM
    given = {**deployment["parameters"], **asked}
    assert set(given) <= set(flow.validate_parameters(given))


def test_schedules_are_valid_and_runs_queue_up(deployment: dict[str, Any]) -> None:
    for schedule in deployment["schedules"]:
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
