"""The report's section on how the training of the generative model went."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from prefect_augment.figures.style import (
    BLUE,
    FONT,
    GREEN,
    GRID,
    MUTED,
    ORANGE,
    WIDTH,
    add_legend,
    axis_label,
    bar_mark,
    drawable,
    frame,
    png_bytes,
)
from prefect_augment.report.markup import Picture, figures, heading, paragraph
from prefect_augment.schema.report import Training, TrainingCurve
from prefect_augment.text import count, number, visible

__all__ = ["curves_chart", "section"]

_COLOURS = (BLUE, ORANGE, GREEN)
HOW_TO_READ = (
    "The loss that the generative model was trained on, as means over equal stretches of the steps. A curve "
    "that still falls at the end says that more steps may help; one that is flat has what it can get. "
    "What the loss is, differs between models: only its course can be read."
)


def section(training: Training | None) -> str:
    """HTML of the section; empty where no network was trained."""
    if training is None or not training.curves:
        return ""
    told = "; ".join(
        f"{visible(c.loss)}: {number(c.points[0][1])} at step {count(c.points[0][0])}, "
        f"{number(c.points[-1][1])} at step {count(c.points[-1][0])}"
        for c in training.curves
    )
    picture = Picture(curves_chart(training.curves), f"Training loss over the steps. {told}.")
    return heading("Training curves") + paragraph(HOW_TO_READ, lead=True) + figures(picture)


def curves_chart(curves: tuple[TrainingCurve, ...]) -> bytes:
    """The losses over the steps, one panel below the other: they have scales of their own."""
    figure = Figure(figsize=(WIDTH, 1.5 * len(curves) + 0.9), layout="constrained")
    axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    handles = []
    for i, (ax, curve) in enumerate(zip(axes, curves, strict=True)):
        colour = _COLOURS[i % len(_COLOURS)]
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
