"""Pictures of shapes show what they are said to show, and the oracle reads it."""

from types import ModuleType

import numpy as np
import pytest


def test_same_seed_draws_the_same_pictures(shapes: ModuleType) -> None:
    first, again, other = (shapes.with_attributes(60, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)


def test_every_combination_is_drawn_as_often_as_every_other(shapes: ModuleType) -> None:
    codes = shapes.with_attributes(192, 0).codes
    combinations, counts = np.unique(codes, axis=0, return_counts=True)
    assert len(combinations) == 96
    assert set(counts.tolist()) == {2}


@pytest.mark.slow
def test_oracle_reads_every_attribute_of_real_pictures(shapes: ModuleType) -> None:
    drawn = shapes.with_attributes(960, 1)
    codes, cover = shapes.read(drawn.images)
    assert (codes == drawn.codes).all()
    assert cover.min() > shapes.LEAST_COVER


def test_oracle_reads_a_picture_made_by_hand(shapes: ModuleType) -> None:
    """A plain blue square of 6 px, low on the right, drawn without the module."""
    image = np.full((1, 32, 32, 3), 30, dtype=np.uint8)
    image[0, 19:25, 19:25] = 60, 90, 230
    codes, cover = shapes.read(image)
    named = {
        name: shapes.VALUES[name][k]
        for name, k in zip(shapes.ATTRIBUTES, codes[0].tolist(), strict=True)
    }
    assert named == {
        "form": "square",
        "colour": "blue",
        "size": "small",
        "position": "bottom right",
    }
    assert cover[0] > 0.9


@pytest.mark.parametrize("spoilt", ["noise", "empty", "two halves"])
def test_oracle_finds_no_form_where_there_is_none(shapes: ModuleType, spoilt: str) -> None:
    rng = np.random.default_rng(0)
    image = np.full((1, 32, 32, 3), 30, dtype=np.uint8)
    if spoilt == "noise":
        image = rng.integers(0, 256, image.shape).astype(np.uint8)
    if spoilt == "two halves":
        image[0, 4:8, 4:16] = image[0, 24:28, 16:28] = 220, 50, 50
    codes, _ = shapes.read(image)
    assert codes[0, 0] == -1


def test_oracle_finds_no_colour_between_two(shapes: ModuleType) -> None:
    image = np.full((1, 32, 32, 3), 30, dtype=np.uint8)
    image[0, 4:13, 4:13] = 140, 140, 140
    codes, _ = shapes.read(image)
    assert codes[0, 1] == -1


def test_all_forms_of_one_size_have_one_area(shapes: ModuleType) -> None:
    centre, area = np.full((2, 3), 15.0), np.full(3, 60.0)
    sums = shapes._masks(np.arange(3), area, centre).sum(axis=(1, 2))
    assert sums == pytest.approx([60.0] * 3, rel=0.03)


@pytest.mark.slow
def test_factors_are_drawn_independently(shapes: ModuleType) -> None:
    codes = shapes.with_factors(3000, 0).codes
    correlations = np.corrcoef(codes.T) - np.eye(len(shapes.FACTORS))
    assert np.abs(correlations).max() < 0.08
