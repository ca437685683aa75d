"""Workers that share nothing with the flow but a network, and an object store; or words that say what lacks."""

import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("prefect_dask", reason="needs the extra dask")
pytest.importorskip("s3fs", reason="needs the extra s3")

from faults.servers.object_servers import PYTHON_BIN
from prefect.settings import PREFECT_API_URL, temporary_settings
from support.clusters import DaskCluster, dask_cluster, network_namespace, wait_until
from support.engine_runs import short_run

from prefect_augment.errors import ParameterError, StorageError
from prefect_augment.params import Compute
from prefect_augment.storage import open_store

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def table(make_table: Callable[..., pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("apart") / "in.parquet"
    pq.write_table(make_table(), path)
    return path


def run(source: str, destination: str, address: str = "") -> None:
    compute = Compute(engine="dask", address=address) if address else Compute()
    # The harness that other tests of this process leave listens where another machine cannot reach it.
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        short_run(source, destination, compute)


def published(uri: str) -> dict[str, str]:
    store = open_store(uri)
    return {name: hashlib.sha256(store.read(name)).hexdigest() for name in store.list("data")}


def test_a_worker_that_does_not_see_the_destination_is_named(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    hidden = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {folder} && exec "$@"', "sh"]
    if subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    with dask_cluster(tmp_path / "dask") as cluster:
        cluster.add_worker(*hidden)
        with pytest.raises(StorageError, match="object store such as s3://") as caught:
            run(str(table), str(folder / "out"), cluster.address)
    words = str(caught.value)
    assert f"{socket.gethostname()} does not see the destination {folder / 'out'}" in words
    assert not list((folder / "out").rglob("*.parquet")), "nothing was read before"


@pytest.fixture(scope="module")
def other_machine(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A Dask cluster in a network of its own, and a server of S3 in this one, which has the table."""
    folder = tmp_path_factory.mktemp("apart")
    moto = shutil.which("moto_server", path=f"{PYTHON_BIN}:{os.environ['PATH']}")
    if moto is None:
        pytest.skip("moto is not installed: tests/faults/servers/install")
    with network_namespace() as (name, here, there), pytest.MonkeyPatch.context() as patch:
        store = {
            "AWS_ENDPOINT_URL": f"http://{here}:5555",
            "AWS_ACCESS_KEY_ID": "lake",
            "AWS_SECRET_ACCESS_KEY": "lake",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for key, value in store.items():
            patch.setenv(key, value)
        server = subprocess.Popen(
            [moto, "-H", here, "-p", "5555"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: _listens(here, 5555), "moto")
            lake = open_store("s3://lake")
            lake.fs.mkdir("lake")
            lake.put("in.parquet", table.read_bytes())
            inside = ["ip", "netns", "exec", name]
            with dask_cluster(folder / "dask", host=there, inside=inside, env=store) as cluster:
                for _ in range(2):
                    cluster.add_worker()
                yield cluster
        finally:
            server.kill()
            server.wait()


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_a_run_completes_on_another_machine_with_an_object_store_between_them(
    other_machine: DaskCluster, table: Path, tmp_path: Path
) -> None:
    run("s3://lake/in.parquet", "s3://lake/out", other_machine.address)
    run(str(table), str(tmp_path / "out"))
    assert published("s3://lake/out") == published(str(tmp_path / "out"))


def test_a_folder_of_this_machine_is_refused_at_once(
    other_machine: DaskCluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ParameterError, match=f"destination {out} is a folder of") as caught:
        run("s3://lake/in.parquet", str(out), other_machine.address)
    assert other_machine.address in str(caught.value)
    assert "s3://" in str(caught.value)
    assert not out.exists()


def test_a_local_source_is_named_by_the_first_worker_that_does_not_see_it(
    other_machine: DaskCluster, tmp_path: Path
) -> None:
    # Both sides of a network namespace have one disk, so the file is missing here too.
    with pytest.raises(StorageError, match=r"does not see the source .*missing\.parquet"):
        run(str(tmp_path / "missing.parquet"), "s3://lake/other", other_machine.address)
