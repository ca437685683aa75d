"""How a column is distributed in real and in synthetic records of the rare classes, in few numbers.

Histograms over shared bins, for the report's small pictures and for report.json: no record leaves
this module, only shares per bin or level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = [
    "ColumnShape",
    "ShapeSummary",
    "column_values",
    "histogram_edges",
    "is_null",
    "sorted_numbers",
    "summarise_shapes",
]

MAX_LEVELS = 6  # further levels are summed: six bars stay legible in a small picture
MAX_BINS = 24
_LARGEST_WHOLE = 2.0**50  # beyond it float64 cannot hold the half between whole numbers
_LARGEST = 1e150  # beyond it the width of a bin overflows float64


@dataclass(frozen=True)
class ColumnShape:
    """Values of one column over the rare classes.

    Parameters
    ----------
    kind : {"numeric", "category"}
    real : ndarray, shape (n_real,)
        Numbers or datetime64 with NaN or NaT for null, or category values with None for null.
    synthetic : ndarray, shape (n_synthetic,)
        The same of the published synthetic records.
    """

    kind: Literal["numeric", "category"]
    real: NDArray[Any]
    synthetic: NDArray[Any]


@dataclass(frozen=True)
class ShapeSummary:
    """A column's histogram in real and synthetic records.

    ``edges`` are the bin edges of a numeric column (days since 1970 for a date) and empty for a
    category, whose bars are ``levels``. ``real`` and ``synthetic`` are shares of the records that
    have a value. ``distance`` is the largest difference between the two cumulative distributions
    (Kolmogorov-Smirnov) for numbers, the total variation distance for categories; both in [0, 1],
    None where one side has no value.
    """

    column: str
    kind: Literal["numeric", "date", "category"]
    edges: tuple[float, ...]
    levels: tuple[str, ...]
    real: tuple[float, ...]
    synthetic: tuple[float, ...]
    null_real: float
    null_synthetic: float
    n_real: int
    n_synthetic: int
    distance: float | None


def summarise_shapes(
    shapes: Mapping[str, ColumnShape], *, show_real: bool = True
) -> tuple[ShapeSummary, ...]:
    """Histograms of all columns, the most different first.

    Parameters
    ----------
    shapes : mapping of column name to ColumnShape
    show_real : bool
        False leaves every figure of real records out, bin edges included.

    Returns
    -------
    tuple of ShapeSummary
        By falling distance, then by name; independent of the mapping's order.
    """
    summaries = [_summary(name, shape, show_real) for name, shape in shapes.items()]
    return tuple(
        sorted(summaries, key=lambda s: (-1.0 if s.distance is None else -s.distance, s.column))
    )


def _summary(name: str, shape: ColumnShape, show_real: bool) -> ShapeSummary:
    """One column; real values are cut off first, so that nothing below can show them."""
    real = shape.real if show_real else shape.real[:0]
    # Times of day and the like come as text: they have levels, whatever their column is.
    if shape.kind == "numeric" and {real.dtype.kind, shape.synthetic.dtype.kind} <= set("biufM"):
        return _numeric(name, real, shape.synthetic)
    return _category(name, real, shape.synthetic)


def _numeric(name: str, real: NDArray[Any], synthetic: NDArray[Any]) -> ShapeSummary:
    is_date = real.dtype.kind == "M" or synthetic.dtype.kind == "M"
    a, b = sorted_numbers(real), sorted_numbers(synthetic)
    edges = histogram_edges(np.sort(np.concatenate([a, b])))
    return ShapeSummary(
        column=name,
        kind="date" if is_date else "numeric",
        edges=tuple(float(e) for e in edges),
        levels=(),
        real=_binned(a, edges),
        synthetic=_binned(b, edges),
        null_real=_share(len(real) - len(a), len(real)),
        null_synthetic=_share(len(synthetic) - len(b), len(synthetic)),
        n_real=len(real),
        n_synthetic=len(synthetic),
        distance=_kolmogorov_smirnov(a, b),
    )


def sorted_numbers(values: NDArray[Any]) -> NDArray[np.float64]:
    """Finite numbers of ``values``, sorted; dates as days since 1970."""
    if values.dtype.kind == "M":
        values = values[~np.isnat(values)]
        return np.sort(values.astype("datetime64[s]").astype(np.float64) / 86_400.0)
    numbers = values.astype(np.float64)
    return np.sort(np.clip(numbers[np.isfinite(numbers)], -_LARGEST, _LARGEST))


def histogram_edges(pooled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal bins over the pooled, sorted values; the outer bins also hold the far outliers."""
    if pooled.size == 0:
        return np.array([0.0, 1.0])
    low, high = _limits(pooled)
    n_bins = int(np.clip(np.sqrt(pooled.size), 5, MAX_BINS))
    if np.array_equal(pooled, np.round(pooled)) and high - low < _LARGEST_WHOLE:
        # Whole numbers get bins of a whole width, else some bins hold two values and some one.
        low = math.floor(low)
        n_values = math.ceil(high) - low + 1
        width = 1 if n_values <= MAX_BINS else math.ceil(n_values / n_bins)
        steps = np.arange(math.ceil(n_values / width) + 1, dtype=np.float64)
        return np.add(low - 0.5, width * steps)
    if low == high:
        margin = max(abs(low) * 0.05, 0.5)
        low, high = low - margin, high + margin
    return np.linspace(low, high, n_bins + 1)


