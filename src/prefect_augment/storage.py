"""One way to reach storage: whole objects below a root, on any fsspec file system.

A :class:`Store` knows how to put an object so that readers see all of it or nothing, and how to put
one only where none is. What the objects mean (receipts, shards, manifests) is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from prefect_augment.errors import ParameterError, StorageError

__all__ = ["Draft", "Store", "contains", "open_store", "sha256_hex"]


# fsspec's memory:// looks and then writes; threads that race there need a turn each.
_MEMORY_TURN = threading.Lock()
# The disk begins to write a local draft whenever so many bytes are new.
_BEGIN_BYTES = 4 << 20


def sha256_hex(data: bytes) -> str:
    """Return the sha256 of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def open_store(uri: str | os.PathLike[str], *, options: dict[str, Any] | None = None) -> Store:
    """Return the store whose root is ``uri``.

    Parameters
    ----------
    uri : str or path
        A local path or an fsspec URL.
    options : dict, optional
        fsspec storage options, from a Prefect block. They may hold secrets, so they are never part
        of a reference, an error message or a log line.

    Raises
    ------
    ParameterError
        If the URL's protocol is unknown or its driver is not installed.
    """
    uri = os.fspath(uri)
    if not uri:
        raise ParameterError(
            "the URI is empty; give a local path or an fsspec URL such as s3://bucket/folder."
        )
    if "://" not in uri:
        uri = str(Path(uri).expanduser().resolve())
    try:
        # Listings are never cached and instances never shared: a stale listing hides another
        # writer's manifest, and a shared instance may hold another run's credentials.
        caching = (
            {} if _is_in_memory(uri) else {"use_listings_cache": False, "skip_instance_cache": True}
        )
        fs, root = fsspec.core.url_to_fs(uri, **caching, **(options or {}))
    except (ImportError, ValueError) as exc:
        scheme = uri.split("://")[0]
        hints = {
            "s3": "s3",
            "s3a": "s3",
            "az": "azure",
            "abfs": "azure",
            "abfss": "azure",
            "gs": "gcs",
            "gcs": "gcs",
        }
        hint = (
            f"pip install 'prefect-augment[{hints[scheme]}]'"
            if scheme in hints
            else "check the URL"
        )
        raise ParameterError(f"cannot open {uri!r}: {exc}; {hint}.", uri=uri) from exc
    return Store(uri=uri, fs=fs, root=root.rstrip("/"))


def contains(outer: str, inner: str) -> bool:
    """Tell whether location ``inner`` is ``outer`` or lies inside it, comparing path segments.

    Examples
    --------
    >>> contains("s3://lake/data", "s3://lake/data/out")
    True
    >>> contains("s3://lake/data", "s3://lake/data-out")
    False
    """
    outer_parts, inner_parts = _segments(outer), _segments(inner)
    return inner_parts[: len(outer_parts)] == outer_parts


def _segments(uri: str) -> list[str]:
    protocol, _, path = uri.rpartition("://")
    if protocol in ("", "file", "local"):
        protocol, path = "file", str(Path(path).expanduser().resolve())
    return [protocol, *(segment for segment in path.split("/") if segment)]


def _is_in_memory(uri: str) -> bool:
    return uri.startswith("memory://")


