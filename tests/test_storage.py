import errno
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_augment.errors import ParameterError, StorageError
from prefect_augment.storage import Store, contains, open_store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield open_store(str(tmp_path / "data set"))
        return
    opened = open_store(f"memory://{uuid4().hex}")
    yield opened
    opened.fs.rm(opened.root, recursive=True) if opened.fs.exists(opened.root) else None


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
    with (
        pytest.raises(StorageError, match=r"no space left to write .*/data"),
        store.draft("data"),
    ):
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
        from prefect_augment.storage import open_store
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
