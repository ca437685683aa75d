"""The servers of these tests, each started once and only where a test needs it."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.staging import manifest_of

from prefect_augment.examples import example_source
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import Destination, Evaluation, NoModel
from prefect_augment.schema import Manifest
from prefect_augment.storage import Store, open_store, read_manifest

# Looked at when gcsfs is imported: else it asks by gRPC what kind of bucket it has, a minute each time,
# and the emulator does not answer.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


def _beside(stem: str) -> ModuleType:
    """Load a module that lies here: importlib mode puts no folder of tests on the import path."""
    name = f"prefect_augment_test_{stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{stem}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


servers = _beside("object_servers")
proxies = _beside("fault_proxy")


def _needs(program: Path, driver: str) -> None:
    """Without a server CI fails, and others are told what was not tested."""
    missing = "" if importlib.util.find_spec(driver) else f"the driver {driver}"
    if not program.exists():
        missing = (
            f"{program.name}, which tests/faults/servers/install installs (make faults calls it)"
        )
    if missing:
        _not_tested(missing)


def _not_tested(missing: str) -> None:
    why = f"NO SERVER: {missing} is not there, so nothing was tested against this store."
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


def _needs_attributes(folder: Path) -> None:
    """Swift keeps what it knows of an object in the file's extended attributes."""
    probe = folder / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.probe", b"x")
    except (OSError, AttributeError):  # macOS has no such call
        _not_tested(
            "extended attributes in the temporary folder (set TMPDIR to a folder with them)"
        )


def _session(start: str, program: Path, driver: str) -> Callable[..., Iterator[Any]]:
    def fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        _needs(program, driver)
        folder = tmp_path_factory.mktemp(start)
        if start == "start_swift":
            _needs_attributes(folder)
        server = getattr(servers, start)(folder)
        yield server
        server.processes.stop()

    return fixture


moto = pytest.fixture(scope="session", name="moto")(
    _session("start_moto", servers.PYTHON_BIN / "moto_server", "s3fs")
)
rclone = pytest.fixture(scope="session", name="rclone")(
    _session("start_rclone", servers.PYTHON_BIN / "rclone", "s3fs")
)
swift = pytest.fixture(scope="session", name="swift")(
    _session("start_swift", servers.PYTHON_BIN / "swift-proxy-server", "s3fs")
)
azurite = pytest.fixture(scope="session", name="azurite")(
    _session("start_azurite", servers.AZURITE, "adlfs")
)
gcs = pytest.fixture(scope="session", name="gcs")(
    _session("start_gcs", servers.PYTHON_BIN / "gcp-storage-emulator", "gcsfs")
)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Any:
    """The server that a test is parametrised with by name."""
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off is what makes a busy store recover; here nothing has to recover."""
    monkeypatch.setenv("PREFECT_AUGMENT_STORAGE_BACKOFF_SECONDS", "0.01")


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Export a server's credentials and endpoint, as a shell would."""

    def export(server: Any, endpoint: str = "") -> None:
        for name, value in server.environment(endpoint).items():
            monkeypatch.setenv(name, value)

    return export


@pytest.fixture
def proxy_of() -> Iterator[Callable[[Any], Any]]:
    """Start a proxy before a server."""
    opened: list[Any] = []

    def start(server: Any) -> Any:
        opened.append(proxies.FaultProxy(server.port).__enter__())
        return opened[-1]

    yield start
    for proxy in opened:
        proxy.__exit__()


@pytest.fixture
def new_store() -> Callable[..., Store]:
    """Open a new bucket of a server, or one more store on the same."""

    def make(server: Any, *, bucket: str = "", **options: Any) -> Store:
        bucket = bucket or server.bucket()
        return open_store(f"{server.scheme}://{bucket}/sets/one", options=server.options(**options))

    return make


@pytest.fixture(scope="session")
def builder() -> Callable[..., Callable[[int, Manifest | None], Manifest]]:
    """Make what `commit` calls: the smallest manifest there is, told apart by its key and count."""
    return lambda key, n: (
        lambda version, parent: manifest_of(
            version, key=key, n=n, parent=parent.version if parent else None
        )
    )


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Names and digests of the shards that a quick run of the example publishes on the local disk."""
    folder = tmp_path_factory.mktemp("local")
    result = rebalance.fn(
        source=example_source(str(folder / "in")),
        destination=Destination(uri=str(folder / "out")),
        model=NoModel(),
        evaluation=Evaluation(
            n_seeds=1, n_settings=1, n_bootstrap=100, estimators=["logistic"], on_no_gain="publish"
        ),
    )
    assert result.status == "published"
    return [(s.path, s.sha256) for s in read_manifest(open_store(str(folder / "out"))).shards]
