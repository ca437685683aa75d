"""Wrong credentials, missing permissions, places that are not there: named at once, before any training."""

import base64
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from prefect_augment.errors import AugmentError, StorageError, TransientError
from prefect_augment.examples import example_source
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.params import Destination, Evaluation, NoModel
from prefect_augment.storage import Store, open_store

pytestmark = pytest.mark.faults

flow_module = import_module("prefect_augment.flows.rebalance")

S3_SERVERS = ["moto", "swift", "rclone"]
VERBS: dict[str, Callable[[Store], Any]] = {
    "write": lambda store: store.check_writable(),
    "read": lambda store: store.read("there"),
    "read a part": lambda store: store.open("there").read(1),
    "look": lambda store: store.size("there"),
    "list": lambda store: store.list(),
    "delete": lambda store: store.delete("there"),
}


def refused(store: Store, verb: str) -> str:
    """What the user reads; refusals are final, so that no task tries them again."""
    with pytest.raises(StorageError) as error:
        VERBS[verb](store)
    assert not isinstance(error.value, TransientError)
    return str(error.value)


def small_run(lake: str) -> dict[str, Any]:
    """Arguments of a run that takes seconds."""
    return {
        "source": example_source(f"{lake}/in"),
        "destination": Destination(uri=f"{lake}/out"),
        "model": NoModel(),
        "evaluation": Evaluation(n_seeds=1, n_settings=1, n_bootstrap=100, estimators=["logistic"]),
    }


@pytest.fixture
def there(server: Any, new_store: Callable[..., Store]) -> str:
    """A bucket with an object."""
    bucket: str = server.bucket()
    new_store(server, bucket=bucket).put("there", b"x")
    return bucket


@pytest.mark.parametrize("server", S3_SERVERS, indirect=True)
def test_a_wrong_secret_is_said_whatever_was_tried(
    server: Any, there: str, new_store: Callable[..., Store]
) -> None:
    store = new_store(server, bucket=there, secret="not-the-secret")
    for verb in VERBS:
        said = refused(store, verb)
        assert "secret key does not belong to the access key id (SignatureDoesNotMatch)" in said
        assert f"s3://{there}/sets/one" in said
        assert "Prefect block" in said
        assert "not-the-secret" not in said


@pytest.mark.parametrize("server", S3_SERVERS, indirect=True)
def test_an_unknown_key_id_is_said(
    server: Any, there: str, new_store: Callable[..., Store]
) -> None:
    store = new_store(server, bucket=there, key="AKIANOBODY")
    # Swift knows one code for both.
    words = "SignatureDoesNotMatch" if server.name == "swift" else "key id is not known there"
    for verb in VERBS:
        assert words in refused(store, verb)


@pytest.mark.parametrize("server", [*S3_SERVERS, "azurite"], indirect=True)
def test_a_missing_bucket_is_said(server: Any, new_store: Callable[..., Store]) -> None:
    store = new_store(server, bucket="no-such-lake")
    for verb in ("write", "read"):
        said = refused(store, verb)
        assert "there is no " in said
        assert "'no-such-lake'" in said
    assert not store.exists("there")


@pytest.mark.parametrize("server", ["azurite"], indirect=True)
def test_a_wrong_azure_key_is_said(server: Any, there: str) -> None:
    wrong = server.connection_string.replace(server.secret, base64.b64encode(b"x" * 64).decode())
    store = open_store(f"az://{there}/sets/one", options={"connection_string": wrong})
    for verb in VERBS:
        said = refused(store, verb)
        assert "permission denied (AuthorizationFailure)" in said
        assert f"container '{there}'" in said


@pytest.mark.parametrize(
    ("missing", "verb", "words"),
    [
        ("s3:PutObject", "write", "grant s3:PutObject on bucket"),
        ("s3:GetObject", "read", "grant s3:GetObject on bucket"),
        ("s3:ListBucket", "list", "grant s3:ListBucket on bucket"),
        ("s3:DeleteObject", "delete", "grant s3:DeleteObject on bucket"),
    ],
)
@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_missing_permission_is_named(
    server: Any, there: str, missing: str, verb: str, words: str, limited: Callable[[str], Any]
) -> None:
    store = open_store(f"s3://{there}/sets/one", options=limited(missing))
    said = refused(store, verb)
    assert f"cannot {verb} s3://{there}/sets/one" in said
    assert f"{words} '{there}'" in said
    if verb != "write":
        open_store(store.uri, options=server.options()).check_writable()  # others may


