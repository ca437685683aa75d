"""Source, staging and destination in object stores: the same run, the same bytes as on the local disk."""

from collections.abc import Callable
from typing import Any

import pytest

from prefect_augment.examples import example_source
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Destination, Evaluation, NoModel, Source
from prefect_augment.report.profile import profile
from prefect_augment.schema import Manifest, RunResult
from prefect_augment.storage import list_versions, open_store, read_manifest

pytestmark = pytest.mark.faults

QUICK = Evaluation(
    n_seeds=1, n_settings=1, n_bootstrap=100, estimators=["logistic"], on_no_gain="publish"
)


def run(source: str, destination: str) -> RunResult:
    return rebalance.fn(
        source=example_source(source),
        destination=Destination(uri=destination),
        model=NoModel(),
        evaluation=QUICK,
    )


def shards(manifest: Manifest) -> list[tuple[str, str]]:
    return [(shard.path, shard.sha256) for shard in manifest.shards]


@pytest.mark.parametrize("server", ["swift", "moto", "rclone", "azurite", "gcs"], indirect=True)
def test_a_run_from_store_to_store_publishes_the_bytes_of_a_local_run(
    server: Any, undisturbed: list[tuple[str, str]], as_user: Callable[..., None], recwarn: Any
) -> None:
    as_user(server)
    bucket = server.bucket()
    lake = f"{server.scheme}://{bucket}"

    assert run(f"{lake}/in", f"{lake}/out").status == "published"

    store = open_store(f"{lake}/out")
    assert shards(read_manifest(store)) == undisturbed
    assert not verify(store).problems
    table = open_dataset(f"{lake}/out").to_table()
    train = [s for s in read_manifest(store).shards if s.split == "train"]
    assert table.num_rows == sum(s.n_records for s in train)
    warned = [str(w.message) for w in recwarn if "one run at a time" in str(w.message)]
    assert bool(warned) == (server.name in ("rclone", "gcs")), "only these overwrite"

    assert run(f"{lake}/in", f"{lake}/out").status == "unchanged"
    assert list_versions(store) == (1,)


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_the_empty_object_of_a_folder_made_in_a_console_is_no_file(
    server: Any, as_user: Callable[..., None]
) -> None:
    as_user(server)
    lake = f"{server.scheme}://{server.bucket()}"
    source = example_source(f"{lake}/in")
    store = open_store(f"{lake}/in")
    before = profile(Source(uri=f"{lake}/in", label=source.label))
    for marker in ("", "2026/"):
        store.fs.pipe_file(f"{store.root}/{marker}", b"")
    assert any(path.endswith("/") for path in store.fs.find(store.root)), "it is listed"
    after = profile(Source(uri=f"{lake}/in", label=source.label))
    assert (after.n_files, after.n_records) == (before.n_files, before.n_records)
