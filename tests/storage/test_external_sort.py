"""Rows that are put aside in bins come back whole, in their order, and bins follow the keys."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from prefect_augment.errors import StorageError
from prefect_augment.storage import external_sort as binned
from prefect_augment.storage.external_sort import (
    DistinctCounter,
    PartitionedRows,
    bin_of,
    first_of_bin,
    n_bins_for,
)
from prefect_augment.storage.keys import KEY, sort_order
from prefect_augment.storage.spill import Workspace

ROW = np.dtype([("key", KEY), ("place", np.int64)])


def rows(n: int, seed: int = 0) -> np.ndarray:
    made = np.zeros(n, dtype=ROW)
    raw = np.random.default_rng(seed).integers(0, 256, 16 * n, dtype=np.uint8)
    made["key"] = raw.view(KEY)
    made["place"] = np.arange(n)
    return made


@pytest.mark.parametrize("buffered", [0, 1_000, 1 << 20])
def test_rows_come_back_in_the_order_they_came(
    buffered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binned, "BUFFERED", buffered)
    every = rows(500)
    with Workspace() as workspace:
        aside = PartitionedRows(workspace, ROW, 7)
        for some in np.array_split(every, 23):
            aside.add(some, bin_of(some["key"], 7))
        assert aside.sizes.sum() == len(aside) == 500
        for _ in range(2):
            found = [aside.read(number) for number in range(7)]
            for number, some in enumerate(found):
                assert (np.diff(some["place"]) > 0).all()
                assert (bin_of(some["key"], 7) == number).all()
                blocks = list(aside.blocks(number, 10))
                assert {len(block) for block in blocks[:-1]} <= {10}
                assert np.concatenate(blocks).tobytes() == some.tobytes()
            assert sorted(np.concatenate(found)["place"].tolist()) == list(range(500))
        aside.clear()
        assert len(aside) == 0
        assert len(aside.read(3)) == 0


def test_bins_one_after_the_other_are_all_keys_sorted() -> None:
    every = rows(2_000)
    bins = bin_of(every["key"], 9)
    parts = []
    for number in range(9):
        some = every[bins == number]
        parts.append(some[sort_order(some["key"])])
    assert np.concatenate(parts).tobytes() == every[sort_order(every["key"])].tobytes()


@given(n_bins=st.integers(2, 3_000), number=st.integers(1, 2_999))
def test_a_bin_begins_with_its_smallest_key(n_bins: int, number: int) -> None:
    number %= n_bins
    first = first_of_bin(number, n_bins)
    assert bin_of(first, n_bins)[0] == number
    before = int.from_bytes(first.tobytes()[:4], "big") - 1
    if number:
        last = np.frombuffer(before.to_bytes(4, "big") + bytes([255] * 12), dtype=KEY)
        assert bin_of(last, n_bins)[0] == number - 1


def test_the_memory_that_bins_take_does_not_grow_with_the_rows() -> None:
    """Ten times as many rows are ten times as many bins, about as large as before."""
    largest = []
    for n in (3 * binned.BIN_ROWS, 30 * binned.BIN_ROWS):
        first = np.random.default_rng(0).integers(0, 2**32, n, dtype=np.uint32).astype(">u4")
        keys = np.zeros(n, dtype="V16")
        keys.view("u1").reshape(n, 16)[:, :4] = first.view("u1").reshape(n, 4)
        sizes = np.bincount(bin_of(keys.view(KEY), n_bins_for(n)))
        largest.append(sizes.max() / binned.BIN_ROWS)
    assert max(largest) < 1.05


def test_pieces_of_bins_do_not_grow_faster_than_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the rows have twice the bins: at a fixed size of the buffer, four times the pieces to read."""
    monkeypatch.setattr(binned, "BUFFERED", 1 << 14)
    n_pieces = []
    for n_bins in (128, 256, 512):
        rows = np.arange(400 * n_bins, dtype=np.uint64)
        with Workspace() as workspace:
            partitions = PartitionedRows(workspace, rows.dtype, n_bins)
            for some in np.split(rows, n_bins):
                partitions.add(some, (some % n_bins).astype(np.int64))
            n_pieces.append(sum(map(len, partitions._pieces)))
    assert n_pieces[2] < 2.2 * n_pieces[1] < 2.2 * 2.2 * n_pieces[0]


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(binned, "BUFFERED", 0)
    with Workspace() as workspace:
        aside = PartitionedRows(workspace, ROW)
        aside.add(rows(10))
        assert [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list(tmp_path.iterdir())


def test_a_full_temporary_folder_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    monkeypatch.setattr(binned, "BUFFERED", 0)
    with Workspace() as workspace:
        workspace.path = lambda: str(full)  # type: ignore[method-assign]
        with pytest.raises(StorageError, match="no space left in the temporary folder"):
            PartitionedRows(workspace, ROW).add(rows(100_000))


def test_different_numbers_are_counted_exactly_also_on_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(binned, "MAX_HELD", 50)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 400, 60).astype(np.uint64) for _ in range(20)]
    with Workspace() as workspace:
        counter = DistinctCounter(workspace)
        for batch in batches:
            counter.add(batch)
        assert counter.n_distinct() == len(np.unique(np.concatenate(batches)))
        assert DistinctCounter(workspace).n_distinct() == 0
