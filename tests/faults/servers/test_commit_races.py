"""Many committers at once: every version has one winner and is whole, also where the answer is lost."""

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from prefect_augment.errors import CommitConflictError
from prefect_augment.examples import example_source
from prefect_augment.maintenance.verify import verify
from prefect_augment.schema import Manifest
from prefect_augment.storage import (
    Store,
    commit,
    find_commit,
    list_versions,
    manifest_path,
    open_store,
    probe_exclusive,
    read_manifest,
)

pytestmark = pytest.mark.faults

Builder = Callable[..., Callable[[int, Manifest | None], Manifest]]
DEADLINE_SECONDS = 900


def commit_until_done(store: Store, build: Any, key: str) -> Any:
    """Others may come first ten times in a row; then the message says to run again."""
    while True:
        try:
            return commit(store, build, partial(find_commit, store, key))
        except CommitConflictError:
            continue


def test_every_version_has_one_winner_and_can_be_read(
    moto: Any, new_store: Callable[..., Store], builder: Builder
) -> None:
    bucket = moto.bucket()
    names = [f"{thread}-{i}" for thread in range(5) for i in range(4)]
    start = threading.Barrier(5)
    made: dict[str, Any] = {}

    def work(thread: int) -> None:
        store = new_store(moto, bucket=bucket)
        start.wait()
        for i in range(4):
            key = f"{thread}-{i}"
            made[key] = commit_until_done(store, builder(key, names.index(key)), key)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    store = new_store(moto, bucket=bucket)
    versions = list_versions(store)
    assert versions == tuple(range(1, len(names) + 1))
    assert sorted(one.version for one in made.values()) == list(versions)
    assert all(one.created for one in made.values())
    for key, one in made.items():
        assert read_manifest(store, one.version).dataset_key == key


WRITER = textwrap.dedent(
    """
    import json, sys
    from prefect_augment.storage.store import open_store
    uri, name, n_keys = sys.argv[1], sys.argv[2], int(sys.argv[3])
    store = open_store(uri)
    store.exists("go")
    print("ready", flush=True)
    sys.stdin.readline()
    won = [store.put_if_absent(f"k{i}", name.encode(), look_first=False) for i in range(n_keys)]
    print(json.dumps(won))
    """
)


