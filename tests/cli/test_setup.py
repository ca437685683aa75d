"""``init`` and ``doctor``: what they write, what they find, and how they end."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from prefect import Flow
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from support.tables import make_table
from typer.testing import CliRunner

from prefect_augment.cli import doctor_checks as doctor
from prefect_augment.cli.app import app
from prefect_augment.cli.doctor_checks import check_destination, check_source, needed_extras
from prefect_augment.cli.init import write_project
from prefect_augment.errors import ParameterError
from prefect_augment.storage import Store, open_store


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


# --- init -------------------------------------------------------------------------------------


def deployment_in(folder: Path) -> dict[str, Any]:
    (deployment,) = yaml.safe_load((folder / "prefect.yaml").read_text())["deployments"]
    return dict(deployment)


def test_init_writes_a_deployment_of_the_form_for_a_source(tmp_path: Path) -> None:
    code, out = call(
        "init", tmp_path, "--source", "s3://lake/in.parquet", "--label", 'the "class"',
        "--dest", "s3://lake/out", "--name", "Parts nightly", "--schedule", "0 4 * * *",
    )  # fmt: skip
    assert code == 0
    assert "prefect --no-prompt deploy --all" in out
    deployment = deployment_in(tmp_path)
    assert deployment["name"] == "parts-nightly"
    assert deployment["schedules"] == [{"cron": "0 4 * * *", "timezone": "UTC", "active": True}]

    module, name = deployment["entrypoint"].split(":")
    flow = getattr(import_module(module), name)
    assert isinstance(flow, Flow)
    given = flow.validate_parameters(deployment["parameters"])
    assert given["label"] == 'the "class"'
    assert (given["source"], given["destination"]) == ("s3://lake/in.parquet", "s3://lake/out")


def test_without_a_destination_the_form_makes_one_from_the_source(tmp_path: Path) -> None:
    """One that is filled in would be the example's for everybody's first own data."""
    call("init", tmp_path)
    assert deployment_in(tmp_path)["parameters"] == {}


def test_init_overwrites_nothing_and_says_what_exists(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text("name: mine\n")
    code, out = call("init", tmp_path)
    assert code == 0
    assert (tmp_path / "prefect.yaml").read_text() == "name: mine\n"
    assert "prefect.yaml exists" in out
    assert "entrypoint: prefect_augment.flows.form:rebalance" in out, "the entry to add by hand"


def test_a_relative_source_is_written_as_an_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run starts in another folder than the one in which somebody typed the command."""
    monkeypatch.chdir(tmp_path)
    call("init", "repository", "--source", "in.parquet")
    given = deployment_in(tmp_path / "repository")["parameters"]
    assert given == {"source": f"{tmp_path}/in.parquet"}


@pytest.mark.parametrize(
    ("options", "match"),
    [({"name": "---"}, "letters, digits and dashes"), ({"schedule": "at noon"}, "five fields")],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    options: dict[str, str], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=match):
        write_project(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


# --- doctor -----------------------------------------------------------------------------------


def doctored(*arguments: object) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code and checks by name, with no API that may be started."""
    with temporary_settings({PREFECT_API_URL: None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True}):
        code, out = call("doctor", *arguments, "--json")
    return code, {c["name"]: c for c in json.loads(out.splitlines()[-1])["checks"]}


@pytest.mark.slow
def test_doctor_finds_this_machine_in_order(tmp_path: Path) -> None:
    pq.write_table(make_table(), tmp_path / "in.parquet")
    source, dest = tmp_path / "in.parquet", tmp_path / "not" / "yet"
    code, checks = doctored("--source", source, "--dest", dest)
    assert code == 0, checks
    assert checks[f"source {source}"]["status"] == "ok"
    assert checks[f"destination {dest}"]["status"] == "ok"
    assert checks["write only where none is"]["status"] == "ok"
    assert checks["Python"]["status"] == checks["prefect"]["status"] == "ok"
    assert checks["API"]["status"] == "warning", "runs work; schedules and the form do not"
    assert not (tmp_path / "not").exists(), "the probe leaves nothing behind"


@pytest.mark.slow
def test_doctor_ends_with_1_and_says_what_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, checks = doctored("--source", tmp_path / "missing", "--dest", tmp_path / "file" / "below")
    assert code == 1
    for name in (f"source {tmp_path}/missing", f"destination {tmp_path}/file/below"):
        assert checks[name]["status"] == "problem"
        assert checks[name]["advice"]


@pytest.mark.slow
def test_doctor_prints_a_line_per_check_for_people() -> None:
    with temporary_settings({PREFECT_API_URL: None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}):
        code, out = call("doctor")
    assert code == 1
    assert "API: none set, and none may be started" in out
    assert "prefect server start" in out


def test_an_api_that_does_not_answer_is_a_problem() -> None:
    from prefect_augment.cli.doctor_checks import check_prefect

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        (check,) = check_prefect()
    assert check.status == "problem"
    assert "127.0.0.1:9" in check.finding


@pytest.mark.flow
def test_a_server_without_a_work_pool_is_a_warning() -> None:
    from prefect_augment.cli.doctor_checks import check_prefect

    server, *pools = check_prefect()
    assert server.status == "ok"
    assert "answers" in server.finding
    assert pools[0].status == "warning"
    assert "prefect work-pool create" in pools[0].advice or "worker start" in pools[0].advice


@pytest.mark.flow
def test_a_block_that_is_not_there_is_a_problem() -> None:
    from prefect_augment.cli.doctor_checks import load_block

    _, (check,) = load_block("remote-file-system/nowhere")
    assert check.status == "problem"
    assert "nowhere" in check.finding


def test_a_python_out_of_range_is_a_problem() -> None:
    (old,) = doctor.check_python("3.9.18")
    (new,) = doctor.check_python("3.12.1")
    assert (old.status, new.status) == ("problem", "ok")
    assert "3.11" in old.advice


def test_extras_that_the_data_need_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.png").write_bytes(b"x")
    checks = check_source(str(tmp_path / "in"))
    assert needed_extras("s3://lake/in", "gs://lake/out", checks) == {
        "s3", "gcs", "images", "torch",
    }  # fmt: skip


def test_a_missing_extra_is_a_problem_only_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "gcs", (("a_module_that_is_not_there",), "gs:// locations"))
    status = {
        needed: _status(doctor.check_extras(needed), "gcs")
        for needed in (frozenset(), frozenset({"gcs"}))
    }
    assert list(status.values()) == ["ok", "problem"]


def _status(checks: list[doctor.Check], extra: str) -> str:
    return next(c.status for c in checks if c.name == f"extra {extra}")


def test_a_store_that_overwrites_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some S3-compatible servers accept the condition and overwrite all the same."""

    def overwrite(self: Store, path: str, data: bytes, *, look_first: bool = True) -> bool:
        self.put(path, data)
        return True

    monkeypatch.setattr(Store, "put_if_absent", overwrite)
    written, condition = check_destination("memory://doctor/overwrites")
    assert written.status == "ok"
    assert condition.status == "warning"
    assert "one run at a time" in condition.advice
    assert open_store("memory://doctor/overwrites").list() == []


@pytest.mark.slow
def test_options_of_a_block_never_appear_in_what_is_found() -> None:
    (check, *_) = check_destination(
        "s3://nowhere/out",
        options={
            "key": "k",
            "secret": "hush-hush",
            "endpoint_url": "http://127.0.0.1:9",
            "config_kwargs": {"retries": {"max_attempts": 0}},
        },
    )
    assert check.status == "problem"
    assert "hush-hush" not in check.model_dump_json()