class Store:
    """Objects below one root.

    Paths are relative to the root, with forward slashes; one that would leave the root is refused.
    """

    def __init__(self, *, uri: str, fs: Any, root: str) -> None:
        self.uri = uri.rstrip("/") or uri
        self.fs = fs
        self.root = root
        self.is_local = isinstance(fs, LocalFileSystem)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def full(self, path: str) -> str:
        """Return the file system's own name of ``path``."""
        if path.startswith("/") or ".." in path.split("/"):
            raise StorageError(
                f"path {path!r} leaves the dataset's folder {self.uri}; refused.", path=path
            )
        return f"{self.root}/{path}" if path else self.root

    def exists(self, path: str) -> bool:
        """Tell whether an object stands at ``path``."""
        with self._errors("look at", path):
            return bool(self.fs.exists(self.full(path)))

    def size(self, path: str) -> int:
        """Return the object's size in bytes.

        Raises
        ------
        FileNotFoundError
            If there is no object.
        """
        with self._errors("look at", path):
            return int(self.fs.info(self.full(path))["size"])

    def read(self, path: str) -> bytes:
        """Return the whole object; ``FileNotFoundError`` if there is none."""
        with self._errors("read", path):
            return bytes(self.fs.cat_file(self.full(path)))

    def open(self, path: str) -> IO[bytes]:
        """Return a seekable binary reader of the object."""
        if _is_in_memory(self.uri):
            # memory:// hands out the stored file itself, so two readers would share one position.
            return io.BytesIO(self.read(path))
        with self._errors("read", path):
            return self.fs.open(self.full(path), "rb")  # type: ignore[no-any-return]

    def list(self, prefix: str = "") -> list[str]:
        """Return the sorted relative paths of all objects below ``prefix``; empty if there is none."""
        with self._errors("list", prefix):
            try:
                found = self.fs.find(self.full(prefix))
            except FileNotFoundError:
                return []
        cut = len(self.root) + 1
        # A local put's own temporary files are invisible, as an unfinished upload is on an object store.
        return sorted(p[cut:] for p in found if not p.rsplit("/", 1)[-1].startswith(".tmp-"))

    def infos(self) -> dict[str, dict[str, Any]]:
        """Return what the file system says of each object, by relative path, from one listing."""
        with self._errors("list", ""):
            try:
                found = self.fs.find(self.root, detail=True)
            except FileNotFoundError:
                return {}
        cut = len(self.root) + 1
        return {full[cut:]: info for full, info in sorted(found.items())}

    def put(self, path: str, data: bytes | Draft) -> None:
        """Write the whole object at once: readers see the old bytes or the new ones.

        A draft is used up by it.
        """
        full = self.full(path)
        with self._errors("write", path):
            if isinstance(data, Draft):
                if data.become(full):
                    return
                data = data.getvalue()
            if self.is_local:
                with _local_temporary(full, data) as temporary:
                    os.replace(temporary, full)
            else:
                self.fs.pipe_file(full, data)

    @contextlib.contextmanager
    def draft(self, folder: str) -> Iterator[Draft]:
        """Yield a sink for an object below ``folder`` whose name is known only when its bytes are.

        Nothing is seen of it before it is :meth:`put`, and nothing is left of it without. Locally it
        is a temporary file, elsewhere it is gathered in memory and put in one piece.
        """
        with self._errors("write", folder):
            if not self.is_local:
                yield Draft(io.BytesIO())
                return
            place = self.full(folder)
            os.makedirs(place, exist_ok=True)
            temporary = os.path.join(place, f".tmp-{uuid.uuid4().hex}")
            try:
                with open(temporary, "wb", buffering=0) as file:
                    yield Draft(file, temporary)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)

    def put_if_absent(self, path: str, data: bytes, *, look_first: bool = True) -> bool:
        """Write the object only where there is none; return whether this call wrote it.

        ``look_first`` saves the upload where an object is seen already. It also narrows the window in
        which a store that ignores the condition overwrites; a probe of the condition itself leaves it out.
        """
        full = self.full(path)
        with self._errors("write", path):
            if self.is_local:
                return _local_create(full, data)
            if look_first and self.fs.exists(full):
                return False
            return self._remote_create(full, data)

    def _remote_create(self, full: str, data: bytes) -> bool:
        turn = _MEMORY_TURN if _is_in_memory(self.uri) else contextlib.nullcontext()
        try:
            with turn:
                self.fs.pipe_file(full, data, mode="create")
        except OSError as exc:
            if isinstance(exc, FileExistsError) and self.fs.exists(full):
                return False
            if _is_precondition_failure(exc):
                return False
            raise
        return True

    def delete(self, path: str) -> None:
        """Remove the object; nothing happens if there is none."""
        with self._errors("delete", path), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.full(path))

    def check_writable(self) -> None:
        """Write and remove a small object, so that a run fails now and not after training.

        Raises
        ------
        StorageError
            If the location cannot be written.
        """
        probe = f"_staging/.probe-{uuid.uuid4().hex}"
        self.put(probe, b"")
        self.delete(probe)

    @contextlib.contextmanager
    def _errors(self, verb: str, path: str) -> Iterator[None]:
        """Say which location failed and what to do; ``FileNotFoundError`` passes, callers expect it."""
        where = f"{self.uri}/{path}".rstrip("/")
        try:
            yield
        except FileNotFoundError:
            raise
        except PermissionError as exc:
            raise StorageError(
                f"no permission to {verb} {where}; grant it or choose another location."
            ) from exc
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(
                    f"no space left to {verb} {where}; free some and run again, the run continues where it was."
                ) from exc
            if exc.errno == errno.EFBIG:
                raise StorageError(
                    f"cannot {verb} {where}: larger than the file system or the user's limit (ulimit -f) allows; "
                    "raise the limit or write smaller shards (publish.shard_mib)."
                ) from exc
            if exc.errno in (errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.EEXIST):
                raise StorageError(
                    f"cannot {verb} {where}: {os.strerror(exc.errno)}; choose another location."
                ) from exc
            raise StorageError(f"cannot {verb} {where}: {type(exc).__name__}: {exc}.") from exc


