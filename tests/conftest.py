"""What all tests share: an environment of their own, Prefect's harness, the shared data sets."""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import EntryPoint, version
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
from hypothesis import settings, strategies
from support.tables import make_table, source_of

from prefect_augment import registry
from prefect_augment.params import PluginModel, Source
from prefect_augment.storage import Store, open_store

pytest_plugins = ["support.versions"]

REPOSITORY = Path(__file__).resolve().parents[1]

_temporary_home = pytest.StashKey[str]()

# The same examples in every run: a test that fails here fails for the next reader too.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any test module imports Prefect, which reads it once."""
    home = tempfile.mkdtemp(prefix="prefect-augment-tests-")
    config.stash[_temporary_home] = home
    config.pluginmanager.register(_SharedSetup())
    # A developer's own server, profile and credentials stay out of the tests.
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "AWS_", "AZURE_"))]:
        del os.environ[name]
    os.environ.update(
        PREFECT_HOME=home,
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        DO_NOT_TRACK="1",
        # Accidental use of the API fails at once instead of starting a server.
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false",
        PREFECT_CLI_PROMPT="false",
        PREFECT_LOGGING_LEVEL="WARNING",
        MPLBACKEND="Agg",
        HF_HUB_OFFLINE="1",
        HF_HOME=f"{home}/huggingface",
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what Prefect wrote."""
    shutil.rmtree(config.stash.get(_temporary_home, ""), ignore_errors=True)


# Two processes take file after file from the list of tests, and none may be left alone with a long one.
LONGEST_FIRST = (
    "e2e/browser/test_cancelling.py",
    "e2e/test_command_line.py",
    "e2e/test_deployments.py",
    "e2e/test_schedules.py",
    "flows/test_engines.py",
    "flows/test_image_examples.py",
    "packaging/test_readme.py",
    "e2e/browser/test_answering.py",
    "faults/test_lost_workers.py",
    "faults/test_lost_ranks.py",
    "faults/test_kill_matrix.py",
    "faults/test_machines_apart.py",
    "faults/test_interrupts.py",
    "e2e/test_killed_runs.py",
    "faults/test_killed_images.py",
    "faults/test_full_disk.py",
    "flows/test_rebalance.py",
    "contracts/test_models.py",
    "flows/test_rebalance_images.py",
    "flows/test_prefect.py",
    "flows/test_composing.py",
    "loading/test_torch.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Prefect's server as slow, and put the longest files first; else the order stays."""
    for item in items:
        if item.get_closest_marker("flow"):
            item.add_marker("slow")
    tests = Path(__file__).parent
    place = {tests / name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    # On a fresh clone hypothesis lists all characters, which takes two seconds: before a test is timed.
    strategies.text().validate()


CPU_LIMIT = 1.0  # seconds of a test, and of what is set up for it alone, on a quiet machine

_shared_setup = 0.0  # seconds that fixtures of the session took during one test's set-up


def _cpu_seconds() -> float:
    """Seconds of this process, all its threads, and the children it has waited for."""
    return sum(os.times()[:4])


class _SharedSetup:
    """A plug-in of its own: fixtures of the session do not call the hooks of this folder."""

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, object, object]:
        """Count the seconds of fixtures that all tests share apart from those of the test that came first."""
        global _shared_setup
        before, counted = _cpu_seconds(), _shared_setup
        try:
            return (yield)
        finally:
            if fixturedef.scope == "session":
                _shared_setup = counted + _cpu_seconds() - before


def _limit_cpu(item: pytest.Item, step: str) -> Generator[None, object, object]:
    global _shared_setup
    before, n_modules, _shared_setup = _cpu_seconds(), len(sys.modules), 0.0
    result = yield
    seconds = _cpu_seconds() - before - _shared_setup
    # The first test that imports a library is not slow for that.
    first_import = len(sys.modules) > n_modules + 20
    marked = any(item.get_closest_marker(name) for name in ("slow", "e2e", "faults"))
    is_excused = marked or first_import or seconds <= CPU_LIMIT
    if not is_excused and seconds / _slowness() > CPU_LIMIT:
        pytest.fail(
            f"the {step} took {seconds:.1f} s of CPU time: make it smaller, share it, or mark it slow"
        )
    return result


def _slowness() -> float:
    """How much longer than 5.2 ms, the time of a quiet core in 2026, a loop takes on a core that others use too.

    The slowest of ten, since what others do comes and goes.
    """
    seconds = []
    for _ in range(10):
        before = time.process_time()
        sum(i * i for i in range(100_000))
        seconds.append(time.process_time() - before)
    return max(1.0, max(seconds) / 0.0052)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that is slow and not marked so."""
    return (yield from _limit_cpu(item, "test"))


_fsync = os.fsync


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for the disk only where something is really killed: a fast test has no power to lose."""
    waits = item.get_closest_marker("e2e") or item.get_closest_marker("faults")
    os.fsync = _fsync if waits else _write_later
    return (yield from _limit_cpu(item, "set-up"))


def _write_later(file: int) -> None:
    """Stand in for `os.fsync`."""


@pytest.fixture(scope="session")
def empty_database() -> Path:
    """What a Prefect server makes at its first start in six seconds of a core; kept for the next ones."""
    path = REPOSITORY / "build" / f"prefect-{version('prefect')}.db"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as home:
            words = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            subprocess.run(words, env={**os.environ, "PREFECT_HOME": home}, check=True)
            Path(home, "prefect.db").replace(path)  # another process may have been as quick
    return path


@pytest.fixture(scope="session")
def prefect_harness(
    empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Prefect's API with a database of its own, started once for all tests marked ``flow``."""
    from prefect.testing import utilities

    folder = tmp_path_factory.mktemp("harness")
    shutil.copy(empty_database, folder / "prefect-test.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "mkdtemp", lambda: str(folder))
        # On a busy machine the server has been seen to take 52 seconds.
        with utilities.prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture(autouse=True)
def no_timed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of images must not depend on how busy this machine is; test_estimate.py has what measures it."""
    if (plan := sys.modules.get("prefect_augment.plan.plan")) is not None:
        monkeypatch.setattr(plan, "slowness", lambda *_, **__: 1.0)


@pytest.fixture(autouse=True)
def _flow_tests_have_an_api(request: pytest.FixtureRequest) -> None:
    """Give the harness to every test marked ``flow``, and to no other."""
    if request.node.get_closest_marker("flow"):
        request.getfixturevalue("prefect_harness")


@pytest.fixture(autouse=True)
def _torch_starts_alike() -> None:
    """Seed torch's own generator: networks that a test makes by itself are the same in every run."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets beside the repository; it holds ``tabular`` and ``images``."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this repository: the real data sets are not here")
    return folder


@pytest.fixture(scope="session")
def releases() -> ModuleType:
    """Builders of staged records and of what `publish` takes beside them: `tests/support/releases.py`."""
    return importlib.import_module("support.releases")


@pytest.fixture(scope="session")
def publish_as_is(releases: ModuleType) -> Callable[..., None]:
    """Publish what was ingested as the next version, nothing added."""
    return releases.publish_as_is  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def messy_images() -> ModuleType:
    """Builders of image files, good and bad: `tests/support/messy_images.py`."""
    pytest.importorskip("PIL", reason="needs the images extra")
    return importlib.import_module("support.messy_images")


@pytest.fixture
def linear_model(monkeypatch: pytest.MonkeyPatch) -> PluginModel:
    """Params of the model of `tests/support/latent_models.py`, which is registered like another package's."""
    module = importlib.import_module("support.latent_models")
    point = EntryPoint("linear", f"{module.__name__}:LinearModel", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "_plugins", lambda: {"linear": point})
    return PluginModel(name="linear")


@pytest.fixture(scope="session", name="make_table")
def _make_table() -> Callable[..., pa.Table]:
    """`support.tables.make_table`, for tests that do not import it."""
    return make_table


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """The table in a file."""
    return source_of(make_table(), tmp_path / "in.parquet")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


@pytest.fixture(scope="module")
def memory_store() -> Iterator[Store]:
    """One that the tests of a module share."""
    opened = open_store(f"memory://{uuid4().hex}")
    yield opened
    opened.fs.rm(opened.root, recursive=True)


@pytest.fixture(params=["local", "memory"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """One on a disk, then one in memory."""
    if request.param == "local":
        yield open_store(str(tmp_path / "data set"))
        return
    opened = open_store(f"memory://{uuid4().hex}")
    yield opened
    opened.fs.rm(opened.root, recursive=True) if opened.fs.exists(opened.root) else None


@pytest.fixture(scope="module")
def quick_runs() -> Iterator[None]:
    """Soft labels by an ensemble of few members, and coarse charts: most of a small run's time.

    For tests of what runs do around it; the run of the README is whole in `make e2e`.
    """
    from prefect_augment.evaluation.classifiers import soft_label_ensemble as soft_labels
    from prefect_augment.figures import style as drawing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soft_labels, "N_FOLDS", 2)
        patch.setattr(soft_labels, "FOREST_TREES", 10)
        patch.setattr(drawing, "DOTS_PER_INCH", (40,))
        yield


@pytest.fixture(scope="module")
def few_steps() -> Iterator[None]:
    """Images are compared by a network of three steps, on one thread, since tests share the cores."""
    from prefect_augment.plan import estimate as estimates

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(estimates, "_STEPS_RANGE", (3, 3))
        yield


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where the machine's browser is; without one CI fails and others are told what was not tested."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found and shutil.which(found):
        return found
    why = (
        f"NO BROWSER: none of {', '.join(BROWSERS)} is on PATH, so nothing in a browser was tested. "
        "Install Debian's package chromium, or set CHROMIUM to the program."
    )
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
