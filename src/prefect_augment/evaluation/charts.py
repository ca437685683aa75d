"""The report's pictures, as PNG bytes.

Plain data in, bytes out. Figures are built without pyplot, so nothing global is left behind and
threads do not meet; the PNGs carry no date and no software name, so equal data give equal bytes.
Names from the user's data never reach matplotlib as they are: see :func:`drawable`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Final

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from PIL import Image

from prefect_augment.datatypes import Interval, Origin
from prefect_augment.evaluation.shapes import ShapeSummary

__all__ = [
    "ClassBar",
    "ForestRow",
    "RecallRow",
    "class_counts_chart",
    "drawable",
    "font_path",
    "forest_chart",
    "recall_chart",
    "shapes_chart",
]

MAX_BYTES = 200_000  # an artifact's picture may not be larger (DESIGN §9)
MAX_ROWS = 30  # more rows do not fit on a phone; the tables have them all
SHAPES_PER_CHART = 6

_LONGEST = 200  # characters of a name that are looked at: more never fit
_FONT = "DejaVu Sans"  # ships with matplotlib: the same glyphs on every machine
_NAME_WIDTH = 14.0  # of row labels, in units of the font size
_WIDTH = 4.7  # inches: one column on a phone, half a page on a desktop
_INK, _MUTED, _GRID = "#1c2430", "#5b6572", "#e6e9ed"
# Okabe & Ito 2008: told apart with every common colour blindness. Shapes differ as well.
_BLUE, _ORANGE, _GREEN, _YELLOW, _GREY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#8b95a1"
_ORIGIN_COLOUR: Final[Mapping[Origin, str]] = {
    "real": _GREY,
    "copy": _YELLOW,
    "classic": _GREEN,
    "synthetic": _BLUE,
}


@dataclass(frozen=True)
class ClassBar:
    """A class's training records before and after; ``weighted`` is what the weights make of them.

    ``number`` is the class's place in the table beside the picture, see :func:`drawable`.
    """

    name: str
    before: int
    after: Mapping[Origin, int]
    weighted: float | None = None
    number: int | None = None


@dataclass(frozen=True)
class ForestRow:
    """An estimate with its range; ``points`` are single runs, drawn as small dots.

    ``mark`` follows the name in brackets, and "chosen" is drawn in the accent colour; ``detail``
    is a second line below the name.
    """

    name: str
    interval: Interval
    points: tuple[float, ...] = ()
    mark: str = ""
    detail: str = ""


@dataclass(frozen=True)
class RecallRow:
    """A class's recall under two arms, each in [0, 1]."""

    name: str
    before: Interval | None
    after: Interval | None
    number: int | None = None


def drawable(text: str, *, width: float = math.inf, number: int | None = None) -> str:
    """``text`` as the pictures can show it: on one line, within a width, with glyphs the font has.

    Parameters
    ----------
    text : str
        A name from the user's data.
    width : float
        Largest width in units of the font size; longer names end in an ellipsis.
    number : int, optional
        The name's number in the table beside the picture. It is added where a glyph is missing,
        since two names may look the same then.

    Returns
    -------
    str
        Only glyphs of the font; what it lacks becomes U+FFFD, runs of it one.
    """
    font = _font()
    flat = " ".join(text[:_LONGEST].split()) or "(blank)"
    shown: list[str] = []
    for char in flat:
        known = char.isprintable() and font.get_char_index(ord(char)) != 0
        if known or shown[-1:] != ["\ufffd"]:
            shown.append(char if known else "\ufffd")
    name = "".join(shown)
    suffix = f" (no. {number})" if number is not None and "\ufffd" in name else ""
    if _ems(name + suffix) <= width:
        return name + suffix
    while name and _ems(name + "…" + suffix) > width:
        name = name[:-1]
    return name.rstrip() + "…" + suffix