def test_of_many_processes_one_wins_each_object(
    moto: Any, as_user: Callable[..., None], new_store: Callable[..., Store]
) -> None:
    as_user(moto)
    bucket, n_keys = moto.bucket(), 25
    store = new_store(moto, bucket=bucket)
    words = [sys.executable, "-c", WRITER, store.uri]
    writers = [
        subprocess.Popen(
            [*words, str(i), str(n_keys)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for i in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    won = [json.loads(writer.communicate(timeout=DEADLINE_SECONDS)[0]) for writer in writers]
    for i in range(n_keys):
        winners = [w for w in range(len(writers)) if won[w][i]]
        assert len(winners) == 1
        assert store.read(f"k{i}") == str(winners[0]).encode()


RUN = textwrap.dedent(
    """
    import sys
    from prefect_augment.flows.rebalance import rebalance
    from prefect_augment.params import Destination, Evaluation, NoModel
    from prefect_augment.examples import example_source
    source, destination, n_bootstrap = sys.argv[1:]
    quick = Evaluation(n_seeds=1, n_settings=1, n_bootstrap=int(n_bootstrap), estimators=["logistic"],
                       on_no_gain="publish")
    print("ready", flush=True)
    sys.stdin.readline()
    rebalance.fn(source=example_source(source), destination=Destination(uri=destination), model=NoModel(),
                 evaluation=quick)
    """
)


def test_two_runs_to_one_destination_end_in_two_whole_versions(
    moto: Any, as_user: Callable[..., None]
) -> None:
    as_user(moto)
    lake = f"s3://{moto.bucket()}"
    example_source(f"{lake}/in")  # so that neither run writes it anew
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, f"{lake}/in", f"{lake}/out", n_bootstrap],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n_bootstrap in ("100", "101")  # other confidence, so another dataset of the same split
    ]
    for run in runs:
        assert run.stdout is not None
        run.stdout.readline()
    for run in runs:
        _, err = run.communicate("go\n", timeout=DEADLINE_SECONDS)
        assert run.returncode == 0, err[-3000:]
    store = open_store(f"{lake}/out")
    assert list_versions(store) == (1, 2)
    for version in (1, 2):
        assert not verify(store, version=version).problems
    keys = {read_manifest(store, version).dataset_key for version in (1, 2)}
    assert len(keys) == 2


# --- stores that say one thing and do another ---


@pytest.mark.parametrize(
    ("server", "keeps"),
    [("moto", True), ("swift", True), ("azurite", True), ("rclone", False), ("gcs", False)],
    indirect=["server"],
)
def test_the_probe_finds_out_a_store_that_ignores_conditions(
    server: Any, keeps: bool, new_store: Callable[..., Store], recwarn: Any
) -> None:
    store = new_store(server)
    assert probe_exclusive(store) is keeps
    assert any("one run at a time" in str(w.message) for w in recwarn) is not keeps
    assert store.list() == []


def test_doctor_names_the_store_that_overwrites(rclone: Any) -> None:
    from prefect_augment.cli.doctor_checks import check_destination

    checks = check_destination(f"s3://{rclone.bucket()}/out", options=rclone.options())
    found = {check.name: check for check in checks}
    assert found["write only where none is"].status == "warning"
    assert "one run at a time" in found["write only where none is"].advice


def test_a_commit_that_was_overwritten_meanwhile_takes_the_next_number(
    rclone: Any, new_store: Callable[..., Store], builder: Builder, proxy_of: Callable[..., Any]
) -> None:
    """On a store without conditions the answer says that we won, and somebody else's manifest stands."""
    bucket = rclone.bucket()
    store = new_store(rclone, bucket=bucket)
    theirs = builder("theirs", 1)(1, None).sealed()
    proxy = proxy_of(rclone)
    ours = new_store(rclone, bucket=bucket, endpoint_url=proxy.endpoint)
    proxy.after("PUT .*_manifests/v00000001", lambda: store.put(manifest_path(1), theirs.to_json()))

    made = commit(ours, builder("ours", 2), partial(find_commit, ours, "ours"))

    assert made.version == 2
    assert [read_manifest(store, v).dataset_key for v in (1, 2)] == ["theirs", "ours"]


@pytest.mark.parametrize("server", ["moto", "azurite"], indirect=True)
def test_a_commit_whose_answer_was_lost_is_ours(
    server: Any, builder: Builder, proxy_of: Callable[..., Any], as_user: Callable[..., None]
) -> None:
    proxy = proxy_of(server)
    as_user(server, proxy.endpoint)
    store = open_store(f"{server.scheme}://{server.bucket()}/sets/one")
    proxy.fail("PUT .*_manifests/v00000001", "lost", times=1)

    made = commit(store, builder("ours", 2), partial(find_commit, store, "ours"))

    assert (made.version, made.created) == (1, True)
    assert list_versions(store) == (1,)
    assert proxy.hit()["lost"] == 1
    statuses = [s.status for s in proxy.seen if s.method == "PUT" and "_manifests" in s.path]
    assert statuses[-1] in (409, 412), "the second answer said that an object is there: our own"


def test_a_foreign_object_is_not_taken_for_ours_when_an_answer_was_lost(
    moto: Any, new_store: Callable[..., Store], proxy_of: Callable[..., Any]
) -> None:
    bucket = moto.bucket()
    proxy = proxy_of(moto)
    store = new_store(moto, bucket=bucket, endpoint_url=proxy.endpoint)
    proxy.fail("PUT .*/k", "reset", times=1)
    proxy.after(  # nothing reached the store, and before we ask again somebody else is there
        "PUT .*/k", lambda: new_store(moto, bucket=bucket).put("k", b"theirs")
    )
    assert not store.put_if_absent("k", b"ours", look_first=False)
    assert store.read("k") == b"theirs"
