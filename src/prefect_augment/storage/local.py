"""Files behind :class:`~prefect_augment.storage.store.Store`: range reader, drafts, atomic local writes."""

import contextlib
import io
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

# Sequential readers (CSV, tar) get more and more at a time; one that jumps gets little more than it asked for.
_FIRST_BYTES = 256 << 10
_MOST_BYTES = 8 << 20
# The disk begins to write a local draft whenever so many bytes are new.
_BEGIN_BYTES = 4 << 20


class RangeReader(io.BufferedIOBase):
    """A binary reader of one object of ``n_bytes``, by ``fetch(start, end)`` with ``end`` exclusive."""

    def __init__(
        self, n_bytes: int, fetch: Callable[[int, int], bytes], close: Callable[[], object]
    ) -> None:
        self._n_bytes = n_bytes
        self._fetch = fetch
        self._close = close
        self._position = 0
        self._start = 0  # of what is held
        self._held = b""
        self._ahead = _FIRST_BYTES

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, which may lie beyond the end, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._n_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset} lies before the object's beginning")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return ``size`` bytes, fewer only at the end; all that are left without a size."""
        if self.closed:
            raise ValueError("read of closed file")
        left = max(self._n_bytes - self._position, 0)
        size = left if size is None or size < 0 else min(size, left)
        if size == 0:
            return b""
        begin = self._position - self._start
        part = self._held[begin : begin + size] if 0 <= begin < len(self._held) else b""
        if len(part) < size:
            part += self._more(self._position + len(part), size - len(part))
        self._position += len(part)
        return part

    def read1(self, size: int = -1, /) -> bytes:
        """As :meth:`read`."""
        return self.read(size)

    def _more(self, start: int, size: int) -> bytes:
        """Fetch from ``start``, keep the bytes, and return the first ``size`` of them."""
        goes_on = start == self._start + len(self._held)
        self._ahead = min(2 * self._ahead, _MOST_BYTES) if goes_on else _FIRST_BYTES
        end = min(start + max(size, self._ahead), self._n_bytes)
        held = self._fetch(start, end)
        if len(held) != end - start:
            raise OSError(f"{len(held)} bytes came where {end - start} were asked for")
        self._start, self._held = start, held
        return held[:size]

    def close(self) -> None:
        """Release the object."""
        if not self.closed:
            self._held = b""
            self._close()
        super().close()


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
        if self.temporary and self._n_bytes - self._n_begun >= _BEGIN_BYTES:
            self._begin()
        return len(data)

    def _begin(self) -> None:
        """Start writing pages to disk, so that the final sync is short.

        On Linux this advice starts writing dirty pages and drops only clean ones.
        """
        if hasattr(os, "posix_fadvise"):
            size = self._n_bytes - self._n_begun
            os.posix_fadvise(self._file.fileno(), self._n_begun, size, os.POSIX_FADV_DONTNEED)
        self._n_begun = self._n_bytes

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
