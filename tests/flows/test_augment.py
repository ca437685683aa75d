"""Classic augmentation alone: up to the target, published, and said not to be compared."""

from pathlib import Path

import pyarrow as pa
import pytest

from prefect_augment.errors import ParameterError
from prefect_augment.examples import example_images
from prefect_augment.flows.augment import augment
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Balance, Classic, Destination, Publish, Source
from prefect_augment.storage import open_store, read_manifest


def test_a_table_is_brought_to_its_targets_with_smote(
    source: Source, destination: Destination
) -> None:
    result = augment.fn(source=source, destination=destination)
    assert (result.status, result.version) == ("published", 1)
    targets = {c.label: c.target for c in result.plan.classes}
    train = result.counts["train"]
    assert {name: sum(origins.values()) for name, origins in train.items()} == targets
    assert train["cracked"]["classic"] > 0
    assert "synthetic" not in train["cracked"]
    assert set(result.counts["holdout"]["cracked"]) == {"real"}
    assert not verify(open_store(destination.uri)).problems


def test_the_manifest_and_the_card_say_that_nothing_was_compared(
    source: Source, destination: Destination, tmp_path: Path
) -> None:
    augment.fn(source=source, destination=destination)
    manifest = read_manifest(open_store(destination.uri))
    assert manifest.verdict is None
    assert "not compared" in manifest.recipe.strategy.name
    assert manifest.recipe.sentence in (tmp_path / "out/README.md").read_text()
    assert "Verdict: none" in (tmp_path / "out/README.md").read_text()
    assert manifest.params["flow"] == "augment"


@pytest.mark.slow
def test_images_are_brought_to_their_targets_with_changed_copies(
    destination: Destination, tmp_path: Path
) -> None:
    pytest.importorskip("albumentations", reason="needs the images extra")
    result = augment.fn(
        source=example_images(str(tmp_path / "in"), seed=0),
        destination=destination,
        balance=Balance(target="count", count=130),
        classic=Classic(image_prob=1.0),  # less passes over some, and their copies are equal
    )
    assert {sum(n.values()) for n in result.counts["train"].values()} == {130}
    table = open_dataset(destination.uri).to_table()
    rows = table.filter(pa.compute.equal(table["aug_origin"], "classic")).to_pylist()
    real = {r["aug_id"]: r["image"]["bytes"] for r in table.to_pylist() if r["aug_parent"] is None}
    assert rows
    assert all(r["image"]["bytes"] != real[r["aug_parent"]] for r in rows)


def test_the_same_run_again_publishes_nothing_new(source: Source, destination: Destination) -> None:
    augment.fn(source=source, destination=destination)
    again = augment.fn(source=source, destination=destination)
    assert (again.status, again.version) == ("unchanged", 1)


def test_the_plan_alone_publishes_nothing(source: Source, destination: Destination) -> None:
    result = augment.fn(source=source, destination=destination, plan_only=True)
    assert result.status == "planned"
    assert not Path(destination.uri, "_manifests").exists()


def test_classic_records_that_are_switched_off_are_refused_with_advice(
    source: Source, destination: Destination
) -> None:
    with pytest.raises(ParameterError, match="choose 'smote'"):
        augment.fn(source=source, destination=destination, classic=Classic(table="none"))


def test_without_anything_the_example_goes_below_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a deployment does whose form was submitted as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    result = augment.fn()
    assert result.counts["train"]["eight"]["classic"] > 0
    assert open_dataset(str(tmp_path / "prefect-augment/example-augmented")).manifest.version == 1


def test_tars_for_a_table_are_refused_before_anything_is_made(
    source: Source, destination: Destination
) -> None:
    tars = Publish(format="webdataset")
    with pytest.raises(ParameterError, match=r"publish\.format 'webdataset' is for image data"):
        augment.fn(source=source, destination=destination, publish=tars)
    assert not Path(destination.uri, "_staging/augment").exists()
    assert not Path(destination.uri, "data").exists()
