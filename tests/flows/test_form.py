"""The form of the `rebalance` deployment: five fields, and a run whose own page shows everything."""

from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools import validate
from support import run_pages
from support.engine_runs import QUICK

from prefect_augment.errors import ParameterError
from prefect_augment.flows.form import rebalance
from prefect_augment.params import Classic, ImageSettings, NoModel, Source, TableSettings

SCHEMA: dict[str, Any] = rebalance.parameters.model_dump()


def fields(settings: str, section: str) -> set[str]:
    """Fields of a section that a group of the form shows."""
    alternatives = SCHEMA["definitions"][settings]["properties"][section]["anyOf"]
    (shown,) = (one for one in alternatives if one != {"type": "null"})
    return set(shown.get("properties") or SCHEMA["definitions"][shown["$ref"].split("/")[-1]])


def test_the_form_has_five_fields_and_folds_the_rest() -> None:
    shown = sorted(SCHEMA["properties"], key=lambda name: SCHEMA["properties"][name]["position"])
    assert shown == ["source", "label", "destination", "approval", "plan_only", "tables", "images"]
    assert SCHEMA["properties"]["tables"]["default"] is None, "folded"
    assert SCHEMA["properties"]["images"]["default"] is None
    assert not SCHEMA.get("required")


def test_a_group_shows_what_its_kind_of_data_has() -> None:
    of_tables, of_images = fields("TableSettings", "source"), fields("ImageSettings", "source")
    assert "separator" in of_tables - of_images
    assert "include" in of_images - of_tables
    assert not {"uri", "label"} & (of_tables | of_images), "asked above"
    both = fields("TableSettings", "classic") | fields("ImageSettings", "classic")
    assert both == set(Classic.model_fields), "no field is lost between the two"
    assert of_tables | of_images | {"uri", "label"} == set(Source.model_fields)


def test_the_server_takes_the_groups_as_they_are_filled_in() -> None:
    for group, settings in (("tables", "TableSettings"), ("images", "ImageSettings")):
        sections = SCHEMA["definitions"][settings]["properties"]
        given = {name: info["default"] for name, info in sections.items()}
        given["budget"] = {"minutes": 2.0}
        validate({group: given}, SCHEMA, raise_on_error=True, ignore_required=True)


@pytest.mark.parametrize("field", ["source", "destination"])
def test_a_location_with_a_password_is_refused(field: str) -> None:
    with pytest.raises(ParameterError, match="password"):
        rebalance.validate_parameters({field: "s3://key:sec/ret@lake/parts"})


def test_settings_for_both_kinds_of_data_are_refused() -> None:
    with pytest.raises(ParameterError, match="keep the one"):
        rebalance.fn(tables=TableSettings(), images=ImageSettings())


@pytest.mark.flow
@pytest.mark.usefixtures("quick_runs")
def test_the_run_that_was_started_holds_its_tasks_and_answer(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = TableSettings(model=NoModel(), evaluation=QUICK)
    state = rebalance(source.uri, source.label, tables=settings, return_state=True)
    assert state.message.startswith("Use "), "the answer comes first"
    assert " Published version 1 " in state.message
    assert state.result().manifest.startswith(str(tmp_path / "prefect-augment")), "by default"
    run = run_pages.run_id(state)
    assert run_pages.flow_run(run).name == f"rebalance {source.uri}"
    names = {task.name.partition(" ")[0] for task in run_pages.task_runs(run)}
    assert {"ingest", "plan", "score", "confirm", "publish"} <= names, names
    shown = sorted(str(a.key).partition("-")[0] for a in run_pages.artifacts(run))
    assert shown == ["answer", "plan", "progress", "report"]
