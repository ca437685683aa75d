"""Pictures of drift: every column's distance beside what chance allows, and the columns that changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from prefect_augment.evaluation.charts import MAX_ROWS, SHAPES_PER_CHART, rows_figure, shapes_chart
from prefect_augment.evaluation.drawing import (
    BLUE,
    ORANGE,
    add_legend,
    axis_label,
    bar_mark,
    dot_mark,
    drawable,
    png_bytes,
)
from prefect_augment.evaluation.shapes import ShapeSummary
from prefect_augment.evaluation.sheets import rows_sheet
from prefect_augment.facts_drift import ColumnDrift

__all__ = ["distance_chart", "mean_pictures", "value_charts"]

_NAME_WIDTH = 14.0


def distance_chart(columns: Sequence[ColumnDrift]) -> bytes:
    """Each column's distance as a dot, what chance allows as a bar; at most :data:`MAX_ROWS`."""
    shown = columns[:MAX_ROWS]
    names = [drawable(c.column, width=_NAME_WIDTH, number=i) for i, c in enumerate(shown, start=1)]
    figure, ax = rows_figure(names, extra=0.95)
    for y, column in enumerate(shown):
        noise, distance = column.noise or 0.0, column.distance or 0.0
        ax.plot([0, noise], [y, y], color="#c3c9d0", lw=7, solid_capstyle="butt", zorder=2)
        beyond = distance > noise
        ax.plot(
            distance, y, "D" if beyond else "o", color=ORANGE if beyond else BLUE, ms=6, zorder=3
        )
    largest = max([0.02, *(max(c.noise or 0.0, c.distance or 0.0) for c in shown)])
    ax.set_xlim(-0.02 * largest, 1.06 * largest)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    axis_label(ax, "distance to the version before")
    add_legend(
        figure,
        [
            bar_mark("what chance allows", "#c3c9d0"),
            dot_mark("within", BLUE),
            dot_mark("beyond", ORANGE, marker="D"),
        ],
    )
    return png_bytes(figure)


def value_charts(columns: Sequence[ColumnDrift]) -> list[bytes]:
    """How the values lay before and lie now, :data:`SHAPES_PER_CHART` columns to a picture."""
    panels = [
        ShapeSummary(
            column=c.column,
            kind="category" if c.kind == "category" else "date" if c.kind == "date" else "numeric",
            edges=c.edges,
            levels=c.levels,
            real=c.before,
            synthetic=c.now,
            null_real=0.0,
            null_synthetic=0.0,
            n_real=1,
            n_synthetic=1,
            distance=c.distance,
        )
        for c in columns
    ]
    return [
        shapes_chart(panels[i : i + SHAPES_PER_CHART], names=("before", "now"))
        for i in range(0, len(panels), SHAPES_PER_CHART)
    ]


def mean_pictures(column: ColumnDrift) -> bytes:
    """The mean picture of the version before, and of this one."""
    side = round(len(column.now) ** 0.5)
    pictures = [
        np.array(values).reshape(side, side, 1).round().clip(0, 255).astype(np.uint8)
        for values in (column.before, column.now)
    ]
    return rows_sheet("mean picture", [("before, and now", pictures)])
