"""Memory is bounded by budgets, and what comes out does not depend on them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.encoding import record_ids as keys
from prefect_augment.ingest import (
    quarantine,
    write_shards as placing,
    write_shards as staged_shards,
)
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Source
from prefect_augment.shards.staged import load_info
from prefect_augment.sources import csv, parquet as parquet_source
from prefect_augment.sources.images import scan as image_reading
from prefect_augment.sources.parquet import read_batches
from prefect_augment.split import assignment
from prefect_augment.storage import external_sort as binned, open_store, spill


@pytest.fixture
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (spill, "IN_MEMORY", 0),
        (binned, "MAX_HELD", 16),
        (binned, "BIN_ROWS", 37),
        (binned, "BUFFERED", 700),
        (parquet_source, "MAX_ROWS", 13),
        (parquet_source, "N_PROBED", 5),
        (csv, "ROWS_AT_ONCE", 17),
        (keys, "ROWS_AT_ONCE", 11),
        (assignment, "HASHED_AT_ONCE", 7),
        (quarantine, "ROWS_AT_ONCE", 3),
        (staged_shards, "OPEN_AT_ONCE", 2),
        (image_reading, "BATCH_BYTES", 5_000),
    ):
        monkeypatch.setattr(module, name, value)


def said(uri: Path, out: Path, **options: Any) -> dict[str, Any]:
    store = open_store(str(out))
    info = load_info(ingest(Source(uri=str(uri), **options), store=store, seed=0), store)
    dump = info.model_dump()
    dump["ledger"], dump["files"] = Path(info.ledger).name, Path(info.files).name
    return dump


def table(n: int) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "x": [None if i % 7 == 0 else float(v) for i, v in enumerate(rng.normal(size=n))],
            "k": rng.integers(0, 4, n),
            "name": [f"name of {i % 40}" for i in range(n)],
            "site": pa.array([f"s{i // 25}" for i in range(n)]).dictionary_encode(),
            "label": [None if i % 50 == 9 else "ab"[i % 4 == 0] for i in range(n)],
        }
    )


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    pq.write_table(table(300), tmp_path / "in" / "a.parquet", row_group_size=70)
    pq.write_table(table(120), tmp_path / "in" / "b.parquet")
    return tmp_path / "in"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A column whose misfits, and a column whose type, show only far below."""
    rows = [f"{i / 7:.3f},{i},{'ab'[i % 4 == 0]}" for i in range(1, 400)]
    rows[350] = "oops,351,a"
    rows[380] = f"{380 / 7:.3f},0.5,a"
    rows.append("too,many,fields,here")
    (tmp_path / "in.csv").write_text("\n".join(["x,n,label", *rows]) + "\n")
    return tmp_path / "in.csv"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "text"])
def test_small_budgets_change_nothing(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "SHARD_BYTES", 1_000)  # several, with either budget
    source = request.getfixturevalue(kind)
    plain = said(source, tmp_path / "plain", label="label")
    request.getfixturevalue("small_budgets")
    small = said(source, tmp_path / "small", label="label")
    assert len(plain["shards"]) > 6
    assert small == plain


def test_small_budgets_change_nothing_about_images(
    tmp_path: Path, messy_images: Any, request: pytest.FixtureRequest
) -> None:
    for i in range(40):
        path = tmp_path / "in" / ("a" if i % 3 else "b") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        messy_images.picture(i, (32, 24)).save(path)
    (tmp_path / "in" / "a" / "bad.png").write_bytes(b"no")
    plain = said(tmp_path / "in", tmp_path / "plain")
    request.getfixturevalue("small_budgets")
    assert said(tmp_path / "in", tmp_path / "small") == plain


@pytest.mark.slow
def test_a_small_file_that_holds_much_comes_in_batches_of_bounded_size() -> None:
    """One long text a thousand times is a few kilobytes of Parquet and a gigabyte of memory."""
    sink = io.BytesIO()
    long = pa.array(["x" * 500_000]).take(pa.array(np.zeros(300, dtype=np.int64)))
    pq.write_table(pa.table({"text": long, "label": ["a"] * 300}), sink, compression="zstd")
    assert len(sink.getvalue()) < 1 << 20
    sizes, n_rows = [], 0
    for batch in read_batches(sink, name="bomb.parquet", source=Source()):
        sizes.append(batch.table.nbytes)
        n_rows += batch.table.num_rows
    assert n_rows == 300
    assert max(sizes) < 20 << 20
