"""The report of a run: one HTML page that opens offline, its data as JSON, its pictures.

:func:`build_report` turns a :class:`ReportData` into files. :func:`markdown_summary` and
:func:`plan_table` are short forms for the dataset card, Prefect artifacts and the command line.
Nothing here reads or writes storage, and steps that were not run are shown as such.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence

from prefect_augment.report.json import ReportData
from prefect_augment.report.redaction import redact
from prefect_augment.report.view_model import class_rows, headline, published_counts, strategy_rows
from prefect_augment.schema import BalancePlan
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
    blocks = [
        *_verdict(data),
        *_classes(data),
        *_strategies(data),
        *_holdout(data),
        *(
            f"![{markdown_text(name)}](data:image/png;base64,{base64.b64encode(png).decode()})"
            for name, png in sorted((images or {}).items())
        ),
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
    if data.privacy is not None:
        blocks.append(f"**Privacy.** {markdown_text(data.privacy.sentence)}")
    published = published_counts(data)
    if published and data.status == "published":
        blocks.append(f"**Published.** {published}.")
    if data.drift:
        blocks.append(f"**Drift.** {markdown_text(data.drift.sentence)}")
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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: range) -> str:
    """A markdown table; columns in ``numbers`` are right-aligned."""
    rule = ["---:" if i in numbers else "---" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