def _limits(pooled: NDArray[np.float64]) -> tuple[float, float]:
    """Smallest and largest value within three interquartile ranges of the quartiles."""
    first, third = np.quantile(pooled, [0.25, 0.75])
    reach = 3.0 * (third - first) or np.inf
    return float(max(pooled[0], first - reach)), float(min(pooled[-1], third + reach))


def _binned(values: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[float, ...]:
    """Share of ``values`` per bin; all zero where there are none."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)
    return tuple(_share(int(n), values.size) for n in counts)


def _kolmogorov_smirnov(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Largest gap between two empirical distribution functions of sorted values."""
    if a.size == 0 or b.size == 0:
        return None
    pooled = np.concatenate([a, b])
    cdf_a = np.searchsorted(a, pooled, side="right") / a.size
    cdf_b = np.searchsorted(b, pooled, side="right") / b.size
    return float(np.abs(cdf_a - cdf_b).max())


def _category(name: str, real: NDArray[Any], synthetic: NDArray[Any]) -> ShapeSummary:
    a, b = _level_shares(real), _level_shares(synthetic)
    by_size = sorted({*a, *b}, key=lambda v: (-(a.get(v, 0.0) + b.get(v, 0.0)), v))
    levels, rest = by_size[:MAX_LEVELS], by_size[MAX_LEVELS:]
    shown_a = [a.get(v, 0.0) for v in levels]
    shown_b = [b.get(v, 0.0) for v in levels]
    if rest:
        levels = [*levels, f"{len(rest)} others"]
        shown_a.append(sum(a.get(v, 0.0) for v in rest))
        shown_b.append(sum(b.get(v, 0.0) for v in rest))
    both = bool(a) and bool(b)
    return ShapeSummary(
        column=name,
        kind="category",
        edges=(),
        levels=tuple(levels),
        real=tuple(shown_a),
        synthetic=tuple(shown_b),
        null_real=_share(sum(is_null(v) for v in real), len(real)),
        null_synthetic=_share(sum(is_null(v) for v in synthetic), len(synthetic)),
        n_real=len(real),
        n_synthetic=len(synthetic),
        distance=0.5 * sum(abs(a.get(v, 0.0) - b.get(v, 0.0)) for v in by_size) if both else None,
    )


def _level_shares(values: NDArray[Any]) -> dict[str, float]:
    """Share of each level among the values that are not null, in sorted order."""
    texts = sorted(str(v) for v in values.tolist() if not is_null(v))
    levels, counts = np.unique(np.array(texts, dtype=object), return_counts=True)
    return {str(level): _share(int(n), len(texts)) for level, n in zip(levels, counts, strict=True)}


def is_null(value: object) -> bool:
    """None, NaN and NaT: the values that differ from themselves."""
    return value is None or value != value


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def column_values(column: pa.ChunkedArray, kind: str) -> NDArray[np.generic]:
    """Return a column as numbers, dates or texts, with NaN, NaT or None for null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind == "category":
        return np.array(column.cast(pa.string()).to_pylist(), dtype=object)
    if pa.types.is_temporal(column.type) and not pa.types.is_duration(column.type):
        if pa.types.is_time(column.type):
            column = column.cast(pa.string())
            return np.array(column.to_pylist(), dtype=object)
        stamps = (
            column.cast(pa.timestamp("us")) if not pa.types.is_timestamp(column.type) else column
        )
        return np.array(stamps.to_numpy(), dtype="datetime64[us]")
    if pa.types.is_duration(column.type):
        column = column.cast(pa.int64())
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
