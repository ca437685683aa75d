"""Two runs to one destination at once, and clocks that are wrong: every version is whole."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from prefect_augment.errors import TransientError
from prefect_augment.maintenance.gc import collect_garbage
from prefect_augment.maintenance.verify import verify
from prefect_augment.storage import (
    FOLDER,
    Store,
    latest_version,
    lease,
    list_versions,
    open_store,
    read_manifest,
)

pytestmark = pytest.mark.faults

HOUR = 3600.0
COMMIT = {"at": "link _manifests/v00000002.json", "number": signal.SIGSTOP}


def job(source: Path, destination: Path) -> dict[str, str]:
    return {"source": str(source), "label": "kind", "destination": str(destination)}


@pytest.fixture(scope="module")
def template(warm: Any, write_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source (`in`), a destination of one version (`out`), and two ways it could grow."""
    folder = tmp_path_factory.mktemp("template")
    write_source(folder / "in" / "1.parquet")
    code, log = warm.run("rebalance", **job(folder / "in", folder / "out"))
    assert code == 0, log
    for i, name in enumerate(("one", "other"), start=1):
        shutil.copytree(folder / "in", folder / name)
        write_source(folder / name / "2.parquet", n=100, seed=i)
    return Path(folder)


@pytest.fixture
def destination(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template / "out", tmp_path / "out"))


def meet(warm: Any, sources: list[Path], destination: Path) -> list[tuple[int, str]]:
    """Let runs come to the very commit, one after the other, and then go on all at once."""
    started = []
    for source in sources:
        pid, log = warm.start("rebalance", **job(source, destination), signal=dict(COMMIT))
        assert warm.join(pid, stopped=True) == -signal.SIGSTOP, log.read_text()
        started.append((pid, log))
    assert latest_version(open_store(str(destination))) == 1
    for pid, _ in started:
        os.kill(pid, signal.SIGCONT)
    return [(warm.join(pid), log.read_text()) for pid, log in started]


def check_whole(destination: Path, n_versions: int) -> None:
    store = open_store(str(destination))
    assert list_versions(store) == tuple(range(1, n_versions + 1))
    for version in list_versions(store):
        assert [p for p in verify(store, version).problems if p.kind != "card"] == []
    assert verify(store).problems == ()
    assert not store.list(FOLDER), "no lease is left behind"


def test_two_runs_of_the_same_inputs_that_meet_at_the_commit_make_one_version(
    warm: Any, template: Path, destination: Path
) -> None:
    ends = meet(warm, [template / "one"] * 2, destination)
    assert [code for code, _ in ends] == [0, 0], ends
    check_whole(destination, 2)


def test_of_two_runs_of_other_inputs_that_meet_one_wins_and_the_other_follows_when_run_again(
    warm: Any, template: Path, destination: Path
) -> None:
    sources = [template / "one", template / "other"]
    ends = meet(warm, sources, destination)
    codes = [code for code, _ in ends]
    assert sorted(codes) == [0, 1], ends
    loser = codes.index(1)
    assert "CommitConflictError" in ends[loser][1]
    assert "Nothing is lost: run again" in ends[loser][1]
    check_whole(destination, 2)
    winner = read_manifest(open_store(str(destination)))
    looks = [path for path in open_store(str(destination)).list("_looks") if "proven" not in path]
    assert len(looks) == 3, "both runs have looked, and the first version's"

    # What each run would have made alone, and whichever won is that to the byte; the other has looked
    # at the same hold-out, so the winner's verdict may be of a later look.
    alone = Path(shutil.copytree(template / "out", destination.with_name("alone")))
    code, log = warm.run("rebalance", **job(sources[1 - loser], alone))
    assert code == 0, log
    manifest = read_manifest(open_store(str(alone)))
    assert (manifest.shards, manifest.recipe) == (winner.shards, winner.recipe)

    code, log = warm.run("rebalance", **job(sources[loser], destination))
    assert code == 0, log
    check_whole(destination, 3)


def test_a_run_that_is_stopped_for_long_before_its_commit_does_no_harm(
    warm: Any, template: Path, destination: Path
) -> None:
    """A frozen machine: the other run has published long since when this one wakes up and commits."""
    pid, log = warm.start("rebalance", **job(template / "one", destination), signal=dict(COMMIT))
    assert warm.join(pid, stopped=True) == -signal.SIGSTOP, log.read_text()
    code, other = warm.run("rebalance", **job(template / "other", destination))
    assert code == 0, other
    os.kill(pid, signal.SIGCONT)
    assert warm.join(pid) == 1
    assert "CommitConflictError" in log.read_text()
    check_whole(destination, 2)
    code, other = warm.run("rebalance", **job(template / "one", destination))
    assert code == 0, other
    check_whole(destination, 3)


