"""Histograms of columns in real and synthetic records of the rare classes, for the report.

No record leaves this module, only shares per bin or level.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from prefect_augment.schema import Result

MAX_LEVELS = 6  # further levels are summed: six bars stay legible in a small picture
MAX_BINS = 24
_LARGEST_WHOLE = 2.0**50  # beyond it float64 cannot hold the half between whole numbers
_LARGEST = 1e150  # beyond it the width of a bin overflows float64


@dataclass(frozen=True)
class ColumnShape:
    """Values of one column over the rare classes; NaN, NaT or None for null."""

    kind: Literal["numeric", "category"]
    real: NDArray[Any]  # numbers, datetime64 or category values
    synthetic: NDArray[Any]


class ShapeSummary(Result):
    """A column's histogram over the rare classes, real and synthetic."""

    column: str
    kind: Literal["numeric", "date", "category"]
    edges: tuple[float, ...] = Field(description="of a numeric column; days since 1970 for dates")
    levels: tuple[str, ...] = Field(description="of a category")
    real: tuple[float, ...] = Field(description="share of the values per bin or level")
    synthetic: tuple[float, ...]
    null_real: float
    null_synthetic: float
    n_real: int
    n_synthetic: int
    distance: float | None = Field(
        description="Kolmogorov-Smirnov for numbers and dates, total variation for categories"
    )


def summarise_shapes(
    shapes: Mapping[str, ColumnShape], *, show_real: bool = True
) -> tuple[ShapeSummary, ...]:
    """Histograms of all columns, by falling distance, then by name.

    Without ``show_real`` no figure of real records is in them, bin edges included.
    """
    summaries = []
    for name, shape in shapes.items():
        # Real values are cut off first, so that nothing below can show them.
        real, synthetic = shape.real if show_real else shape.real[:0], shape.synthetic
        # Times of day and the like come as text: they have levels, whatever their column is.
        has_numbers = {real.dtype.kind, synthetic.dtype.kind} <= set("biufM")
        summary = _numeric if shape.kind == "numeric" and has_numbers else _category
        summaries.append(summary(name, real, synthetic))
    return tuple(
        sorted(summaries, key=lambda s: (-1.0 if s.distance is None else -s.distance, s.column))
    )


def _numeric(name: str, real: NDArray[Any], synthetic: NDArray[Any]) -> ShapeSummary:
    is_date = real.dtype.kind == "M" or synthetic.dtype.kind == "M"
    a, b = _sorted_numbers(real), _sorted_numbers(synthetic)
    edges = _histogram_edges(np.sort(np.concatenate([a, b])))
    return ShapeSummary(
        column=name,
        kind="date" if is_date else "numeric",
        edges=tuple(float(e) for e in edges),
        levels=(),
        real=_bin_shares(a, edges),
        synthetic=_bin_shares(b, edges),
        null_real=_share(len(real) - len(a), len(real)),
        null_synthetic=_share(len(synthetic) - len(b), len(synthetic)),
        n_real=len(real),
        n_synthetic=len(synthetic),
        distance=_kolmogorov_smirnov(a, b),
    )


def _sorted_numbers(values: NDArray[Any]) -> NDArray[np.float64]:
    """Finite numbers, sorted; dates as days since 1970."""
    if values.dtype.kind == "M":
        values = values[~np.isnat(values)]
        return np.sort(values.astype("datetime64[s]").astype(np.float64) / 86_400.0)
    numbers = values.astype(np.float64)
    return np.sort(np.clip(numbers[np.isfinite(numbers)], -_LARGEST, _LARGEST))


def _histogram_edges(pooled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of equal bins over the pooled, sorted values; the outer bins also hold far outliers."""
    if pooled.size == 0:
        return np.array([0.0, 1.0])
    # The smallest and largest value within three interquartile ranges of the quartiles.
    first, third = np.quantile(pooled, [0.25, 0.75])
    reach = 3.0 * (third - first) or np.inf
    low, high = float(max(pooled[0], first - reach)), float(min(pooled[-1], third + reach))
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


def _bin_shares(values: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[float, ...]:
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
    by_share = sorted({*a, *b}, key=lambda v: (-(a.get(v, 0.0) + b.get(v, 0.0)), v))
    levels, rest = by_share[:MAX_LEVELS], by_share[MAX_LEVELS:]
    shares_a = [a.get(v, 0.0) for v in levels]
    shares_b = [b.get(v, 0.0) for v in levels]
    if rest:
        levels = [*levels, f"{len(rest)} others"]
        shares_a.append(sum(a.get(v, 0.0) for v in rest))
        shares_b.append(sum(b.get(v, 0.0) for v in rest))
    both = bool(a) and bool(b)
    return ShapeSummary(
        column=name,
        kind="category",
        edges=(),
        levels=tuple(levels),
        real=tuple(shares_a),
        synthetic=tuple(shares_b),
        null_real=_share(sum(_is_null(v) for v in real), len(real)),
        null_synthetic=_share(sum(_is_null(v) for v in synthetic), len(synthetic)),
        n_real=len(real),
        n_synthetic=len(synthetic),
        distance=0.5 * sum(abs(a.get(v, 0.0) - b.get(v, 0.0)) for v in by_share) if both else None,
    )


def _level_shares(values: NDArray[Any]) -> dict[str, float]:
    """Share of each level among the values that are not null, in sorted order."""
    texts = sorted(str(v) for v in values.tolist() if not _is_null(v))
    levels, counts = np.unique(np.array(texts, dtype=object), return_counts=True)
    return {str(level): _share(int(n), len(texts)) for level, n in zip(levels, counts, strict=True)}


def _is_null(value: object) -> bool:
    """None, NaN and NaT: the values that differ from themselves."""
    return value is None or value != value


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def column_values(column: pa.ChunkedArray, kind: str) -> NDArray[np.generic]:
    """A column as numbers, dates or texts, with NaN, NaT or None for null."""
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
