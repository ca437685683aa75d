"""Fixed-width rows on local disk, in bins small enough to be processed in memory.

What is known of each record (keys, parts, places) is joined or sorted bin by bin, so no array has one entry per record.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prefect_augment.array_types import Array, Int, Uint64
from prefect_augment.storage.keys import KEY
from prefect_augment.storage.spill import Workspace, disk_space

#: About so many rows are in a bin; what is computed on them takes some hundred bytes each.
BIN_ROWS = 1 << 17
BUFFERED = 2 << 20  # bytes of rows that wait for being written together
SMALL = 128  # bins; of more of them more waits, else the pieces to read would grow with the square of the rows
MAX_HELD = 1 << 18  # distinct values in memory
N_PARTITIONS = 64


def n_bins_for(n_rows: int) -> int:
    """Return the number of bins for so many rows."""
    return max(1, -(-n_rows // BIN_ROWS))


def bin_of_row(rows: Int) -> Int:
    """Return the bin of each row, of :func:`n_bins_for` all rows, in their order."""
    return rows // BIN_ROWS


def bin_of(keys: Array, n_bins: int) -> Int:
    """Return the bin of each 16-byte key: equal ranges of the key space, in order; equal keys share a bin.

    Examples
    --------
    >>> bin_of(np.array([bytes([0x7F] * 16), bytes([0x80] + [1] * 15)], dtype="S16"), 2)
    array([0, 1])
    """
    if n_bins == 1:
        return np.zeros(len(keys), dtype=np.int64)
    first = np.ascontiguousarray(keys, dtype=KEY).view(">u4")[::4].astype(np.uint64)
    return ((first * np.uint64(n_bins)) >> np.uint64(32)).astype(np.int64)


def bin_of_number(numbers: Uint64, n_bins: int) -> Int:
    """Return a bin per number, the same for equal ones; mixing makes the bins about equal."""
    mixed = (numbers * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    return ((mixed * np.uint64(n_bins)) >> np.uint64(32)).astype(np.int64)


def first_of_bin(number: int, n_bins: int) -> Array:
    """Return the smallest key that :func:`bin_of` puts into a bin."""
    first = -(-(number << 32) // n_bins)
    return np.array([min(first, 2**32 - 1).to_bytes(4, "big") + bytes(12)], dtype=KEY)


class PartitionedRows:
    """Rows of a structured dtype in bins; each bin returns them in the order they were added.

    One file holds all bins: rows wait in memory up to some megabytes and are then written bin by bin.
    """

    def __init__(self, workspace: Workspace, dtype: np.dtype[Any], n_bins: int = 1) -> None:
        self.dtype, self.n_bins = dtype, n_bins
        self.sizes = np.zeros(n_bins, dtype=np.int64)
        self._workspace = workspace
        self._path = ""
        self._written = 0
        # Of each bin, where pieces of it begin and how many rows they have.
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(n_bins)]
        self._rows: list[Array] = []
        self._bins: list[Int] = []
        self._n_bytes = 0

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def add(self, rows: Array, bins: Int | None = None) -> None:
        """Add rows, each to its bin (default: the first); raises StorageError if the temporary folder is full."""
        if len(rows) == 0:
            return
        bins = np.zeros(len(rows), dtype=np.int64) if bins is None else bins
        self.sizes += np.bincount(bins, minlength=self.n_bins)
        self._rows.append(rows)
        self._bins.append(bins)
        self._n_bytes += rows.nbytes + bins.nbytes
        if self._n_bytes > BUFFERED * max(SMALL, self.n_bins) // SMALL:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows."""
        if not self._rows:
            return
        rows, bins = np.concatenate(self._rows), np.concatenate(self._bins)
        self._rows, self._bins, self._n_bytes = [], [], 0
        if self.n_bins > 1:
            order = np.argsort(bins, kind="stable")
            rows = rows[order]
        counts = np.bincount(bins, minlength=self.n_bins)
        for number in np.flatnonzero(counts).tolist():
            n = int(counts[number])
            self._pieces[number].append((self._written, n))
            self._written += n
        if not self._path:
            self._path = self._workspace.path()
        with disk_space(), Path(self._path).open("ab") as file:
            file.write(np.ascontiguousarray(rows).view(np.uint8).data)

    def read(self, number: int = 0) -> Array:
        """Return the rows of a bin."""
        result = np.zeros(int(self.sizes[number]), dtype=self.dtype)
        start = 0
        for rows in self._parts(number, len(result)):
            result[start : start + len(rows)] = rows
            start += len(rows)
        return result

    def blocks(self, number: int, size: int) -> Iterator[Array]:
        """Yield the rows of a bin, ``size`` at a time; nothing where there are none."""
        held: list[Array] = []
        n_held = 0
        for rows in self._parts(number, size):
            held.append(rows)
            n_held += len(rows)
            while n_held >= size:
                every = np.concatenate(held)
                yield every[:size]
                held, n_held = [every[size:].copy()], n_held - size
        if n_held:
            yield np.concatenate(held)

    def _parts(self, number: int, most: int) -> Iterator[Array]:
        """Yield the written rows of a bin, at most ``most`` at a time, then the buffered ones."""
        if self._path:
            with Path(self._path).open("rb") as file:
                for start, n in self._pieces[number]:
                    file.seek(start * self.dtype.itemsize)
                    for done in range(0, n, max(1, most)):
                        yield np.fromfile(file, dtype=self.dtype, count=min(most, n - done))
        for rows, bins in zip(self._rows, self._bins, strict=True):
            yield rows if self.n_bins == 1 else rows[bins == number]

    def clear(self) -> None:
        """Drop everything."""
        self._rows, self._bins, self._n_bytes = [], [], 0
        self._pieces = [[] for _ in range(self.n_bins)]
        self.sizes = np.zeros(self.n_bins, dtype=np.int64)
        self._written = 0
        if self._path:
            Path(self._path).unlink(missing_ok=True)
            self._path = ""


class DistinctCounter:
    """Counts distinct 64-bit numbers, on disk where there are many."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._on_disk: PartitionedRows | None = None
        self._held: list[Uint64] = []
        self._n_held = 0

    def add(self, numbers: Uint64) -> None:
        """Add numbers."""
        self._held.append(_distinct(numbers))
        self._n_held += len(self._held[-1])
        if self._n_held <= MAX_HELD:
            return
        self._held = [_distinct(np.concatenate(self._held))]
        self._n_held = len(self._held[0])
        if self._n_held > MAX_HELD // 2:
            self._write()

    def _write(self) -> None:
        if self._on_disk is None:
            self._on_disk = PartitionedRows(self._workspace, np.dtype(np.uint64), N_PARTITIONS)
        for numbers in self._held:
            self._on_disk.add(numbers, bin_of_number(numbers, N_PARTITIONS))
        self._on_disk.flush()
        self._held, self._n_held = [], 0

    def n_distinct(self) -> int:
        """Return the number of distinct values; nothing may be added afterwards."""
        if self._on_disk is None:
            numbers = np.concatenate([np.zeros(0, dtype=np.uint64), *self._held])
            self._held = []
            return len(_distinct(numbers))
        self._write()
        n = sum(len(_distinct(self._on_disk.read(number))) for number in range(N_PARTITIONS))
        self._on_disk.clear()
        return n


def _distinct(numbers: Uint64) -> Uint64:
    """Return the distinct numbers, sorted: several times faster than ``np.unique``, which hashes them."""
    ordered = np.sort(numbers)
    is_first = np.ones(len(ordered), dtype=bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_first]
