"""Listings from before and clocks that are wrong: neither decides what is committed or removed."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import prefect_augment_test_object_servers as servers
import pytest

from prefect_augment.errors import StorageError, TransientError
from prefect_augment.maintenance.gc import collect_garbage
from prefect_augment.schema import Manifest
from prefect_augment.storage import (
    Store,
    commit,
    find_commit,
    lease,
    list_versions,
    read_manifest,
    store_time,
)

pytestmark = pytest.mark.faults

Builder = Callable[..., Callable[[int, Manifest | None], Manifest]]


@pytest.fixture
def stale(
    moto: Any, proxy_of: Callable[..., Any], new_store: Callable[..., Store], builder: Builder
) -> tuple[Store, Store]:
    """A store as it is, and through a cache that shows it as it was before version 2 came."""
    proxy = proxy_of(moto)
    bucket = moto.bucket()
    store = new_store(moto, bucket=bucket)
    late = new_store(moto, bucket=bucket, endpoint_url=proxy.endpoint)
    commit(store, builder("first", 1), partial(find_commit, store, "first"))
    assert list_versions(late) == (1,)
    commit(store, builder("second", 2), partial(find_commit, store, "second"))
    proxy.fail("GET .*(list-type|prefix=)", "stale")
    assert list_versions(late) == (1,)
    return store, late


def test_a_reader_of_a_stale_listing_sees_a_whole_older_version(stale: tuple[Store, Store]) -> None:
    _, late = stale
    assert read_manifest(late).dataset_key == "first"
    assert read_manifest(late, 2).dataset_key == "second"


def test_a_committer_with_a_stale_listing_takes_the_next_number(
    stale: tuple[Store, Store], builder: Builder
) -> None:
    store, late = stale
    assert commit(late, builder("third", 3), partial(find_commit, late, "third")).version == 3
    assert [read_manifest(store, v).dataset_key for v in (1, 2, 3)] == ["first", "second", "third"]
    assert read_manifest(store, 3).parent == 2


def test_what_is_published_already_is_found_behind_a_stale_listing(
    stale: tuple[Store, Store], builder: Builder
) -> None:
    store, late = stale
    again = commit(late, builder("second", 2), partial(find_commit, late, "second"))
    assert (again.version, again.created) == (2, False)
    assert list_versions(store) == (1, 2)


# --- clocks ---

DAY = 86_400


@pytest.fixture(scope="module")
def yesterday(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A Swift whose clock is 30 days behind; its second proxy takes signatures of any time."""
    request.getfixturevalue("swift")
    server = servers.start_swift(tmp_path_factory.mktemp("yesterday"), skew_seconds=-30 * DAY)
    yield server
    server.processes.stop()


def test_clocks_that_differ_are_named(yesterday: Any, new_store: Callable[..., Store]) -> None:
    bucket = yesterday.lenient().bucket()
    store = new_store(yesterday, bucket=bucket)
    for look in (store.check_writable, store.list, lambda: store.size("x")):
        with pytest.raises(StorageError, match=r"clock.*RequestTimeTooSkewed.*NTP") as error:
            look()
        assert not isinstance(error.value, TransientError)


def test_ages_are_told_by_the_stores_clock(yesterday: Any, new_store: Callable[..., Store]) -> None:
    store = new_store(yesterday.lenient())
    now = store_time(store)
    assert now is not None
    import time

    assert time.time() - now > 29 * DAY, "its clock is wrong"
    # By our clock all this is a month old.
    store.put("_staging/train/0123456789abcdef01234567/1.json", b"{}")
    store.put("data/train-real-00000-0123456789ab.parquet", b"x")
    collect_garbage(store)
    assert len(store.list("_staging/train")) == 1
    assert len(store.list("data")) == 1
    with (
        lease(store, "writing", "a-run"),
        pytest.raises(TransientError, match="another run publishes"),
    ):
        collect_garbage(store)
    collect_garbage(store, older_than_days=0)
    assert store.list() == []
