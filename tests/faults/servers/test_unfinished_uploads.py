"""A client that dies while it uploads: nobody sees anything of it, and `gc` drops what it left."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from prefect_augment.errors import TransientError
from prefect_augment.maintenance.gc import collect_garbage
from prefect_augment.storage import Store, open_store

pytestmark = pytest.mark.faults

# s3fs sends parts of 50 MiB from 100 MiB on; adlfs blocks from 64 MiB on.
N_BYTES = {"s3": 101 << 20, "az": 65 << 20, "gs": 101 << 20}
WRITER = textwrap.dedent(
    """
    import sys
    from prefect_augment.storage.store import open_store
    open_store(sys.argv[1]).put("data/big", bytes(int(sys.argv[2])))
    """
)


@pytest.mark.parametrize("server", ["moto", "swift", "azurite", "gcs"], indirect=True)
def test_a_writer_killed_in_mid_upload_leaves_nothing_visible(
    server: Any, proxy_of: Callable[..., Any], as_user: Callable[..., None]
) -> None:
    proxy = proxy_of(server)
    as_user(server, proxy.endpoint)
    bucket = server.bucket()
    store = open_store(f"{server.scheme}://{bucket}/sets/one")
    store.put("there", b"x")
    words = [sys.executable, "-c", WRITER, store.uri, str(N_BYTES[server.scheme])]
    writer = subprocess.Popen(words)
    # A part has arrived: the writer dies before it hears of it.
    proxy.after("(partNumber=|comp=block&|upload_id=)", lambda: os.kill(writer.pid, signal.SIGKILL))
    assert writer.wait(900) == -signal.SIGKILL

    assert server.names(bucket) == ["sets/one/there"]
    assert store.list() == ["there"]
    assert not store.exists("data/big")
    if server.scheme in ("az", "gs"):
        return  # drops its blocks by itself, after a week
    assert [upload["Key"] for upload in uploads(server, bucket)] == ["sets/one/data/big"]

    if server.name == "swift":  # moto says of all uploads that they began in 2010
        collect_garbage(store)
        assert len(uploads(server, bucket)) == 1, "it may be in use still"
    other = server.client().create_multipart_upload(Bucket=bucket, Key="not-ours/big")
    collect_garbage(store, older_than_days=0)
    assert [u["UploadId"] for u in uploads(server, bucket)] == [other["UploadId"]]
    assert store.list() == ["there"]


def uploads(server: Any, bucket: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    )
    return found


def test_an_upload_that_fails_is_taken_back(
    moto: Any,
    proxy_of: Callable[..., Any],
    new_store: Callable[..., Store],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_AUGMENT_STORAGE_ATTEMPTS", "2")
    proxy = proxy_of(moto)
    bucket = moto.bucket()
    store = new_store(moto, bucket=bucket, endpoint_url=proxy.endpoint)
    proxy.fail("partNumber=2", "500")
    with pytest.raises(TransientError, match="InternalError"):
        store.put("data/big", bytes(N_BYTES["s3"]))
    assert proxy.attempts("partNumber=2") == 2
    assert uploads(moto, bucket) == []
    assert moto.names(bucket) == []


def test_a_large_object_is_put_once_whose_answer_was_lost(
    moto: Any, proxy_of: Callable[..., Any], new_store: Callable[..., Store]
) -> None:
    proxy = proxy_of(moto)
    bucket = moto.bucket()
    store = new_store(moto, bucket=bucket, endpoint_url=proxy.endpoint)
    proxy.fail("POST .*uploadId=", "lost", times=1)
    assert store.put_if_absent("data/big", bytes(N_BYTES["s3"]), look_first=False)
    assert store.size("data/big") == N_BYTES["s3"]
    assert uploads(moto, bucket) == []
