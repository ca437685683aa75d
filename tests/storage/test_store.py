import contextlib
import errno
import gc
import io
import os
import pickle
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.spec import AbstractBufferedFile
from hypothesis import given, strategies as st

from prefect_augment.errors import ParameterError, StorageError, TransientError
from prefect_augment.storage import Store, contains, open_store
from prefect_augment.storage.drivers import forget_connections, options_of
from prefect_augment.storage.errors import as_storage_error, fault_of
from prefect_augment.storage.local import ReadAhead
from prefect_augment.storage.retry import RetryPolicy, call


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


@pytest.fixture
def short_turns() -> Iterator[None]:
    """Let threads take turns within a look and the write that follows it."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_an_object_comes_back_as_it_was_put(store: Store) -> None:
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"other")
    assert store.read("a/b.bin") == b"other"
    assert store.size("a/b.bin") == 5
    assert store.exists("a/b.bin")
    assert store.list() == ["a/b.bin"]
    assert store.list("a") == ["a/b.bin"]


def test_what_is_not_there_is_a_file_not_found(store: Store) -> None:
    store.put("there", b"")
    for look in (store.read, store.size, store.open):
        with pytest.raises(FileNotFoundError):
            look("nowhere/x")
    assert not store.exists("nowhere/x")
    assert store.list("nowhere") == []
    store.delete("nowhere/x")


def test_put_if_absent_keeps_the_first(store: Store) -> None:
    assert store.put_if_absent("k", b"first")
    assert not store.put_if_absent("k", b"second")
    assert not store.put_if_absent("k", b"second", look_first=False)
    assert store.read("k") == b"first"


@pytest.mark.parametrize("look_first", [True, False])
@pytest.mark.usefixtures("short_turns")
def test_of_many_writers_one_wins_and_its_bytes_stand(store: Store, look_first: bool) -> None:
    for turn in range(20):
        start = threading.Barrier(8)
        won: list[bytes] = []

        def write(
            name: bytes, turn: int = turn, start: threading.Barrier = start, won: list[bytes] = won
        ) -> None:
            start.wait()
            if store.put_if_absent(f"k{turn}", name * 1000, look_first=look_first):
                won.append(name)

        threads = [threading.Thread(target=write, args=(b"%d" % i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.read(f"k{turn}") == won[0] * 1000


def test_two_readers_of_one_object_do_not_share_a_position(store: Store) -> None:
    store.put("k", b"abcdef")
    with store.open("k") as one, store.open("k") as two:
        assert one.read(3) == b"abc"
        assert two.read(2) == b"ab"
        assert one.read() == b"def"


def test_a_draft_is_seen_once_it_is_put_and_leaves_nothing_else(store: Store) -> None:
    pieces = [os.urandom(n) for n in (3 << 20, 0, 5, (4 << 20) + 1)]
    with store.draft("data") as draft:
        for piece in pieces:
            assert draft.write(piece) == len(piece)
        assert store.list() == []
        assert len(draft) == sum(map(len, pieces))
        store.put("data/whole", draft)
    assert store.read("data/whole") == b"".join(pieces)
    with store.draft("data") as draft:
        draft.write(b"other")
        store.put("data/whole", draft)
    assert store.read("data/whole") == b"other"
    assert store.list() == ["data/whole"]


def test_a_draft_that_fails_or_is_not_put_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with store.draft("data") as draft:
        draft.write(b"half")
    assert list((tmp_path / "data").iterdir()) == []
    with pytest.raises(StorageError, match=r"no space left to write .*/data"), store.draft("data"):
        raise OSError(errno.ENOSPC, "full")
    assert list((tmp_path / "data").iterdir()) == []
    store.put("file", b"")
    with pytest.raises(StorageError, match="cannot write"), store.draft("file"):
        pass


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_a_path_that_leaves_the_folder_is_refused(store: Store, path: str) -> None:
    with pytest.raises(StorageError, match="leaves the dataset's folder"):
        store.put(path, b"")
    with pytest.raises(StorageError, match="refused"):
        store.read(path)


def test_an_object_below_an_object_is_a_clear_error(store: Store) -> None:
    """A destination below a file cannot be written, whatever the rights."""
    store.put("file", b"x")
    for write in (store.put, store.put_if_absent):
        with pytest.raises(StorageError, match=r"cannot write .*file/below"):
            write("file/below", b"y")
    assert store.read("file") == b"x"


def test_unfinished_local_writes_are_not_listed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("data/x", b"x")
    (tmp_path / "data" / ".tmp-123-x").write_bytes(b"half")
    assert store.list() == ["data/x"]


def test_a_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("x", b"x")
    store.put_if_absent("x", b"y")
    store.put_if_absent("z", b"z")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "z"]


def test_a_location_that_can_be_written_passes_the_check(store: Store) -> None:
    store.check_writable()
    assert store.list() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission to write"):
        open_store(str(tmp_path)).check_writable()


def test_a_destination_below_a_file_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="choose another location"):
        open_store(str(tmp_path / "file" / "out")).check_writable()


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "Read-only file system")]
)
def test_a_full_or_read_only_disk_is_said(tmp_path: Path, code: int, words: str) -> None:
    """Raised by the kernel in earnest below; here every code gets its words."""
    store = open_store(str(tmp_path))
    with pytest.raises(StorageError, match=words), store._errors("write", "x"):
        raise OSError(code, os.strerror(code))


def test_an_object_above_the_quota_leaves_nothing_behind(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import resource, sys
        from prefect_augment.errors import StorageError
        from prefect_augment.storage.store import open_store
        store = open_store(sys.argv[1])
        store.put("small", b"x" * 100)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        for write in (store.put, store.put_if_absent):
            try:
                write("large", b"x" * 5000)
            except StorageError as exc:
                print(exc)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("limit (ulimit -f)") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_an_unknown_protocol_and_an_empty_uri_are_refused() -> None:
    with pytest.raises(ParameterError, match="check the URL"):
        open_store("nosuch://x")
    with pytest.raises(ParameterError, match="is empty"):
        open_store("")


def test_a_url_with_a_secret_is_refused_and_a_driver_s_is_not_shown() -> None:
    with pytest.raises(ParameterError, match="storage_block") as refused:
        open_store("simplecache::ftp://me:s3cr3t@host/a.csv")
    assert "s3cr3t" not in str(refused.value)
    answer = OSError("403, url='https://a.blob.core.windows.net/c/b?sv=2020&sig=s3cr3t'")
    error = as_storage_error(answer, verb="read", uri="abfs://c@a", path="b")
    assert "s3cr3t" not in str(error)


def test_a_connection_is_opened_once_for_each_location_and_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("s3fs", reason="needs the s3 extra")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "one")
    first = open_store("s3://lake/x").fs
    assert open_store("s3://lake/x").fs is first
    assert open_store("s3://lake/x", options={"key": "k", "secret": "s"}).fs is not first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "two")
    assert open_store("s3://lake/x").fs is not first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "one")
    forget_connections()
    assert open_store("s3://lake/x").fs is not first, "as after a refusal"


def test_options_do_not_show() -> None:
    store = open_store("memory://x", options={"secret": "s3cr3t"})
    assert "s3cr3t" not in repr(store)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("s3://lake/data", "s3://lake/data/out", True),
        ("s3://lake/data/", "s3://lake/data", True),
        ("s3://lake/data", "s3://lake/data-out", False),
        ("s3://lake/data", "gs://lake/data/out", False),
        ("data", "data/out", True),
        ("data", "data-out", False),
        ("data", "file://{cwd}/data/out", True),
        ("data/../other", "other/out", True),
    ],
)
def test_locations_are_compared_by_segment(outer: str, inner: str, expected: bool) -> None:
    assert contains(outer, inner.format(cwd=Path.cwd())) is expected


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(StorageError("no", path="x")))
    assert str(error) == "no"
    assert error.path == "x"


# --- reading by ranges ---


class Fetched:
    """An object in memory that notes which ranges were asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ranges: list[tuple[int, int]] = []

    def open(self) -> AbstractBufferedFile:
        file = AbstractBufferedFile(None, "", size=len(self.data), cache_type="none")
        file.cache = ReadAhead(self.fetch, file.size)
        return file

    def fetch(self, start: int, end: int) -> bytes:
        assert 0 <= start < end <= len(self.data)
        self.ranges.append((start, end))
        return self.data[start:end]


