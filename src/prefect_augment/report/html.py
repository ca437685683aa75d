"""The report's page: sections by template, every picture inline, no script.

A section is a template of ``templates/sections``; an empty one is left out with its link. A new
measurement is a field of :class:`~prefect_augment.schema.report.Findings`, a template and a line of
:data:`SECTIONS`.
"""

import base64
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prefect_augment import text as formats
from prefect_augment.evaluation.metrics.column_shapes import ShapeSummary
from prefect_augment.figures.image_grid import shown_name
from prefect_augment.report import charts
from prefect_augment.report.json import ReportData, sheet_files
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

FILTERS = (
    "count",
    "duration",
    "effect",
    "interval_number",
    "interval_percent",
    "interval_points",
    "measured",
    "number",
    "percent",
    "points",
    "visible",
)

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
    "robustness": "Robustness",
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

MAX_SHAPES = 24  # columns drawn, the most different ones; report.json has all
MAX_NEIGHBOURS = 24
PARTS = ("training", "validation", "holdout")

FAMILIES = {
    "as_is": "the training records as they are",
    "threshold": "as they are, with decision thresholds tuned on validation records",
    "weights": "each record weighted by how rare its class is",
    "loss": "the loss corrected by how frequent each class is (balanced softmax)",
    "resampling": "records of rare classes drawn more often",
    "classic": "records made by interpolating between neighbours of a class (SMOTE)",
    "probe": "a logistic regression on the frozen features of your encoder",
    "bagging": "an estimator for each of ten bags with fewer records of frequent classes, and their mean",
    "model": "synthetic records drawn from the generative model",
    "soft_labels": "real records, half by their own label and half by an ensemble's probabilities",
    "clean": "real records; those whose labels an audit doubts count less, or nothing",
    "ensemble": "a control: the ensemble behind soft labels, in the place of the estimators",
    "mixture": "synthetic records together with interpolated ones",
    "external": "the external synthetic records as they are",
}
# Where images differ.
IMAGE_FAMILIES = {
    "classic": "records of rare classes drawn more often, some of them turned, shifted or made brighter",
    "mixture": "synthetic records together with classic augmentation",
    "weights": "records of rare classes drawn more often: in the last part of the training (deferred re-weighting), "
    "mixed with others (mixup, CutMix), with labels of large classes smoothed, or for a linear classifier of "
    "patches",
}


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


def draw_charts(data: ReportData, shapes: Sequence[ShapeSummary]) -> tuple[Chart, ...]:
    """All pictures that the data allow, in page order; ``shapes`` come with the most different first."""
    rows = class_rows(data)
    return (
        *_counts_chart(data, rows),
        *_sheet_charts(data),
        *_validation_chart(strategy_rows(data)),
        *_holdout_charts(data),
        *_recall_chart(data, rows),
        *doubted_pictures(data),
        *_policy_chart(data),
        *_robustness_chart(data),
        *_shape_charts(shapes),
        *_training_chart(data),
    )


def _counts_chart(data: ReportData, rows: Sequence[ClassRow]) -> list[Chart]:
    if not data.counts_after or not rows:
        return []
    # The rarest ones where there are too many: they are what the run is about.
    shown = rows[-charts.MAX_ROWS :]
    bars = [charts.ClassBar(r.name, r.before, r.after, r.weighted, r.number) for r in shown]
    details = "; ".join(
        f"{formats.visible(r.name)}: {formats.count(r.before)} to {formats.count(r.total)}"
        for r in shown
    )
    alt = f"Training records per class before and after. {details}."
    return [Chart("classes", "class_counts.png", alt, charts.class_counts_chart(bars))]


def _sheet_charts(data: ReportData) -> list[Chart]:
    origins = "Real, synthetic and nearest real" if data.pictures == "real" else "Synthetic"
    drawn = []
    for name, file in sheet_files(data).items():
        alt = f"{origins} images of {formats.visible(name)}."
        # Where the picture could not write the whole name; a browser has the letters for it.
        caption = "" if shown_name(name) == name else name
        drawn.append(Chart("pictures", file, alt, data.sheets[name], caption, photo=True))
    return drawn


def _validation_chart(rows: Sequence[StrategyRow]) -> list[Chart]:
    if not rows:
        return []
    shown = rows[: charts.MAX_ROWS]
    measure = rows[0].measure
    times = 100 if measure.unit == "points" else 1
    forest = [
        charts.ForestRow(
            r.name,
            charts.in_percent(r.spread) if times == 100 else r.spread,
            tuple(times * s for s in r.scores),
            _short_mark(r.mark),
        )
        for r in shown
    ]
    label = f"{measure.title} on validation records{', %' if times == 100 else ''}"
    png = charts.forest_chart(forest, label=label, legend="mean, lowest to highest seed")
    unit = " %" if times == 100 else ""
    details = "; ".join(f"{r.name}: {formats.measured(r.score, measure)}{unit}" for r in shown)
    return [
        Chart(
            "validation",
            "strategies_validation.png",
            f"{measure.title[:1].upper()}{measure.title[1:]} of each strategy on validation records. {details}.",
            png,
        )
    ]


