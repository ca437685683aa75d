"""The built-in images: small, unbalanced, readable by anyone, and the same each time."""

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.examples import IMAGE_FILES, TAIL, demo_runs, example_images, image_tables
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.storage import open_store


def test_three_digits_are_rare_and_the_holdout_is_balanced() -> None:
    train, test = (Counter(table["label"].to_pylist()) for table in image_tables())
    assert {name for name, n in train.items() if n == 20} == set(TAIL)
    assert sorted(train.values()) == [20] * 3 + [120] * 7
    assert set(test.values()) == {50}
    assert len(test) == len(train) == 10


def test_no_image_is_in_both_parts() -> None:
    train, test = (
        {image["bytes"] for image in table["image"].to_pylist()} for table in image_tables()
    )
    assert not train & test


def test_images_are_gray_and_digits_can_be_told_apart() -> None:
    """A nearest neighbour in the pixels: labels and images belong together."""
    train, test = image_tables()
    encoder = ImageEncoder.fit(train, column="image", label="label")
    assert (encoder.size, encoder.channels, encoder.out_size) == (12, 1, (12, 12))
    x, z = (
        encoder.encode(table).reshape(table.num_rows, -1).astype(float) for table in (train, test)
    )
    distances = (x**2).sum(axis=1) - 2 * z @ x.T
    labels = np.array(train["label"].to_pylist())[distances.argmin(axis=1)]
    assert (labels == np.array(test["label"].to_pylist())).mean() > 0.9


@pytest.mark.slow
def test_other_seeds_keep_other_images() -> None:
    assert image_tables(0)[0].equals(image_tables(0)[0])
    assert not image_tables(0)[0].equals(image_tables(1)[0])


def test_source_is_written_once_and_left_alone(tmp_path: Path) -> None:
    source = example_images(str(tmp_path))
    assert source.uri.endswith(IMAGE_FILES[0])
    assert source.holdout_uri.endswith(IMAGE_FILES[1])
    before = [(tmp_path / name).stat().st_mtime_ns for name in IMAGE_FILES]
    assert example_images(open_store(str(tmp_path))) == source
    assert [(tmp_path / name).stat().st_mtime_ns for name in IMAGE_FILES] == before
    assert sum((tmp_path / name).stat().st_size for name in IMAGE_FILES) < 600_000


@pytest.mark.parametrize("name", IMAGE_FILES)
def test_files_decode_elsewhere(name: str, tmp_path: Path) -> None:
    example_images(str(tmp_path))
    assert pq.read_schema(tmp_path / name).names == ["image", "label"]
    loaded = datasets.Dataset.from_parquet(str(tmp_path / name), cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded[0]["image"].size == (12, 12)


def test_the_demo_trains_a_generator_of_images_and_keeps_the_tables_defaults_but_for_seeds(
    tmp_path: Path,
) -> None:
    runs = demo_runs(str(tmp_path))
    assert list(runs) == ["table", "images"]
    assert set(runs["table"]) == {"source", "destination", "evaluation"}
    assert runs["table"]["evaluation"].model_dump(exclude_defaults=True) == {"n_seeds": 1}
    asked = rebalance.validate_parameters(runs["images"])
    assert asked["model"].kind == "diffusion"
    assert asked["budget"].steps > 0  # not minutes: the same bytes on every machine
    for given in runs.values():
        assert Path(given["source"].uri).is_file()
    assert len({given["destination"].uri for given in runs.values()}) == 2


def test_the_demo_without_images_is_the_table(tmp_path: Path) -> None:
    assert list(demo_runs(str(tmp_path), images=False)) == ["table"]
    assert not (tmp_path / "source" / IMAGE_FILES[0]).exists()
