"""Corruptions of hold-out records that a robust classifier should withstand; nothing is trained on them.

Strengths are fixed, so that runs can be compared: for images severity 3 of 5 in CIFAR-10-C, the
middle of the most used benchmark; for tables changes after which a person would still recognise the
record.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.array_types import Array, Bool, Float, Images

IMAGE_NOISE = 0.08  # standard deviation, of values from 0 to 1
IMAGE_BLUR = 0.7 / 32  # standard deviation of the kernel, in sides: 0.7 pixels at CIFAR's 32
IMAGE_CONTRAST = 0.4  # what is left of each value's distance to the image's mean
# CIFAR-10-C has no shift. A tenth of the side is more than the 7 % of our mildest classic policy, and
# as far as an object may stand from where a detector or a person centred it.
IMAGE_SHIFT = 0.1
# A tenth of the cells: a form with a question left out here and there, a sensor that drops out.
TABLE_MISSING = 0.1
# Noise of a tenth and rounding to half of a deviation take 1 % and 2 % (Sheppard: h^2 / 12) of a
# column's variance: another instrument of the same kind, a value that was read off a scale.
TABLE_NOISE = 0.1
TABLE_ROUNDING = 0.5
NORMAL_90 = 3.29  # deviations between the 5 % and the 95 % quantile of a normal distribution


@dataclass(frozen=True)
class Scale:
    """Spread of a table's columns, from training records."""

    is_category: Bool  # (n_columns,)
    # (n_columns,) from the 5 % to the 95 % quantile as if normal, robust to outliers; 0 for
    # categories and constant columns
    deviation: Float

    @classmethod
    def of(cls, X: Float, is_category: Bool) -> "Scale":
        """The spread of the columns of training records."""
        deviation = np.zeros(X.shape[1])
        for j in np.flatnonzero(~is_category):
            values = X[np.isfinite(X[:, j]), j]
            if len(values):
                low, high = np.quantile(values, [0.05, 0.95])
                # Columns that are mostly one value have no such range.
                deviation[j] = (high - low) / NORMAL_90 or float(values.std())
        return cls(is_category, deviation)


@dataclass(frozen=True)
class Corruption:
    """One way of corrupting records; ``apply`` takes records, a generator and, for tables, the columns' scale."""

    name: str
    strength: str
    apply: Callable[[Array, np.random.Generator, Scale | None], Array]


def _missing(X: Float, rng: np.random.Generator, scale: Scale | None) -> Float:
    return np.where(rng.random(X.shape) < TABLE_MISSING, np.nan, X)


def _table_noise(X: Float, rng: np.random.Generator, scale: Scale | None) -> Float:
    assert scale is not None
    return X + TABLE_NOISE * scale.deviation * rng.standard_normal(X.shape)


def _rounding(X: Float, rng: np.random.Generator, scale: Scale | None) -> Float:
    assert scale is not None
    width = TABLE_ROUNDING * scale.deviation
    some = width > 0
    rounded = X.copy()
    rounded[:, some] = np.round(X[:, some] / width[some]) * width[some]
    return rounded


TABLE_CORRUPTIONS = (
    Corruption(
        "missing", f"{100 * TABLE_MISSING:g} % of the values of all columns are missing", _missing
    ),
    Corruption(
        "noise",
        f"normal noise of {TABLE_NOISE:g} deviations is added to every numeric column",
        _table_noise,
    ),
    Corruption(
        "rounding",
        f"numeric columns are rounded to multiples of {TABLE_ROUNDING:g} deviations",
        _rounding,
    ),
)


def _as_bytes(values: NDArray[np.floating[Any]]) -> Images:
    """The values as pixels; they are overwritten, since they take four times the memory of pixels."""
    return values.clip(0, 255, out=values).round(out=values).astype(np.uint8)


def _image_noise(X: Images, rng: np.random.Generator, scale: Scale | None) -> Images:
    return _as_bytes(X + (255 * IMAGE_NOISE) * rng.standard_normal(X.shape, dtype=np.float32))


def _blur(X: Images, rng: np.random.Generator, scale: Scale | None) -> Images:
    from scipy.ndimage import gaussian_filter1d

    values = X.astype(np.float32)
    for axis in (1, 2):
        values = gaussian_filter1d(values, IMAGE_BLUR * X.shape[axis], axis=axis, mode="nearest")
    return _as_bytes(values)


def _shift(X: Images, rng: np.random.Generator, scale: Scale | None) -> Images:
    """Move each image towards one of eight sides; edge pixels fill the gap."""
    height, width = X.shape[1:3]
    sides = np.array([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b])
    down, across = sides[rng.integers(0, len(sides), len(X))].T
    rows = np.arange(height) - down[:, None] * max(1, round(IMAGE_SHIFT * height))
    columns = np.arange(width) - across[:, None] * max(1, round(IMAGE_SHIFT * width))
    rows, columns = rows.clip(0, height - 1), columns.clip(0, width - 1)
    return X[np.arange(len(X))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _contrast(X: Images, rng: np.random.Generator, scale: Scale | None) -> Images:
    mean = X.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return _as_bytes((X - mean) * IMAGE_CONTRAST + mean)


IMAGE_CORRUPTIONS = (
    Corruption(
        "noise",
        f"normal noise with a deviation of {IMAGE_NOISE:g} of the whole range (CIFAR-10-C, severity 3)",
        _image_noise,
    ),
    Corruption(
        "blur",
        f"a normal kernel with a deviation of {100 * IMAGE_BLUR:.1f} % of the side (CIFAR-10-C, severity 3)",
        _blur,
    ),
    Corruption(
        "shift", f"moved by {100 * IMAGE_SHIFT:g} % of the side, to one of eight sides", _shift
    ),
    Corruption(
        "contrast",
        f"{100 * IMAGE_CONTRAST:g} % of the contrast is left (CIFAR-10-C, severity 3)",
        _contrast,
    ),
)
