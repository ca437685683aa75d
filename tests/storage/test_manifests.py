import json
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError
from support.staging import a_shard, manifest_of

from prefect_augment.errors import CommitConflictError, IntegrityError, SchemaError
from prefect_augment.schema import Manifest, content_digest
from prefect_augment.storage import (
    Store,
    commit,
    find_commit,
    latest_version,
    list_versions,
    manifest_path,
    open_store,
    probe_exclusive,
    read_manifest,
)


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


def builder(key: str, n: int) -> Callable[[int, Manifest | None], Manifest]:
    return lambda version, parent: manifest_of(
        version, key=key, n=n, parent=parent.version if parent else None
    )


def put(store: Store, **changes: Any) -> Manifest:
    made = manifest_of(**changes).sealed()
    store.put(manifest_path(made.version), made.to_json())
    return made


# --- reading ----------------------------------------------------------------------------------


def test_a_manifest_comes_back_as_it_was_written(store: Store) -> None:
    made = put(store)
    assert read_manifest(store) == made
    assert read_manifest(store, 1) == made


def test_versions_are_listed_in_order_and_other_files_ignored(store: Store) -> None:
    for version in (2, 1, 10):
        put(store, version=version)
    store.put("_manifests/notes.txt", b"")
    store.put("_manifests/v3.json", b"")
    assert list_versions(store) == (1, 2, 10)
    assert latest_version(store) == 10


def test_an_empty_place_and_a_version_that_is_not_there_are_said(store: Store) -> None:
    assert latest_version(store) is None
    with pytest.raises(IntegrityError, match="holds no published dataset"):
        read_manifest(store)
    put(store)
    with pytest.raises(IntegrityError, match="no version 7; there is: 1"):
        read_manifest(store, 7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[: len(data) // 2], "is not whole JSON"),
        (lambda data: b"", "is not whole JSON"),
        (lambda data: b'{"name": "other tool"}', "no manifest of prefect-augment"),
        (lambda data: b"[1]", "no manifest of prefect-augment"),
        (lambda data: data.replace(b'"label": "y"', b'"label": 5'), "not valid at label"),
        (lambda data: data.replace(b'"real": 2', b'"real": 3'), "was changed after it was written"),
        (
            lambda data: data.replace(b'"version": 1', b'"version": 2'),
            "was changed after it was written",
        ),
    ],
)
def test_a_manifest_that_cannot_be_trusted_says_what_to_do(
    store: Store, change: Callable[[bytes], bytes], words: str
) -> None:
    made = put(store)
    damaged = change(made.to_json())
    assert damaged != made.to_json()
    store.put(manifest_path(1), damaged)
    with pytest.raises(IntegrityError, match=words) as caught:
        read_manifest(store)
    assert "v00000001.json" in str(caught.value)
    assert "copy" in str(caught.value) or "another destination" in str(caught.value)


def test_a_manifest_of_a_later_release_asks_for_an_upgrade(store: Store) -> None:
    fields = {**json.loads(manifest_of().to_json()), "schema_version": 99, "novelty": 1}
    store.put(manifest_path(1), json.dumps(fields).encode())
    with pytest.raises(SchemaError, match=r"schema version 99.*upgrade"):
        read_manifest(store)


@pytest.mark.parametrize(
    "path",
    [
        "../x.parquet",
        "data/../../x",
        "/etc/passwd",
        "s3://other/x",
        "a//b",
        "",
        "data\\..\\x",
        "./x",
    ],
)
def test_a_path_that_leaves_the_folder_is_refused(store: Store, path: str) -> None:
    """A manifest may come from anybody, and readers follow its paths."""
    with pytest.raises(ValidationError, match="refused"):
        manifest_of(shards=(a_shard(path),))
    fields = json.loads(manifest_of().to_json())
    fields["shards"][0]["path"] = path
    fields["content_digest"] = content_digest(fields)
    store.put(manifest_path(1), json.dumps(fields).encode())
    with pytest.raises(IntegrityError, match="refused"):
        read_manifest(store)


def test_a_person_can_read_it(store: Store) -> None:
    text = put(store, notes=("größer",)).to_json().decode()
    assert "größer" in text
    assert len(text.splitlines()) > 20


# --- digests ----------------------------------------------------------------------------------


