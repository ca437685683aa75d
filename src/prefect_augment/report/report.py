"""The report of a run: one HTML page that opens offline, its data as JSON, its pictures.

:func:`build_report` turns a :class:`ReportData` into files. :func:`markdown_summary` and
:func:`plan_table` are short forms for the dataset card, Prefect artifacts and the command line.
Nothing here reads or writes storage, and steps that were not run are shown as such.
"""

import base64
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefect_augment.evaluation.metrics.column_shapes import ShapeSummary, summarise_shapes
from prefect_augment.report.json import ReportData, sheet_files
from prefect_augment.report.redaction import redact
from prefect_augment.report.view_model import class_rows, headline, published_counts, strategy_rows
from prefect_augment.schema import BalancePlan, Result
from prefect_augment.text import (
    MISSING,
    count,
    effect,
    interval_percent,
    interval_points,
    markdown_text,
    measured,
    percent,
)

SCHEMA_VERSION = 2
PURPOSES = {
    "utility": "utility: picked for training, and easier to tell from real records than faithful ones",
    "faithful": "faithful: like the classes, without a promise of better training",
}
SOFT_LABELS = (
    "utility: for training with weights; a record has a row for each class that it may belong to, and "
    "describes none of them"
)
MAX_CLASS_ROWS = 50  # nobody reads a card or an artifact with a thousand rows


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
    text = json.dumps(
        report_info(data, shapes), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False
    )
    files["report.json"] = (text + "\n").encode("utf-8", errors="replace")
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
    del info["column_shapes"], info["policy_sheet"], info["doubted_pictures"]
    findings = info.pop("findings")
    info.update({name: getattr(findings, name) for name in type(findings).model_fields})
    info["shapes"] = shapes
    info["sheets"] = sheet_files(data)
    if data.pictures != "real":
        info["neighbours"] = info["doubted"] = ()
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
    blocks = [
        *_verdict(data),
        *_classes(data),
        *_strategies(data),
        *_holdout(data),
        *_images(images or {}),
    ]
    return "\n\n".join(blocks) + "\n"


def _verdict(data: ReportData) -> list[str]:
    head = headline(data)
    blocks = [f"## Verdict: {head.word.lower()}", markdown_text(head.sentence)]
    if head.reasons:
        blocks.append("\n".join(f"- {markdown_text(reason)}" for reason in head.reasons))
    if data.recipe is not None:
        blocks.append(f"**Recipe.** {markdown_text(data.recipe.sentence)}")
    if data.candidates is not None:
        purpose = SOFT_LABELS if data.candidates.shares else PURPOSES[data.candidates.purpose]
        blocks.append(f"**Purpose of the synthetic records.** {purpose}.")
    if data.findings.privacy is not None:
        blocks.append(f"**Privacy.** {markdown_text(data.findings.privacy.sentence)}")
    published = published_counts(data)
    if published and data.status == "published":
        blocks.append(f"**Published.** {published}.")
    if data.findings.drift:
        blocks.append(f"**Drift.** {markdown_text(data.findings.drift.sentence)}")
    if data.approval:
        blocks.append(f"**Approval.** {markdown_text(data.approval)}")
    return blocks


def _classes(data: ReportData) -> list[str]:
    rows = class_rows(data)
    if not rows:
        return ["### Classes", "Not known: no records were counted in this run."]
    after_known = bool(data.counts_after)
    cells = [
        (
            markdown_text(row.name),
            count(row.before),
            count(row.total) if after_known else MISSING,
            interval_percent(row.recall_as_is),
            interval_percent(row.recall_shown),
            markdown_text(row.decision or MISSING),
        )
        for row in rows[:MAX_CLASS_ROWS]
    ]
    head = ("Class", "Before", "After", "Recall as is, %", "Recall then, %", "Decision")
    blocks = [
        f"### Classes of {markdown_text(data.label)}",
        _table(head, cells, numbers=range(1, 5)),
    ]
    if len(rows) > MAX_CLASS_ROWS:
        blocks.append(f"… and {count(len(rows) - MAX_CLASS_ROWS)} smaller classes in report.html.")
    return blocks


def _strategies(data: ReportData) -> list[str]:
    rows = strategy_rows(data)
    if not rows:
        return ["### Strategies", "Not run: no strategies were compared."]
    cells = [
        (
            markdown_text(row.name),
            measured(row.score, row.measure),
            percent(row.macro_f1),
            percent(row.worst_recall),
            str(len(row.scores)),
            row.mark,
        )
        for row in rows
    ]
    head = (
        "Strategy (on validation records)",
        markdown_text(rows[0].measure.heading),
        "Macro-F1, %",
        "Worst recall, %",
        "Seeds",
        "",
    )
    return ["### Strategies", _table(head, cells, numbers=range(1, 5))]


def _holdout(data: ReportData) -> list[str]:
    verdict = data.verdict
    if verdict is None:
        return []
    cells = [
        (markdown_text(strategy), interval_percent(interval))
        for strategy, interval in sorted(verdict.balanced_accuracy.items())
    ]
    head = ("Strategy (on the hold-out)", "Balanced accuracy, % (95 % interval)")
    blocks = [_table(head, cells, numbers=range(1, 2))]
    blocks += [
        markdown_text(f"“{d.strategy}” against “{d.against}”: {interval_points(d.interval)} points")
        + "."
        for d in verdict.differences
    ]
    if verdict.minimum_detectable_effect < 1:  # 1: nothing differs from what it is compared with
        blocks.append(
            f"Differences below {effect(verdict.minimum_detectable_effect)} points cannot be told "
            f"from chance with {count(verdict.n_holdout)} hold-out records."
        )
    if verdict.look is not None:
        blocks.append(verdict.look.sentence)
    return blocks


def _images(images: Mapping[str, bytes]) -> list[str]:
    return [
        f"![{markdown_text(name)}](data:image/png;base64,{base64.b64encode(png).decode()})"
        for name, png in sorted(images.items())
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: range) -> str:
    """A markdown table; columns in ``numbers`` are right-aligned."""
    rule = ["---:" if i in numbers else "---" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
