"""The report's page: sections by template, every picture inline, no script.

A section is a template of ``templates/sections``; an empty one is left out with its link. A new measurement is a
field of :class:`~prefect_augment.schema.report.Findings`, a template and a line of :data:`SECTIONS`.
"""

import base64
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from prefect_augment import text as formats
from prefect_augment.evaluation.metrics.column_shapes import ShapeSummary
from prefect_augment.figures.image_grid import shown_name
from prefect_augment.report import charts
from prefect_augment.report.environment import render
from prefect_augment.report.json import ReportData
from prefect_augment.report.view_model import (
    ORIGINS,
    ClassRow,
    StrategyRow,
    as_is_strategy,
    class_rows,
    headline,
    published_counts,
    strategy_rows,
)
from prefect_augment.schema import Interval, MeasureInfo

# Template (and anchor) -> text of its link, in the order of the page.
SECTIONS = {
    "classes": "Classes",
    "drift": "Since the last version",
    "pictures": "Pictures",
    "policy": "Policy check",
    "strategies": "Strategies",
    "search": "Search",
    "per-class": "Per class",
    "filter": "Safe classes",
    "slices": "Groups",
    "calibration": "Calibration",
    "shapes": "Column shapes",
    "neighbours": "Neighbours",
    "doubted": "Doubted labels",
    "training": "Training curves",
    "privacy": "Privacy",
    "quality": "Data quality",
    "method": "Method and limits",
    "lineage": "Lineage",
}

OPEN = ("classes", "pictures", "strategies")  # the others are folded

MAX_NEIGHBOURS = 24
PARTS = ("training", "validation", "holdout")


