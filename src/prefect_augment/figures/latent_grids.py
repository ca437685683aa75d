"""Sheets of images for latents: codes, anomaly maps, interpolations.

A row per kind of image, a column per record, as :mod:`prefect_augment.figures.image_grid` draws
them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from prefect_augment.figures.image_grid import N_COLUMNS, Images, rows_sheet

__all__ = ["code_images", "heat_images", "strip_sheet"]

MAX_STRIP_ROWS = 4
_HEAT = "inferno"  # from black to light, told apart without colour vision, too


def code_images(Z: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Vectors (n, n_latent) as small gray squares (n, k, k, 1), one number per pixel, row by row.

    ``k`` is the smallest with ``k**2 >= n_latent``. Middle gray is 0, white the largest distance
    from it in any vector; unused pixels at the end are white.
    """
    n, n_latent = Z.shape
    k = int(np.ceil(np.sqrt(n_latent)))
    largest = float(np.abs(Z).max(initial=0.0)) or 1.0
    gray = np.full((n, k * k), 255, dtype=np.uint8)
    gray[:, :n_latent] = np.rint(127.5 + 127.5 * Z / largest)
    return gray.reshape(n, k, k, 1)


def heat_images(maps: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Anomaly maps (n, height, width) in colour: black is 0, light the largest value of all."""
    largest = float(maps.max(initial=0.0))
    shares = np.clip(maps, 0.0, None) / (largest or 1.0)
    colours = colormaps[_HEAT](shares)[..., :3]
    heat: NDArray[np.uint8] = np.rint(255 * colours).astype(np.uint8)
    return heat


def strip_sheet(title: str, images: Sequence[NDArray[np.uint8]]) -> bytes:
    """A PNG (below 200 kB) of the way from the first image to the last; of many steps some are shown."""
    most = MAX_STRIP_ROWS * N_COLUMNS
    n = len(images)
    steps = np.unique(np.rint(np.linspace(0, n - 1, min(n, most))).astype(int)).tolist()
    rows: list[tuple[str, Images]] = []
    for start in range(0, len(steps), N_COLUMNS):
        some = steps[start : start + N_COLUMNS]
        rows.append((f"steps {some[0]} to {some[-1]} of {n - 1}", [images[i] for i in some]))
    return rows_sheet(title, rows)
