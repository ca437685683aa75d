"""The server dies under a run: it goes on when the server is back, or the next run does."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prefect_augment_test_object_servers as servers
import pytest

from prefect_augment.errors import TransientError
from prefect_augment.examples import example_source
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Destination, Evaluation, NoModel
from prefect_augment.schema import RunResult
from prefect_augment.storage import list_versions, open_store, read_manifest

pytestmark = pytest.mark.faults


@pytest.fixture
def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A server of this test alone, whose objects are on disk."""
    request.getfixturevalue(request.param)  # skips or fails where it is not installed
    server = getattr(servers, f"start_{request.param}")(tmp_path / "server")
    yield server
    server.processes.stop()


def run(lake: str) -> RunResult:
    return rebalance.fn(
        source=example_source(f"{lake}/in"),
        destination=Destination(uri=f"{lake}/out"),
        model=NoModel(),
        evaluation=Evaluation(
            n_seeds=1, n_settings=1, n_bootstrap=100, estimators=["logistic"], on_no_gain="publish"
        ),
    )


@pytest.mark.parametrize("mortal", ["swift"], indirect=True)
def test_a_server_that_dies_in_mid_run_loses_nothing(
    mortal: Any, proxy_of: Callable[..., Any], as_user: Callable[..., None], undisturbed: Any
) -> None:
    proxy = proxy_of(mortal)
    as_user(mortal, proxy.endpoint)
    lake = f"s3://{mortal.bucket()}"
    # Killed while a shard is being put, and back once three requests found nobody.
    died_at: list[int] = []

    def on_request(request: str) -> None:
        if not died_at and re.search("PUT .*/out/data/", request):
            mortal.processes.kill()
            died_at.append(len(proxy.seen))
        elif died_at and not mortal.processes.running and proxy.hit()["upstream away"] >= 3:
            restart(mortal)

    proxy.before = on_request
    assert run(lake).status == "published"

    assert proxy.hit()["upstream away"] >= 3, "it was away"
    store = open_store(f"{lake}/out")
    assert [(s.path, s.sha256) for s in read_manifest(store).shards] == undisturbed
    assert not verify(store).problems


@pytest.mark.parametrize("mortal", ["rclone"], indirect=True)
@pytest.mark.filterwarnings("ignore:.*one run at a time.*:RuntimeWarning")
def test_a_server_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    mortal: Any, proxy_of: Callable[..., Any], as_user: Callable[..., None], undisturbed: Any
) -> None:
    proxy = proxy_of(mortal)
    as_user(mortal, proxy.endpoint)
    lake = f"s3://{mortal.bucket()}"
    proxy.after("PUT .*/out/_staging/confirm/", mortal.processes.kill)
    with pytest.raises(TransientError, match="run again"):
        run(lake)

    restart(mortal)
    assert list_versions(open_store(f"{lake}/out")) == ()
    proxy.seen.clear()
    assert run(lake).status == "published"
    assert not proxy.attempts("PUT .*/out/_staging/(ingest|score)"), (
        "what was done is not done again"
    )
    manifest = read_manifest(open_store(f"{lake}/out"))
    assert [(s.path, s.sha256) for s in manifest.shards] == undisturbed
    assert open_dataset(f"{lake}/out").to_table().num_rows


def restart(server: Any) -> None:
    server.processes.start()
    if server.name == "swift":
        servers.wait_until(lambda: servers.is_healthy(server), "Swift's health")
