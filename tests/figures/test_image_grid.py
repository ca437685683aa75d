"""Picture sheets: what a class looks like, small enough for an artifact, safe against any name."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from prefect_augment.figures.image_grid import CELL, N_COLUMNS, sheet
from prefect_augment.figures.style import MAX_BYTES

HOSTILE = [
    '<img src="http://leak.invalid/a.png" onerror="alert(1)">',
    "🛠️ broken 🎉 $x_1$",
    "../../etc/passwd",
    "中文类别",
    "a class name that goes on and on, " * 9,
    "two\nlines\tand a \x00",
    " ",
    "$\\frac{1}{0}$ %s {}",
]


def noise(n: int, size: int, channels: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    """The hardest to compress."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def drawn(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 8, 28, 32, 64, 96, 300])
def test_every_sheet_is_small_enough_for_an_artifact(size: int, channels: int) -> None:
    images = noise(N_COLUMNS, size, channels)
    png = sheet("noise", images, images, images, classic=images)
    assert png.startswith(b"\x89PNG")
    assert len(png) < MAX_BYTES


def test_equal_images_give_equal_bytes() -> None:
    one, other = (
        sheet("crack", noise(8, 28), noise(8, 28, seed=1), noise(8, 28, seed=2)) for _ in range(2)
    )
    assert one == other
    assert one != sheet("break", noise(8, 28), noise(8, 28, seed=1), noise(8, 28, seed=2))
    assert b"Software" not in one
    assert b"tIME" not in one


@pytest.mark.parametrize("label", HOSTILE)
def test_class_names_are_drawn_and_never_understood(label: str) -> None:
    images = noise(2, 8)
    width, height = Image.open(io.BytesIO(sheet(label, images, None, None))).size
    assert (width, height) == Image.open(io.BytesIO(sheet("x", images, None, None))).size


def test_images_stand_in_the_picture_pixel_by_pixel() -> None:
    """Small ones are enlarged by a whole factor, so that what a model drew can be seen."""
    image = noise(1, 28)
    enlarged = np.kron(image[0, :, :, 0], np.ones((CELL // 28, CELL // 28), dtype=np.uint8))
    page = drawn(sheet("crack", image, None, None))[:, :, 0]
    windows = np.lib.stride_tricks.sliding_window_view(page, (CELL, 1))[:, :, :, 0]
    places = np.argwhere((windows == enlarged[:, 0]).all(axis=2))
    assert len(places) == CELL // 28
    row, column = places[0]
    assert np.array_equal(page[row : row + CELL, column : column + CELL], enlarged)


def test_rows_without_images_are_left_out() -> None:
    images = noise(3, 28)
    shown = [(images, images, images), (images, images, None), (images, images[:0], None)]
    heights = [drawn(sheet("x", *rows)).shape[0] for rows in [*shown, (None, images, None)]]
    assert heights[0] > heights[1] > heights[2] == heights[3]


def test_sheets_have_one_width_however_many_images() -> None:
    widths = {drawn(sheet("x", noise(n, 28), None, None)).shape[1] for n in (1, 5, 8, 30)}
    assert len(widths) == 1


def test_images_of_different_shapes_stand_in_one_row() -> None:
    images = [noise(1, 40)[0, :20], noise(1, 300, 3)[0, :, :90], noise(1, 5)[0]]
    assert np.unique(drawn(sheet("x", images, None, None))).size > 100


def test_gray_images_make_a_gray_picture_and_colours_stay() -> None:
    gray = drawn(sheet("x", noise(2, 8), None, None)).astype(int)
    assert (np.ptp(gray, axis=2) == 0).all()
    red = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    red[..., 0] = 255
    page = drawn(sheet("x", red, None, None)).reshape(-1, 3)
    assert (page == [255, 0, 0]).all(axis=1).sum() == CELL * CELL


def test_nothing_to_show_is_said() -> None:
    empty, real = (drawn(sheet("x", images, None, None)) for images in (None, noise(1, 8)))
    assert empty.min() < 120
    assert empty.shape[1] == real.shape[1]
