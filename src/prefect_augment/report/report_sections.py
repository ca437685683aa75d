"""The report's sections, in the order of the page.

A section is a function from a run's data to HTML; one that has nothing to say returns an empty text
and is left out, with its link. What stands in every report is a template; a measurement of its own is
a module ``section_<name>.py`` and one line of :data:`SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prefect_augment import text as words
from prefect_augment.report import (
    section_calibration,
    section_drift,
    section_filter,
    section_policy,
    section_privacy,
    section_robustness,
    section_search,
    section_slices,
    section_training,
)
from prefect_augment.report.json import ReportData

__all__ = ["SECTIONS", "Section", "Shown", "environment", "shown_sections"]


class Shown(NamedTuple):
    """A section as the page shows it."""

    id: str
    link: str
    html: Markup


@dataclass(frozen=True)
class Section:
    """A part of the page: ``id`` is where links lead, ``link`` what they are called.

    ``draw`` gets the report's data and what the templates are filled with, and returns what stands
    between ``<section>`` and ``</section>``, its heading first, or brings these tags itself; empty where
    there is nothing to say.
    """

    id: str
    link: str
    draw: Callable[[ReportData, Mapping[str, Any]], str]


def standing(name: str, link: str) -> Section:
    """A section of every report: ``templates/sections/<name>.html.j2``."""

    def draw(data: ReportData, context: Mapping[str, Any]) -> str:
        return environment().get_template(f"sections/{name}.html.j2").render(context)

    return Section(name, link, draw)


def measured(name: str, link: str, section: Callable[[Any], str]) -> Section:
    """The section of a measurement: ``section`` gets its facts, the field ``name`` of ``findings``."""

    def draw(data: ReportData, context: Mapping[str, Any]) -> str:
        info = getattr(data.findings, name)
        return "" if info is None else section(info)

    return Section(name, link, draw)


# A measurement has one line here.
SECTIONS: tuple[Section, ...] = (
    standing("classes", "Classes"),
    measured("drift", "Since the last version", section_drift.section),
    standing("pictures", "Pictures"),
    Section(
        "policy",
        "Policy check",
        lambda data, _: section_policy.section(data.findings.policy, data.policy_sheet),
    ),
    standing("strategies", "Strategies"),
    measured("search", "Search", section_search.section),
    standing("per-class", "Per class"),
    Section("filter", "Safe classes", lambda data, _: section_filter.section(data.candidates)),
    measured("slices", "Groups", section_slices.section),
    measured("robustness", "Robustness", section_robustness.section),
    measured("calibration", "Calibration", section_calibration.section),
    standing("shapes", "Column shapes"),
    standing("neighbours", "Neighbours"),
    measured("training", "Training curves", section_training.section),
    measured("privacy", "Privacy", section_privacy.section),
    standing("quality", "Data quality"),
    standing("method", "Method and limits"),
    standing("lineage", "Lineage"),
)


def shown_sections(data: ReportData, context: Mapping[str, Any]) -> list[Shown]:
    """The sections that have something to say, in the order of the page."""
    drawn = ((section, str(section.draw(data, context))) for section in SECTIONS)
    return [Shown(s.id, s.link, Markup(html)) for s, html in drawn if html.strip()]  # noqa: S704


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The page's templates, compiled once, with the words' functions as filters; every text is escaped."""
    found = Environment(
        loader=PackageLoader("prefect_augment.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("count", "duration", "effect", "interval_percent", "interval_points"):
        found.filters[name] = getattr(words, name)
    for name in ("number", "percent", "points", "visible"):
        found.filters[name] = getattr(words, name)
    return found
