"""Drift on a destination: the next version is compared with what the report before it keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.flows.rebalance import rebalance
from prefect_augment.maintenance.rollback import rollback
from prefect_augment.params import Destination, NoModel, Source
from prefect_augment.report.drift import find_before
from prefect_augment.report.json import published_schema
from prefect_augment.schema.manifest import Manifest
from prefect_augment.storage.manifests import manifest_path, read_manifest
from prefect_augment.storage.store import open_store

SMALL = {"ok": 60, "worn": 9}  # one class that can be judged: nothing is compared, runs are short


def table(seed: int, *, shift: float = 0.0, **changes: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    states = [name for name, n in (SMALL | changes).items() for _ in range(n)]
    n = len(states)
    return pa.table(
        {
            "x": rng.normal(shift, 1, n),
            "site": rng.choice(["north", "south"], n) if not shift else ["west"] * n,
            "state": states,
        }
    )


class Destined:
    """A source folder and its destination."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "in").mkdir()

    def run(self, **wishes: Any) -> Manifest:
        source = Source(uri=str(self.folder / "in"), label="state")
        destination = Destination(uri=str(self.folder / "out"))
        rebalance.fn(source=source, destination=destination, model=NoModel(), **wishes)
        return read_manifest(open_store(self.folder / "out"))

    def add(self, name: str, records: pa.Table) -> None:
        pq.write_table(records, self.folder / "in" / f"{name}.parquet")

    def report(self, manifest: Manifest) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path(manifest).read_bytes())
        return found

    def path(self, manifest: Manifest) -> Path:
        name = next(f.path for f in manifest.report_files if f.path.endswith("/report.json"))
        return self.folder / "out" / name


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Destined:
    """A destination with one version."""
    place = Destined(tmp_path_factory.mktemp("drift"))
    place.add("a", table(0, ok=300))
    place.run()
    return place


def test_the_next_version_says_what_changed_and_keeps_saying_it(published: Destined) -> None:
    place, first = published, read_manifest(open_store(published.folder / "out"), 1)
    assert place.report(first)["drift"] is None
    kept = place.report(first)["contents"]
    assert [c["name"] for c in kept["columns"]] == ["x", "site"]
    assert sum(kept["classes"].values()) == kept["n_looked_at"]

    place.add("b", table(1, shift=3.0, worn=0, new=5))
    second = place.run()
    jsonschema.validate(place.report(second), published_schema())
    drift = place.report(second)["drift"]
    assert drift["version"] == 1
    assert drift["n_shared"] == drift["n_before"], "a source that grew holds every record of before"
    assert {c["column"]: c["status"] for c in drift["columns"]} == {
        "x": "changed",
        "site": "changed",
    }
    assert next(c for c in drift["columns"] if c["column"] == "site")["new_levels"].keys() == {
        "west"
    }
    assert "New classes: “new”." in drift["sentence"]
    card = (place.folder / "out" / "README.md").read_text()
    assert "New classes: “new”" in card
    page = place.path(second).with_suffix(".html").read_text()
    assert '<section id="drift">' in page
    assert page.index("New classes") < page.index('<section id="classes">'), (
        "beside the verdict too"
    )

    before = {p: p.read_bytes() for p in (place.folder / "out" / "_staging").rglob("*.html")}
    assert place.run().version == 2
    after = {p: p.read_bytes() for p in (place.folder / "out" / "_staging").rglob("*.html")}
    assert after == before, "a run that comes upon its own version compares with the one before it"


def spoiled(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        info = json.loads(path.read_bytes())
        change(info)
        path.write_text(json.dumps(info))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoiled(lambda info: info.pop("contents")), "keeps no facts about its columns"),
        (spoiled(lambda info: info.update(contents={"odd": 1})), "keeps no facts"),
        (Path.unlink, "is gone"),
        (lambda path: path.write_text("{"), "cannot be read"),
        (lambda path: path.write_text("[]"), "cannot be read"),
    ],
    ids=["without facts", "of another release", "gone", "torn", "no object"],
)
def test_an_earlier_report_that_says_less_is_compared_as_far_as_it_goes(
    published: Destined, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    shutil.copytree(published.folder / "out", tmp_path / "out")
    store = open_store(tmp_path / "out")
    manifest = read_manifest(store, 1)
    for path in (tmp_path / "out" / "_reports" / "v00000001").glob("report.json"):
        spoil(path)
    for version in range(2, read_manifest(store).version + 1):
        store.delete(manifest_path(version))
    before = find_before(store, run="another")
    assert before is not None
    assert said in before.notes[0]
    assert before.contents is None
    assert before.classes == {
        name: origins["real"] for name, origins in manifest.class_counts["train"].items()
    }


def test_a_version_that_was_rolled_back_is_compared_with(
    published: Destined, tmp_path: Path
) -> None:
    shutil.copytree(published.folder / "out", tmp_path / "out")
    store = open_store(tmp_path / "out")
    commit = rollback(store, to=1)
    before = find_before(store, run="another")
    assert before is not None
    assert before.version == commit.version
    assert before.contents is not None
    own = find_before(store, run=before.contents.run)
    assert own is None or own.version < commit.version, "the run's own version is passed over"
