"""The report's section on what changed since the version before."""

from __future__ import annotations

from markupsafe import Markup

from prefect_augment.report.charts import distance_chart, mean_pictures, value_charts
from prefect_augment.report.markup import (
    Picture,
    bullets,
    figures,
    folded,
    heading,
    name,
    note,
    paragraph,
    table,
    tag,
)
from prefect_augment.schema.drift import ColumnDrift, Drift
from prefect_augment.text import (
    MISSING,
    count,
    effect,
    interval_percent,
    number,
    percent,
    visible,
)

__all__ = ["section"]

MAX_DRAWN = 6  # columns whose values are drawn, the most changed ones
MAX_LEVELS = 8  # named in a cell
MAX_TOLD = 12  # the table has all
_TONES = {"changed": "inconclusive", "new": "accept", "gone": "reject"}
HOW_TO_READ = (
    "Distance: the largest gap between the two cumulative distributions for numbers and dates, the total "
    "variation distance for categories; 0 is the same, 1 shares nothing. Of the mean picture: how far its"
    " pixels moved, in standard deviations. In the pictures of values the outer bars hold what lies "
    "beyond. What chance allows is a bound that all columns together stay below in 99 of 100 versions if "
    "records are drawn one by one from the same source; it is smaller the more records the versions "
    "share. Records that come in groups (of a patient, of a batch) move more than that without anything "
    "having changed. Only training and validation are looked at."
)


def section(drift: Drift | None) -> str:
    """HTML of the section; empty where there is no version before."""
    if drift is None:
        return ""
    parts = [
        heading(f"What changed since version {drift.version}"),
        paragraph(drift.sentence, lead=True),
        *(note(text) for text in drift.notes),
        _pictures(drift),
        _classes(drift),
        _columns(drift),
        _strategies(drift),
    ]
    return str(Markup("").join(parts))


def _pictures(drift: Drift) -> Markup:
    measured = [c for c in drift.columns if c.distance is not None]
    shown = []
    if measured:
        told = "; ".join(f"{visible(c.column)}: {_against(c)}" for c in measured[:30])
        alt = f"Distance of each column to the version before, and what chance allows. {told}."
        shown.append(Picture(distance_chart(measured), alt))
    moved = [c for c in measured if (c.distance or 0.0) > (c.noise or 0.0)]
    changed = [c for c in moved if c.kind != "picture"][:MAX_DRAWN]
    if changed:
        told = ", ".join(visible(c.column) for c in changed)
        (png,) = value_charts(changed)
        shown.append(Picture(png, f"Values before and now of the columns that changed: {told}."))
    for column in measured:
        if column.kind == "picture":
            alt = f"The mean of all images before and now, {_against(column)}."
            shown.append(Picture(mean_pictures(column), alt, photo=True))
    return figures(*shown)


def _against(column: ColumnDrift) -> str:
    return f"{number(column.distance)}, by chance up to {number(column.noise)}"


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
    shared = (
        f"About {count(drift.n_shared)} records are in both versions." if drift.n_shared else ""
    )
    return Markup("").join(
        [
            heading("Classes", level=3),
            paragraph(
                f"Real training records and their share. {shared} The last column says how many points "
                "of a share chance allows."
            ),
            table("Classes before and now", head, rows, numbers=range(1, 4)),
        ]
    )


def _word(status: str) -> Markup | str:
    """A status as a coloured word; nothing where all is as it was."""
    if status in ("", "same"):
        return ""
    return tag(status, _TONES.get(status, "none"))


def _columns(drift: Drift) -> Markup:
    if not drift.columns:
        return Markup("")
    rows = [
        (
            name(c.column),
            Markup("{} {}").format(_word(c.status), c.why),
            number(c.distance),
            number(c.noise),
            percent(c.null_before),
            percent(c.null_now),
            _levels(c.new_levels),
            _levels(c.vanished_levels),
        )
        for c in drift.columns
    ]
    head = ("Column", "", "Distance", "By chance up to", "Empty before, %", "Empty now, %",
            "New levels", "Vanished levels")  # fmt: skip
    shown = table("Columns before and now", head, rows, numbers=range(2, 6))
    how = Markup('<p class="muted">{}</p>\n').format(HOW_TO_READ)
    return Markup("").join(
        [
            heading("Columns", level=3),
            bullets(_told(drift)),
            folded("Every column, and how to read the distances", shown + how),
        ]
    )


def _told(drift: Drift) -> list[Markup]:
    """What the pictures do not show: empty values and levels that came or went, the first of many."""
    told = []
    for c in drift.columns:
        if c.null_changed:
            told.append(
                Markup("{}: {} % are empty, {} % were; chance allows {} points").format(
                    name(c.column),
                    percent(c.null_now),
                    percent(c.null_before),
                    effect(c.null_noise),
                )
            )
        for what, levels in (("new", c.new_levels), ("gone", c.vanished_levels)):
            if levels:
                told.append(Markup("{}: {}: {}").format(name(c.column), what, _levels(levels)))
    return told[:MAX_TOLD]


def _levels(levels: dict[str, int]) -> str:
    found = sorted(levels.items(), key=lambda kv: (-kv[1], kv[0]))
    told = [f"{visible(level)} ({count(n)})" for level, n in found[:MAX_LEVELS]]
    if len(found) > MAX_LEVELS:
        told.append(f"and {len(found) - MAX_LEVELS} more")
    return ", ".join(told) or MISSING


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
            percent(a.validation_before),
            percent(a.validation_now),
            interval_percent(a.holdout_before),
            interval_percent(a.holdout_now),
            _word("changed" if a.changed else ""),
        )
        for a in drift.strategies
    ]
    head = ("Strategy", "Val before", "Val now", "Hold-out before", "Hold-out now", "")
    scores = table("Balanced accuracy before and now", head, rows, numbers=range(1, 5))
    return Markup("").join(
        [
            heading("Verdict, recipe and strategies", level=3) if changes or rows else "",
            bullets(changes),
            folded("Balanced accuracy of every strategy, in percent", scores) if rows else "",
        ]
    )
