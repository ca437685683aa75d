"""Storage as whole objects below a root, on any fsspec file system.

A :class:`Store` puts objects so that readers see all or nothing, and puts one only if absent. What they
mean (receipts, shards, manifests) is decided elsewhere.
"""

import contextlib
import functools
import hashlib
import io
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem

from prefect_augment.errors import ParameterError, StorageError
from prefect_augment.params.locations import hide_secrets, refuse_secrets
from prefect_augment.storage import drivers, retry
from prefect_augment.storage.errors import as_storage_error, fault_of
from prefect_augment.storage.local import Draft, ReadAhead, local_create, local_temporary

T = TypeVar("T")

# fsspec's memory:// looks and then writes; threads that race there need a turn each.
_MEMORY_TURN = threading.Lock()

# An endpoint that has never answered is more likely a wrong one than one that is being restarted.
_ATTEMPTS_BEFORE_THE_FIRST_ANSWER = 3
_HAVE_ANSWERED: set[str] = set()


def sha256_hex(data: bytes) -> str:
    """Return the sha256 of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def open_store(uri: str | os.PathLike[str], *, options: dict[str, Any] | None = None) -> "Store":
    """Return the store whose root is ``uri``, a local path or fsspec URL.

    ``options`` may hold secrets and never enter a reference, message or log. Raises ParameterError if the
    protocol is unknown, its driver is not installed, or the URL holds a password, a token or a signature.
    """
    uri = os.fspath(uri)
    refuse_secrets(uri)
    if not uri:
        raise ParameterError(
            "the URI is empty; give a local path or an fsspec URL such as s3://bucket/folder."
        )
    if "://" not in uri:
        uri = str(Path(uri).expanduser().resolve())
    try:
        fs, root = drivers.open_fs(uri, options or {})
    except (ImportError, ValueError) as exc:
        raise ParameterError(
            f"cannot open {uri!r}: {hide_secrets(str(exc))}; {drivers.what_to_do(uri, exc)}.",
            uri=uri,
        ) from exc
    except Exception as exc:  # a driver that looks for credentials has errors of its own
        error = as_storage_error(exc, verb="open", uri=uri, path="")
        if error is None:
            raise
        raise error from exc
    return Store(uri=uri, fs=fs, root=root.rstrip("/"))


def contains(outer: str, inner: str) -> bool:
    """Tell whether location ``inner`` is ``outer`` or lies inside it, comparing path segments.

    Examples
    --------
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