def _holdout_charts(data: ReportData) -> list[Chart]:
    verdict = data.verdict
    if verdict is None or not verdict.balanced_accuracy:
        return []
    strategies = _holdout_strategies(data)
    rows = [
        charts.ForestRow(n, charts.in_percent(i), mark=_short_mark(_holdout_mark(data, n)))
        for n, i in strategies
    ]
    label = "balanced accuracy on the hold-out, %"
    details = "; ".join(f"{n}: {formats.interval_percent(i)} %" for n, i in strategies)
    drawn = [
        Chart(
            "holdout",
            "strategies_holdout.png",
            f"Balanced accuracy on the hold-out with 95 % intervals. {details}.",
            charts.forest_chart(rows, label=label, legend="95 % interval"),
        )
    ]
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
        drawn.append(Chart("holdout", "differences.png", alt, png))
    return drawn


def _recall_chart(data: ReportData, rows: Sequence[ClassRow]) -> list[Chart]:
    compared = [r for r in rows if r.recall_as_is or r.recall_shown][-charts.MAX_ROWS :]
    if data.verdict is None or not compared:
        return []
    png = charts.recall_chart(
        [charts.RecallRow(r.name, r.recall_as_is, r.recall_shown, r.number) for r in compared],
        before=as_is_strategy(data) or "as is",
        after=data.verdict.shown,
    )
    details = "; ".join(
        f"{formats.visible(r.name)}: {formats.interval_percent(r.recall_as_is)} to "
        f"{formats.interval_percent(r.recall_shown)}"
        for r in compared
    )
    return [Chart("recall", "class_recall.png", f"Recall per class in percent. {details}.", png)]


def _shape_charts(shapes: Sequence[ShapeSummary]) -> list[Chart]:
    shown, step = shapes[:MAX_SHAPES], charts.SHAPES_PER_CHART
    drawn = []
    for i in range(0, len(shown), step):
        group = shown[i : i + step]
        details = "; ".join(
            f"{formats.visible(s.column)}: distance {formats.number(s.distance)}" for s in group
        )
        alt = f"Distribution of each column in real and synthetic records. {details}."
        file = f"column_shapes_{i // step + 1}.png"
        drawn.append(Chart("shapes", file, alt, charts.shapes_chart(group)))
    return drawn


def _policy_chart(data: ReportData) -> list[Chart]:
    if data.policy is None or data.policy_sheet is None:
        return []
    policy = formats.visible(data.policy.policy)
    alt = f"Images as they are, and under each operation of the policy {policy}."
    return [Chart("policy", "policy.png", alt, data.policy_sheet, photo=True)]


def doubted_pictures(data: ReportData) -> list[Chart]:
    """The images whose labels are doubted most; none where real ones may not be shown."""
    if data.pictures != "real":
        return []
    shown = zip(data.doubted, data.doubted_pictures, strict=False)  # a table has no pictures
    return [
        Chart(
            "doubted",
            row.picture,
            f"An image with the label {formats.visible(row.label)}.",
            png,
            photo=True,
        )
        for row, png in shown
    ]


def _robustness_chart(data: ReportData) -> list[Chart]:
    info = data.robustness
    conditions = (info.clean, *info.conditions, info.mean) if info else ()
    shown = [(c, c.differences[0]) for c in conditions if c.differences]
    if not shown:
        return []
    pair = f"{shown[0][1].strategy} against {shown[0][1].against}"
    rows = [charts.ForestRow(c.name, charts.in_percent(d.interval)) for c, d in shown]
    label = "difference under each condition, points"
    png = charts.forest_chart(rows, label=label, zero=True, legend="95 % interval")
    details = "; ".join(f"{c.name}: {formats.interval_points(d.interval)}" for c, d in shown)
    alt = f"Difference of {pair} under each condition. {details}."
    return [Chart("robustness", "robustness.png", alt, png, pair)]


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


def render_page(
    data: ReportData, shapes: Sequence[ShapeSummary], pictures: Iterable[Chart]
) -> bytes:
    """The page as UTF-8 bytes; every string is escaped."""
    by_section: dict[str, list[Chart]] = {}
    for chart in pictures:
        by_section.setdefault(chart.section, []).append(chart)
    context = _context(data, shapes, by_section)
    sections = []
    for name, link in SECTIONS.items():
        html = environment().get_template(f"sections/{name}.html.j2").render(context)
        if html.strip():
            shown = {"id": name, "link": link, "open": name in OPEN}
            sections.append({**shown, "html": Markup(html)})  # noqa: S704
    text = environment().get_template("report.html.j2").render(context, sections=sections)
    return text.encode("utf-8", errors="replace")