def test_the_content_digest_leaves_out_when_and_where() -> None:
    one = manifest_of().sealed()
    other = manifest_of(
        3,
        created_at="2030",
        software={"python": "9"},
        params={"compute": {"workers": 9}},
        report="r/report.html",
    ).sealed()
    assert one.content_digest == other.content_digest


@pytest.mark.parametrize(
    "change",
    [
        {"key": "other"},
        {"n": 3},
        {"shards": (a_shard("data/x.parquet"),)},
        {"label": "z"},
        {"n_quarantined": 1},
    ],
)
def test_the_content_digest_covers_what_the_data_is(change: dict[str, Any]) -> None:
    assert manifest_of().sealed().content_digest != manifest_of(**change).sealed().content_digest


# --- committing -------------------------------------------------------------------------------


def test_versions_count_up_and_name_their_parent(store: Store) -> None:
    first = commit(store, builder("k1", 1), partial(find_commit, store, "k1"))
    second = commit(store, builder("k2", 2), partial(find_commit, store, "k2"))
    assert (first.version, second.version) == (1, 2)
    assert first.created
    assert read_manifest(store, 2).parent == 1
    assert read_manifest(store, 1).class_counts["train"]["a"]["real"] == 1


def test_the_same_inputs_are_committed_once(store: Store) -> None:
    first = commit(store, builder("k1", 1), partial(find_commit, store, "k1"))
    commit(store, builder("k2", 2), partial(find_commit, store, "k2"))
    again = commit(store, builder("k1", 1), partial(find_commit, store, "k1"))
    assert again == first.model_copy(update={"created": False})
    assert list_versions(store) == (1, 2)
    assert find_commit(store, "k1") == again
    assert find_commit(store, "k3") is None


def test_a_lost_race_takes_the_next_number(store: Store) -> None:
    def build(version: int, parent: Manifest | None) -> Manifest:
        if version == 1:  # another run commits while this one builds
            commit(store, builder("other", 9), partial(find_commit, store, "other"))
        return builder("mine", 1)(version, parent)

    done = commit(store, build, partial(find_commit, store, "mine"))
    assert (done.version, done.created) == (2, True)
    assert read_manifest(store, 2).parent == 1
    assert read_manifest(store, 1).dataset_key == "other"


def test_a_lost_race_against_the_same_content_is_success(store: Store) -> None:
    """A client that retries its own put is told that the object is there."""

    def build(version: int, parent: Manifest | None) -> Manifest:
        put(store, version=version, key="mine", n=1, created_at="earlier")
        return builder("mine", 1)(version, parent)

    done = commit(store, build, partial(find_commit, store, "mine"))
    assert (done.version, done.created) == (1, False)


def test_who_always_loses_is_told_that_nothing_is_lost(store: Store) -> None:
    def build(version: int, parent: Manifest | None) -> Manifest:
        put(store, version=version, key=f"other{version}", n=version)
        return builder("mine", 1)(version, parent)

    with pytest.raises(CommitConflictError, match="kept in _staging"):
        commit(store, build, partial(find_commit, store, "mine"))


def test_racing_committers_get_a_version_each(store: Store) -> None:
    start = threading.Barrier(4)
    done: list[int] = []

    def run(i: int) -> None:
        start.wait()
        done.append(
            commit(store, builder(f"k{i}", i + 1), partial(find_commit, store, f"k{i}")).version
        )

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [1, 2, 3, 4]
    assert {read_manifest(store, v).dataset_key for v in (1, 2, 3, 4)} == {"k0", "k1", "k2", "k3"}
    assert [read_manifest(store, v).parent for v in (1, 2, 3, 4)] == [None, 1, 2, 3]


# --- the store's word -------------------------------------------------------------------------


class OverwritingStore(Store):
    """A store as `rclone serve s3` is: it takes the condition and overwrites all the same."""

    def _remote_create(self, full: str, data: bytes) -> bool:
        self.fs.pipe_file(full, data)
        return True


def test_a_store_that_keeps_its_word_passes_the_probe(store: Store) -> None:
    assert probe_exclusive(store)
    assert store.list() == []


def test_a_store_that_overwrites_is_found_out() -> None:
    plain = open_store(f"memory://{uuid4().hex}")
    store = OverwritingStore(uri=plain.uri, fs=plain.fs, root=plain.root)
    with pytest.warns(RuntimeWarning, match="one run at a time"):
        assert not probe_exclusive(store)
    assert store.list() == []
