"""The report's charts: plain data in, PNG bytes out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from prefect_augment.evaluation.metrics.column_shapes import ShapeSummary
from prefect_augment.figures.style import (
    BLUE,
    FONT,
    GREEN,
    GREY,
    GRID,
    INK,
    MUTED,
    ORANGE,
    WIDTH,
    YELLOW,
    add_legend,
    axis_label,
    bar_mark,
    dot_mark,
    drawable,
    ems,
    frame,
    line_mark,
    log_ticks,
    png_bytes,
)
from prefect_augment.report.view_model import ClassRow
from prefect_augment.schema import Interval, Origin, TrainingCurve

MAX_ROWS = 30  # more rows do not fit on a phone; the tables have them all
SHAPES_PER_CHART = 6

_NAME_WIDTH = 14.0  # of row labels, in units of the font size
_ORIGIN_COLOUR: Final[Mapping[Origin, str]] = {
    "real": GREY,
    "copy": YELLOW,
    "classic": GREEN,
    "synthetic": BLUE,
}


@dataclass(frozen=True)
class ForestRow:
    """An estimate with its range."""

    name: str
    interval: Interval
    points: tuple[float, ...] = ()  # single runs, drawn as small dots
    mark: str = ""  # follows the name in brackets; "chosen" is drawn in the accent colour
    detail: str = ""  # a second line below the name


def class_counts_chart(bars: Sequence[ClassRow]) -> bytes:
    """Training records per class before and after, by origin, on a logarithmic axis."""
    figure, ax = rows_figure([_name(b.name, b.number) for b in bars], extra=0.85)
    for y, bar in enumerate(bars):
        _count_line(ax, y, bar)
    largest = max([2, *(max(b.before, b.total) for b in bars)])
    smallest = min([largest, *(n for b in bars for n in (b.before, b.total) if n)])
    ax.set_xscale("log")
    low, high = _log_limits(bars, max(0.7, smallest * 0.6), largest)
    ax.set_xlim(low, high)
    ax.set_xticks(log_ticks(low, largest))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    axis_label(ax, "training records (logarithmic)")
    present = [o for o in _ORIGIN_COLOUR if o != "real" and any(b.after.get(o) for b in bars)]
    handles = [dot_mark("before", GREY, hollow=True), dot_mark("after", INK)]
    handles += [bar_mark(f"added: {o}", _ORIGIN_COLOUR[o]) for o in present]
    if any(b.weighted is not None for b in bars):
        handles.append(dot_mark("with weights", ORANGE, marker="D"))
    add_legend(figure, handles)
    return png_bytes(figure)


def _log_limits(bars: Sequence[ClassRow], low: float, largest: float) -> tuple[float, float]:
    """The axis' ends, with room for the text behind the longest line."""
    names = max(ems(_name(b.name, b.number)) for b in bars) * 10 / 72 if bars else 0.0
    text = max(ems(_change(b)) for b in bars) * 9 / 72 if bars else 0.0
    share = min(0.6, (text + 0.3) / (WIDTH - names - 0.4))  # of the axis, in inches
    high = math.exp((math.log(largest) - share * math.log(low)) / (1 - share))
    return low, max(high, largest * 1.6)


def _change(bar: ClassRow) -> str:
    """The numbers behind a line."""
    total = bar.total
    return f"{bar.before:,}" if total == bar.before else f"{bar.before:,} → {total:,}"


def _count_line(ax: Axes, y: int, bar: ClassRow) -> None:
    """Before, the added origins, after; a class without records has only its label."""
    total = bar.total
    at = bar.before
    for origin, colour in _ORIGIN_COLOUR.items():
        n = bar.after.get(origin, 0)
        if origin != "real" and n:
            ax.plot([max(at, 1), at + n], [y, y], color=colour, lw=5, solid_capstyle="butt")
            at += n
    if total:
        ax.plot(total, y, "o", color=INK, ms=6, zorder=3)
    if bar.before:
        ax.plot(bar.before, y, "o", mfc="none", mec=GREY, mew=1.8, ms=9, zorder=4)
    ends = [float(total or 1), float(bar.before or 1)]
    if (
        bar.weighted is not None
        and bar.weighted >= 1.0
        and not math.isclose(bar.weighted, total, rel_tol=0.05)
    ):
        ax.plot(bar.weighted, y, "D", color=ORANGE, ms=4.5, zorder=5)
        ends.append(bar.weighted)
    ax.annotate(
        _change(bar),
        (max(ends), y),
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        color=INK,
        fontsize=9,
        fontfamily=FONT,
    )


