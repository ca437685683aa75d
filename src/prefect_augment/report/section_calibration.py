"""The report's section on calibration: whether probabilities can be read as such, and what corrects them."""

from __future__ import annotations

from markupsafe import Markup

from prefect_augment.report.markup import folded, heading, name, paragraph, table
from prefect_augment.schema.base import Interval
from prefect_augment.schema.experiment import CalibrationResult, CalibrationScore
from prefect_augment.text import MISSING, count, natural_order, number

__all__ = ["section"]

MAX_CLASSES = 100


def section(info: CalibrationResult | None) -> str:
    """Return the section's HTML; empty where nothing was measured."""
    if info is None:
        return ""
    looked = len(info.looked_at)
    what = (
        f"On {count(info.n_records)} hold-out records; lower is better, and 0 within an interval of a calibration "
        f"error says that none is shown. Errors are of {info.n_bins} bins of equal numbers: of the class that is "
        f"predicted, and of the probabilities of the {f'{looked} rarest classes' if looked > 1 else 'rarest class'}. "
        "“Corrected” multiplies each class's probability by its share of the real training records over the share "
        "that the strategy trains with, and scales them to sum to 1 (Saerens et al. 2002)."
    )
    return Markup("").join(
        [
            heading("Calibration"),
            paragraph(info.sentence, lead=True),
            paragraph(what),
            _scores(info),
            folded("The correction of each class", _factors(info)),
        ]
    )


def _scores(info: CalibrationResult) -> Markup:
    rows = []
    for strategy, estimators in info.strategies.items():
        for estimator, found in estimators.items():
            rows.append(
                [name(strategy), estimator, "as predicted", *_numbers(found.as_predicted), MISSING]
            )
            if found.corrected is not None:
                change = MISSING if found.change is None else _three(found.change, sign=True)
                rows.append(
                    [name(strategy), estimator, "corrected", *_numbers(found.corrected), change]
                )
    head = (
        "Strategy",
        "Estimator",
        "Probabilities",
        "Brier score",
        "Calibration error",
        "Calibration error, rare classes",
        "Change of the Brier score",
    )
    return table("Calibration of each strategy", head, rows, numbers=range(3, 7))


def _numbers(score: CalibrationScore) -> list[str]:
    return [_three(i) for i in (score.brier, score.ece, score.class_ece)]


def _three(interval: Interval, *, sign: bool = False) -> str:
    """``0.123 (0.110 to 0.140)``."""
    e, low, high = (
        f"{v:{'+' if sign else ''}.3f}".replace("-", "−")
        for v in (interval.estimate, interval.low, interval.high)
    )
    return f"{e} ({low} to {high})"


def _factors(info: CalibrationResult) -> Markup:
    train = info.prior_train[info.published]
    rows = [
        [name(k), number(100 * true), number(100 * train[k]), number(true / train[k])]
        for k, true in sorted(info.prior_true.items(), key=lambda kv: natural_order(kv[0]))
        if train.get(k)
    ]
    head = (
        "Class",
        "Share of the real records, %",
        Markup("Share that {} trains with, %").format(name(info.published)),
        "Multiply its probability by",
    )
    found = table("Correction per class", head, rows[:MAX_CLASSES], numbers=range(1, 4))
    if len(rows) > MAX_CLASSES:
        found += paragraph(f"… and {count(len(rows) - MAX_CLASSES)} more in recipe.json.")
    return found