# --- clocks -----------------------------------------------------------------------------------


class Skewed(Store):
    """A real folder on a disk whose clock is so many seconds off, as a file server's may be."""

    def __init__(self, store: Store, seconds: float) -> None:
        super().__init__(uri=store.uri, fs=store.fs, root=store.root)
        self.seconds = seconds

    def put(self, path: str, data: bytes) -> None:
        super().put(path, data)
        self._skew(path)

    def put_if_absent(self, path: str, data: bytes, *, look_first: bool = True) -> bool:
        done = super().put_if_absent(path, data, look_first=look_first)
        if done:
            self._skew(path)
        return done

    def _skew(self, path: str) -> None:
        now = time.time() + self.seconds
        os.utime(self.full(path), (now, now))


def age(store: Store, path: str, seconds: float) -> None:
    """Make an object so much older."""
    status = Path(store.full(path)).stat()
    os.utime(store.full(path), (status.st_atime - seconds, status.st_mtime - seconds))


def shift(folder: Path, hours: float) -> None:
    """Make every file of a folder so much younger."""
    for path in folder.rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime + hours * HOUR
            os.utime(path, (then, then))


skews = pytest.mark.parametrize("hours", [-30 * 24, -6, 6, 30 * 24], ids=lambda h: f"{h:+}h")


@pytest.mark.parametrize("hours", [-30 * 24, 6], ids=lambda h: f"{h:+}h")
def test_files_hours_off_change_nothing_of_what_a_run_makes(
    hours: float, warm: Any, template: Path, destination: Path
) -> None:
    """Everything that lay there before is from another clock; the source's times name its content."""
    source = Path(shutil.copytree(template / "one", destination.with_name("in")))
    shift(source, hours)
    expected = Path(shutil.copytree(template / "out", destination.with_name("expected")))
    code, log = warm.run("rebalance", **job(source, expected))
    assert code == 0, log
    shift(destination, hours)
    code, log = warm.run("rebalance", **job(source, destination))
    assert code == 0, log
    digests = [read_manifest(open_store(str(d))).content_digest for d in (expected, destination)]
    assert digests[0] == digests[1]
    check_whole(destination, 2)


@skews
def test_ages_are_differences_of_the_store_s_own_times(
    hours: float, template: Path, destination: Path
) -> None:
    store = Skewed(open_store(str(destination)), hours * HOUR)
    store.put("_staging/sample/young/outcome.json", b"{}")
    store.put("_staging/sample/old/outcome.json", b"{}")
    age(store, "_staging/sample/old/outcome.json", 8 * 24 * HOUR)
    collect_garbage(store)
    assert store.exists("_staging/sample/young/outcome.json")
    assert not store.exists("_staging/sample/old/outcome.json")
    assert verify(store).problems == ()


@skews
def test_leases_hold_and_lapse_by_the_store_s_clock(hours: float, destination: Path) -> None:
    store = Skewed(open_store(str(destination)), hours * HOUR)
    with lease(store, "writing", "publish-a"):
        with pytest.raises(TransientError, match="another run publishes"):
            collect_garbage(store)
        # Killed, and so long ago that it cannot be at work any more.
        age(store, f"{FOLDER}/writing-publish-a.json", 25 * HOUR)
        collect_garbage(store)
    with lease(store, "removing", "gc"), pytest.raises(TransientError, match="removes objects"):
        _hold(store)


def _hold(store: Store) -> None:
    with lease(store, "writing", "publish-b"):
        pass


@pytest.mark.parametrize("hours", [6.0, 30 * 24.0])
def test_a_lease_from_the_future_is_held_and_the_remedy_works(
    hours: float, destination: Path
) -> None:
    """The store's clock was wrong and has been set right since: who left the lease cannot be told."""
    store = open_store(str(destination))
    path = f"{FOLDER}/writing-publish-a.json"
    store.put(path, b"{}\n")
    age(store, path, -hours * HOUR)
    with pytest.raises(
        TransientError, match="If it was killed, run it again.*or delete that object"
    ):
        collect_garbage(store)
    store.delete(path)
    collect_garbage(store)
    assert verify(store).problems == ()
