"""The report of a run: one HTML page that opens offline, the facts behind it, its pictures.

:func:`build_report` turns a :class:`ReportData` into files; :func:`markdown_summary` and
:func:`plan_table` say the same in short for the dataset card, Prefect artifacts and the command
line. Nothing here reads or writes storage, and whatever a run did not do is said, not left out.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect_augment.datatypes import (
    ArmScore,
    BalancePlan,
    ColumnFact,
    Fact,
    GateReport,
    Modality,
    Origin,
    Recipe,
    Verdict,
)
from prefect_augment.evaluation.shapes import ColumnShape, ShapeSummary, summarise_shapes

__all__ = [
    "ColumnShape",
    "Neighbour",
    "ReportData",
    "build_report",
    "markdown_summary",
    "plan_table",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Neighbour:
    """A synthetic record beside the real training record that is nearest to it.

    ``synthetic`` and ``real`` map columns to text; ``distance`` is in the gate's feature space.
    """

    label: str
    synthetic: Mapping[str, str]
    real: Mapping[str, str]
    distance: float


@dataclass(frozen=True)
class ReportData:
    """Everything a report can show; whatever is left out is reported as not run.

    Parameters
    ----------
    title : str
        The dataset's name.
    label : str
        The label column.
    status : {"published", "refused", "evaluated"}
        What became of the run; "evaluated" publishes nothing by intent.
    plan : BalancePlan, optional
        None where only existing data was judged.
    notes : tuple of str
        What ingest said about the source.
    columns : tuple of ColumnFact
        Without the label.
    part_counts : mapping of part to class to int
        Real records in fit, val and holdout.
    arm_scores : tuple of ArmScore
        Scores on val, one per arm and seed.
    verdict, recipe, gate : optional
        The last comparison, the winner, what the gate kept.
    counts_before, counts_after : mapping of class to origin to int
        Training records (fit and val) before, and published.
    weighted_counts : mapping of class to float
        Sum of ``aug_weight`` per class over the published training records.
    not_judged : mapping of class to str
        Why a class is not judged; the verdict's own reasons are added.
    quarantine : mapping of reason to int
    rare_classes : tuple of str
        Classes that ``column_shapes`` is made of.
    column_shapes : mapping of column to ColumnShape
    neighbours : tuple of Neighbour
        Shown only where ``pictures`` is "real".
    modality : {"table", "image"}
    sheets : mapping of class to PNG bytes
        Picture sheets of :func:`sheets.sheet`, for images; in the page's order. They hold what
        ``pictures`` allows: whoever draws them leaves real images out where it says so.
    pictures : {"real", "synthetic", "none"}
        What may be seen of records: "synthetic" leaves real values out of every picture, table
        and file; "none" leaves out both.
    seed : int, optional
    model_kind, model_digest : str
        Empty where no model was trained.
    seconds : float, optional
    method_notes : tuple of str
        Sentences to add to the method section.
    digests : mapping of str to str
        Further digests for the lineage section, by what they are of.
    software : mapping of str to str
        Versions by package.
    """

    title: str
    label: str
    status: Literal["published", "refused", "evaluated"] = "published"
    plan: BalancePlan | None = None
    notes: tuple[str, ...] = ()
    columns: tuple[ColumnFact, ...] = ()
    part_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    arm_scores: tuple[ArmScore, ...] = ()
    verdict: Verdict | None = None
    recipe: Recipe | None = None
    gate: GateReport | None = None
    counts_before: Mapping[str, Mapping[Origin, int]] = field(default_factory=dict)
    counts_after: Mapping[str, Mapping[Origin, int]] = field(default_factory=dict)
    weighted_counts: Mapping[str, float] = field(default_factory=dict)
    not_judged: Mapping[str, str] = field(default_factory=dict)
    quarantine: Mapping[str, int] = field(default_factory=dict)
    rare_classes: tuple[str, ...] = ()
    column_shapes: Mapping[str, ColumnShape] = field(default_factory=dict)
    neighbours: tuple[Neighbour, ...] = ()
    modality: Modality = "table"
    sheets: Mapping[str, bytes] = field(default_factory=dict)
    pictures: Literal["real", "synthetic", "none"] = "real"
    seed: int | None = None
    model_kind: str = ""
    model_digest: str = ""
    seconds: float | None = None
    method_notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)


def build_report(data: ReportData) -> dict[str, bytes]:
    """Files of the report.

    Parameters
    ----------
    data : ReportData

    Returns
    -------
    dict of str to bytes
        ``report.html`` (self-contained), ``report.json`` (sorted keys, everything behind the
        page), the page's PNGs, each below 200 kB, and ``recipe.json`` where there is a recipe.
        In sorted order of names; equal data give equal bytes.
    """
    # Imported here: matplotlib and jinja2 take half a second that markdown_summary does not need.
    from prefect_augment.evaluation.report_page import draw_charts, render_page

    shapes = shape_summaries(data)
    charts = draw_charts(data, shapes)
    files = {chart.file: chart.png for chart in charts}
    files["report.html"] = render_page(data, shapes, charts)
    files["report.json"] = _to_json(report_facts(data, shapes))
    if data.recipe is not None:
        files["recipe.json"] = data.recipe.to_json()
    return dict(sorted(files.items()))


def shape_summaries(data: ReportData) -> tuple[ShapeSummary, ...]:
    """Histograms as far as ``data.pictures`` allows them."""
    if data.pictures == "none":
        return ()
    return summarise_shapes(data.column_shapes, show_real=data.pictures == "real")


def sheet_files(data: ReportData) -> dict[str, str]:
    """File name of each class's picture sheet: numbers, since a class may be called anything."""
    if data.pictures == "none":
        return {}
    return {name: f"sheet_{i}.png" for i, name in enumerate(data.sheets, start=1)}


