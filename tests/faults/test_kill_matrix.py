"""kill -9 at 50 places of a run, a reader at work throughout: old or new, never torn, and a rerun ends alike.

Once with soft labels, as is the default, and once with hard ones.

The runs are children of `warm.py`, which kill themselves at a named change of the destination. Places
are taken from an undisturbed run: before and after the outcome of every stage and the manifest, and
others drawn at random from all that staging and publishing do. They are dealt to six destinations;
each run goes on from what the one before left, until the last one ends.
"""

import itertools
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefect_augment.maintenance.gc import collect_garbage
from prefect_augment.maintenance.verify import verify
from prefect_augment.storage import latest_version, open_store, read_manifest

pytestmark = pytest.mark.faults

N_KILLS = 50
N_DESTINATIONS = 6
DEADLINE_SECONDS = 300
# All that a run with a generative model has at least, by its labels: SMOTE is mixed with hard ones alone.
STAGES = {
    "soft": ("ingest", "train", "sample", "filter", "score", "confirm", "report-page"),
    "hard": ("ingest", "train", "sample", "filter", "score", "confirm", "report-page", "augment"),
}


@dataclass(frozen=True)
class Runs:
    """What all tests share: a destination of one version, its source grown since, and how that ends."""

    labels: str
    source: Path
    template: Path
    old: str
    new: str
    shards: tuple[tuple[str, str], ...]
    ledger: str
    events: tuple[str, ...]

    def job(self, destination: Path) -> dict[str, str]:
        job = {"source": str(self.source), "label": "kind", "labels": self.labels}
        return {**job, "destination": str(destination)}

    def begin(self, folder: Path) -> Path:
        """A copy of the destination with its first version; times of modification are kept."""
        return Path(shutil.copytree(self.template, folder / "out"))

    def check(self, destination: Path) -> None:
        """Both versions are whole, and the second is the one of an undisturbed run."""
        store = open_store(str(destination))
        assert latest_version(store) == 2
        manifest = read_manifest(store)
        assert shards_of(manifest) == self.shards
        assert manifest.content_digest == self.new
        assert manifest.ledger is not None
        assert manifest.ledger.sha256 == self.ledger
        # What the kills left behind goes, and nothing else.
        collect_garbage(store, older_than_days=0)
        assert not list(destination.rglob(".tmp-*"))
        for version in (1, 2):
            assert verify(store, version).problems == ()


def shards_of(manifest: Any) -> tuple[tuple[str, str], ...]:
    return tuple((shard.path, shard.sha256) for shard in manifest.shards)


