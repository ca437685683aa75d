"""kill -9 in the middle of a run on images: a rerun goes on from what lies there and ends alike."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prefect_augment.maintenance.verify import verify
from prefect_augment.storage import latest_version, open_store, read_manifest

pytestmark = pytest.mark.faults

# Where a run kills itself: which of the changes of its destination that match, counted from 0.
MOMENTS = {
    "training": (r"(link|rename) _staging/train/.*/resume/\d+\.json", 2),
    "sampling": (r"remove _staging/sample/.*batch-.*", 0),
    "scoring": (r"open _staging/score/.*", 2),
    "publishing": (r"rename data/.*", 1),
}


@pytest.fixture(scope="module")
def source(messy_images: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = messy_images.write(tmp_path_factory.mktemp("source"), messy_images.shapes())
    return folder


def job(source: Path, destination: Path) -> dict[str, str]:
    return {"source": str(source), "destination": str(destination)}


def result(destination: Path) -> tuple[str, list[str]]:
    """The content's digest and the shards' names."""
    store = open_store(str(destination))
    assert latest_version(store) == 1
    manifest = read_manifest(store)
    assert not verify(store).problems
    return manifest.content_digest, sorted(shard.path for shard in manifest.shards)


@dataclass(frozen=True)
class Undisturbed:
    """What a run leaves that nothing disturbed, and what it did."""

    result: tuple[str, list[str]]
    events: list[str]


@pytest.fixture(scope="module")
def undisturbed(
    warm_with_images: Any, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    events = folder / "events"
    code, log = warm_with_images.run(
        "rebalance_images", **job(source, folder / "out"), events=str(events)
    )
    assert code == 0, log[-3000:]
    found = result(folder / "out")
    assert any("synthetic" in path for path in found[1])
    return Undisturbed(found, events.read_text().splitlines())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_shows_nothing_and_a_rerun_ends_with_the_same_bytes(
    moment: str, warm_with_images: Any, source: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    destination = tmp_path / "out"
    pattern, n = MOMENTS[moment]
    place = [event for event in undisturbed.events if re.fullmatch(pattern, event)][n]
    code, log = warm_with_images.run(
        "rebalance_images",
        **job(source, destination),
        signal={"at": place, "number": signal.SIGKILL},
    )
    assert code == -signal.SIGKILL, log[-3000:]
    assert latest_version(open_store(str(destination))) is None
    trained = list(destination.glob("_staging/train/*/outcome.json"))
    assert bool(trained) == (moment != "training")

    code, log = warm_with_images.run("rebalance_images", **job(source, destination))
    assert code == 0, log[-3000:]
    assert result(destination) == undisturbed.result
    assert ("goes on from step" in log) == (moment == "training"), log