def class_counts_chart(bars: Sequence[ClassBar]) -> bytes:
    """Training records per class before and after, by origin, on a logarithmic axis.

    Parameters
    ----------
    bars : sequence of ClassBar
        In drawing order, from the top; at most :data:`MAX_ROWS`.

    Returns
    -------
    bytes
        A PNG.
    """
    figure, ax = _rows_figure([_name(b.name, b.number) for b in bars], extra=0.85)
    for y, bar in enumerate(bars):
        _count_line(ax, y, bar)
    largest = max([2, *(max(b.before, sum(b.after.values())) for b in bars)])
    smallest = min([largest, *(n for b in bars for n in (b.before, sum(b.after.values())) if n)])
    ax.set_xscale("log")
    ax.set_xlim(max(0.7, smallest * 0.6), largest * (largest / smallest) ** 0.25 * 1.6)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    _axis_label(ax, "training records (logarithmic)")
    present = [o for o in _ORIGIN_COLOUR if o != "real" and any(b.after.get(o) for b in bars)]
    handles = [_dot("before", _GREY, hollow=True), _dot("after", _INK)]
    handles += [_bar(f"added: {o}", _ORIGIN_COLOUR[o]) for o in present]
    if any(b.weighted is not None for b in bars):
        handles.append(_dot("with weights", _ORANGE, marker="D"))
    _legend(figure, handles)
    return _png(figure)


def _count_line(ax: Axes, y: int, bar: ClassBar) -> None:
    """Before, the origins that were added, after; a class without records has only its label."""
    total = sum(bar.after.values())
    at = bar.before
    for origin, colour in _ORIGIN_COLOUR.items():
        n = bar.after.get(origin, 0)
        if origin != "real" and n:
            ax.plot([max(at, 1), at + n], [y, y], color=colour, lw=5, solid_capstyle="butt")
            at += n
    if total:
        ax.plot(total, y, "o", color=_INK, ms=6, zorder=3)
    if bar.before:
        ax.plot(bar.before, y, "o", mfc="none", mec=_GREY, mew=1.8, ms=9, zorder=4)
    ends = [float(total or 1), float(bar.before or 1)]
    if bar.weighted is not None and bar.weighted >= 1.0 and not _near(bar.weighted, total):
        ax.plot(bar.weighted, y, "D", color=_ORANGE, ms=4.5, zorder=5)
        ends.append(bar.weighted)
    text = f"{bar.before:,}" if total == bar.before else f"{bar.before:,} → {total:,}"
    ax.annotate(
        text,
        (max(ends), y),
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        color=_INK,
        fontsize=9,
        fontfamily=_FONT,
    )


def _near(a: float, b: float) -> bool:
    """Whether two marks would lie on one another."""
    return abs(a - b) <= 0.05 * max(a, b)


def forest_chart(
    rows: Sequence[ForestRow],
    *,
    label: str,
    zero: bool = False,
    effect: float | None = None,
    legend: str = "",
) -> bytes:
    """Estimates with their ranges, one below the other.

    Parameters
    ----------
    rows : sequence of ForestRow
        From the top; at most :data:`MAX_ROWS`. Values are in percent or points.
    label : str
        What the axis measures, with its unit.
    zero : bool
        Draw the line of no difference.
    effect : float, optional
        Minimum detectable effect, drawn as a band around zero.
    legend : str
        What the bars mean.

    Returns
    -------
    bytes
        A PNG.
    """
    figure, ax = _rows_figure([_forest_name(r) for r in rows], extra=0.95)
    if zero:
        ax.axvline(0.0, color=_MUTED, lw=1.2, zorder=1)
    handles = [_line(legend, _INK)] if legend else []
    if zero and effect is not None and math.isfinite(effect):
        ax.axvspan(-effect, effect, color=_GRID, zorder=0)
        handles.append(_bar("too small to detect", _GRID))
    for y, row in enumerate(rows):
        _estimate(ax, y, row.interval, _BLUE if row.mark == "chosen" else _INK)
        if len(row.points) > 1:
            ax.plot(row.points, [y + 0.22] * len(row.points), ".", color=_MUTED, ms=5, zorder=2)
    if any(len(r.points) > 1 for r in rows):
        handles.append(_dot("one seed", _MUTED, marker="."))
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.margins(x=0.08)
    _axis_label(ax, label)
    _legend(figure, handles)
    return _png(figure)


