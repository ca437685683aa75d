"""Events go to the server that OpenLineage's own configuration names, and nowhere without one."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect.exceptions import Pause

from prefect_augment.catalogue import openlineage
from prefect_augment.errors import InputError
from prefect_augment.flows.augment import augment
from prefect_augment.params import Destination, Source
from prefect_augment.storage import open_store, read_manifest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def not_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(openlineage.os, "environ", {})
    monkeypatch.setattr(openlineage.Path, "home", lambda: tmp_path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The events that a server on loopback hears."""
    pytest.importorskip("openlineage.client")
    events: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            events.append(json.loads(body) | {"path": self.path})
            self.send_response(201)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    monkeypatch.undo()
    monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{http.server_address[1]}")
    yield events
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    rows = {"x": [i * 1.5 for i in range(80)], "kind": ["hidden-a", *["b"] * 20, *["c"] * 59]}
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_a_run_tells_what_it_read_and_published(
    server: list[dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    augment.fn(source=Source(uri=str(source), label="kind"), destination=Destination(uri=str(out)))
    start, complete = server
    assert (start["path"], start["eventType"], complete["eventType"]) == (
        "/api/v1/lineage", "START", "COMPLETE",
    )  # fmt: skip
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert start["job"]["name"] == "augment"
    (read,) = complete["inputs"]
    assert (read["namespace"], read["name"]) == ("file", str(source))
    assert [f["name"] for f in read["facets"]["schema"]["fields"]] == ["x", "kind"]
    quality = read["facets"]["dataQualityMetrics"]
    assert quality["rowCount"] == 80
    assert quality["columnMetrics"]["x"]["nullCount"] == 0
    (made,) = complete["outputs"]
    manifest = read_manifest(open_store(str(out)))
    assert made["name"] == str(out)
    assert made["facets"]["version"]["datasetVersion"] == "1"
    assert made["outputFacets"]["outputStatistics"]["rowCount"] == sum(
        s.n_records for s in manifest.shards
    )
    assert "aug_origin" in [f["name"] for f in made["facets"]["schema"]["fields"]]


def test_a_failure_is_told_without_its_message(server: list[dict[str, Any]]) -> None:
    with (
        pytest.raises(InputError),
        openlineage.traced("rebalance", "s3://lake/in/*.csv", "s3://lake/out"),
    ):
        raise InputError("cell 'hidden-word' is no number")
    assert [event["eventType"] for event in server] == ["START", "FAIL"]
    assert server[1]["run"]["facets"]["errorMessage"]["message"] == "InputError"
    assert server[1]["inputs"][0]["namespace"] == "s3://lake"
    assert "hidden-word" not in json.dumps(server)


@pytest.mark.parametrize(("signal", "state"), [(KeyboardInterrupt, "ABORT"), (Pause, "RUNNING")])
def test_a_run_may_be_stopped_or_wait(
    server: list[dict[str, Any]], signal: type[BaseException], state: str
) -> None:
    with pytest.raises(signal), openlineage.traced("rebalance", "in", "out"):
        raise signal
    assert server[-1]["eventType"] == state


def test_a_server_that_is_gone_ends_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openlineage.client")
    monkeypatch.undo()
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "http")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__RETRY", '{"total": 0}')
    with openlineage.traced("rebalance", "in", "out"):
        pass
    assert "COMPLETE event was not sent" in caplog.text


def test_without_configuration_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with openlineage.traced("rebalance", "in", "out"):
        assert not openlineage.is_traced()
    monkeypatch.setattr(
        openlineage.os, "environ", {"OPENLINEAGE_URL": "x", "OPENLINEAGE_DISABLED": "true"}
    )
    assert not openlineage.is_configured()


def test_a_missing_client_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openlineage.os, "environ", {"OPENLINEAGE_URL": "x"})
    monkeypatch.setattr(openlineage.importlib.util, "find_spec", lambda name: None)
    with openlineage.traced("rebalance", "in", "out"):
        pass
    assert "prefect-augment[lineage]" in caplog.text
