"""The recipes of docs/reading.md, run as they stand there."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from support import releases
from support.releases import publish_as_is
from support.tables import make_table

from prefect_augment.ingest.ingest import ingest
from prefect_augment.loading.dataset import Dataset, open_dataset
from prefect_augment.params import Publish, Source
from prefect_augment.storage import open_store

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reading.md").read_text(encoding="utf-8")


def block(section: str) -> str:
    """The one block of a section."""
    text = PAGE.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return str(code)


def run(section: str) -> dict[str, Any]:
    """Run the block of a section, and return what it made."""
    names: dict[str, Any] = {}
    exec(compile(block(section), "reading.md", "exec", dont_inherit=True), names)
    return names


@pytest.fixture
def parts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Dataset:
    monkeypatch.chdir(tmp_path)
    pq.write_table(make_table(), "parts.parquet")
    store = open_store("parts-balanced")
    publish_as_is(store, ingest(Source(uri="parts.parquet", label="state"), store=store, seed=0))
    return open_dataset("parts-balanced")


@pytest.fixture
def pictures(messy_images: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.chdir(tmp_path)
    pq.write_table(releases.image_table(messy_images, 90), "pictures.parquet")
    source = Source(uri="pictures.parquet", label="label")
    for name, settings in (
        ("pictures-balanced", Publish()),
        ("pictures-tar", Publish(format="webdataset")),
    ):
        store = open_store(name)
        releases.publish_as_is(store, ingest(source, store=store, seed=0), settings)
    return open_dataset("pictures-balanced")


@pytest.mark.slow
def test_pandas_and_scikit_learn(parts: Dataset) -> None:
    made = run("pandas and scikit-learn")
    assert len(made["train"]) == parts.to_table().num_rows
    assert set(made["prediction"]) <= set(parts.classes)
    assert len(made["prediction"]) == parts.to_table("holdout").num_rows


def test_polars(parts: Dataset) -> None:
    pytest.importorskip("polars")
    assert len(run("polars")["real"]) == parts.to_table(origins=["real"]).num_rows


def test_duckdb(parts: Dataset) -> None:
    pytest.importorskip("duckdb")
    weights = dict(run("DuckDB")["weights"])
    assert sorted(weights) == sorted(parts.class_counts["train"])
    assert sum(weights.values()) == pytest.approx(parts.to_table().num_rows)


def test_datasets(parts: Dataset) -> None:
    pytest.importorskip("datasets")
    assert len(run("Hugging Face datasets")["train"]) == parts.to_table().num_rows


@pytest.mark.slow
def test_torch(pictures: Dataset) -> None:
    """As a script of its own: loader workers are forked, and this process has threads of Prefect's."""
    pytest.importorskip("torch")
    script = block("torch") + (
        "import json\n"
        "n_read = sum(len(y) for _, y in holdout)\n"
        "print(json.dumps({'classes': records.classes, 'loss': loss.item(), 'n_read': n_read}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["classes"] == list(pictures.classes)
    assert made["loss"] > 0
    assert made["n_read"] == pictures.to_table("holdout").num_rows


# The library leaves closing to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset(pictures: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_SECURE", "1")  # put back afterwards
    pytest.importorskip("webdataset")
    weights = run("WebDataset")["weights"]
    assert sorted(weights) == sorted(pictures.classes)
    assert sum(weights.values()) == pytest.approx(pictures.to_table().num_rows)


def test_every_block_is_run_or_says_that_it_is_not() -> None:
    blocks = re.findall(r"^```(\S.*)$", PAGE, flags=re.MULTILINE)
    assert blocks.count("python notest") == 1
    assert set(blocks) == {"python", "python notest"}
    assert blocks.count("python") == 6
