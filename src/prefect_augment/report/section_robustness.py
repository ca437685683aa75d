"""The report's section on robustness: the compared strategies on corrupted copies of hold-out records."""

from __future__ import annotations

from markupsafe import Markup

from prefect_augment.report import charts
from prefect_augment.report.markup import figures, heading, name, paragraph, table
from prefect_augment.schema.base import Interval
from prefect_augment.schema.experiment import ConditionRow, RobustnessResult
from prefect_augment.text import count, interval_percent, interval_points

__all__ = ["section"]


def section(info: RobustnessResult | None) -> str:
    """Return the section's HTML; empty where nothing was measured."""
    if info is None:
        return ""
    conditions = (info.clean, *info.conditions, info.mean)
    return Markup("").join(
        [
            heading("Robustness"),
            paragraph(info.sentence, lead=True),
            paragraph(
                f"Balanced accuracy on {count(info.n_records)} records of the hold-out, as they are and corrupted in "
                "memory. Nothing was trained on corrupted records, and nothing is decided by them. Intervals are of "
                "95 % each, not corrected for the number of conditions."
            ),
            _picture(info),
            _table(conditions),
        ]
    )


def _picture(info: RobustnessResult) -> Markup:
    conditions = (info.clean, *info.conditions, info.mean)
    shown = [(c, c.differences[0]) for c in conditions if c.differences]
    if not shown:
        return Markup("")
    first = shown[0][1]
    rows = [charts.ForestRow(c.name, _points(d.interval)) for c, d in shown]
    label = "difference under each condition, points"
    png = charts.forest_chart(rows, label=label, zero=True, legend="95 % interval")
    told = "; ".join(f"{c.name}: {interval_points(d.interval)}" for c, d in shown)
    alt = f"Difference of {first.strategy} against {first.against} under each condition. {told}."
    return figures((png, alt, f"{first.strategy} against {first.against}"))


def _points(interval: Interval) -> Interval:
    e, low, high = (100 * v for v in (interval.estimate, interval.low, interval.high))
    return Interval(estimate=e, low=low, high=high)


def _table(conditions: tuple[ConditionRow, ...]) -> Markup:
    strategies = list(conditions[0].balanced_accuracy)
    pairs = [(d.strategy, d.against) for d in conditions[0].differences]
    head = [
        "Condition",
        "What was done",
        *(Markup("{} (%)").format(name(strategy)) for strategy in strategies),
        *(Markup("{} against {} (points)").format(name(a), name(b)) for a, b in pairs),
        *(["Change of the first difference (points)"] if pairs else []),
    ]
    rows = [
        [
            c.name,
            c.strength,
            *(interval_percent(c.balanced_accuracy[strategy]) for strategy in strategies),
            *(interval_points(d.interval) for d in c.differences),
            *([interval_points(c.changes[0].interval) if c.changes else "–"] if pairs else []),
        ]
        for c in conditions
    ]
    return table("Balanced accuracy under corruptions", head, rows, numbers=range(2, len(head)))
