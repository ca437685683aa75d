"""A destination to share and its workspace, seen as one store."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.steps import publish_parts

from prefect_augment.errors import ParameterError
from prefect_augment.maintenance.gc import collect_garbage
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Publish
from prefect_augment.storage import (
    SharedStore,
    Store,
    keep_apart,
    open_store,
    private_objects,
    with_workspace,
)
from prefect_augment.storage.workspace import POINTER

PRIVATE = ("_staging/ingest/k/a.parquet", "_splits/v00000001.parquet", "_reports/v00000001/r.html")


@pytest.fixture(params=["local", "memory"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}/out"


def test_each_object_lies_where_it_belongs(where: str) -> None:
    store = keep_apart(open_store(where))
    for path in (*PRIVATE, "data/x.parquet", "README.md", "_manifests/v00000001.json"):
        store.put(path, path.encode())
        assert store.read(path) == path.encode()
        assert store.exists(path)
    workspace = open_store(f"{where}-workspace")
    assert workspace.list() == sorted((*PRIVATE, POINTER))
    assert open_store(where).list() == [
        "README.md",
        "_manifests/v00000001.json",
        POINTER,
        "data/x.parquet",
    ]
    assert store.list() == sorted(
        (*PRIVATE, "data/x.parquet", "README.md", "_manifests/v00000001.json", POINTER)
    )
    assert list(store.infos()) == store.list()
    assert store.list("_staging") == [PRIVATE[0]]
    assert store.place("_splits/a") == f"{workspace.uri}/_splits/a"
    store.check_writable()
    again = with_workspace(open_store(where))
    assert isinstance(again, SharedStore)
    again.delete(PRIVATE[0])
    assert not workspace.exists(PRIVATE[0])


def test_a_named_workspace_is_found_again(tmp_path: Path) -> None:
    store = keep_apart(open_store(str(tmp_path / "a")), str(tmp_path / "deep" / "b"))
    store.put("_splits/x", b"1")
    assert (tmp_path / "deep" / "b" / "_splits" / "x").exists()
    assert with_workspace(open_store(str(tmp_path / "a"))).read("_splits/x") == b"1"
    assert isinstance(keep_apart(open_store(str(tmp_path / "a"))), SharedStore)


@pytest.mark.parametrize("after", range(6))
def test_what_an_earlier_run_left_is_moved_even_after_a_kill(
    where: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(where)
    for path in PRIVATE:
        store.put(path, path.encode())
    requests = 0

    def dying(real: Any) -> Any:
        def call(self: Store, *args: Any, **kwargs: Any) -> Any:
            nonlocal requests
            requests += 1
            if requests > after:
                raise KeyboardInterrupt
            return real(self, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("put_if_absent", "delete"):
            patch.setattr(Store, name, dying(getattr(Store, name)))
        with pytest.raises(KeyboardInterrupt):
            keep_apart(open_store(where))
    moved = keep_apart(open_store(where))
    assert private_objects(open_store(where)) == []
    assert {path: moved.read(path) for path in PRIVATE} == {p: p.encode() for p in PRIVATE}


def test_a_copy_is_read_and_not_continued(tmp_path: Path) -> None:
    keep_apart(open_store(str(tmp_path / "out")))
    (tmp_path / "out").rename(tmp_path / "given")
    assert isinstance(with_workspace(open_store(str(tmp_path / "given"))), SharedStore), (
        "both are still here"
    )
    (tmp_path / "out-workspace").rename(tmp_path / "elsewhere")
    with pytest.raises(ParameterError, match="can be read and verified"):
        with_workspace(open_store(str(tmp_path / "given")))
    store = open_store(str(tmp_path / "given"))
    assert with_workspace(store, required=False) is store


def test_a_forged_pointer_leads_nowhere(tmp_path: Path) -> None:
    """Nobody else knows a workspace's id, and only folders of the same storage are looked at."""
    keep_apart(open_store(str(tmp_path / "mine")))
    forged = open_store(str(tmp_path / "forged"))
    for place in ("../mine-workspace", str(tmp_path / "mine-workspace"), "s3://bucket/x", ""):
        forged.put(POINTER, json.dumps({"id": "0" * 32, "workspace": place}).encode())
        with pytest.raises(ParameterError):
            with_workspace(forged)


@pytest.mark.parametrize("inside", ["out/work", "."])
def test_a_workspace_inside_what_is_shared_is_refused(tmp_path: Path, inside: str) -> None:
    with pytest.raises(ParameterError, match="inside one another"):
        keep_apart(open_store(str(tmp_path / "out")), str(tmp_path / inside))


def test_a_workspace_belongs_to_one_destination(tmp_path: Path) -> None:
    keep_apart(open_store(str(tmp_path / "a")), str(tmp_path / "w"))
    with pytest.raises(ParameterError, match="is the workspace of"):
        keep_apart(open_store(str(tmp_path / "b")), str(tmp_path / "w"))
    with pytest.raises(ParameterError, match="publish.origins says otherwise"):
        keep_apart(open_store(str(tmp_path / "a")), only_synthetic=False)
    with pytest.raises(ParameterError, match="another one"):
        keep_apart(open_store(str(tmp_path / "a")), str(tmp_path / "w2"))


def test_a_destination_with_real_versions_is_refused(tmp_path: Path, releases: ModuleType) -> None:
    store = open_store(str(tmp_path / "out"))
    publish_parts(**vars(releases.stage_release(store)))
    with pytest.raises(ParameterError, match="version 1 of .* has classic, real records"):
        keep_apart(store)


def test_a_version_is_published_collected_and_verified(
    tmp_path: Path, releases: ModuleType
) -> None:
    store = keep_apart(open_store(str(tmp_path / "out")), only_synthetic=False)
    release = releases.stage_release(store)
    publish_parts(**{**vars(release), "publish": Publish(origins=["classic", "synthetic"])})
    assert verify(store).ok
    report = collect_garbage(store, older_than_days=0)
    assert report.unknown == ()
    assert store.exists(POINTER)
    assert verify(store).ok
    # A copy without the workspace is whole as far as it goes.
    assert verify(open_store(str(tmp_path / "out"))).ok
