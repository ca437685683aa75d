"""HTML of the report's sections that are written in Python: every user's string is escaped here.

The classes are those of ``templates/report.css.j2``, so that a section looks like the others.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from prefect_augment.text import visible

__all__ = [
    "Picture",
    "bullets",
    "figures",
    "folded",
    "heading",
    "name",
    "note",
    "paragraph",
    "table",
    "tag",
]


def name(text: object) -> Markup:
    """A user's own word, such as a class or a column, set apart from the text around it."""
    return Markup('<bdi class="name">{}</bdi>').format(visible(text))


def heading(text: object, *, level: int = 2) -> Markup:
    """A heading: level 2 opens a section, 3 a part of it."""
    return Markup("<h{0}>{1}</h{0}>\n").format(level, text)


def paragraph(text: object, *, lead: bool = False) -> Markup:
    """A paragraph; ``lead`` is the one that says what a section shows."""
    shape = Markup('<p class="lead">{}</p>\n') if lead else Markup("<p>{}</p>\n")
    return shape.format(text)


def note(text: object) -> Markup:
    """A paragraph that says what was not done, and why."""
    return Markup('<p class="notrun">{}</p>\n').format(text)


def tag(text: object, kind: str = "none") -> Markup:
    """A word in a coloured field; ``kind`` is accept, reject, inconclusive or none."""
    return Markup('<span class="tag {}">{}</span>').format(kind, visible(text))


def bullets(items: Iterable[object]) -> Markup:
    """A list; nothing without items."""
    lines = Markup("").join(Markup("<li>{}</li>").format(item) for item in items)
    return Markup("<ul>{}</ul>\n").format(lines) if lines else Markup("")


def table(
    label: str,
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Collection[int] = (),
) -> Markup:
    """A table that scrolls in its own frame where it is wider than the page.

    Parameters
    ----------
    label : str
        What it holds, for those who hear the page.
    head : sequence
        One text per column; the first column names the row.
    rows : iterable of sequences
        Texts, or :class:`markupsafe.Markup` of this module.
    numbers : collection of int
        Columns that are set to the right.
    """

    def classes(i: int) -> Markup:
        return Markup(' class="n"') if i in numbers else Markup("")

    top = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(classes(i), text) for i, text in enumerate(head)
    )
    lines = [
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            first,
            Markup("").join(
                Markup("<td{}>{}</td>").format(classes(i), cell)
                for i, cell in enumerate(rest, start=1)
            ),
        )
        for first, *rest in rows
    ]
    return Markup(
        '<div class="scroll" role="region" tabindex="0" aria-label="{}">\n<table>\n'
        "<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>\n</div>\n"
    ).format(label, top, Markup("\n").join(lines))


class Picture(NamedTuple):
    """A PNG and what it shows in words; ``photo`` where its colours are not to be turned in the dark."""

    png: bytes
    alt: str
    caption: str = ""
    photo: bool = False


def figures(*pictures: Picture | tuple[bytes, str, str]) -> Markup:
    """Pictures beside one another; a plain tuple is a :class:`Picture` that is no photo."""
    shown = Markup("\n").join(_figure(Picture(*picture)) for picture in pictures)
    return Markup('<div class="figures">{}</div>\n').format(shown) if shown else Markup("")


def folded(summary: object, content: Markup) -> Markup:
    """Content that opens when it is asked for, by the word it is asked for with."""
    return Markup("<details><summary>{}</summary>\n{}</details>\n").format(summary, content)


def _figure(picture: Picture) -> Markup:
    width, height = struct.unpack(">II", picture.png[16:24])  # IHDR is always the first chunk
    caption = visible(picture.caption) if picture.caption else ""
    return Markup(
        '<figure class="{}"><img src="data:image/png;base64,{}" alt="{}" width="{}" height="{}">{}</figure>'
    ).format(
        "photo" if picture.photo else "chart",
        base64.b64encode(picture.png).decode("ascii"),
        picture.alt,
        width // 2,
        height // 2,
        Markup("<figcaption>{}</figcaption>").format(caption) if caption else "",
    )
