"""The report's section on robustness: the compared arms on corrupted copies of hold-out records."""

from __future__ import annotations

from markupsafe import Markup

from prefect_augment.report import charts
from prefect_augment.report.markup import figures, heading, name, paragraph, table
from prefect_augment.schema.base import Interval
from prefect_augment.schema.experiment import ConditionFact, RobustnessFacts
from prefect_augment.text import count, interval_percent, interval_points

__all__ = ["section"]


def section(facts: RobustnessFacts | None) -> str:
    """Return the section's HTML; empty where nothing was measured."""
    if facts is None:
        return ""
    conditions = (facts.clean, *facts.conditions, facts.mean)
    return Markup("").join(
        [
            heading("Robustness"),
            paragraph(facts.sentence, lead=True),
            paragraph(
                f"Balanced accuracy on {count(facts.n_records)} records of the hold-out, as they are and corrupted in "
                "memory. Nothing was trained on corrupted records, and nothing is decided by them. Intervals are of "
                "95 % each, not corrected for the number of conditions."
            ),
            _picture(facts),
            _table(conditions),
        ]
    )


def _picture(facts: RobustnessFacts) -> Markup:
    conditions = (facts.clean, *facts.conditions, facts.mean)
    shown = [(c, c.differences[0]) for c in conditions if c.differences]
    if not shown:
        return Markup("")
    first = shown[0][1]
    rows = [charts.ForestRow(c.name, _points(d.interval)) for c, d in shown]
    label = "difference under each condition, points"
    png = charts.forest_chart(rows, label=label, zero=True, legend="95 % interval")
    told = "; ".join(f"{c.name}: {interval_points(d.interval)}" for c, d in shown)
    alt = f"Difference of {first.arm} against {first.against} under each condition. {told}."
    return figures((png, alt, f"{first.arm} against {first.against}"))


def _points(interval: Interval) -> Interval:
    e, low, high = (100 * v for v in (interval.estimate, interval.low, interval.high))
    return Interval(estimate=e, low=low, high=high)


def _table(conditions: tuple[ConditionFact, ...]) -> Markup:
    arms = list(conditions[0].balanced_accuracy)
    pairs = [(d.arm, d.against) for d in conditions[0].differences]
    head = [
        "Condition",
        "What was done",
        *(Markup("{} (%)").format(name(arm)) for arm in arms),
        *(Markup("{} against {} (points)").format(name(a), name(b)) for a, b in pairs),
        *(["Change of the first difference (points)"] if pairs else []),
    ]
    rows = [
        [
            c.name,
            c.strength,
            *(interval_percent(c.balanced_accuracy[arm]) for arm in arms),
            *(interval_points(d.interval) for d in c.differences),
            *([interval_points(c.changes[0].interval) if c.changes else "–"] if pairs else []),
        ]
        for c in conditions
    ]
    return table("Balanced accuracy under corruptions", head, rows, numbers=range(2, len(head)))