@given(
    n=st.integers(0, 5000),
    steps=st.lists(st.tuples(st.integers(0, 6000), st.integers(-1, 3000)), max_size=12),
)
def test_ranges_give_what_a_file_gives(n: int, steps: list[tuple[int, int]]) -> None:
    data = (bytes(range(251)) * 20)[:n]
    reader, plain = Fetched(data).open(), io.BytesIO(data)
    for position, size in steps:
        assert reader.seek(position) == plain.seek(position)
        assert reader.read(size) == plain.read(size)
        assert reader.tell() == plain.tell()
    assert reader.seek(-min(n, 3), io.SEEK_END) == plain.seek(-min(n, 3), io.SEEK_END)
    assert reader.readline() == plain.readline()
    assert reader.read() == plain.read()


def test_a_reader_that_goes_on_is_given_more_and_more_at_a_time() -> None:
    fetched = Fetched(bytes(40 << 20))
    with fetched.open() as reader:
        while reader.read(64 << 10):
            pass
    sizes = [end - start for start, end in fetched.ranges]
    assert sum(sizes) == len(fetched.data), "nothing is fetched twice"
    assert sizes[:4] == [512 << 10, 1 << 20, 2 << 20, 4 << 20]
    assert max(sizes) == 8 << 20


def test_a_reader_that_jumps_is_given_little_more_than_it_asks_for() -> None:
    fetched = Fetched(bytes(40 << 20))
    with fetched.open() as reader:
        for position in (30 << 20, 10 << 20, 20 << 20):
            reader.seek(position)
            reader.read(100)
    assert [end - start for start, end in fetched.ranges] == [256 << 10] * 3


