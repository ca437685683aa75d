"""Drift: records per class since the version before."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.report import section
from support.staging import class_plan, manifest_of, plan_of, recipe_of
from support.steps import release_of

from prefect_augment.flows.rebalance import rebalance
from prefect_augment.maintenance.rollback import rollback
from prefect_augment.params import Destination, NoModel, Source
from prefect_augment.report.build import drift_since, find_previous
from prefect_augment.report.json import published_schema
from prefect_augment.schema import DatasetRef, Drift, Manifest
from prefect_augment.storage import Store, manifest_path, open_store, read_manifest


def drift_of(now: dict[str, int]) -> Drift:
    """Since version 3: 1,500 records of a class."""
    counts = {"train": {"ok <b>": {"real": 1500, "synthetic": 70}}, "holdout": {}}
    before = manifest_of(3, class_counts=counts, shards=(), recipe=recipe_of("SMOTE"))
    dataset = DatasetRef(
        root="", path="", key="", digest="", label="state", n_records=0, class_counts={}
    )
    plan = plan_of(class_plan(k, n) for k, n in now.items())
    return drift_since(before, release_of(dataset, plan, recipe_of("trees")))


def test_real_records_alone_are_compared() -> None:
    found = drift_of({"ok <b>": 1500, "worn": 300})
    assert (found.version, found.n_before, found.n_now) == (3, 1500, 1800)
    classes = [(c.name, c.before, c.now) for c in found.classes]
    assert classes == [("ok <b>", 1500, 1500), ("worn", 0, 300)]


def test_sentence_names_what_changed() -> None:
    said = drift_of({"ok <b>": 1500, "worn": 300}).sentence
    assert said == "Since version 3: 300 records more (20.0 %). New classes: “worn”."
    same = drift_of({"ok <b>": 1500})
    assert same.sentence == "Since version 3: as many records."
    assert "Classes that are gone: “ok <b>”." in drift_of({"worn": 1500}).sentence
    many = drift_of({f"class {i}": 1 for i in range(6)}).sentence
    assert "“class 3” and 2 more." in many


def test_section_shows_every_class_and_escapes_names() -> None:
    html = section("drift", drift=drift_of({"ok <b>": 1500, "worn": 300}))
    assert "ok &lt;b&gt;" in html
    assert "<b>" not in html
    assert ">worn</bdi>" in html


def test_a_drift_of_version_0_2_is_read() -> None:
    drift = drift_of({"ok <b>": 1500})
    stored = drift.model_dump(mode="json") | {"strategies": [], "recipe_before": "SMOTE"}
    stored["classes"] = [c | {"noise": 0.1, "changed": True} for c in stored["classes"]]
    assert Drift.model_validate(stored) == drift


SMALL = {"ok": 60, "worn": 9}  # one class that can be compared: nothing is, and runs are short


def table(seed: int, **changes: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    states = [name for name, n in (SMALL | changes).items() for _ in range(n)]
    n = len(states)
    sites = rng.choice(["north", "south"], n)
    return pa.table({"x": rng.normal(0, 1, n), "site": sites, "state": states})


class Destined:
    """A source folder and its destination."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "in").mkdir()

    def run(self) -> Manifest:
        source = Source(uri=str(self.folder / "in"), label="state")
        destination = Destination(uri=str(self.folder / "out"))
        rebalance.fn(source=source, destination=destination, model=NoModel())
        return read_manifest(open_store(self.folder / "out"))

    def copied(self, folder: Path) -> Store:
        return open_store(shutil.copytree(self.folder / "out", folder / "out"))

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


@pytest.fixture(scope="module")
def grown(published: Destined) -> Destined:
    """The same with a second version, of which a class is new and another gone."""
    published.add("b", table(1, worn=0, new=5))
    published.run()
    return published


@pytest.mark.slow
def test_the_next_version_says_what_changed_and_keeps_saying_it(grown: Destined) -> None:
    place, store = grown, open_store(grown.folder / "out")
    first, second = (read_manifest(store, version) for version in (1, 2))
    assert place.report(first)["drift"] is None
    jsonschema.validate(place.report(second), published_schema())
    drift = place.report(second)["drift"]
    assert drift["version"] == 1
    real = {name: origins["real"] for name, origins in first.class_counts["train"].items()}
    assert {c["name"]: c["before"] for c in drift["classes"]} == {**real, "new": 0}
    assert drift["n_before"] == sum(real.values())
    assert "New classes: “new”." in drift["sentence"]
    card = (place.folder / "out" / "README.md").read_text()
    assert "New classes: “new”" in card
    page = place.path(second).with_suffix(".html").read_text()
    assert '<section id="drift">' in page
    # Beside the verdict too.
    assert page.index("New classes") < page.index('<section id="classes">')

    def pages() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in (place.folder / "out" / "_staging").rglob("*.html")}

    before = pages()
    assert place.run().version == 2
    assert pages() == before, "a run that comes upon its own version compares with the one before"


def test_an_earlier_version_needs_no_report(published: Destined, tmp_path: Path) -> None:
    store = published.copied(tmp_path)
    manifest = read_manifest(store, 1)
    shutil.rmtree(tmp_path / "out" / "_reports" / "v00000001")
    for version in range(2, read_manifest(store).version + 1):
        store.delete(manifest_path(version))
    assert find_previous(store, "another") == manifest


@pytest.mark.slow
def test_a_version_with_a_broken_manifest_is_left_out(grown: Destined, tmp_path: Path) -> None:
    store = grown.copied(tmp_path)
    rollback(store, to=1)
    store.put(manifest_path(read_manifest(store).version), b"{")
    before = find_previous(store, "another")
    assert before == read_manifest(store, before.version)


def test_a_version_rolled_back_is_compared_with(published: Destined, tmp_path: Path) -> None:
    store = published.copied(tmp_path)
    commit = rollback(store, to=1)
    before = find_previous(store, "another")
    assert before.version == commit.version
    own = find_previous(store, before.dataset_key)
    assert own is None or own.version < commit.version, "the run's own version is passed over"
