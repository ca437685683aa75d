"""prefect.yaml and deployments/ name flows, parameters, variables and commands that exist."""

import importlib.util
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule

REPOSITORY = Path(__file__).parents[2]
DEPLOYMENTS = REPOSITORY / "deployments"
CONTENT = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))
TEMPLATES = sorted((DEPLOYMENTS / "work-pools").glob("*.json"))

# What a person fills in; a deployment with a schedule has to do without.
ASKED_IN_THE_FORM = {
    "evaluate": {"source": {"uri": "real.parquet"}, "synthetic": "synthetic.parquet"},
    "denoise": {"source": {"uri": "scans"}},
}


@pytest.fixture(params=CONTENT["deployments"], ids=lambda deployment: deployment["name"])
def deployment(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


@pytest.fixture(params=TEMPLATES, ids=lambda path: path.stem)
def template(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param.stem, json.loads(request.param.read_text(encoding="utf-8"))


def script(stem: str) -> ModuleType:
    """Load a script of deployments/, which is no package."""
    name = f"prefect_augment_deployments_{stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, DEPLOYMENTS / f"{stem}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


# --- prefect.yaml -------------------------------------------------------------------------------


def test_nothing_is_pulled_because_the_package_is_installed() -> None:
    """A process worker runs in an empty folder, where an entrypoint that is a file crashes."""
    assert CONTENT["pull"] == []


def test_every_flow_that_people_start_has_one_deployment() -> None:
    uses = (
        "anomalies", "classify", "denoise", "embed", "interpolate", "reconstruct", "shift_attribute",
    )  # fmt: skip
    assert sorted(deployment["entrypoint"] for deployment in CONTENT["deployments"]) == sorted(
        [f"prefect_augment.flows.{name}:{name}" for name in ("augment", "evaluate", "train")]
        + ["prefect_augment.flows.form:rebalance"]
        + ["prefect_augment.flows.augment:check_policy"]
        + [f"prefect_augment.flows.latents:{name}" for name in uses]
    )


def test_entrypoint_takes_the_parameters_of_its_deployment(deployment: dict[str, Any]) -> None:
    module, name = deployment["entrypoint"].split(":")
    flow = getattr(import_module(module), name)
    assert isinstance(flow, Flow)
    asked: dict[str, Any] = ASKED_IN_THE_FORM.get(name, {})
    assert not (asked and deployment["schedules"])
    given = {**deployment["parameters"], **asked}
    assert set(given) <= set(flow.validate_parameters(given))


def test_a_deployment_says_what_it_does_and_is_found_by_its_tag(deployment: dict[str, Any]) -> None:
    """The automations go by the tag."""
    assert len(deployment["description"]) > 60
    assert script("automations").TAG in deployment["tags"]


def test_schedules_are_valid_and_runs_queue_up(deployment: dict[str, Any]) -> None:
    for schedule in deployment["schedules"]:
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


def test_one_flow_alone_runs_every_night() -> None:
    active = {
        deployment["name"]
        for deployment in CONTENT["deployments"]
        if any(schedule["active"] for schedule in deployment["schedules"])
    }
    assert active == {"rebalance-nightly"}


# --- deployments/ -------------------------------------------------------------------------------


@pytest.mark.slow
def test_serving_makes_the_same_deployments() -> None:
    made = {d.name: d for d in script("serve").deployments()}
    assert set(made) == {deployment["name"] for deployment in CONTENT["deployments"]}
    nightly = made["rebalance-nightly"]
    assert [schedule.active for schedule in nightly.schedules] == [True]
    assert nightly.entrypoint.endswith("rebalance")
    assert not any(d.schedules for d in script("serve").deployments(schedules=False))


def test_a_template_has_a_variable_for_everything_it_uses(
    template: tuple[str, dict[str, Any]],
) -> None:
    name, content = template
    used = set(re.findall(r"{{ *(\w+) *}}", json.dumps(content["job_configuration"])))
    assert used == set(content["variables"]["properties"])
    assert content["variables"]["properties"]["env"]["default"][
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
    ] == ("30"), f"{name}: the automation for lost runs counts on it"


def test_work_pools_come_for_processors_and_for_graphics_processors() -> None:
    kinds = ("docker", "kubernetes", "process")
    assert [p.stem for p in TEMPLATES] == [
        f"{kind}-{on}" for kind in kinds for on in ("cpu", "gpu")
    ]
    for path in TEMPLATES:
        on = path.stem.rpartition("-")[2]
        variables = json.loads(path.read_text(encoding="utf-8"))["variables"]["properties"]
        if "image" in variables:
            assert variables["image"]["default"] == f"prefect-augment:{on}"
            assert ("gpu_count" in variables) == (on == "gpu")
            assert (DEPLOYMENTS / f"Dockerfile.{on}").is_file()


def test_automations_concern_our_runs_only() -> None:
    automations = script("automations")
    for automation in (automations.zombies("mine"), automations.reschedule("mine")):
        related = automation.trigger.match_related
        assert related.model_dump()["prefect.resource.id"] == ["prefect.tag.mine"]
        assert automation.name.startswith("prefect-augment: ")


def test_a_lost_run_has_missed_three_heartbeats_at_least() -> None:
    trigger = script("automations").zombies().trigger
    assert trigger.within.total_seconds() >= 3 * 30


def test_files_that_the_readme_names_exist() -> None:
    text = (DEPLOYMENTS / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"deployments/([\w./-]+\.(?:json|py)|Dockerfile\.\w+)", text))
    assert {"automations.py", "serve.py", "work-pools/process-cpu.json"} <= named
    assert [name for name in named if not (DEPLOYMENTS / name).is_file()] == []
