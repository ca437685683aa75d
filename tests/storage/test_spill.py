"""What is put aside comes back as it was, from memory or from disk, and leaves nothing behind."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prefect_augment.errors import StorageError
from prefect_augment.storage import spill
from prefect_augment.storage.spill import ArraySpill, Workspace


def make(start: int, n: int) -> pa.Table:
    values = [None if i % 5 == 0 else f"v{i}" for i in range(start, start + n)]
    return pa.table({"a": pa.array(range(start, start + n)), "b": pa.array(values, pa.string())})


@pytest.mark.parametrize("in_memory", [0, 300, 1 << 20])
def test_tables_come_back_in_their_order_as_often_as_one_likes(in_memory: int) -> None:
    with Workspace(in_memory) as workspace:
        aside = workspace.spill()
        for start in range(0, 100, 10):
            aside.append(make(start, 10))
        assert aside.n_rows == 100
        for _ in range(2):
            assert pa.concat_tables(aside).equals(make(0, 100))
            for name in ("a", "b"):
                assert aside.column(name).equals(make(0, 100)[name])


def test_the_folder_is_gone_at_the_end_and_is_not_made_for_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Workspace() as workspace:
        workspace.spill().append(make(0, 10))
        assert not list(tmp_path.iterdir())
    with Workspace(0) as workspace:
        aside = workspace.spill()
        aside.append(make(0, 10))
        assert len(list(tmp_path.rglob("*.arrow"))) == 1
        assert aside.column("a").to_pylist() == list(range(10))
        aside.clear()
        assert not list(tmp_path.rglob("*.arrow"))
    assert not list(tmp_path.iterdir())


def test_a_full_temporary_folder_is_said() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with Workspace(0) as workspace:
        workspace.path = lambda: str(full)  # type: ignore[method-assign]
        aside = workspace.spill()
        with pytest.raises(StorageError, match="no space left in the temporary folder"):
            aside.append(make(0, 100_000))


@pytest.mark.parametrize("in_memory", [0, 300, 1 << 20])
def test_rows_are_read_by_number_as_an_array_gives_them(
    in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(spill, "IN_MEMORY", in_memory)
    rows = np.random.default_rng(0).integers(-128, 128, (90, 7)).astype(np.int8)
    aside, chosen = ArraySpill(7), np.array([88, 3, 3, 41])
    assert aside[:10].shape == (0, 7)
    for start in range(0, 90, 30):
        aside.append(rows[start : start + 30])
        assert np.array_equal(aside[:], rows[: start + 30]), "also between two parts"
    assert len(aside) == 90
    assert np.array_equal(aside[chosen], rows[chosen])
    assert np.array_equal(aside[rows[:, 0] > 0], rows[rows[:, 0] > 0])
    assert np.array_equal(aside[5:8], rows[5:8])
    aside[chosen][:] = 0  # a copy
    assert np.array_equal(aside[chosen], rows[chosen])
    assert not list(tmp_path.iterdir()), "the file has no name that a crash could leave behind"