def forest_chart(
    rows: Sequence[ForestRow],
    *,
    label: str,
    zero: bool = False,
    effect: float | None = None,
    legend: str = "",
) -> bytes:
    """Estimates with their ranges, one below the other, in percent or points.

    ``effect`` is the minimum detectable effect, drawn as a band around the line of no difference (``zero``).
    """
    figure, ax = rows_figure([_forest_name(r) for r in rows], extra=0.95)
    if zero:
        ax.axvline(0.0, color=MUTED, lw=1.2, zorder=1)
    handles = [line_mark(legend, INK)] if legend else []
    if zero and effect is not None and math.isfinite(effect):
        ax.axvspan(-effect, effect, color=GRID, zorder=0)
        handles.append(bar_mark("too small to detect", GRID))
    for y, row in enumerate(rows):
        _estimate(ax, y, row.interval, BLUE if row.mark == "chosen" else INK)
        if len(row.points) > 1:
            ax.plot(row.points, [y + 0.22] * len(row.points), ".", color=MUTED, ms=5, zorder=2)
    if any(len(r.points) > 1 for r in rows):
        handles.append(dot_mark("one seed", MUTED, marker="."))
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.margins(x=0.08)
    axis_label(ax, label)
    add_legend(figure, handles)
    return png_bytes(figure)


def recall_chart(rows: Sequence[ClassRow], *, before: str, after: str) -> bytes:
    """Recall per class under two strategies with their intervals, in percent."""
    figure, ax = rows_figure([_name(r.name, r.number) for r in rows], extra=0.95)
    for y, row in enumerate(rows):
        if row.recall_as_is is not None:
            _estimate(ax, y - 0.16, in_percent(row.recall_as_is), GREY, hollow=True)
        if row.recall_shown is not None:
            _estimate(ax, y + 0.16, in_percent(row.recall_shown), BLUE)
    ax.set_xlim(-3, 103)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    axis_label(ax, "recall on the hold-out, %")
    add_legend(
        figure,
        [
            dot_mark(drawable(before, width=14), GREY, hollow=True),
            dot_mark(drawable(after, width=14), BLUE),
            Line2D([], [], color=MUTED, lw=2, label="95 % interval"),
        ],
    )
    return png_bytes(figure)


def shapes_chart(panels: Sequence[ShapeSummary]) -> bytes:
    """Histograms of up to six columns, real as grey areas, synthetic as blue lines."""
    n_rows = -(-len(panels) // 2)
    figure = Figure(
        figsize=(WIDTH, 1.75 * n_rows + 0.4), layout=ConstrainedLayoutEngine(h_pad=0.09)
    )
    grid = figure.subplots(n_rows, 2, squeeze=False)
    for ax, panel in zip(grid.flat, panels, strict=False):
        _panel(ax, panel)
    for ax in list(grid.flat)[len(panels) :]:
        ax.set_axis_off()
    handles = [bar_mark("synthetic", BLUE)]
    if any(p.n_real for p in panels):
        handles.insert(0, bar_mark("real", "#c3c9d0"))
    add_legend(figure, handles)
    return png_bytes(figure)


def _panel(ax: Axes, shape: ShapeSummary) -> None:
    frame(ax)
    ax.set_title(
        drawable(shape.column, width=19),
        fontsize=9.5,
        fontfamily=FONT,
        color=INK,
        loc="left",
        parse_math=False,
    )
    if shape.kind == "category":
        _category_panel(ax, shape)
        return
    edges = list(shape.edges)
    if shape.n_real:
        ax.stairs(shape.real, edges, fill=True, color="#c3c9d0", zorder=2)
    ax.stairs(shape.synthetic, edges, color=BLUE, lw=1.8, zorder=3)
    ax.set_ylim(bottom=0)
    ax.set_yticks([])
    # Few marks: dates and large numbers are wide, and the panel is not.
    ax.xaxis.set_major_locator(MaxNLocator(3 if shape.kind == "date" else 4))
    if shape.kind == "date":
        span = edges[-1] - edges[0]
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _date_mark(v, span)))
    else:
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("-", "−")))


