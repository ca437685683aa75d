"""Style of all charts: fonts, colours, frames, legends, PNG bytes.

Figures are built without pyplot, so there is no global state and threads do not interfere. PNGs
carry no date and no software name, so equal data give equal bytes. Names from the user's data reach
matplotlib only through :func:`drawable`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from PIL import Image

MAX_BYTES = 200_000  # an artifact's picture may not be larger (DESIGN §9)
DOTS_PER_INCH = (200, 150, 100, 72)  # the first that keeps a picture small enough
WIDTH = 4.7  # inches: one column on a phone, half a page on a desktop
FONT = "DejaVu Sans"  # ships with matplotlib: the same glyphs on every machine
INK, MUTED, GRID = "#1c2430", "#5b6572", "#e6e9ed"
# Okabe & Ito 2008: told apart with every common colour blindness. Shapes differ as well.
BLUE, ORANGE, GREEN, YELLOW, GREY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#8b95a1"

_LONGEST = 200  # characters of a name: more never fit


def drawable(text: str, *, width: float = math.inf, number: int | None = None) -> str:
    """``text`` on one line, within a width in ems, with glyphs that the font has.

    Longer names end in an ellipsis. Runs of missing glyphs become one U+FFFD, and ``number``, the
    name's row in the table beside the picture, is added, since two names may then look the same.
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
    if ems(name + suffix) <= width:
        return name + suffix
    while name and ems(name + "…" + suffix) > width:
        name = name[:-1]
    return name.rstrip() + "…" + suffix


def frame(ax: Axes) -> None:
    """Faint vertical grid lines and nothing else around the data."""
    ax.set_facecolor("white")
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.grid(axis="x", color=GRID, lw=1, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelfontfamily=FONT, labelsize=9, labelcolor=MUTED)


def axis_label(ax: Axes, text: str) -> None:
    """Label the horizontal axis."""
    ax.set_xlabel(text, fontsize=9, fontfamily=FONT, color=MUTED)


def log_ticks(low: float, largest: float) -> list[float]:
    """Marks of a logarithmic axis as far as there are records, few enough to fit."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(largest)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        ticks = [s * 10.0**k for k in decades for s in steps if low <= s * 10.0**k <= largest]
        if len(ticks) >= 2:
            break
    return ticks[:: math.ceil(len(ticks) / 5)] if ticks else [largest]


def dot_mark(label: str, colour: str, *, marker: str = "o", hollow: bool = False) -> Line2D:
    """A legend's entry: a dot."""
    face = "white" if hollow else colour
    size = 8 if marker == "." else 6
    return Line2D([], [], ls="", marker=marker, mfc=face, mec=colour, mew=1.6, ms=size, label=label)


def line_mark(label: str, colour: str) -> Line2D:
    """A legend's entry: an estimate with its range."""
    return Line2D([], [], color=colour, lw=2, marker="o", ms=6, label=label)


def bar_mark(label: str, colour: str) -> Line2D:
    """A legend's entry: a bar."""
    return Line2D([], [], color=colour, lw=6, label=label, solid_capstyle="butt")


def add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Put the legend below the figure; none without entries."""
    if not handles:
        return
    legend = figure.legend(
        handles=list(handles),
        loc="outside lower left",
        ncols=min(3, len(handles)),
        frameon=False,
        prop=font_manager.FontProperties(family=FONT, size=9),
        labelcolor=INK,
        handlelength=1.4,
        columnspacing=1.4,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG, as fine as :data:`MAX_BYTES` allows."""
    canvas = FigureCanvasAgg(figure)
    figure.set_facecolor("white")
    content = b""
    for dpi in DOTS_PER_INCH:
        figure.set_dpi(dpi)
        # savefig would lay everything out twice, and write a file to be read again.
        pixels, size = canvas.print_to_buffer()
        # Flat colours: a palette shows no difference and takes a third of the space.
        flat = Image.frombytes("RGBA", size, pixels).convert("RGB")
        palette = flat.quantize(96, dither=Image.Dither.NONE)
        buffer = BytesIO()
        palette.save(buffer, format="png")
        content = buffer.getvalue()
        if len(content) < MAX_BYTES:
            break
    return content


def ems(text: str) -> float:
    """Width of ``text`` in units of the font size."""
    return sum(_advance(ord(char)) for char in text)


@lru_cache(maxsize=4096)
def _advance(codepoint: int) -> float:
    # linearHoriAdvance is 16.16 fixed point, in pixels at the size that _font sets (64).
    return _font().load_char(codepoint).linearHoriAdvance / 65_536 / 64


@lru_cache(maxsize=1)
def font_path() -> str:
    """Path of the font of all pictures."""
    return str(font_manager.findfont(FONT))


def _font() -> FT2Font:
    """A new font object, since the one that matplotlib shares is not safe between threads."""
    font = FT2Font(font_path())
    font.set_size(64, 72)
    return font