def report_facts(data: ReportData, shapes: tuple[ShapeSummary, ...]) -> dict[str, Any]:
    """Everything behind the page as plain JSON values; NaN and infinity become null."""
    facts = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    # Values of single records: their summaries follow, as far as they may be shown.
    del facts["column_shapes"]
    facts["shapes"] = shapes
    facts["sheets"] = sheet_files(data)
    if data.pictures != "real":
        facts["neighbours"] = ()
    facts["schema_version"] = SCHEMA_VERSION
    plain = _plain(facts)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    """Facts, data classes and mappings as JSON values."""
    if isinstance(value, Fact):
        return _plain(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _to_json(facts: Mapping[str, Any]) -> bytes:
    text = json.dumps(facts, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", errors="replace")


def plan_table(plan: BalancePlan) -> list[dict[str, object]]:
    """Rows of the plan for a table artifact or the command line.

    Parameters
    ----------
    plan : BalancePlan

    Returns
    -------
    list of dict
        One per stratum, in the plan's order, with the keys ``class`` (and one per ``balance.by``
        column), ``real``, ``target``, ``synthetic``, ``classic``, ``judged`` and ``note``. Names
        are as they are: whoever prints them into markup has to escape them.
    """
    rows: list[dict[str, object]] = []
    for stratum in plan.classes:
        # "by" columns are prefixed: one may be called "real" or "class".
        groups = {f"by {column}": value for column, value in stratum.by.items()}
        rows.append(
            {
                "class": stratum.label,
                **groups,
                "real": stratum.n_real,
                "target": stratum.target,
                "synthetic": stratum.n_synthetic,
                "classic": stratum.n_classic,
                "judged": "yes" if stratum.judged else "no",
                "note": stratum.note,
            }
        )
    return rows


def markdown_summary(data: ReportData, *, images: Mapping[str, bytes] | None = None) -> str:
    """The report in short: verdict, classes, arms, recipe.

    Parameters
    ----------
    data : ReportData
    images : mapping of file name to PNG bytes, optional
        Pictures of :func:`build_report` to show inline (for an artifact; a card links instead).

    Returns
    -------
    str
        Markdown for a dataset card or a Prefect artifact; user strings are escaped for markdown
        and HTML, long class tables end after 50 rows and say so.
    """
    from prefect_augment.evaluation.report_summary import summary

    return summary(data, images or {})