@dataclass(frozen=True)
class Chart:
    """A picture of the page, its section, file name, alternative text and PNG bytes."""

    section: str
    file: str
    alt: str
    png: bytes
    caption: str = ""  # a user's own words, shown below in full
    photo: bool = False  # dark mode leaves its colours alone

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, so that the page does not jump while it loads."""
        width, height = struct.unpack(">II", self.png[16:24])  # IHDR is always the first chunk
        return int(width), int(height)


def draw_charts(data: ReportData) -> tuple[Chart, ...]:
    """All pictures that the data allow, in page order."""
    rows = class_rows(data)
    return (
        *_counts_chart(data, rows),
        *_sheet_charts(data),
        *_validation_chart(strategy_rows(data)),
        *_holdout_charts(data),
        *_recall_chart(data, rows),
        *doubted_pictures(data),
        *_policy_chart(data),
        *_shape_charts(data.shapes),
        *_training_chart(data),
    )


def _counts_chart(data: ReportData, rows: Sequence[ClassRow]) -> list[Chart]:
    if not data.counts_after or not rows:
        return []
    # The rarest ones where there are too many: they are what the run is about.
    shown = rows[-charts.MAX_ROWS :]
    details = "; ".join(
        f"{formats.visible(r.name)}: {formats.count(r.before)} to {formats.count(r.total)}"
        for r in shown
    )
    alt = f"Training records per class before and after. {details}."
    return [Chart("classes", "class_counts.png", alt, charts.class_counts_chart(shown))]


def _sheet_charts(data: ReportData) -> Iterator[Chart]:
    origins = "Real, synthetic and nearest real" if data.pictures == "real" else "Synthetic"
    for name, file in data.sheets.items():
        alt = f"{origins} images of {formats.visible(name)}."
        # Where the picture could not write the whole name; a browser has the letters for it.
        caption = "" if shown_name(name) == name else name
        yield Chart("pictures", file, alt, data.images[file], caption, photo=True)


def _validation_chart(rows: Sequence[StrategyRow]) -> list[Chart]:
    if not rows:
        return []
    shown = rows[: charts.MAX_ROWS]
    measure = rows[0].measure
    times, unit = (100, " %") if measure.unit == "points" else (1, "")
    forest = [
        charts.ForestRow(
            r.name,
            charts.in_percent(r.spread) if times == 100 else r.spread,
            tuple(times * s for s in r.scores),
            r.mark if r.mark in ("chosen", "baseline", "control") else "",
        )
        for r in shown
    ]
    label = f"{measure.title} on validation records{',' * bool(unit)}{unit}"
    png = charts.forest_chart(forest, label=label, legend="mean, lowest to highest seed")
    details = "; ".join(f"{r.name}: {formats.measured(r.score, measure)}{unit}" for r in shown)
    title = f"{measure.title[:1].upper()}{measure.title[1:]}"
    alt = f"{title} of each strategy on validation records. {details}."
    return [Chart("validation", "strategies_validation.png", alt, png)]


def _holdout_charts(data: ReportData) -> Iterator[Chart]:
    verdict = data.verdict
    if verdict is None or not verdict.balanced_accuracy:
        return
    roles = {verdict.baseline: "baseline", verdict.chosen: "chosen"}
    strategies = _holdout_strategies(data)
    rows = [charts.ForestRow(n, charts.in_percent(i), mark=roles.get(n, "")) for n, i in strategies]
    details = "; ".join(f"{n}: {formats.interval_percent(i)} %" for n, i in strategies)
    png = charts.forest_chart(
        rows, label="balanced accuracy on the hold-out, %", legend="95 % interval"
    )
    alt = f"Balanced accuracy on the hold-out with 95 % intervals. {details}."
    yield Chart("holdout", "strategies_holdout.png", alt, png)
    if verdict.differences:
        rows = [
            charts.ForestRow(d.strategy, charts.in_percent(d.interval), detail=f"vs {d.against}")
            for d in verdict.differences
        ]
        detectable = verdict.minimum_detectable_effect
        details = "; ".join(
            f"{d.strategy} against {d.against}: {formats.interval_points(d.interval)}"
            for d in verdict.differences
        )
        png = charts.forest_chart(
            rows,
            label="difference on the hold-out, points",
            zero=True,
            effect=100 * detectable if detectable < 1 else None,
            legend="95 % interval",
        )
        alt = f"Differences of balanced accuracy on the hold-out, in points. {details}."
        yield Chart("holdout", "differences.png", alt, png)


def _recall_chart(data: ReportData, rows: Sequence[ClassRow]) -> list[Chart]:
    compared = [r for r in rows if r.recall_as_is or r.recall_shown][-charts.MAX_ROWS :]
    if data.verdict is None or not compared:
        return []
    before = as_is_strategy(data) or "as is"
    png = charts.recall_chart(compared, before=before, after=data.verdict.shown)
    details = "; ".join(
        f"{formats.visible(r.name)}: {formats.interval_percent(r.recall_as_is)} to "
        f"{formats.interval_percent(r.recall_shown)}"
        for r in compared
    )
    return [Chart("recall", "class_recall.png", f"Recall per class in percent. {details}.", png)]


def _shape_charts(shapes: Sequence[ShapeSummary]) -> list[Chart]:
    drawn: list[Chart] = []
    for i in range(0, len(shapes), charts.SHAPES_PER_CHART):
        group = shapes[i : i + charts.SHAPES_PER_CHART]
        details = "; ".join(
            f"{formats.visible(s.column)}: distance {formats.number(s.distance)}" for s in group
        )
        alt = f"Distribution of each column in real and synthetic records. {details}."
        file = f"column_shapes_{len(drawn) + 1}.png"
        drawn.append(Chart("shapes", file, alt, charts.shapes_chart(group)))
    return drawn


def _policy_chart(data: ReportData) -> Iterator[Chart]:
    if data.policy and (png := data.images.get("policy.png")):
        policy = formats.visible(data.policy.policy)
        alt = f"Images as they are, and under each operation of the policy {policy}."
        yield Chart("policy", "policy.png", alt, png, photo=True)


def doubted_pictures(data: ReportData) -> list[Chart]:
    """The images whose labels are doubted most; none of a table."""
    pictures = []
    for row in (row for row in data.doubted if row.picture):
        alt = f"An image with the label {formats.visible(row.label)}."
        pictures.append(Chart("doubted", row.picture, alt, data.images[row.picture], photo=True))
    return pictures


def _training_chart(data: ReportData) -> list[Chart]:
    if data.training is None or not data.training.curves:
        return []
    details = "; ".join(
        f"{formats.visible(c.loss)}: {formats.number(c.points[0][1])} at step {formats.count(c.points[0][0])}, "
        f"{formats.number(c.points[-1][1])} at step {formats.count(c.points[-1][0])}"
        for c in data.training.curves
    )
    png = charts.curves_chart(data.training.curves)
    return [Chart("training", "training.png", f"Training loss over the steps. {details}.", png)]


def render_page(data: ReportData, pictures: Iterable[Chart]) -> bytes:
    """The page as UTF-8 bytes; every string is escaped."""
    by_section: dict[str, list[Chart]] = {}
    for chart in pictures:
        by_section.setdefault(chart.section, []).append(chart)
    context = _context(data, by_section)
    sections = []
    for name, link in SECTIONS.items():
        html = render(f"sections/{name}.html.j2", **context)
        if html.strip():
            shown = {"id": name, "link": link, "open": name in OPEN}
            sections.append({**shown, "html": Markup(html)})  # noqa: S704
    text = render("report.html.j2", **context, sections=sections)
    return text.encode("utf-8", errors="replace")


def _context(data: ReportData, by_section: Mapping[str, list[Chart]]) -> dict[str, Any]:
    rows, strategies = class_rows(data), strategy_rows(data)
    neighbours = data.neighbours[:MAX_NEIGHBOURS]
    compared = [side for n in neighbours for side in (n.synthetic, n.real)]
    decisions = Counter(r.decision for r in rows if r.decision)
    filtered = data.candidates
    measured = [filtered.metrics, *(c.metrics for c in filtered.classes)] if filtered else []
    return {
        "data": data,
        "is_image": data.modality == "image",
        "parts": [part for part in PARTS if part in data.part_counts],
        "head": headline(data),
        "published": published_counts(data),
        "charts": by_section,
        "rows": rows,
        "strategies": strategies,
        "measure": strategies[0].measure if strategies else MeasureInfo(),
        "has_amounts": any(amount != 1.0 for strategy in strategies for amount in strategy.amounts),
        "origins": [o for o in ORIGINS if any(r.after.get(o) for r in rows)],
        "ratios": _imbalance_ratios(data, rows),
        "filter_metrics": sorted({name for metrics in measured for name in metrics}),
        "shapes": data.shapes,
        "max_rows": charts.MAX_ROWS,
        "neighbours": neighbours,
        "neighbour_columns": _columns_of(data, compared),
        "doubted": data.doubted,
        "doubted_columns": _columns_of(data, [row.record for row in data.doubted]),
        "thresholds": _threshold_rows(data, rows),
        "holdout_strategies": _holdout_strategies(data),
        # The most frequent first.
        "decisions": sorted(decisions.items(), key=lambda kv: (-kv[1], kv[0])),
    }


def _imbalance_ratios(data: ReportData, rows: Sequence[ClassRow]) -> tuple[float | None, ...]:
    """Largest over smallest class before, after, and with the weights; None where unknown."""
    every: list[list[float]] = [[r.before for r in rows], [r.total for r in rows]]
    every.append([r.weighted or 0.0 for r in rows])
    return tuple(max(n) / min(n) if n and min(n) > 0 else None for n in every)


def _columns_of(data: ReportData, records: Sequence[Mapping[str, str]]) -> list[str]:
    return [c.name for c in data.columns if any(c.name in record for record in records)]


def _threshold_rows(
    data: ReportData, rows: Sequence[ClassRow]
) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """Estimators, and per class their multipliers."""
    thresholds = dict(sorted(data.recipe.thresholds.items())) if data.recipe else {}
    factors = [(r.name, [of.get(r.name) for of in thresholds.values()]) for r in rows]
    return list(thresholds), [(n, of) for n, of in factors if any(f is not None for f in of)]


def _holdout_strategies(data: ReportData) -> list[tuple[str, Interval]]:
    scores = data.verdict.balanced_accuracy if data.verdict else {}
    return sorted(scores.items(), key=lambda kv: (-kv[1].estimate, kv[0]))
