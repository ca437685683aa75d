"""Files behind :class:`~prefect_augment.storage.store.Store`: reading ahead, drafts, atomic local writes."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from fsspec.caching import BaseCache

# Sequential readers (CSV, tar) get more and more at a time; one that jumps gets little more than it asked for.
_FIRST_BYTES = 256 << 10
_MOST_BYTES = 8 << 20
# The disk begins to write a local draft whenever so many bytes are new.
_BEGIN_BYTES = 4 << 20


class ReadAhead(BaseCache):  # type: ignore[misc]  # fsspec has no types
    """What a reader of one object holds: it asks ``fetcher(start, end)``, with ``end`` exclusive."""

    def __init__(self, fetcher: Callable[[int, int], bytes], n_bytes: int) -> None:
        super().__init__(_FIRST_BYTES, fetcher, int(n_bytes))
        self.blocksize: int
        self._start = 0  # of what is held
        self._held = b""

    def _fetch(self, start: int, stop: int) -> bytes:
        size = min(stop, self.size) - start
        if size <= 0:
            return b""
        begin = start - self._start
        part = self._held[begin : begin + size] if 0 <= begin < len(self._held) else b""
        if len(part) < size:
            start, size = start + len(part), size - len(part)
            goes_on = start == self._start + len(self._held)
            self.blocksize = min(2 * self.blocksize, _MOST_BYTES) if goes_on else _FIRST_BYTES
            end = min(start + max(size, self.blocksize), self.size)
            self._start, self._held = start, self.fetcher(start, end)
            part += self._held[:size]
        return part


def local_create(full: str, data: bytes) -> bool:
    """Create a local file if there is none; return whether this call did."""
    with local_temporary(full, data) as temporary:
        try:
            os.link(temporary, full)  # the one local operation that is exclusive and atomic
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def local_temporary(full: str, data: bytes) -> Iterator[str]:
    """Write ``data`` beside its final place, synced, so that only a rename or link remains."""
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


class Draft:
    """An object being written: from ``Store.draft``, made visible by ``Store.put``."""

    def __init__(self, file: Any, temporary: str = "") -> None:
        self._file = file
        self.temporary = temporary
        self._n_bytes = self._n_begun = self._n_synced = 0

    def write(self, data: Any) -> int:
        """Append bytes or a buffer and return their number; pieces of about 1 MiB are best."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self._n_bytes += len(data)
        size = self._n_bytes - self._n_begun
        if self.temporary and size >= _BEGIN_BYTES and hasattr(os, "posix_fadvise"):
            # On Linux this advice starts writing dirty pages, and drops only clean ones: the final sync is short.
            os.posix_fadvise(self._file.fileno(), self._n_begun, size, os.POSIX_FADV_DONTNEED)
            self._n_begun = self._n_bytes
        return len(data)

    def sync(self) -> None:
        """Wait until the written bytes are on disk."""
        if self.temporary and self._n_synced < self._n_bytes:
            os.fsync(self._file.fileno())
            self._n_synced = self._n_bytes

    def __len__(self) -> int:
        return self._n_bytes

    def become(self, full: str) -> bool:
        """Become the local file ``full``, synced; False for a draft in memory."""
        if self.temporary:
            self.sync()
            os.replace(self.temporary, full)
        return bool(self.temporary)

    def getvalue(self) -> bytes:
        """Return the bytes of a draft in memory."""
        return bytes(self._file.getvalue())