class Store:
    """Objects below one root.

    Paths are relative to it, with forward slashes, and cannot leave it. Requests are retried after transient
    faults (:func:`.retry.call`); what remains is a `TransientError`, and a final fault a `StorageError`.
    """

    def __init__(self, *, uri: str, fs: Any, root: str) -> None:
        self.uri = uri.rstrip("/") or uri
        self.fs = fs
        self.root = root
        self.is_local = isinstance(fs, LocalFileSystem)
        self._in_memory = self.uri.startswith("memory://")
        once = self.is_local or self._in_memory or drivers.retries_itself(fs)
        self._retries = retry.ONCE if once else retry.RetryPolicy.from_environment()
        self._is_s3 = self.uri.startswith(("s3://", "s3a://"))
        self._bucket = "/".join(self.uri.split("/")[:3])
        drivers.quieten(fs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A file system that was pickled is a new one, with its driver's own retries."""
        self.__dict__.update(state)
        drivers.quieten(self.fs)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def full(self, path: str) -> str:
        """Return the file system's own name of ``path``."""
        if path.startswith("/") or ".." in path.split("/"):
            raise StorageError(
                f"path {path!r} leaves the dataset's folder {self.uri}; refused.", path=path
            )
        return f"{self.root}/{path}" if path else self.root

    def place(self, path: str) -> str:
        """Return the URI of ``path``."""
        return f"{self.uri}/{path}"

    def info(self, path: str) -> dict[str, Any]:
        """Return the file system's entry of the object: ``size``, ``type``, times, etag.

        Raises FileNotFoundError if there is none.
        """
        full = self.full(path)
        return dict(self._do("look at", path, lambda: self.fs.info(full)))

    def root_type(self) -> str:
        """Return ``file`` for a root that is an object, ``directory`` for one with objects below it; else empty."""
        try:
            return str(self.info("")["type"])
        except FileNotFoundError:
            return ""

    def exists(self, path: str) -> bool:
        """Tell whether an object stands at ``path``."""
        full = self.full(path)
        return bool(self._do("look at", path, lambda: self.fs.exists(full)))

    def size(self, path: str) -> int:
        """Return the object's size in bytes; raises FileNotFoundError if there is none."""
        return int(self.info(path)["size"])

    def read(self, path: str) -> bytes:
        """Return the whole object; ``FileNotFoundError`` if there is none."""
        full = self.full(path)
        return bytes(self._do("read", path, lambda: self._cat(full)))

    def read_if_there(self, path: str) -> bytes | None:
        """Return the whole object, None if there is none."""
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def holds(self, path: str, n_bytes: int) -> bool:
        """Tell whether an object of so many bytes stands at ``path``."""
        try:
            return self.size(path) == n_bytes
        except FileNotFoundError:
            return False

    def _cat(self, full: str) -> bytes:
        # s3fs would ask for the size first, so as to fetch parts at a time: twice the requests for what
        # mostly is small, and a large object that is replaced meanwhile would be half old, half new.
        return bytes(self.fs.cat_file(full, **({"max_concurrency": 1} if self._is_s3 else {})))

    def open(self, path: str) -> IO[bytes]:
        """Return a seekable binary reader; raises FileNotFoundError if there is no object.

        From an object store it fetches ranges, and reads ahead while access is sequential.
        """
        full = self.full(path)
        if self._in_memory:
            # memory:// hands out the stored file itself, so two readers would share one position.
            return io.BytesIO(self.read(path))
        if self.is_local:
            return cast(IO[bytes], self._do("read", path, lambda: self.fs.open(full, "rb")))
        # The driver's own reader remembers the etag, so that no object is read half old, half new.
        file = self._do("read", path, lambda: self.fs.open(full, "rb", cache_type="none"))
        fetch = file.cache.fetcher

        def part(start: int, end: int) -> bytes:
            data = bytes(fetch(start, end))
            if len(data) != end - start:
                raise ConnectionError(f"{len(data)} of {end - start} bytes came")
            return data

        file.cache = ReadAhead(
            lambda start, end: self._do("read", path, lambda: part(start, end)), file.size
        )
        return cast(IO[bytes], file)

    def list(self, prefix: str = "") -> list[str]:
        """Return the sorted relative paths of all objects below ``prefix``; empty if there is none."""
        # A local put's own temporary files are invisible, as an unfinished upload is on an object store.
        paths = self._find(prefix, detail=False)
        return [path for path in paths if not path.rpartition("/")[2].startswith(".tmp-")]

    def infos(self) -> dict[str, dict[str, Any]]:
        """Return the file system's entry of each object, by relative path, from one listing."""
        return self._find("", detail=True)

    def _find(self, prefix: str, *, detail: bool) -> dict[str, dict[str, Any]]:
        full = self.full(prefix)
        try:
            listed = self._do("list", prefix, lambda: self.fs.find(full, detail=detail))
        except FileNotFoundError:
            return {}
        below = {
            name[len(self.root) + 1 :]: listed[name] if detail else {} for name in sorted(listed)
        }
        # Consoles make empty objects ``folder/`` to show a folder.
        return {path: info for path, info in below.items() if path and not path.endswith("/")}

    def put(self, path: str, data: bytes | Draft) -> None:
        """Write the whole object at once, consuming a draft: readers see the old bytes or the new ones.

        Large objects go to S3 in parts, which are dropped on failure and invisible if the process is killed.
        """
        full = self.full(path)
        if isinstance(data, Draft):
            with self._errors("write", path):
                if data.become(full):
                    return
            data = data.getvalue()
        if self.is_local:
            with self._errors("write", path), local_temporary(full, data) as temporary:
                os.replace(temporary, full)
        else:
            whole = data
            self._do("write", path, lambda: self.fs.pipe_file(full, whole))

    @contextlib.contextmanager
    def draft(self, folder: str) -> Iterator[Draft]:
        """Yield a sink for an object below ``folder`` that gets its name after its bytes.

        Nothing is visible before :meth:`put`, and nothing remains without it. A local store uses a temporary
        file, others memory.
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
        """Write the object only if there is none; return whether this call wrote it.

        When an object store refuses, equal bytes count as ours: the answer to our own write may have been lost.
        ``look_first`` saves the upload if an object is visible, and narrows the window in which a store that
        ignores the condition overwrites; a probe of the condition turns it off.
        """
        full = self.full(path)
        if self.is_local:
            with self._errors("write", path):
                return local_create(full, data)
        if look_first and self.exists(path):
            return False
        return self._remote_create(full, data)

    def _remote_create(self, full: str, data: bytes) -> bool:
        def attempt() -> bool:
            try:
                with _MEMORY_TURN if self._in_memory else contextlib.nullcontext():
                    self.fs.pipe_file(full, data, mode="create")
            except Exception as exc:
                if fault_of(exc).kind != "exists":
                    raise
                if self._in_memory and not self.fs.exists(full):
                    raise  # its word for an object that lies below another one, too
                # What is there may be ours: where an answer is lost, we ask again, and so does aiohttp
                # below the drivers, which says nothing of it. The same bytes from elsewhere do no harm.
                return not self._in_memory and self._cat(full) == data
            return True

        return self._do("write", full[len(self.root) + 1 :], attempt)

    def delete(self, path: str) -> None:
        """Remove the object; nothing happens if there is none."""
        full = self.full(path)
        with contextlib.suppress(FileNotFoundError):
            self._do("delete", path, lambda: self.fs.rm_file(full))

    def abort_unfinished(self, before: float) -> int:
        """Abort multipart uploads begun ``before`` a store time (seconds since 1970); return how many.

        Nobody sees them, but S3 keeps and bills their parts; Azure and GCS drop them after a week.
        """
        if not self._is_s3:
            return 0
        bucket, _, prefix = self.root.partition("/")
        uploads = self._do("list", "", lambda: self.fs.list_multipart_uploads(bucket))
        n_dropped = 0
        for upload in uploads:
            key, begun = upload["Key"], upload["Initiated"].timestamp()
            if key.startswith(f"{prefix}/" if prefix else "") and begun < before:
                drop = functools.partial(self.fs.abort_mpu, bucket, key, upload["UploadId"])
                with contextlib.suppress(FileNotFoundError):  # finished or dropped meanwhile
                    self._do("delete", key[len(prefix) :].lstrip("/"), drop)
                n_dropped += 1
        return n_dropped

    def check_writable(self, folder: str = "_staging") -> None:
        """Write, read, list and remove a small object, so a run fails now and not after training.

        Raises StorageError if any of that fails.
        """
        probe = f"{folder}/.probe-{uuid.uuid4().hex}"
        self.put(probe, b"")
        try:
            self.read(probe)
            self.list(probe)
        finally:
            self.delete(probe)

    def _do(self, verb: str, path: str, request: Callable[[], T]) -> T:
        """Return the result of a request to the file system, retried as :meth:`_worth` says."""
        with self._errors(verb, path):
            done = retry.call(
                request,
                policy=self._retries,
                attempts=self._worth,
                what=f"{verb} {self.uri}/{path}",
            )
        _HAVE_ANSWERED.add(self._bucket)
        return done

    def _worth(self, exc: Exception) -> int:
        """Return how many attempts an error is worth in all."""
        fault = fault_of(exc)
        if fault.kind == "unreachable" and self._bucket not in _HAVE_ANSWERED:
            return _ATTEMPTS_BEFORE_THE_FIRST_ANSWER
        return self._retries.attempts if fault.kind in ("transient", "unreachable") else 1

    @contextlib.contextmanager
    def _errors(self, verb: str, path: str) -> Iterator[None]:
        """Say which location failed and what to do; ``FileNotFoundError`` passes, callers expect it."""
        try:
            yield
        except StorageError:
            raise
        except Exception as exc:
            if fault_of(exc).kind in ("credentials", "denied"):
                drivers.forget_connections()
            if isinstance(exc, FileNotFoundError) and (
                self.is_local or (verb != "write" and fault_of(exc).kind == "absent")
            ):
                raise
            error = as_storage_error(
                self._in_words(exc, path),
                verb=verb,
                uri=self.uri,
                path=path,
                has_answered=self._bucket in _HAVE_ANSWERED,
            )
            if error is None:
                raise
            raise error from exc

    def _in_words(self, exc: Exception, path: str) -> Exception:
        """Return the error of a read in place of a refused HEAD request, whose answer has no body."""
        if not self._is_s3 or fault_of(exc).code not in ("401", "403"):
            return exc
        try:
            self.fs.cat_file(self.full(path), start=0, end=1)
        except Exception as refusal:  # noqa: BLE001 - whatever it is, the refusal stands
            if fault_of(refusal).kind in ("credentials", "denied", "skew"):
                return refusal
        return exc