class Draft:
    """An object in the making; made by :meth:`Store.draft`, becomes one by :meth:`Store.put`.

    Attributes
    ----------
    temporary : str
        The local file; empty where it is in memory.
    """

    def __init__(self, file: Any, temporary: str = "") -> None:
        self._file = file
        self.temporary = temporary
        self._n_bytes = self._n_begun = self._n_synced = 0

    def write(self, data: Any) -> int:
        """Append bytes, or what has a buffer of them; return how many. Pieces of about 1 MiB are best."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self._n_bytes += len(data)
        if self.temporary and self._n_bytes - self._n_begun >= _BEGIN_BYTES:
            self._begin()
        return len(data)

    def _begin(self) -> None:
        """Let the disk begin, so that little is left to wait for at the end.

        On Linux this advice starts writing pages that are not written, and drops only those that are.
        """
        if hasattr(os, "posix_fadvise"):
            size = self._n_bytes - self._n_begun
            os.posix_fadvise(self._file.fileno(), self._n_begun, size, os.POSIX_FADV_DONTNEED)
        self._n_begun = self._n_bytes

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        if self.temporary and self._n_synced < self._n_bytes:
            os.fsync(self._file.fileno())
            self._n_synced = self._n_bytes

    def __len__(self) -> int:
        return self._n_bytes

    def become(self, full: str) -> bool:
        """Be the local file ``full`` from now on, synced; False where the draft is in memory."""
        if self.temporary:
            self.sync()
            os.replace(self.temporary, full)
        return bool(self.temporary)

    def getvalue(self) -> bytes:
        """Return what was written, of a draft in memory."""
        return bytes(self._file.getvalue())


def _local_create(full: str, data: bytes) -> bool:
    """Put a local file where there is none; return whether this call did."""
    with _local_temporary(full, data) as temporary:
        try:
            os.link(temporary, full)  # the one local operation that is exclusive and atomic
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def _local_temporary(full: str, data: bytes) -> Iterator[str]:
    """Write ``data`` beside its final place, synced, so that only a rename or link is left to do."""
    folder, name = os.path.split(full)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".tmp-{uuid.uuid4().hex}-{name[:40]}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _is_precondition_failure(exc: OSError) -> bool:
    """Tell a 412 that s3fs wrapped in a plain OSError (seen from Swift and ministack) from other errors."""
    cause = exc.__cause__
    response = getattr(cause, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return code in ("PreconditionFailed", "412", "ConditionalRequestConflict")