def test_parquet_and_archives_are_read_by_ranges() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": range(1000)}), sink)
    assert pq.read_table(Fetched(sink.getvalue()).open())["x"].to_pylist() == list(range(1000))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.txt", "words")
    with zipfile.ZipFile(Fetched(sink.getvalue()).open()) as archive:
        assert archive.read("a.txt") == b"words"


# --- asking again ---


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, n_failures: int) -> None:
        self.n_failures, self.n_calls = n_failures, 0

    def __call__(self) -> str:
        self.n_calls += 1
        if self.n_calls <= self.n_failures:
            raise ConnectionResetError("on purpose")
        return "answer"


QUICK = RetryPolicy(attempts=4, backoff_seconds=0.0)


def test_it_is_asked_again_until_it_answers() -> None:
    flaky = Flaky(3)
    assert call(flaky, policy=QUICK, attempts=lambda exc: 9, what="ask") == "answer"
    assert flaky.n_calls == 4


@pytest.mark.parametrize(("worth", "n_calls"), [(9, 4), (2, 2), (1, 1)])
def test_attempts_end_at_the_policy_and_at_what_the_error_is_worth(
    worth: int, n_calls: int
) -> None:
    flaky = Flaky(99)
    with pytest.raises(ConnectionResetError):
        call(flaky, policy=QUICK, attempts=lambda exc: worth, what="ask")
    assert flaky.n_calls == n_calls


def test_waits_double_up_to_a_bound_and_are_spread_from_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("prefect_augment.storage.retry.logger.disabled", True)
    # Of tenacity alone: with no sleep at all, threads of others would spin.
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=slept.append))
    policy = RetryPolicy(attempts=10, backoff_seconds=0.5, max_seconds=2.0)
    for _ in range(400):
        with pytest.raises(ConnectionResetError):
            call(Flaky(99), policy=policy, attempts=lambda exc: 99, what="ask")
    for attempt, longest in [(1, 0.5), (2, 1.0), (3, 2.0), (9, 2.0)]:
        waits = slept[attempt - 1 :: 9]
        assert len(waits) == 400
        assert 0 <= min(waits) < 0.1 * longest
        assert 0.9 * longest < max(waits) <= longest


@pytest.mark.parametrize("n_failures", [0, 1, 99])
def test_nothing_of_a_call_stays_in_memory(n_failures: int) -> None:
    """A shard's bytes would else wait for the garbage collector, which does not see how many they are."""
    flaky = Flaky(n_failures)
    held = weakref.ref(flaky)
    gc.disable()
    try:
        with contextlib.suppress(ConnectionResetError):
            call(flaky, policy=QUICK, attempts=lambda exc: 9, what="ask")
        del flaky
        assert held() is None
    finally:
        gc.enable()


def test_the_environment_sets_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RetryPolicy.from_environment() == RetryPolicy()
    monkeypatch.setenv("PREFECT_AUGMENT_STORAGE_ATTEMPTS", "3")
    monkeypatch.setenv("PREFECT_AUGMENT_STORAGE_BACKOFF_SECONDS", "0.5")
    assert RetryPolicy.from_environment() == RetryPolicy(attempts=3, backoff_seconds=0.5)


