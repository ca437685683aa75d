"""The report's section on the classes as the gate judged them, each as a whole."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup

from prefect_augment.evaluation.quality.class_tests import CHECKS
from prefect_augment.schema.base import ClassCheck, ClassFilter, FilterResult
from prefect_augment.text import count, percent, visible

__all__ = ["section"]

HEADS = {
    "domain": "Outside the domain",
    "copies": "Near training records",
    "noise": "Far from all of them",
    "labels": "Taken for another class",
    "collapse": "Real records covered",
}
TONES = {"safe": "accept", "unsafe": "reject", "not judged": "none"}
HOW_TO_READ = (
    "Each class's drawn records as a whole, before any was dropped, and in brackets what unseen real "
    "records of the class give. A class is unsafe where they differ by more than chance and, but for "
    "copies, by more than is allowed; all classes and checks together call a sound generator unsafe with "
    "a chance of at most quality.false_alarm. Safe means that nothing was found: a few copies among a "
    "thousand records cannot be told from real ones that happen to be near, though a copy of "
    "a record that is unlike all others is dropped by itself."
)
MAX_CLASSES = 100  # report.json has all


def section(report: FilterResult | None) -> str:
    """HTML of the section; empty where no class was judged as a whole."""
    compared = [c for c in report.classes if c.checks] if report else []
    if not compared:
        return ""
    unsafe = [c for c in compared if c.verdict == "unsafe"]
    lead = (
        f"{len(unsafe)} of {len(compared)} classes are unsafe."
        if unsafe
        else f"None of {len(compared)} classes is unsafe."
    )
    # What is wrong comes first; the order of the classes otherwise.
    shown = [*unsafe, *(c for c in compared if c.verdict != "unsafe")][:MAX_CLASSES]
    hidden = len(compared) - len(shown)
    more = f" {count(hidden)} more are in report.json." if hidden else ""
    head = ["Class or group", "Verdict", *(HEADS[name] for name in CHECKS)]
    return str(
        Markup("<h2>Is each class safe?</h2>\n")
        + Markup('<p class="lead">{}</p>\n').format(lead + more)
        + _table(head, map(_row, shown))
        + Markup('<p class="muted">{}</p>\n').format(HOW_TO_READ)
    )


def _row(of: ClassFilter) -> list[Markup]:
    checks: dict[str, ClassCheck] = {c.name: c for c in of.checks}
    verdict = Markup('<span class="tag {}">{}</span>').format(TONES[of.verdict], of.verdict)
    title = Markup('<bdi class="name">{}</bdi>').format(visible(of.name))
    return [title, verdict, *(_cell(checks.get(name)) for name in CHECKS)]


def _cell(check: ClassCheck | None) -> Markup:
    if check is None:
        return Markup("–")
    text = f"{percent(check.found)} % ({percent(check.expected)} %)"
    return Markup("{}").format(text) if check.passed else Markup("<strong>{}</strong>").format(text)


def _table(head: Iterable[str], rows: Iterable[list[Markup]]) -> Markup:
    top = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(Markup(' class="n"') if i > 1 else "", text)
        for i, text in enumerate(head)
    )
    lines = [
        Markup('<tr><th scope="row">{}</th><td>{}</td>{}</tr>').format(
            first, verdict, Markup("").join(Markup('<td class="n">{}</td>').format(c) for c in rest)
        )
        for first, verdict, *rest in rows
    ]
    return Markup(
        '<div class="scroll" role="region" tabindex="0" aria-label="Classes as a whole">\n<table>\n'
        "<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>\n</div>\n"
    ).format(top, Markup("\n").join(lines))
