"""The report of a run: one HTML page that opens offline, its data as JSON, its pictures.

Nothing here reads or writes storage, and steps that were not run are shown as such.
"""

import base64
from collections.abc import Mapping

from prefect_augment.report.environment import render
from prefect_augment.report.json import ReportData
from prefect_augment.report.view_model import (
    class_rows,
    headline,
    published_counts,
    redact,
    strategy_rows,
)
from prefect_augment.schema import BalancePlan

MAX_CLASS_ROWS = 50  # nobody reads a card or an artifact with a thousand rows


def build_report(data: ReportData) -> dict[str, bytes]:
    """Files of the report by name, sorted; equal data give equal bytes.

    ``report.html`` (self-contained), ``report.json`` (sorted keys, everything behind the page), the
    page's PNGs, each below 200 kB, and ``recipe.json`` where there is a recipe.
    """
    # Imported here: matplotlib takes half a second that markdown_summary does not need.
    from prefect_augment.report.html import draw_charts, render_page

    data = redact(data)
    charts = draw_charts(data)
    files = {chart.file: chart.png for chart in charts}
    files["report.html"] = render_page(data, charts)
    files["report.json"] = data.to_json()
    if data.recipe is not None:
        files["recipe.json"] = data.recipe.to_json()
    return dict(sorted(files.items()))


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
    data = redact(data)
    return render(
        "summary.md.j2",
        data=data,
        head=headline(data),
        published=published_counts(data),
        rows=class_rows(data),
        most=MAX_CLASS_ROWS,
        strategies=strategy_rows(data),
        images=[(k, base64.b64encode(png).decode()) for k, png in sorted((images or {}).items())],
    )