@pytest.mark.parametrize("given", ["0", "many", "nan", "-1"])
def test_a_policy_that_makes_no_sense_is_refused(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_AUGMENT_STORAGE_ATTEMPTS", given)
    with pytest.raises(ParameterError, match="STORAGE_ATTEMPTS is"):
        RetryPolicy.from_environment()


# --- what the drivers' errors mean; servers raise most of them in tests/faults/servers ---


def boto_error(code: str, status: int) -> Exception:
    exceptions = pytest.importorskip("botocore.exceptions", reason="needs the s3 extra")
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = exceptions.ClientError(response, "PutObject")
    return error


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("ExpiredToken", 400, "credentials"),
        ("AccessDenied", 403, "denied"),
        ("SomethingNew", 403, "denied"),
        ("403", 403, "denied"),
        ("PermanentRedirect", 301, "region"),
        ("RequestTimeTooSkewed", 403, "skew"),
        ("PreconditionFailed", 412, "exists"),
        ("ConditionalRequestConflict", 409, "transient"),
        ("SlowDown", 503, "transient"),
        ("SomethingNew", 500, "transient"),
        ("NotImplemented", 501, "other"),
        ("NoSuchBucket", 404, "bucket"),
    ],
)
def test_the_answers_of_s3(code: str, status: int, kind: str) -> None:
    error = OSError(errno.EINVAL, "translated by the driver")
    error.__cause__ = boto_error(code, status)
    assert fault_of(error).kind == kind


def test_only_what_may_pass_is_a_transient_error() -> None:
    place = {"verb": "write", "uri": "s3://lake/sets", "path": "data/x"}
    assert isinstance(as_storage_error(boto_error("SlowDown", 503), **place), TransientError)
    for code, status in (("AccessDenied", 403), ("NoSuchBucket", 404), ("NotImplemented", 501)):
        error = as_storage_error(boto_error(code, status), **place)
        assert isinstance(error, StorageError)
        assert not isinstance(error, TransientError)
        assert (error.bucket, error.key, error.code) == ("lake", "sets/data/x", code)  # type: ignore[attr-defined]
    assert as_storage_error(TypeError("a mistake of ours"), **place) is None


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (ConnectionRefusedError(), "unreachable"),
        (socket.gaierror(-2, "Name or service not known"), "unreachable"),
        (ConnectionResetError(), "transient"),
        (TimeoutError(), "transient"),
        (ssl.SSLCertVerificationError(1, "self-signed certificate"), "certificate"),
        (PermissionError(), "denied"),
        (FileNotFoundError(), "absent"),
        (ValueError(), "other"),
    ],
)
def test_the_words_of_the_network(exc: Exception, kind: str) -> None:
    wrapped = RuntimeError("a driver's wrapping")
    wrapped.__cause__ = exc
    assert fault_of(exc).kind == kind
    assert fault_of(wrapped).kind == kind


def test_what_was_handled_before_is_not_what_went_wrong() -> None:
    try:
        raise FileNotFoundError("looked for, and not there")
    except FileNotFoundError:
        mistake = ValueError("a mistake of ours")
        mistake.__context__ = sys.exc_info()[1]
    assert fault_of(mistake).kind == "other"


def test_the_answers_of_gcs() -> None:
    """gcsfs says by class and number what others say by code; no server answers so at will."""
    retry = pytest.importorskip("gcsfs.retry", reason="needs the gcs extra")
    assert fault_of(retry.HttpError({"code": 503, "message": "busy"})).kind == "transient"
    assert fault_of(retry.HttpError({"code": 401, "message": "no"})).kind == "credentials"
    assert fault_of(OSError("Forbidden: b/o\nno storage.objects.create")).kind == "denied"
    assert fault_of(FileExistsError("o")).kind == "exists"


def test_stores_that_speak_s3_are_not_sent_checksums_they_do_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def checksums(**given: object) -> object:
        config = options_of("s3://lake/x", given)["config_kwargs"]
        return config.get("request_checksum_calculation"), config.get(
            "response_checksum_validation"
        )

    assert checksums() == (None, None)
    assert checksums(endpoint_url="http://127.0.0.1:9") == ("when_required", "when_required")
    assert checksums(client_kwargs={"endpoint_url": "x"}) == ("when_required", "when_required")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert checksums() == ("when_required", "when_required")
    assert checksums(config_kwargs={"request_checksum_calculation": "when_supported"}) == (
        "when_supported",
        "when_required",
    )
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_supported")
    assert checksums() == ("when_required", None)
