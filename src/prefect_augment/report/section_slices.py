"""The report's section on groups: recall per class and group, before and after."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from prefect_augment.report.markup import bullets, heading, name, note, paragraph, table, tag
from prefect_augment.schema.experiment import Gap, GroupRow, SliceResult, SliceRow
from prefect_augment.text import MISSING, count, interval_percent, interval_points

__all__ = ["section"]

MAX_ROWS = 100  # of slices; report.json has all
KINDS = {"gains": "accept", "loses": "reject", "not shown": "inconclusive", "too few": "none"}
# What is shown comes first, then what hardly says anything.
ORDER = {"loses": 0, "gains": 1, "not shown": 2, "too few": 3}


def section(info: SliceResult | None) -> str:
    """Return the section's HTML; empty where the run was not balanced within groups."""
    if info is None:
        return ""
    columns = ", ".join(info.by)
    lead = (
        f"Recall on the hold-out within {columns}: “{info.before}” before, “{info.after}” after. "
        "Differences hold together at 95 %, over the groups and over the slices of a table."
    )
    few = info.n_too_few
    parts = [
        heading("Groups"),
        paragraph(lead, lead=True),
        _flags(info.flags),
        heading("Each group, over its classes", level=3),
        _groups(info.groups),
    ]
    if info.gaps:
        parts += [heading("Gaps between groups", level=3), _gaps(info.gaps)]
    parts += [heading("Each class in each group", level=3), _slices(info.slices)]
    if few:
        n = "1 slice has" if few == 1 else f"{count(few)} slices have"
        parts.append(
            note(f"{n} fewer than {info.min_records} hold-out records: nothing is said of them.")
        )
    return Markup("").join(parts)


def _flags(flags: Sequence[str]) -> Markup:
    if not flags:
        return paragraph(
            "Nowhere is shown that one group gains while another loses, or that the gap between groups widens."
        )
    return Markup("{}{}").format(
        paragraph(tag("Groups are not treated alike.", "reject")), bullets(flags)
    )


def _of(result: GroupRow | SliceRow) -> list[object]:
    difference = MISSING if result.difference is None else interval_points(result.difference)
    return [
        count(result.n_holdout),
        interval_percent(result.before),
        interval_percent(result.after),
        difference,
        tag(result.decision, KINDS[result.decision]),
    ]


def _said(group: dict[str, str]) -> Markup:
    return name(", ".join(f"{column}={value}" for column, value in group.items()))


def _groups(groups: Sequence[GroupRow]) -> Markup:
    head = ("Group", "Hold-out records", "Before, %", "After, %", "Difference, points", "Shown")
    return table(
        "Recall per group", head, ([_said(g.group), *_of(g)] for g in groups), numbers=range(1, 5)
    )


def _gaps(gaps: Sequence[Gap]) -> Markup:
    rows = [
        [
            name(gap.label) if gap.label else "over the classes",
            ", ".join(gap.columns),
            interval_percent(gap.before),
            interval_percent(gap.after),
            interval_points(gap.change),
        ]
        for gap in gaps[:MAX_ROWS]
    ]
    head = ("Class", "Between", "Before, points", "After, points", "Change, points")
    return table("Gaps between groups", head, rows, numbers=range(2, 5))


def _slices(slices: Sequence[SliceRow]) -> Markup:
    ordered = sorted(slices, key=lambda s: ORDER[s.decision])
    head = (
        "Class",
        "Group",
        "Hold-out records",
        "Before, %",
        "After, %",
        "Difference, points",
        "Shown",
    )
    rows = [[name(s.label), _said(s.group), *_of(s)] for s in ordered[:MAX_ROWS]]
    found = table("Recall per class and group", head, rows, numbers=range(2, 6))
    if len(slices) > MAX_ROWS:
        found += note(f"… and {count(len(slices) - MAX_ROWS)} more in report.json.")
    return found
