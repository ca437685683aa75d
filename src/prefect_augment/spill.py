"""Records put aside while they are worked on: in memory as far as a budget goes, then in local files.

What is put aside is read again in the order it came, a table at a time, as often as one likes.
"""

from __future__ import annotations

import ctypes
import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.errors import StorageError

__all__ = ["Pile", "Spill", "Workspace", "disk_space", "give_back"]

# Tables of a small source never see a disk.
IN_MEMORY = 24 << 20
PILED = 1 << 18  # numbers of a pile in memory


def give_back() -> None:
    """Give memory that is not used any more back to the system.

    Arrow's pools keep what was freed for the next request, and so does the C library with arrays of up to
    32 MiB: between steps that need other sizes this adds up.
    """
    pa.default_memory_pool().release_unused()
    if _trim is not None:
        _trim(0)


def _find_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None  # not the GNU C library


_trim = _find_trim()


class Workspace:
    """A local temporary folder, made when it is needed, and the memory that its spills share.

    A context manager: the folder and all that was put aside are gone at its end.

    Parameters
    ----------
    in_memory : int, optional
        Bytes that are kept in memory before anything is written.
    """

    def __init__(self, in_memory: int | None = None) -> None:
        self.left = IN_MEMORY if in_memory is None else in_memory
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._n_files = 0

    def spill(self) -> Spill:
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

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Spill:
    """Tables of one schema, put aside; made by :meth:`Workspace.spill`."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._tables: list[pa.Table] = []
        self._held = 0
        self._path = ""
        self._file: Any = None
        self._writer: Any = None
        self.n_rows = 0

    def append(self, table: pa.Table) -> None:
        """Put a table aside; its dictionaries must not change from one to the next.

        Raises
        ------
        StorageError
            If the temporary folder is full.
        """
        if table.num_rows == 0:
            return
        self.n_rows += table.num_rows
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
                self._writer = pa.ipc.new_stream(self._file, table.schema)
            self._writer.write_table(table)

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the tables in the order they came; nothing is appended after the first reading."""
        self._finish()
        yield from self._tables
        if self._path:
            with pa.OSFile(self._path, "rb") as file, pa.ipc.open_stream(file) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])

    def table(self) -> pa.Table:
        """Return all of it at once."""
        return pa.concat_tables(self)

    def clear(self) -> None:
        """Let go of everything."""
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


class Pile:
    """Numbers put aside, to be counted once; a file of their own where they are many."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._path = ""
        self._held: list[NDArray[np.uint64]] = []
        self._n_held = 0

    def add(self, numbers: NDArray[np.uint64]) -> None:
        """Put numbers aside."""
        self._held.append(np.unique(numbers))
        self._n_held += len(self._held[-1])
        if self._n_held <= PILED:
            return
        self._held = [np.unique(np.concatenate(self._held))]
        self._n_held = len(self._held[0])
        if self._n_held <= PILED // 2:
            return
        if not self._path:
            self._path = self._workspace.path()
        with disk_space(), Path(self._path).open("ab") as file:
            self._held[0].tofile(file)
        self._held, self._n_held = [], 0

    def n_distinct(self) -> int:
        """Return how many different numbers there are; nothing is added after that."""
        every = self._held
        if self._path:
            every = [*every, np.fromfile(self._path, dtype=np.uint64)]
        self._held = []
        if not every:
            return 0
        numbers = np.concatenate(every)
        del every
        numbers.sort()
        return int(np.count_nonzero(numbers[1:] != numbers[:-1])) + bool(len(numbers))


@contextmanager
def disk_space() -> Iterator[None]:
    """Say what to do where the temporary folder takes no more."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _TROUBLES:
            raise
        what, advice = _TROUBLES[exc.errno]
        raise StorageError(
            f"{what} in the temporary folder {tempfile.gettempdir()}, where records are put aside; {advice}, or name "
            "another one in the environment variable TMPDIR, and run again: the run continues where it was."
        ) from exc


_TROUBLES = {
    errno.ENOSPC: ("no space left", "free some"),
    errno.EDQUOT: ("no space left", "free some"),
    errno.EFBIG: ("a file is larger than is allowed", "raise the limit (ulimit -f)"),
}