def recall_chart(rows: Sequence[RecallRow], *, before: str, after: str) -> bytes:
    """Recall per class under two arms with their intervals, in percent.

    Parameters
    ----------
    rows : sequence of RecallRow
        From the top; at most :data:`MAX_ROWS`.
    before, after : str
        Names of the two arms.

    Returns
    -------
    bytes
        A PNG.
    """
    figure, ax = _rows_figure([_name(r.name, r.number) for r in rows], extra=0.95)
    for y, row in enumerate(rows):
        if row.before is not None:
            _estimate(ax, y - 0.16, _percent(row.before), _GREY, hollow=True)
        if row.after is not None:
            _estimate(ax, y + 0.16, _percent(row.after), _BLUE)
    ax.set_xlim(-3, 103)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    _axis_label(ax, "recall on the hold-out, %")
    _legend(
        figure,
        [
            _dot(drawable(before, width=14), _GREY, hollow=True),
            _dot(drawable(after, width=14), _BLUE),
            Line2D([], [], color=_MUTED, lw=2, label="95 % interval"),
        ],
    )
    return _png(figure)


def shapes_chart(panels: Sequence[ShapeSummary]) -> bytes:
    """Histograms of up to six columns, real as grey areas, synthetic as blue lines.

    Parameters
    ----------
    panels : sequence of ShapeSummary
        One to :data:`SHAPES_PER_CHART` columns.

    Returns
    -------
    bytes
        A PNG.
    """
    n_rows = -(-len(panels) // 2)
    figure = Figure(
        figsize=(_WIDTH, 1.75 * n_rows + 0.4), layout=ConstrainedLayoutEngine(h_pad=0.09)
    )
    grid = figure.subplots(n_rows, 2, squeeze=False)
    for ax, panel in zip(grid.flat, panels, strict=False):
        _panel(ax, panel)
    for ax in list(grid.flat)[len(panels) :]:
        ax.set_axis_off()
    handles = [_bar("synthetic", _BLUE)]
    if any(p.n_real for p in panels):
        handles.insert(0, _bar("real", "#c3c9d0"))
    _legend(figure, handles)
    return _png(figure)


def _panel(ax: Axes, shape: ShapeSummary) -> None:
    _frame(ax)
    ax.set_title(
        drawable(shape.column, width=19),
        fontsize=9.5,
        fontfamily=_FONT,
        color=_INK,
        loc="left",
        parse_math=False,
    )
    if shape.kind == "category":
        _category_panel(ax, shape)
        return
    edges = list(shape.edges)
    if shape.n_real:
        ax.stairs(shape.real, edges, fill=True, color="#c3c9d0", zorder=2)
    ax.stairs(shape.synthetic, edges, color=_BLUE, lw=1.8, zorder=3)
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
    ax.barh([p + 0.2 for p in places], shape.synthetic, height=0.38, color=_BLUE, zorder=2)
    names = [drawable(level, width=8) for level in shape.levels]
    ax.set_yticks(list(places), names, parse_math=False)
    ax.tick_params(axis="y", labelsize=8, labelcolor=_INK)
    ax.set_ylim(max(len(shape.levels), 2) - 0.4, -0.6)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))


def _date_mark(days: float, span: float) -> str:
    """A mark on an axis of days since 1970, as fine as the axis' span needs it."""
    day = str(np.datetime64(round(days), "D"))
    year, month_day = day[:-6], day[-5:]
    if span > 5 * 365:
        return year
    return f"{year}-{month_day[:2]}" if span > 120 else month_day


def _name(name: str, number: int | None = None) -> str:
    """A row's label."""
    return drawable(name, width=_NAME_WIDTH, number=number)


def _forest_name(row: ForestRow) -> str:
    """A row's label: the mark goes to the second line where the name needs the first."""
    mark = f" ({row.mark})" if row.mark else ""
    if row.detail or not mark:
        return "\n".join(_name(text) for text in (row.name, row.detail) if text)
    if _ems(drawable(row.name) + mark) <= _NAME_WIDTH:
        return drawable(row.name) + mark
    return f"{_name(row.name)}\n{mark.strip()}"


