"""Columns in few numbers: what the next version is compared with, without reading this one again."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefect_augment.evaluation.metrics.column_shapes import (
    histogram_edges,
    is_null,
    sorted_numbers,
)
from prefect_augment.schema.drift import ColumnContent

__all__ = ["MAX_LEVELS", "column_content"]

N_POINTS = 64  # quantiles that the distribution function is kept at: a distance is exact to 1/64
MAX_LEVELS = 200  # a postcode's levels would be longer than the rest of the report


def column_content(
    name: str,
    kind: Literal["numeric", "category"],
    values: NDArray[Any],
    *,
    like: ColumnContent | None = None,
    show: bool = True,
) -> ColumnContent:
    """What is kept of a column.

    Parameters
    ----------
    name, kind
        The column; "numeric" may be dates.
    values : ndarray, shape (n,)
        Numbers or datetime64 with NaN or NaT for null, or category values with None for null.
    like : ColumnContent, optional
        Count at its points and in its bins instead of the column's own, for a comparison.
    show : bool
        False keeps no value, only how many there are.
    """
    is_number = kind == "numeric" and values.dtype.kind in "biufM"
    if not is_number:
        return _category(name, values, show)
    numbers = sorted_numbers(values)
    shape: Literal["date", "numeric"] = "date" if values.dtype.kind == "M" else "numeric"
    n_null = len(values) - len(numbers)
    if not show or not numbers.size:
        return ColumnContent(name=name, kind=shape, n=len(numbers), n_null=n_null)
    if like is not None and like.points:
        points, edges = np.array(like.points), np.array(like.edges)
    else:
        quantiles = np.linspace(0, 1, N_POINTS + 1)
        points = np.unique(np.quantile(numbers, quantiles, method="inverted_cdf"))
        edges = histogram_edges(numbers)
    counts, _ = np.histogram(np.clip(numbers, edges[0], edges[-1]), bins=edges)
    return ColumnContent(
        name=name,
        kind=shape,
        n=len(numbers),
        n_null=n_null,
        points=tuple(points.tolist()),
        at_most=tuple(np.searchsorted(numbers, points, side="right").tolist()),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def _category(name: str, values: NDArray[Any], show: bool) -> ColumnContent:
    found = Counter(str(value) for value in values.tolist() if not is_null(value))
    n = sum(found.values())
    kept = sorted(found.items(), key=lambda kv: (-kv[1], kv[0]))[:MAX_LEVELS] if show else []
    return ColumnContent(
        name=name,
        kind="category",
        n=n,
        n_null=len(values) - n,
        levels=dict(kept),
        n_levels=len(found) if show else 0,
    )
