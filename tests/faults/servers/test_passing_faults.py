"""A proxy between us and the store fails on purpose: the same bytes, or a clear end after few attempts."""

from collections.abc import Callable
from typing import Any

import pytest

from prefect_augment.errors import StorageError, TransientError
from prefect_augment.examples import example_source
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Destination, Evaluation, NoModel
from prefect_augment.schema import RunResult
from prefect_augment.storage import Store, open_store, read_manifest

pytestmark = pytest.mark.faults

QUICK = Evaluation(
    n_seeds=1, n_settings=1, n_bootstrap=100, estimators=["logistic"], on_no_gain="publish"
)
DATA = bytes(range(256)) * 4096  # 1 MiB

# In this order: each leaves what the next one needs.
REQUESTS: dict[str, tuple[str, Callable[[Store], Any], Any]] = {
    "write": ("PUT", lambda s: (s.put("new", DATA), s.read("new"))[1], DATA),
    "write if absent": ("PUT", lambda s: s.put_if_absent("one more", DATA, look_first=False), True),
    "read": ("GET .*/there", lambda s: s.read("there"), DATA),
    "read a range": ("GET .*/there", lambda s: _middle(s), DATA[1000:2000]),
    "look": ("HEAD", lambda s: s.size("there"), len(DATA)),
    "list": ("GET .*(prefix|list)", lambda s: s.list(), ["new", "one more", "there"]),
    "delete": ("DELETE", lambda s: s.delete("there"), None),
}


def _middle(store: Store) -> bytes:
    with store.open("there") as file:
        file.seek(1000)
        return file.read(1000)


@pytest.fixture
def behind(
    server: Any, proxy_of: Callable[..., Any], as_user: Callable[..., None]
) -> tuple[Store, Any]:
    """A store with one object, seen through a proxy."""
    proxy = proxy_of(server)
    as_user(server, proxy.endpoint)
    store = open_store(f"{server.scheme}://{server.bucket()}/sets/one")
    store.put("there", DATA)
    proxy.seen.clear()
    return store, proxy


@pytest.mark.parametrize("server", ["moto", "azurite"], indirect=True)
@pytest.mark.parametrize("action", ["500", "slow down", "reset", "lost", "cut"])
def test_what_passes_is_asked_again(behind: tuple[Store, Any], action: str) -> None:
    store, proxy = behind
    for kind, (pattern, ask, wanted) in REQUESTS.items():
        proxy.seen.clear()
        proxy.rules.clear()
        proxy.fail(pattern, action, times=2)
        assert ask(store) == wanted, kind
        # An answer without a body is not cut.
        assert proxy.hit() == {action: 2} or action == "cut", kind


@pytest.mark.parametrize("server", ["moto", "azurite"], indirect=True)
@pytest.mark.parametrize("action", ["500", "slow down", "reset"])
def test_attempts_are_bounded_and_do_not_multiply_with_the_drivers_own(
    behind: tuple[Store, Any], action: str
) -> None:
    store, proxy = behind
    again = open_store(store.uri)  # reads the bound that a run would
    proxy.fail("GET .*/there", action)
    with pytest.raises(TransientError, match=r"cannot read .*there.*run again"):
        again.read("there")
    # aiohttp, below both drivers, sends once more by itself where a connection that it kept was closed.
    most = 16 if action == "reset" else 8
    assert 8 <= proxy.attempts("GET .*/there") <= most


@pytest.mark.parametrize("server", ["moto", "azurite"], indirect=True)
def test_a_store_that_hangs_is_asked_again(server: Any, behind: tuple[Store, Any]) -> None:
    usual, proxy = behind
    options: dict[str, Any] = {"config_kwargs": {"read_timeout": 2}}
    if server.scheme == "az":
        options = {"read_timeout": 2}
    store = open_store(usual.uri, options=options)
    proxy.fail("GET .*/there", "hang", times=1)
    proxy.fail("PUT", "hang", times=1)
    assert store.read("there") == DATA
    assert store.put_if_absent("new", b"x", look_first=False)
    assert proxy.hit() == {"hang": 2}


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_the_bound_is_the_operators(
    behind: tuple[Store, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, proxy = behind
    monkeypatch.setenv("PREFECT_AUGMENT_STORAGE_ATTEMPTS", "2")
    proxy.fail("PUT", "slow down")
    with pytest.raises(TransientError, match="SlowDown"):
        open_store(store.uri).put("new", b"x")
    assert proxy.attempts("PUT") == 2


def run(lake: str) -> RunResult:
    return rebalance.fn(
        source=example_source(f"{lake}/in"),
        destination=Destination(uri=f"{lake}/out"),
        model=NoModel(),
        evaluation=QUICK,
    )


@pytest.mark.parametrize("server", ["moto", "azurite"], indirect=True)
def test_a_run_over_a_bad_line_publishes_the_same_bytes(
    server: Any,
    proxy_of: Callable[..., Any],
    as_user: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Any,
) -> None:
    proxy = proxy_of(server)
    as_user(server, proxy.endpoint)
    lake = f"{server.scheme}://{server.bucket()}"
    actions = ["500", "slow down", "reset", "lost", "cut"]
    proxy.fail_by_chance(seed=5, share=0.25, actions=actions)

    assert run(lake).status == "published"

    assert all(proxy.hit()[action] for action in actions)
    proxy.chance = lambda request: None
    store = open_store(f"{lake}/out")
    assert [(s.path, s.sha256) for s in read_manifest(store).shards] == undisturbed
    assert not verify(store).problems


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_run_whose_store_keeps_failing_ends_with_a_clear_error(
    server: Any, proxy_of: Callable[..., Any], as_user: Callable[..., None]
) -> None:
    proxy = proxy_of(server)
    as_user(server, proxy.endpoint)
    lake = f"s3://{server.bucket()}"
    proxy.fail("PUT .*/out/_staging/score/", "slow down")
    with pytest.raises(TransientError, match=r"cannot write .*/out/_staging/score/.*SlowDown"):
        run(lake)
    assert proxy.hit() == {"slow down": 4 * 8}, "the step is tried four times, as under Prefect"
    assert not [name for name in server.names(lake[5:]) if name.startswith("out/_manifests")]


@pytest.mark.parametrize("server", ["moto", "azurite"], indirect=True)
def test_what_cannot_pass_is_asked_once(behind: tuple[Store, Any]) -> None:
    store, proxy = behind
    nowhere = open_store(f"{store.uri.split('://')[0]}://no-such-lake/x")
    with pytest.raises(
        StorageError, match="there is no (bucket|container) 'no-such-lake'"
    ) as error:
        nowhere.put("a", b"")
    assert not isinstance(error.value, TransientError)
    assert proxy.attempts("PUT") == 1
