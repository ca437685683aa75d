"""The report of a run: one HTML page that opens offline, its data as JSON, its pictures.

:func:`build_report` turns a :class:`ReportData` into files. :func:`markdown_summary` and
:func:`plan_table` are short forms for the dataset card, Prefect artifacts and the command line.
Nothing here reads or writes storage, and steps that were not run are shown as such.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from prefect_augment.evaluation.metrics.column_shapes import (
    ColumnShape,
    ShapeSummary,
    summarise_shapes,
)
from prefect_augment.report.json import Neighbour, ReportData, sheet_files
from prefect_augment.report.redaction import redact
from prefect_augment.schema import BalancePlan, Result

__all__ = [
    "ColumnShape",
    "Neighbour",
    "ReportData",
    "build_report",
    "markdown_summary",
    "plan_table",
]

SCHEMA_VERSION = 2


def build_report(data: ReportData) -> dict[str, bytes]:
    """Files of the report by name, sorted; equal data give equal bytes.

    ``report.html`` (self-contained), ``report.json`` (sorted keys, everything behind the page), the
    page's PNGs, each below 200 kB, and ``recipe.json`` where there is a recipe.
    """
    # Imported here: matplotlib and jinja2 take half a second that markdown_summary does not need.
    from prefect_augment.report.html import draw_charts, render_page

    data = redact(data)
    shapes = shape_summaries(data)
    charts = draw_charts(data, shapes)
    files = {chart.file: chart.png for chart in charts}
    files["report.html"] = render_page(data, shapes, charts)
    files["report.json"] = _to_json(report_info(data, shapes))
    if data.recipe is not None:
        files["recipe.json"] = data.recipe.to_json()
    return dict(sorted(files.items()))


def shape_summaries(data: ReportData) -> tuple[ShapeSummary, ...]:
    """Histograms as far as ``data.pictures`` allows them."""
    if data.pictures == "none":
        return ()
    return summarise_shapes(data.column_shapes, show_real=data.pictures == "real")


def report_info(data: ReportData, shapes: tuple[ShapeSummary, ...]) -> dict[str, Any]:
    """Everything behind the page as plain JSON values; NaN and infinity become null."""
    info = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    # Values of single records: only their summaries follow, as far as they may be shown.
    del info["column_shapes"], info["policy_sheet"]
    findings = info.pop("findings")
    info.update({name: getattr(findings, name) for name in type(findings).model_fields})
    info["shapes"] = shapes
    info["sheets"] = sheet_files(data)
    if data.pictures != "real":
        info["neighbours"] = ()
    info["schema_version"] = SCHEMA_VERSION
    plain = _plain(info)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    """Results, data classes and mappings as JSON values."""
    if isinstance(value, Result):
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


def _to_json(info: Mapping[str, Any]) -> bytes:
    text = json.dumps(info, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", errors="replace")


def plan_table(plan: BalancePlan) -> list[dict[str, object]]:
    """Rows of the plan for a table artifact or the command line, one per stratum.

    Keys are ``class`` (and one per ``balance.by`` column), ``real``, ``target``, ``synthetic``,
    ``classic``, ``compared`` and ``note``. Names are not escaped.
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
                "compared": "yes" if stratum.compared else "no",
                "note": stratum.note,
            }
        )
    return rows


def markdown_summary(data: ReportData, *, images: Mapping[str, bytes] | None = None) -> str:
    """The report in short: verdict, classes, strategies, recipe, as escaped markdown.

    ``images`` are PNGs by file name to show inline (for an artifact; a card links instead). Class
    tables end after 50 rows with a note.
    """
    from prefect_augment.report.markdown import summary

    return summary(redact(data), images or {})
