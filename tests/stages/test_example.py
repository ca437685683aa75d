"""The built-in images: small, unbalanced, readable by anyone, and the same each time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.stages.example import IMAGE_FILES, TAIL, example_images, image_tables
from prefect_augment.storage import open_store


def test_three_digits_are_rare_and_the_holdout_is_balanced() -> None:
    train, test = (Counter(table["label"].to_pylist()) for table in image_tables())
    assert {name for name, n in train.items() if n == 15} == set(TAIL)
    assert sorted(train.values()) == [15] * 3 + [120] * 7
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
    assert (encoder.size, encoder.channels, encoder.out_size) == (16, 1, (16, 16))
    x, z = (
        encoder.encode(table).reshape(table.num_rows, -1).astype(float) for table in (train, test)
    )
    distances = (x**2).sum(axis=1) - 2 * z @ x.T
    labels = np.array(train["label"].to_pylist())[distances.argmin(axis=1)]
    assert (labels == np.array(test["label"].to_pylist())).mean() > 0.9


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
    assert loaded[0]["image"].size == (16, 16)