def _rows_figure(names: Sequence[str], *, extra: float) -> tuple[Figure, Axes]:
    """One named row per entry, the first on top; ``extra`` inches for axis and legend."""
    if len(names) > MAX_ROWS:
        raise ValueError(f"a chart has room for {MAX_ROWS} rows, got {len(names)}; choose fewer.")
    row_height = 0.46 if any("\n" in name for name in names) else 0.36
    figure = Figure(figsize=(_WIDTH, row_height * max(len(names), 1) + extra), layout="constrained")
    ax = figure.add_subplot()
    _frame(ax)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.tick_params(axis="y", labelsize=10, labelcolor=_INK)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    return figure, ax


def _frame(ax: Axes) -> None:
    """Faint vertical grid lines and nothing else around the data."""
    ax.set_facecolor("white")
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.grid(axis="x", color=_GRID, lw=1, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelfontfamily=_FONT, labelsize=9, labelcolor=_MUTED)


def _estimate(ax: Axes, y: float, interval: Interval, colour: str, *, hollow: bool = False) -> None:
    ax.plot([interval.low, interval.high], [y, y], color=colour, lw=2, solid_capstyle="round")
    face = "white" if hollow else colour
    ax.plot(interval.estimate, y, "o", mfc=face, mec=colour, mew=1.6, ms=6.5, zorder=3)


def _percent(interval: Interval) -> Interval:
    return Interval(
        estimate=100 * interval.estimate, low=100 * interval.low, high=100 * interval.high
    )


def _axis_label(ax: Axes, text: str) -> None:
    ax.set_xlabel(text, fontsize=9, fontfamily=_FONT, color=_MUTED)


def _dot(label: str, colour: str, *, marker: str = "o", hollow: bool = False) -> Line2D:
    face = "white" if hollow else colour
    size = 8 if marker == "." else 6
    return Line2D([], [], ls="", marker=marker, mfc=face, mec=colour, mew=1.6, ms=size, label=label)


def _line(label: str, colour: str) -> Line2D:
    return Line2D([], [], color=colour, lw=2, marker="o", ms=6, label=label)


def _bar(label: str, colour: str) -> Line2D:
    return Line2D([], [], color=colour, lw=6, label=label, solid_capstyle="butt")


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    if not handles:
        return
    legend = figure.legend(
        handles=list(handles),
        loc="outside lower left",
        ncols=min(3, len(handles)),
        frameon=False,
        prop=font_manager.FontProperties(family=_FONT, size=9),
        labelcolor=_INK,
        handlelength=1.4,
        columnspacing=1.4,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _png(figure: Figure) -> bytes:
    """The figure as PNG, as fine as the size limit allows."""
    FigureCanvasAgg(figure)
    content = b""
    for dpi in (200, 150, 100, 72):
        drawn, buffer = BytesIO(), BytesIO()
        figure.savefig(
            drawn, format="png", dpi=dpi, facecolor="white", pil_kwargs={"compress_level": 1}
        )
        # Flat colours: a palette shows no difference and takes a third of the space. Written again
        # without the software's name, which savefig adds.
        palette = Image.open(drawn).convert("RGB").quantize(96, dither=Image.Dither.NONE)
        palette.save(buffer, format="png", optimize=True)
        content = buffer.getvalue()
        if len(content) < MAX_BYTES:
            break
    return content


def _ems(text: str) -> float:
    """Width of ``text`` in units of the font size."""
    font = _font()
    return sum(_advance(font, ord(char)) for char in text)


def _advance(font: FT2Font, codepoint: int) -> float:
    # linearHoriAdvance is 16.16 fixed point, in pixels at the size that _font sets (64).
    return font.load_char(codepoint).linearHoriAdvance / 65_536 / 64


@lru_cache(maxsize=1)
def font_path() -> str:
    """Where the font of all pictures is."""
    return str(font_manager.findfont(_FONT))


def _font() -> FT2Font:
    """A font object of its own: the one matplotlib shares is not safe between threads."""
    font = FT2Font(font_path())
    font.set_size(64, 72)
    return font
