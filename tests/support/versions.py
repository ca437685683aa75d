"""What tests of changing a published dataset share: a dataset of two versions, and kills."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from support.steps import publish_parts

from prefect_augment.maintenance.verify import verify
from prefect_augment.report.card import CARD
from prefect_augment.storage import Store, list_versions, open_store, read_manifest

TAIL = "c/<b>|'"


class Killed(BaseException):
    """The process is gone: no handler of the code under test sees it as an error of its own."""


class Dying(Store):
    """A real store below a process that is killed after so many writes and removals.

    What the process would still do in its `finally` clauses reaches the store no more.
    """

    def __init__(self, store: Store, n_left: int) -> None:
        super().__init__(uri=store.uri, fs=store.fs, root=store.root)
        self.n_left = n_left

    def put(self, path: str, data: bytes) -> None:
        self._live()
        super().put(path, data)
        self._count()

    def put_if_absent(self, path: str, data: bytes, *, look_first: bool = True) -> bool:
        self._live()
        done = super().put_if_absent(path, data, look_first=look_first)
        self._count()
        return done

    def delete(self, path: str) -> None:
        self._live()
        super().delete(path)
        self._count()

    def _live(self) -> None:
        if self.n_left <= 0:
            raise Killed

    def _count(self) -> None:
        self.n_left -= 1
        self._live()


def see(store: Store) -> int:
    """Be a reader: every version that is listed is all there, and the card names no missing shard."""
    for version in list_versions(store):
        problems = [p for p in verify(store, version).problems if p.kind != "card"]
        assert problems == [], (version, problems)
    if store.exists(CARD):
        for line in store.read(CARD).decode().splitlines():
            if line.strip().startswith("- data/"):
                assert store.exists(line.strip("- "))
    return read_manifest(store).version


@pytest.fixture(scope="session")
def reader() -> Callable[[Store], int]:
    return see


@pytest.fixture(scope="session")
def kill_at_every_write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """Kill a job after each of its writes in turn, look, and let it run again; returns how often."""

    def kill(
        template: Path,
        job: Callable[[Store], Any],
        after: Callable[[Store], None],
        between: Callable[[Store], None] = lambda store: None,
    ) -> int:
        folder = tmp_path_factory.mktemp("kills")
        n = 0
        while True:
            n += 1
            # copytree keeps the times of modification.
            here = open_store(str(shutil.copytree(template, folder / f"killed-{n}")))
            finished = True
            try:
                job(Dying(here, n))
            except Killed:
                finished = False
            see(here)
            between(here)
            if not finished:
                job(here)
            see(here)
            after(here)
            shutil.rmtree(here.root)
            if finished:
                return n - 1

    return kill


@pytest.fixture(scope="session")
def dying() -> type[Dying]:
    return Dying


@pytest.fixture(scope="session")
def killed() -> type[BaseException]:
    return Killed


@pytest.fixture(params=["local", "memory"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield open_store(str(tmp_path / "out"))
        return
    opened = open_store(f"memory://{uuid4().hex}")
    yield opened
    opened.fs.rm(opened.root, recursive=True)


@pytest.fixture(scope="session")
def publish_two(releases: ModuleType) -> Callable[[Store], Any]:
    """Publish two versions; the second has fewer synthetic records and another report."""

    def make(store: Store) -> Any:
        release = releases.stage_release(store)
        publish_parts(**vars(release))
        recipe = release.recipe.model_copy(update={"synthetic": {TAIL: 1}, "sentence": "Less."})
        report = releases.stage_report(store, key="second", text="<html>2")
        changes = {"recipe": recipe, "report": report, "requested": {"seed": 1}}
        publish_parts(**{**vars(release), **changes})
        return release

    return make


@pytest.fixture
def two(any_store: Store, publish_two: Callable[[Store], Any]) -> Store:
    """A dataset of two versions, on a local disk and in memory."""
    publish_two(any_store)
    return any_store


@pytest.fixture(scope="session")
def two_versions(
    tmp_path_factory: pytest.TempPathFactory, publish_two: Callable[[Store], Any]
) -> Path:
    """A folder with a dataset of two versions, to be copied."""
    folder = tmp_path_factory.mktemp("two") / "out"
    publish_two(open_store(str(folder)))
    return folder