@pytest.fixture(scope="module", params=STAGES)
def runs(
    request: pytest.FixtureRequest,
    warm: Any,
    write_source: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs:
    labels = str(request.param)
    folder = tmp_path_factory.mktemp("runs")
    source, template = folder / "in", folder / "template"
    write_source(source / "1.parquet")
    job = {"source": str(source), "label": "kind", "labels": labels}
    code, log = warm.run("rebalance", **job, destination=str(template))
    assert code == 0, log
    old = read_manifest(open_store(str(template))).content_digest

    write_source(source / "2.parquet", n=100, seed=1)
    undisturbed = Path(shutil.copytree(template, folder / "undisturbed"))
    events = folder / "events"
    code, log = warm.run("rebalance", **job, destination=str(undisturbed), events=str(events))
    assert code == 0, log
    manifest = read_manifest(open_store(str(undisturbed)), 2)
    assert manifest.ledger is not None
    return Runs(
        labels=labels,
        source=source,
        template=template,
        old=old,
        new=manifest.content_digest,
        shards=shards_of(manifest),
        ledger=manifest.ledger.sha256,
        events=tuple(events.read_text().splitlines()),
    )


def choose(events: tuple[str, ...], stages: tuple[str, ...]) -> list[str]:
    """Choose where to kill: the boundaries of all stages and of the commit, and others at random."""
    first: dict[str, int] = {}  # the same name again is the same place of a later run
    for i, event in enumerate(events):
        first.setdefault(event, i)
    boundaries: dict[str, str] = {}
    for event in first:
        # A stage may have several outcomes; its last one is where the next stage begins.
        ends = re.fullmatch(r"(link|rename|remove) _staging/([^/]+)/.*outcome\.json", event)
        if ends:
            boundaries[f"{'after' if ends[1] == 'remove' else 'before'} {ends[2]}"] = event
        elif "_manifests/" in event or "README" in event:
            boundaries[event] = event
    assert {f"before {stage}" for stage in stages} <= set(boundaries)
    named = set(boundaries.values())
    others = [event for event in first if event not in named]
    chosen = random.Random(0).sample(others, N_KILLS - len(named))
    return sorted([*named, *chosen], key=first.__getitem__)


class Reader:
    """A process that reads the newest version and checks every digest, again and again."""

    def __init__(self, warm: Any, destination: Path, folder: Path) -> None:
        self._warm = warm
        self._stop = folder / "stop"
        job = {"destination": str(destination), "stop": str(self._stop)}
        self.pid, self._log = warm.start("read", **job)

    def looks(self) -> list[str]:
        """Every look that it took, `<version> <content digest> <records>`."""
        return self._log.read_text().splitlines(keepends=False)

    def look_again(self) -> None:
        """Wait until it has taken a look that began after now."""
        wanted = len(self.looks()) + 2  # one may have begun before
        until = time.monotonic() + DEADLINE_SECONDS
        while len(self.looks()) < wanted:
            assert "Traceback" not in self._log.read_text(), self._log.read_text()[-3000:]
            assert time.monotonic() < until, "the reader hangs"
            time.sleep(0.01)

    def end(self) -> list[str]:
        self._stop.touch()
        code = self._warm.join(self.pid)
        assert code == 0, self._log.read_text()[-3000:]
        return self.looks()


@pytest.fixture
def destination(runs: Runs, tmp_path: Path) -> Path:
    return runs.begin(tmp_path)


@pytest.fixture
def reader(runs: Runs, warm: Any, destination: Path, tmp_path: Path) -> Iterator[Reader]:
    """At work while the test runs; what it saw is looked at in the end."""
    reader = Reader(warm, destination, tmp_path)
    reader.look_again()
    yield reader
    looks = [line.split()[:2] for line in reader.end()]
    seen = [looks[0], *(b for a, b in itertools.pairwise(looks) if a != b)]
    assert seen == [["1", runs.old], ["2", runs.new]]


@pytest.mark.parametrize("n", range(N_DESTINATIONS))
def test_a_run_killed_at_any_change_shows_the_old_version_or_the_new_and_a_rerun_ends_alike(
    n: int, runs: Runs, warm: Any, destination: Path, reader: Reader
) -> None:
    places = choose(runs.events, STAGES[runs.labels])
    assert len(places) == N_KILLS
    for place in places[n::N_DESTINATIONS]:
        at = {"at": place, "number": signal.SIGKILL}
        code, log = warm.run("rebalance", **runs.job(destination), signal=at)
        assert code == -signal.SIGKILL, f"never came to {place}\n{log}"
        reader.look_again()
    code, log = warm.run("rebalance", **runs.job(destination))
    assert code == 0, log
    reader.look_again()
    runs.check(destination)


def test_a_run_killed_at_any_moment_again_and_again_ends_alike(
    runs: Runs, warm: Any, destination: Path, reader: Reader
) -> None:
    """By the clock: a kill may fall inside a computation or a write, wherever that is on this machine."""
    rng = random.Random(1)
    seconds, n_kills = 0.05, 0
    while True:
        moment = rng.uniform(0.5, 1.0) * seconds
        code, log = warm.run("rebalance", **runs.job(destination), seconds=moment)
        if code == 0:
            break
        assert code == -signal.SIGKILL, log
        n_kills += 1
        reader.look_again()
        seconds *= 1.4  # a stage that never gets the time it needs would never end
    assert n_kills
    reader.look_again()
    runs.check(destination)
