"""Charts of latents: vectors in a plane, anomaly scores with their threshold."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prefect_augment.array_types import Float
from prefect_augment.figures.style import (
    BLUE,
    FONT,
    GREEN,
    GREY,
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
    frame,
    line_mark,
    png_bytes,
)
from prefect_augment.schema import class_order

N_BINS = 60
# Of the scores on the axis: a few records may be larger by orders of magnitude.
SHOWN_QUANTILE = 0.995
_COLOURS = (BLUE, ORANGE, GREEN, YELLOW, "#cc79a7", "#56b4e9")  # Okabe & Ito 2008
_MARKERS = "os^Dv*"
_NAME_WIDTH = 10.0


@dataclass(frozen=True)
class Cloud:
    """Vectors in a plane."""

    points: Mapping[str, Float]  # some records of each class, (n, 2)
    share: float  # of the variance of all vectors, in [0, 1]


@dataclass(frozen=True)
class Scores:
    """Anomaly scores."""

    normal_validation: Float  # (n,) behind the threshold
    known: Float  # of all records of the classes that the model knows
    other: Float  # of all other records; may be empty
    threshold: float


def cloud_chart(cloud: Cloud) -> bytes:
    """Vectors as dots in the plane of largest variance, a colour and a shape per class, as a PNG.

    Classes beyond the sixth share one grey.
    """
    figure = Figure(figsize=(WIDTH, WIDTH * 0.9), layout="constrained")
    ax = figure.add_subplot()
    frame(ax)
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])
    names = sorted(cloud.points, key=lambda name: (-len(cloud.points[name]), name))
    own = class_order(names[: len(_COLOURS)])
    handles = []
    rest = [cloud.points[name] for name in names[len(_COLOURS) :]]
    if rest:
        many = np.concatenate(rest)
        ax.plot(many[:, 0], many[:, 1], ".", color=GREY, ms=4, alpha=0.7, zorder=1)
    for name, colour, marker in zip(own, _COLOURS, _MARKERS, strict=False):
        points = cloud.points[name]
        ax.plot(points[:, 0], points[:, 1], marker, color=colour, ms=3.2, alpha=0.7, zorder=2)
        handles.append(dot_mark(drawable(name, width=_NAME_WIDTH), colour, marker=marker))
    if rest:
        handles.append(dot_mark(f"{len(rest)} more classes", GREY))
    axis_label(
        ax, f"the plane in which vectors spread most: {100 * cloud.share:.0f} % of the variance"
    )
    add_legend(figure, handles)
    return png_bytes(figure)


def scores_chart(scores: Scores) -> bytes:
    """Histograms of anomaly scores with the threshold, as a PNG; each group's area is 1."""
    pooled = np.concatenate([scores.normal_validation, scores.known, scores.other])
    low, high = float(pooled.min()), float(np.quantile(pooled, SHOWN_QUANTILE))
    high = max(high, scores.threshold + 0.1 * abs(scores.threshold - low))
    edges = np.linspace(low, high if high > low else low + 1.0, N_BINS + 1)
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    ax = figure.add_subplot()
    frame(ax)
    handles = [bar_mark("validation, normal", "#c3c9d0"), line_mark("all, normal", BLUE)]
    ax.stairs(
        _heights(scores.normal_validation, edges), edges, fill=True, color="#c3c9d0", zorder=2
    )
    ax.stairs(_heights(scores.known, edges), edges, color=BLUE, lw=1.6, zorder=3)
    if len(scores.other):
        ax.stairs(_heights(scores.other, edges), edges, color=ORANGE, lw=1.6, zorder=3)
        handles.append(line_mark("other classes", ORANGE))
    ax.axvline(scores.threshold, color=INK, lw=1.4, ls="--", zorder=4)
    ax.annotate(
        f"threshold {scores.threshold:.4g}",
        (scores.threshold, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4, -10),
        textcoords="offset points",
        fontsize=8.5,
        fontfamily=FONT,
        color=MUTED,
    )
    ax.set_yticks([])
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    n_beyond = int((pooled > edges[-1]).sum())
    axis_label(ax, "anomaly score" + (f" ({n_beyond:,} more to the right)" if n_beyond else ""))
    add_legend(figure, handles)
    return png_bytes(figure)


def _heights(values: Float, edges: Float) -> Float:
    counts = np.histogram(values, edges)[0]
    return counts / max(1, len(values))
