"""The report's section on calibration: whether probabilities can be read as such, and what corrects them."""

from __future__ import annotations

from markupsafe import Markup

from prefect_augment.report.markup import folded, heading, name, paragraph, table
from prefect_augment.schema.base import Interval
from prefect_augment.schema.experiment import CalibrationFacts, CalibrationScore
from prefect_augment.text import MISSING, count, natural_order, number

__all__ = ["section"]

MAX_CLASSES = 100


def section(facts: CalibrationFacts | None) -> str:
    """Return the section's HTML; empty where nothing was measured."""
    if facts is None:
        return ""
    looked = len(facts.looked_at)
    what = (
        f"On {count(facts.n_records)} hold-out records; lower is better, and 0 within an interval of a calibration "
        f"error says that none is shown. Errors are of {facts.n_bins} bins of equal numbers: of the class that is "
        f"predicted, and of the probabilities of the {f'{looked} rarest classes' if looked > 1 else 'rarest class'}. "
        "“Corrected” multiplies each class's probability by its share of the real training records over the share "
        "that the arm trains with, and scales them to sum to 1 (Saerens et al. 2002)."
    )
    return Markup("").join(
        [
            heading("Calibration"),
            paragraph(facts.sentence, lead=True),
            paragraph(what),
            _scores(facts),
            folded("The correction of each class", _factors(facts)),
        ]
    )


def _scores(facts: CalibrationFacts) -> Markup:
    rows = []
    for arm, learners in facts.arms.items():
        for learner, found in learners.items():
            rows.append(
                [name(arm), learner, "as predicted", *_numbers(found.as_predicted), MISSING]
            )
            if found.corrected is not None:
                change = MISSING if found.change is None else _three(found.change, sign=True)
                rows.append([name(arm), learner, "corrected", *_numbers(found.corrected), change])
    head = (
        "Arm",
        "Learner",
        "Probabilities",
        "Brier score",
        "Calibration error",
        "Calibration error, rare classes",
        "Change of the Brier score",
    )
    return table("Calibration of each arm", head, rows, numbers=range(3, 7))


def _numbers(score: CalibrationScore) -> list[str]:
    return [_three(i) for i in (score.brier, score.ece, score.class_ece)]


def _three(interval: Interval, *, sign: bool = False) -> str:
    """``0.123 (0.110 to 0.140)``."""
    e, low, high = (
        f"{v:{'+' if sign else ''}.3f}".replace("-", "−")
        for v in (interval.estimate, interval.low, interval.high)
    )
    return f"{e} ({low} to {high})"


def _factors(facts: CalibrationFacts) -> Markup:
    train = facts.prior_train[facts.published]
    rows = [
        [name(k), number(100 * true), number(100 * train[k]), number(true / train[k])]
        for k, true in sorted(facts.prior_true.items(), key=lambda kv: natural_order(kv[0]))
        if train.get(k)
    ]
    head = (
        "Class",
        "Share of the real records, %",
        Markup("Share that {} trains with, %").format(name(facts.published)),
        "Multiply its probability by",
    )
    found = table("Correction per class", head, rows[:MAX_CLASSES], numbers=range(1, 4))
    if len(rows) > MAX_CLASSES:
        found += paragraph(f"… and {count(len(rows) - MAX_CLASSES)} more in recipe.json.")
    return found
