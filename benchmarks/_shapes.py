"""Pictures of shapes whose colour, size, position and form are known, and how these are read off a picture.

Every picture (32 px, RGB) shows one shape on a dark gray ground. :func:`with_attributes` draws pictures
whose attributes keep clear of each other, :func:`with_factors` ones whose place and size go evenly
through a grid. :func:`read` finds the attributes in the pixels of any picture, without a trained
part: the ground is the middle of each channel, the mask is how far a pixel is from it, and the form
is the one that, drawn with the mask's area about its centre, covers it best.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "ATTRIBUTES",
    "BY",
    "FACTORS",
    "LABEL",
    "VALUES",
    "Shapes",
    "as_table",
    "read",
    "with_attributes",
    "with_factors",
]

SIZE = 32
LABEL, BY = "form", ("colour", "size", "position")
ATTRIBUTES = (LABEL, *BY)
VALUES: dict[str, tuple[str, ...]] = {
    "form": ("square", "triangle", "cross"),
    "colour": ("red", "green", "blue", "yellow"),
    "size": ("small", "large"),
    "position": ("top left", "top right", "bottom left", "bottom right"),
}
FACTORS = ("form", "colour", "size", "x", "y")
# Area over the square of the radius (of the inner circle, for a cross half the width of its strategies, which
# are three times as long); with it, all forms of one size have one area.
AREA_OF_UNIT = np.array([4.0, 3.0 * 3.0**0.5, 20.0])
PALETTE = np.array(
    [[220.0, 50.0, 50.0], [60.0, 190.0, 70.0], [60.0, 90.0, 230.0], [230.0, 210.0, 50.0]]
)
GROUND = (20.0, 50.0)  # gray levels
DEVIATION = 3.0  # of the noise, in gray levels
BRIGHTNESS = 0.08  # share by which a colour is lighter or darker
# Square pixels.
AREAS = ((30.0, 42.0), (85.0, 105.0))
BORDER, MOST = 60.0, 160.0  # between small and large; beyond what any form has
NEAR, FAR, AWAY = (
    10.0,
    22.0,
    1.5,
)  # places of the centre along an axis, and how far it goes from them
GRID = np.linspace(9.0, 23.0, 8)
SIZES = np.array([30.0, 45.0, 60.0, 80.0, 105.0])
N_INSIDE = 12  # pixels that lie inside every shape
# Of a pixel's way from the ground to the shape's colour: below the one it is ground, above the other shape.
FLOOR, CEILING = 0.2, 0.8
LEAST_COVER = 0.7  # intersection over union with the best form: below it, none was drawn
OTHER_COLOUR = (
    60.0  # gray levels from the nearest colour of the palette, beyond which it is none of them
)

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shapes:
    """Pictures and what they show.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, 32, 32, 3)
    codes : ndarray of int64, shape (n, n_kinds)
        Places in :data:`VALUES` by :data:`ATTRIBUTES`, or on the grids by :data:`FACTORS`.
    """

    images: NDArray[np.uint8]
    codes: Codes


def with_attributes(n: int, seed: int) -> Shapes:
    """Return pictures of all combinations of attributes, as often as each other but for one."""
    rng = np.random.default_rng(seed)
    sizes = [len(values) for values in VALUES.values()]
    codes = np.stack(np.unravel_index(rng.permutation(n) % np.prod(sizes), sizes), axis=1)
    form, colour, size, position = codes.T
    area = rng.uniform(*np.array(AREAS)[size].T)
    centre = np.where([position % 2, position // 2], FAR, NEAR) + rng.uniform(-AWAY, AWAY, (2, n))
    return Shapes(_drawn(form, colour, area, centre, rng), codes.astype(np.int64))


def with_factors(n: int, seed: int) -> Shapes:
    """Return pictures whose factors are drawn evenly and independently from their grids."""
    rng = np.random.default_rng(seed)
    sizes = (3, len(PALETTE), len(SIZES), len(GRID), len(GRID))
    codes = np.stack([rng.integers(0, k, n) for k in sizes], axis=1)
    form, colour, size, x, y = codes.T
    images = _drawn(form, colour, SIZES[size], np.stack([GRID[x], GRID[y]]), rng)
    return Shapes(images, codes.astype(np.int64))


def as_table(shapes: Shapes) -> pa.Table:
    """Return pictures with attributes as a source has them: a PNG, and a text per attribute."""
    pictures = []
    for i, image in enumerate(shapes.images):
        sink = io.BytesIO()
        Image.fromarray(image).save(sink, "PNG")
        pictures.append({"bytes": sink.getvalue(), "path": f"{i}.png"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = {
        name: [VALUES[name][k] for k in shapes.codes[:, j]] for j, name in enumerate(ATTRIBUTES)
    }
    return pa.table({"image": pa.array(pictures, kind), **texts})


def _drawn(
    form: Codes, colour: Codes, area: Floats, centre: Floats,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:  # fmt: skip
    n = len(form)
    mask = _masks(form, area, centre)[..., None]
    light = 1.0 + rng.uniform(-BRIGHTNESS, BRIGHTNESS, (n, 1))
    shade = (PALETTE[colour] * light)[:, None, None, :]
    ground = rng.uniform(*GROUND, n)[:, None, None, None]
    pixels = ground + mask * (shade - ground) + rng.normal(0, DEVIATION, (n, SIZE, SIZE, 3))
    images: NDArray[np.uint8] = pixels.round().clip(0, 255).astype(np.uint8)
    return images


def _masks(form: Codes, area: Floats, centre: Floats) -> Floats:
    """Return how much of each pixel the shape covers, (n, 32, 32)."""
    place = np.arange(SIZE)
    x = place[None, None, :] - centre[0][:, None, None]
    y = place[None, :, None] - centre[1][:, None, None]
    x, y = np.broadcast_arrays(x, y)
    radius = np.sqrt(area / AREA_OF_UNIT[form])[:, None, None]
    depths = np.empty(x.shape)  # pixels from the outline, outside below 0
    for k, depth in enumerate((_square, _triangle, _cross)):
        rows = form == k
        depths[rows] = depth(x[rows], y[rows], radius[rows])
    masks: Floats = np.clip(0.5 + depths, 0.0, 1.0)
    return masks


def _square(x: Floats, y: Floats, radius: Floats) -> Floats:
    found: Floats = radius - np.maximum(np.abs(x), np.abs(y))
    return found


def _triangle(x: Floats, y: Floats, radius: Floats) -> Floats:
    found: Floats = radius - np.maximum(y, np.abs(x) * 0.75**0.5 - y / 2)
    return found


def _cross(x: Floats, y: Floats, radius: Floats) -> Floats:
    short, long = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    found: Floats = np.minimum(radius - short, 3 * radius - long)
    return found


# --- the oracle -----------------------------------------------------------------------------------


def read(images: NDArray[np.uint8]) -> tuple[Codes, Floats]:
    """Return the attributes that pictures show, and how well the form found covers what is there.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, 32, 32, 3)

    Returns
    -------
    codes : ndarray of int64, shape (n, 4)
        Places in :data:`VALUES` by :data:`ATTRIBUTES`; -1 for a form where none covers 70 % or
        what is there is too large, and for a colour that is far from all of them.
    cover : ndarray of float64, shape (n,)
        Intersection over union of the mask and the best form.
    """
    n = len(images)
    ground = np.median(images.reshape(n, -1, 3), axis=1)[:, None, None, :]
    away = images - ground
    far = np.linalg.norm(away, axis=3)
    inside = np.argsort(far.reshape(n, -1), axis=1)[:, -N_INSIDE:, None]
    shade = np.take_along_axis(images.reshape(n, -1, 3), inside, axis=1).mean(axis=1)
    full = np.linalg.norm(shade - ground[:, 0, 0], axis=1)[:, None, None]
    share = far / np.maximum(full, 1e-9)
    mask = np.clip((share - FLOOR) / (CEILING - FLOOR), 0.0, 1.0)
    area = np.maximum(mask.sum(axis=(1, 2)), 1e-9)
    place = np.arange(SIZE)
    centre = np.stack([(mask.sum(axis=1) @ place) / area, (mask.sum(axis=2) @ place) / area])
    form, cover = _best_form(mask, area, centre)
    distance = np.linalg.norm(shade[:, None] - PALETTE, axis=2)
    colour = np.where(distance.min(axis=1) > OTHER_COLOUR, -1, distance.argmin(axis=1))
    right, below = centre > (NEAR + FAR) / 2
    codes = np.stack([form, colour, area > BORDER, 2 * below + right], axis=1).astype(np.int64)
    return codes, cover


def _best_form(mask: Floats, area: Floats, centre: Floats) -> tuple[Codes, Floats]:
    covers = []
    for k in range(len(AREA_OF_UNIT)):
        drawn = _masks(np.full(len(mask), k), area, centre)
        both, either = np.minimum(mask, drawn), np.maximum(mask, drawn)
        covers.append(both.sum(axis=(1, 2)) / np.maximum(either.sum(axis=(1, 2)), 1e-9))
    stacked = np.stack(covers)
    cover: Floats = stacked.max(axis=0)
    none = (cover < LEAST_COVER) | (area > MOST)
    form: Codes = np.where(none, -1, stacked.argmax(axis=0))
    return form, cover
