"""The sections on robustness, groups and calibration: what they say, and that names are only text."""

from __future__ import annotations

import pytest

from prefect_augment.report import section_calibration, section_robustness, section_slices
from prefect_augment.schema.base import Difference, Interval
from prefect_augment.schema.experiment import (
    CalibrationResult,
    CalibrationScore,
    ConditionRow,
    Gap,
    GroupRow,
    RobustnessResult,
    SliceResult,
    SliceRow,
    StrategyCalibration,
)

EVIL = "<script>&"
SOME = Interval(estimate=0.05, low=0.01, high=0.09)


def condition(name):
    pair = (Difference(strategy=EVIL, against="as is", interval=SOME),)
    return ConditionRow(
        name=name,
        strength=f"how {name} is done",
        balanced_accuracy={EVIL: SOME, "as is": SOME},
        differences=pair,
        changes=() if name == "clean" else pair,
    )


ROBUSTNESS = RobustnessResult(
    n_records=1234,
    seed=0,
    clean=condition("clean"),
    conditions=(condition("noise"),),
    mean=condition("mean"),
    sentence="A gain is shown.",
)
SLICES = SliceResult(
    by=("site",),
    before="as is",
    after="weights",
    min_records=20,
    n_too_few=1,
    groups=(
        GroupRow(
            group={"site": EVIL}, n_holdout=99, n_classes=2, before=SOME, after=SOME,
            difference=SOME, decision="gains",
        ),
    ),
    slices=(
        SliceRow(label="few", group={"site": EVIL}, n_holdout=3, decision="too few"),
        SliceRow(
            label="much", group={"site": EVIL}, n_holdout=50, before=SOME, after=SOME,
            difference=SOME, decision="loses",
        ),
    ),
    gaps=(Gap(label="", columns=("site",), before=SOME, after=SOME, change=SOME),),
    flags=("Class much: one gains and another loses.",),
)  # fmt: skip
SCORE = CalibrationScore(brier=SOME, ece=SOME, class_ece=SOME, expected={EVIL: 2.0})
CALIBRATION = CalibrationResult(
    n_records=500,
    n_bins=15,
    looked_at=(EVIL,),
    strategies={
        "weights": {
            "logistic": StrategyCalibration(as_predicted=SCORE, corrected=SCORE, change=SOME)
        }
    },
    prior_true={EVIL: 0.1, "b": 0.9},
    prior_train={"weights": {EVIL: 0.5, "b": 0.5}},
    published="weights",
    sentence="Use them so.",
)
SECTIONS = [
    (section_robustness.section, ROBUSTNESS, ["1,234", "how noise is done", "+5.0", "A gain is"]),
    (section_slices.section, SLICES, ["loses", "fewer than 20", "1 slice has", "Class much"]),
    (section_calibration.section, CALIBRATION, ["0.050", "corrected", "Use them so.", "0.2"]),
]


@pytest.mark.parametrize(("section", "info", "said"), SECTIONS)
def test_a_section_says_what_was_found_and_escapes_names(section, info, said):
    html = section(info)
    for text in said:
        assert text in html
    assert "<script>" not in html
    assert "&lt;script&gt;&amp;" in html
    assert html.startswith("<h2>")
    assert html == section(info)


@pytest.mark.parametrize("section", [s for s, _, _ in SECTIONS])
def test_without_results_there_is_no_section(section):
    assert section(None) == ""


def test_what_is_lost_comes_before_what_says_nothing():
    html = section_slices.section(SLICES)
    assert html.index("much</bdi>") < html.index("few</bdi>")