def _category_panel(ax: Axes, shape: ShapeSummary) -> None:
    places = range(len(shape.levels))
    if shape.n_real:
        ax.barh([p - 0.2 for p in places], shape.real, height=0.38, color="#c3c9d0", zorder=2)
    ax.barh([p + 0.2 for p in places], shape.synthetic, height=0.38, color=BLUE, zorder=2)
    names = [drawable(level, width=8) for level in shape.levels]
    ax.set_yticks(list(places), names, parse_math=False)
    ax.tick_params(axis="y", labelsize=8, labelcolor=INK)
    ax.set_ylim(max(len(shape.levels), 2) - 0.4, -0.6)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))


def _date_mark(days: float, span: float) -> str:
    """A mark on an axis of days since 1970, as fine as the axis' span requires."""
    day = str(np.datetime64(round(days), "D"))
    year, month_day = day[:-6], day[-5:]
    if span > 5 * 365:
        return year
    return f"{year}-{month_day[:2]}" if span > 120 else month_day


def _name(name: str, number: int | None = None) -> str:
    return drawable(name, width=_NAME_WIDTH, number=number)


def _forest_name(row: ForestRow) -> str:
    """A row's label; the mark goes to the second line where the name fills the first."""
    mark = f" ({row.mark})" if row.mark else ""
    if row.detail or not mark:
        return "\n".join(_name(text) for text in (row.name, row.detail) if text)
    if ems(drawable(row.name) + mark) <= _NAME_WIDTH:
        return drawable(row.name) + mark
    return f"{_name(row.name)}\n{mark.strip()}"


def rows_figure(names: Sequence[str], *, extra: float) -> tuple[Figure, Axes]:
    """One named row per entry, the first on top; ``extra`` inches for axis and legend."""
    if len(names) > MAX_ROWS:
        raise ValueError(f"a chart has room for {MAX_ROWS} rows, got {len(names)}; choose fewer.")
    row_height = 0.46 if any("\n" in name for name in names) else 0.36
    figure = Figure(figsize=(WIDTH, row_height * max(len(names), 1) + extra), layout="constrained")
    ax = figure.add_subplot()
    frame(ax)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.tick_params(axis="y", labelsize=10, labelcolor=INK)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    return figure, ax


def _estimate(ax: Axes, y: float, interval: Interval, colour: str, *, hollow: bool = False) -> None:
    ax.plot([interval.low, interval.high], [y, y], color=colour, lw=2, solid_capstyle="round")
    face = "white" if hollow else colour
    ax.plot(interval.estimate, y, "o", mfc=face, mec=colour, mew=1.6, ms=6.5, zorder=3)


def in_percent(interval: Interval) -> Interval:
    """The interval times 100."""
    return Interval(
        estimate=100 * interval.estimate, low=100 * interval.low, high=100 * interval.high
    )


def curves_chart(curves: tuple[TrainingCurve, ...]) -> bytes:
    """The losses over the steps, one panel each, since their scales differ."""
    figure = Figure(figsize=(WIDTH, 1.5 * len(curves) + 0.9), layout="constrained")
    axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    handles = []
    for i, (ax, curve) in enumerate(zip(axes, curves, strict=True)):
        colour = (BLUE, ORANGE, GREEN)[i % 3]
        frame(ax)
        ax.grid(axis="y", color=GRID, lw=1, zorder=0)
        steps, losses = zip(*curve.points, strict=True)
        ax.plot(steps, losses, color=colour, lw=1.8)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        ax.tick_params(axis="y", labelfontfamily=FONT, labelsize=9, labelcolor=MUTED)
        handles.append(bar_mark(drawable(curve.loss, width=12), colour))
    axis_label(axes[-1], "training steps")
    add_legend(figure, handles)
    return png_bytes(figure)