def _context(
    data: ReportData, shapes: Sequence[ShapeSummary], by_section: Mapping[str, list[Chart]]
) -> dict[str, Any]:
    rows, strategies = class_rows(data), strategy_rows(data)
    shows_real = data.pictures == "real"
    neighbours = data.neighbours[:MAX_NEIGHBOURS] if shows_real else ()
    doubted = data.doubted if shows_real else ()
    compared = [side for n in neighbours for side in (n.synthetic, n.real)]
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
        "families": _families_used(strategies, data),
        "has_times": any(strategy.seconds for strategy in strategies),
        "has_amounts": any(amount != 1.0 for strategy in strategies for amount in strategy.amounts),
        "as_is": as_is_strategy(data),
        "origins": [o for o in ORIGINS if any(r.after.get(o) for r in rows)],
        "ratios": _imbalance_ratios(data, rows),
        "filter_metrics": _filter_metrics(data),
        "shapes": shapes,
        "n_shapes_drawn": min(len(shapes), MAX_SHAPES),
        "max_rows": charts.MAX_ROWS,
        "neighbours": neighbours,
        "neighbour_columns": _columns_of(data, compared),
        "doubted": doubted,
        "doubted_columns": _columns_of(data, [row.record for row in doubted]),
        "thresholds": _threshold_rows(data, rows),
        "holdout_strategies": _holdout_strategies(data),
        "decisions": _decision_counts(rows),
    }


def _short_mark(mark: str) -> str:
    return mark if mark in ("chosen", "baseline", "control") else ""


def _holdout_mark(data: ReportData, strategy: str) -> str:
    verdict = data.verdict
    if verdict is None:
        return ""
    if strategy == verdict.chosen:
        return "chosen"
    return "baseline" if strategy == verdict.baseline else ""


def _families_used(strategies: Sequence[StrategyRow], data: ReportData) -> list[tuple[str, str]]:
    used = {a.family for a in strategies}
    texts = FAMILIES | (IMAGE_FAMILIES if data.modality == "image" else {})
    return [(f.replace("_", " "), text) for f, text in texts.items() if f in used]


def _imbalance_ratios(
    data: ReportData, rows: Sequence[ClassRow]
) -> tuple[float | None, float | None, float | None]:
    """Largest over smallest class before, after, and with the weights; None where unknown."""
    before = [float(r.before) for r in rows]
    after = [float(r.total) for r in rows] if data.counts_after else []
    weighted = [r.weighted for r in rows if r.weighted is not None]
    return (_ratio(before), _ratio(after), _ratio(weighted) if len(weighted) == len(rows) else None)


def _ratio(counts: Sequence[float]) -> float | None:
    return max(counts) / min(counts) if counts and min(counts) > 0 else None


def _filter_metrics(data: ReportData) -> list[str]:
    if data.candidates is None:
        return []
    measured = [data.candidates.metrics, *(c.metrics for c in data.candidates.classes)]
    return sorted({name for metrics in measured for name in metrics})


def _columns_of(data: ReportData, records: Sequence[Mapping[str, str]]) -> list[str]:
    """The records' columns in the source's order; others, by name, after them."""
    occurring = {name for record in records for name in record}
    known = [c.name for c in data.columns if c.name in occurring]
    return [*known, *sorted(occurring.difference(known))]


def _threshold_rows(
    data: ReportData, rows: Sequence[ClassRow]
) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """Estimators, and per class their multipliers."""
    thresholds: dict[str, dict[str, float]] = data.recipe.thresholds if data.recipe else {}
    estimators = sorted(thresholds)
    tuned = {name for factors in thresholds.values() for name in factors}
    names = [r.name for r in rows if r.name in tuned]
    names += sorted(tuned.difference(names))
    return estimators, [
        (n, [thresholds[estimator].get(n) for estimator in estimators]) for n in names
    ]


def _holdout_strategies(data: ReportData) -> list[tuple[str, Interval]]:
    scores = data.verdict.balanced_accuracy if data.verdict else {}
    return sorted(scores.items(), key=lambda kv: (-kv[1].estimate, kv[0]))


def _decision_counts(rows: Sequence[ClassRow]) -> list[tuple[str, int]]:
    """How many classes got each decision, the most frequent first."""
    counted = Counter(r.decision for r in rows if r.decision)
    return sorted(counted.items(), key=lambda kv: (-kv[1], kv[0]))


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The page's templates, compiled once, with formatting functions as filters and autoescape."""
    templates = Environment(
        loader=PackageLoader("prefect_augment.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in FILTERS:
        templates.filters[name] = getattr(formats, name)
    templates.filters["natural_sort"] = lambda names: sorted(names, key=formats.natural_order)
    return templates