@pytest.fixture
def limited(moto: Any) -> Callable[[str], dict[str, Any]]:
    """Options of a user of moto who may do everything but one thing."""
    from uuid import uuid4

    import prefect_augment_test_object_servers as servers

    def make(missing: str) -> dict[str, Any]:
        everything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        but = {"Effect": "Deny", "Action": missing, "Resource": "*"}
        key, secret = servers.make_user(moto, f"limited-{uuid4().hex[:8]}", [everything, but])
        options: dict[str, Any] = moto.options(key=key, secret=secret)
        return options

    return make


@pytest.mark.parametrize(
    ("missing", "is_ingested"),
    [("s3:PutObject", False), ("s3:PutObject", True), ("s3:GetObject", False)],
)
@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_run_without_permission_ends_before_anything_is_trained(
    server: Any,
    missing: str,
    is_ingested: bool,
    limited: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    as_user: Callable[..., None],
) -> None:
    as_user(server)
    lake = f"s3://{server.bucket()}"
    wanted = small_run(lake)
    if is_ingested:
        rebalance.fn(**wanted, plan_only=True)
    before = server.names(lake[5:])
    options = limited(missing)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    with pytest.raises(StorageError, match=f"grant {missing}"):
        rebalance.fn(**wanted)
    left = {name for name in server.names(lake[5:]) if "/.probe-" not in name}
    assert left == set(before)


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_key_that_is_revoked_in_mid_run_ends_it_and_a_new_one_goes_on(
    server: Any, monkeypatch: pytest.MonkeyPatch, as_user: Callable[..., None]
) -> None:
    import prefect_augment_test_object_servers as servers

    as_user(server)
    lake = f"s3://{server.bucket()}"
    wanted = small_run(lake)
    everything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    key, secret = servers.make_user(server, "passing", [everything])
    compare = flow_module.compare

    def revoked(*args: Any, **kwargs: Any) -> Any:
        server.client("iam").delete_access_key(UserName="passing", AccessKeyId=key)
        return compare(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        patch.setattr(flow_module, "compare", revoked)
        with pytest.raises(StorageError, match="access key id") as error:
            rebalance.fn(**wanted)
    assert secret not in str(error.value)
    assert not [name for name in server.names(lake[5:]) if "/_manifests/" in name]
    assert rebalance.fn(**wanted).version == 1


# --- where nobody answers, and who one is ---


def test_no_credentials_are_said(monkeypatch: pytest.MonkeyPatch, moto: Any) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    store = open_store("s3://lake/x", options={"endpoint_url": moto.endpoint})
    assert "no credentials that the store takes were found" in refused(store, "write")


def test_no_azure_account_is_said(monkeypatch: pytest.MonkeyPatch, azurite: Any) -> None:
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AugmentError, match="AZURE_STORAGE_CONNECTION_STRING"):
        open_store("az://lake/x")


@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_an_endpoint_where_nobody_answers_is_said_after_three_attempts(
    scheme: str, moto: Any, azurite: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import prefect_augment_test_object_servers as servers

    port = servers.free_port()
    options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "k", "secret": "s"}
    if scheme == "az":
        at = azurite.connection_string_at(f"http://127.0.0.1:{port}")
        options = {"connection_string": at}
    with caplog.at_level("INFO", logger="prefect_augment"):
        said = refused(open_store(f"{scheme}://lake-nowhere/x", options=options), "write")
    assert "no answer from the endpoint" in said
    assert f"127.0.0.1:{port}" in said
    assert caplog.text.count("trying again") == 2


def test_the_endpoint_and_the_key_may_stand_in_aws_own_files(
    moto: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(
        f"[profile lake]\nendpoint_url = {moto.endpoint}\nregion = us-east-1\n"
    )
    (tmp_path / "credentials").write_text(
        f"[lake]\naws_access_key_id = {moto.key}\naws_secret_access_key = {moto.secret}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lake")
    store = open_store(f"s3://{moto.bucket()}/x")
    store.check_writable()
    assert store.list() == []


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_saved_block_opens_source_and_destination_and_its_secret_stays_in_it(
    server: Any, prefect_harness: None
) -> None:
    from prefect.filesystems import RemoteFileSystem

    bucket = server.bucket()
    lake = f"{server.scheme}://{bucket}"
    name = f"lake-{server.name}"
    RemoteFileSystem(basepath=lake, settings=server.options()).save(name, overwrite=True)
    source = example_source(open_store(f"{lake}/in", options=server.options()))
    block = f"remote-file-system/{name}"
    result = rebalance.fn(
        source=source.model_copy(update={"storage_block": block}),
        destination=Destination(uri=f"{lake}/out", storage_block=block),
        model=NoModel(),
        evaluation=Evaluation(
            n_seeds=1, n_settings=1, n_bootstrap=100, estimators=["logistic"], on_no_gain="publish"
        ),
    )
    assert result.status == "published"
    store = open_store(lake, options=server.options())
    for path in store.list("out"):
        assert server.secret.encode() not in store.read(path), path
