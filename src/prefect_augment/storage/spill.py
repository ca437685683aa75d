"""Tables kept while they are processed: in memory up to a budget, then in local files.

They are read again in the order they were appended, any number of times.
"""

import ctypes
import errno
import mmap
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Array
from prefect_augment.errors import StorageError

# Tables of a small source never see a disk.
IN_MEMORY = 8 << 20
ROWS_AT_ONCE = 1024  # that are copied
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def give_back() -> None:
    """Return freed memory to the system.

    Arrow's pools, and the C library for arrays up to 32 MiB, keep it for the next request, which adds up
    between steps that need other sizes.
    """
    pa.default_memory_pool().release_unused()
    if _trim is not None:
        _trim(0)


@contextmanager
def returned_at_once() -> Iterator[None]:
    """Make the GNU C library return every array of a megabyte or more when it is freed.

    By default it keeps those up to 32 MiB, which adds up in batch processing; a loop that allocates the same
    large array again and again would be slower.
    """
    if _mallopt is not None:
        _mallopt(M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        if _mallopt is not None:  # what the library comes to by itself
            _mallopt(M_MMAP_THRESHOLD, 32 << 20)
            _mallopt(M_TRIM_THRESHOLD, 64 << 20)


def _c_library(name: str) -> Callable[..., int] | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - others count otherwise
        return getattr(library, name)  # type: ignore[no-any-return]
    except (AttributeError, OSError, TypeError):
        return None  # not the GNU C library


_trim, _mallopt = _c_library("malloc_trim"), _c_library("mallopt")


class Workspace(AbstractContextManager["Workspace"]):
    """A local temporary folder and the memory its spills share; a context manager that deletes both.

    ``in_memory`` is the number of bytes kept in memory before anything is written.
    """

    def __init__(self, in_memory: int | None = None) -> None:
        self.left = IN_MEMORY if in_memory is None else in_memory
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._n_files = 0

    def spill(self) -> "Spill":
        """Return an empty spill."""
        return Spill(self)

    def path(self) -> str:
        """Return the name of a new file."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="prefect-augment-")
        self._n_files += 1
        return str(Path(self._folder.name) / f"{self._n_files:06d}.arrow")

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __exit__(self, *exc: object) -> None:
        self.close()


class Spill:
    """Tables of one schema, in memory or on disk; created by :meth:`Workspace.spill`."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._tables: list[pa.Table] = []
        self._names: list[str] = []
        self._held = 0
        self._path = ""
        self._file: Any = None
        self._writer: Any = None
        self.n_rows = 0

    def append(self, table: pa.Table) -> None:
        """Append a table with the same dictionaries as those before; raises StorageError if the disk is full."""
        if table.num_rows == 0:
            return
        self.n_rows += table.num_rows
        self._names = table.column_names
        size = table.nbytes
        if not self._path and size <= self._workspace.left:
            self._workspace.left -= size
            self._held += size
            self._tables.append(table)
            return
        with disk_space():
            if not self._path:
                self._path = self._workspace.path()
            if self._writer is None:
                self._file = pa.OSFile(self._path, "wb")
                self._writer = pa.ipc.new_file(self._file, table.schema)
            self._writer.write_table(table)

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the tables in the order they came; nothing is appended after the first reading."""
        self._finish()
        yield from self._tables
        yield from self._read(pa.ipc.IpcReadOptions())

    def _read(self, options: pa.ipc.IpcReadOptions) -> Iterator[pa.Table]:
        if not self._path:
            return
        with pa.OSFile(self._path, "rb") as file, pa.ipc.open_file(file, options=options) as reader:
            for number in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(number)])

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column of all tables; of the file nothing else is read."""
        self._finish()
        held = [table.select([name]) for table in self._tables]
        options = pa.ipc.IpcReadOptions(included_fields=[self._names.index(name)])
        return pa.concat_tables([*held, *self._read(options)]).column(0)

    def clear(self) -> None:
        """Drop everything."""
        self._finish()
        self._tables = []
        self._workspace.left += self._held
        self._held = 0
        if self._path:
            Path(self._path).unlink(missing_ok=True)
            self._path = ""
        self.n_rows = 0

    def _finish(self) -> None:
        if self._writer is not None:
            with disk_space():
                self._writer.close()
                self._file.close()
            self._writer = self._file = None


class ArraySpill:
    """Rows of so many bytes (int8), in memory up to some megabytes and then in a nameless local file, read by number.

    ``spill[rows]`` returns a copy, as an array of shape (n, width) does; pages of the file do not stay in memory.
    """

    dtype = np.dtype(np.int8)

    def __init__(self, width: int) -> None:
        self.width = width
        self._parts: list[Array] = []
        self._n_rows = 0
        self._file: Any = None
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return self._n_rows

    def append(self, rows: Array) -> None:
        """Append rows (n, width); raises StorageError if the disk is full."""
        rows = np.ascontiguousarray(rows, dtype=self.dtype).reshape(-1, self.width)
        self._n_rows += len(rows)
        self._parts.append(rows)
        if self._file is None and self._n_rows * self.width <= IN_MEMORY:
            return
        with disk_space():
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
                weakref.finalize(self, self._file.close)
            for part in self._parts:
                self._file.write(part.data if part.size else b"")
            self._file.flush()
        self._parts, self._map = [], None

    def extend(self, more: Any) -> None:
        """Append the rows of an array, or of something on disk that is read like one, a few at a time."""
        for start in range(0, len(more), ROWS_AT_ONCE):
            self.append(more[start : start + ROWS_AT_ONCE])

    def __getitem__(self, rows: Any) -> Array:
        if self._file is None:
            if len(self._parts) != 1:
                none = np.zeros((0, self.width), dtype=self.dtype)
                self._parts = [np.concatenate([none, *self._parts])]
            rows_read: Array = self._parts[0][rows]
            return rows_read.copy()
        if self._map is None:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        rows_read = np.frombuffer(self._map, dtype=self.dtype).reshape(-1, self.width)[rows].copy()
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)  # they count as this process's memory until then
        return rows_read


@contextmanager
def disk_space() -> Iterator[None]:
    """Turn the errors of a full temporary folder into StorageErrors with advice."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _TROUBLES:
            raise
        what, advice = _TROUBLES[exc.errno]
        raise StorageError(
            f"{what} in the temporary folder {tempfile.gettempdir()}, where records are kept; {advice}, or name "
            "another one in the environment variable TMPDIR, and run again: the run continues where it was."
        ) from exc


_TROUBLES = {
    errno.ENOSPC: ("no space left", "free some"),
    errno.EDQUOT: ("no space left", "free some"),
    errno.EFBIG: ("a file is larger than is allowed", "raise the limit (ulimit -f)"),
}
