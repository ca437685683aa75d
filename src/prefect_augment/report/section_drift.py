"""The report's section on what changed since the version before."""

from __future__ import annotations

from markupsafe import Markup

from prefect_augment.report.markup import (
    bullets,
    folded,
    heading,
    name,
    paragraph,
    table,
    tag,
)
from prefect_augment.schema.report import Drift
from prefect_augment.text import (
    count,
    effect,
    interval_percent,
    percent,
)

__all__ = ["section"]

_TONES = {"changed": "inconclusive", "new": "accept", "gone": "reject"}


def section(drift: Drift | None) -> str:
    """HTML of the section; empty where there is no version before."""
    if drift is None:
        return ""
    parts = [
        heading(f"What changed since version {drift.version}"),
        paragraph(drift.sentence, lead=True),
        _classes(drift),
        _strategies(drift),
    ]
    return str(Markup("").join(parts))


def _classes(drift: Drift) -> Markup:
    n, m = max(drift.n_before, 1), max(drift.n_now, 1)
    rows = [
        (
            name(c.name),
            f"{count(c.before)} ({percent(c.before / n)} %)",
            f"{count(c.now)} ({percent(c.now / m)} %)",
            effect(c.noise),
            _word(
                "new" if not c.before else "gone" if not c.now else "changed" if c.changed else ""
            ),
        )
        for c in drift.classes
    ]
    head = ("Class", "Before", "Now", "By chance, points", "")
    return Markup("").join(
        [
            heading("Classes", level=3),
            paragraph(
                "Real training records and their share. The last column but one says how many points of a "
                "share chance allows between two samples."
            ),
            table("Classes before and now", head, rows, numbers=range(1, 4)),
        ]
    )


def _word(status: str) -> Markup | str:
    """A status as a coloured word; nothing where all is as it was."""
    if status in ("", "same"):
        return ""
    return tag(status, _TONES.get(status, "none"))


def _strategies(drift: Drift) -> Markup:
    changes = []
    for what, before, now in (
        ("Verdict", drift.verdict_before, drift.verdict_now),
        ("Recipe", drift.recipe_before, drift.recipe_now),
    ):
        if before or now:
            same = before == now
            changes.append(
                Markup("{}: {}").format(what, name(now))
                if same
                else Markup("{}: {}, before: {}").format(
                    what, name(now or "none"), name(before or "none")
                )
            )
    rows = [
        (
            name(a.name),
            interval_percent(a.before),
            interval_percent(a.now),
            _word("changed" if a.changed else ""),
        )
        for a in drift.strategies
    ]
    head = ("Strategy", "Before", "Now", "")
    scores = table("Balanced accuracy before and now", head, rows, numbers=range(1, 3))
    return Markup("").join(
        [
            heading("Verdict, recipe and strategies", level=3) if changes or rows else "",
            bullets(changes),
            folded("Balanced accuracy of every strategy, in percent", scores) if rows else "",
        ]
    )
