"""The report's sections, each by itself: what they say, and that names are only text."""

import json
from typing import Any

import pytest
from support.report import section
from support.steps import candidates_with

from prefect_augment.report.json import ReportData
from prefect_augment.report.report import build_report
from prefect_augment.schema import (
    CalibrationResult,
    CalibrationScore,
    ClassCheck,
    ClassFilter,
    FilterResult,
    Gap,
    GroupRow,
    Interval,
    Rung,
    SearchResult,
    SliceResult,
    SliceRow,
    Strategy,
    StrategyCalibration,
    Trial,
)

EVIL = "<script>&"
SOME = Interval(estimate=0.05, low=0.01, high=0.09)


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
CALIBRATED = StrategyCalibration(as_predicted=SCORE, corrected=SCORE, change=SOME)
CALIBRATION = CalibrationResult(
    n_records=500,
    n_bins=15,
    looked_at=(EVIL,),
    strategies={"weights": {"logistic": CALIBRATED}},
    prior_true={EVIL: 0.1, "b": 0.9},
    prior_train={"weights": {EVIL: 0.5, "b": 0.5}},
    published="weights",
    sentence="Use them so.",
)
HOLDOUT = [
    ("slices", SLICES, ["loses", "fewer than 20", "1 slice has", "Class much"]),
    ("calibration", CALIBRATION, ["0.050", "corrected", "Use them so.", "0.2"]),
]


@pytest.mark.parametrize(("name", "info", "words"), HOLDOUT)
def test_a_section_shows_numbers_and_escapes_names(name: str, info: Any, words: list[str]) -> None:
    html = section(name, **{name: info})
    for text in words:
        assert text in html
    assert "<script>" not in html
    assert "&lt;script&gt;&amp;" in html
    assert html.lstrip().startswith("<h2>")
    assert html == section(name, **{name: info})


@pytest.mark.parametrize(
    "name", [*(name for name, *_ in HOLDOUT), "filter", "search", "drift", "privacy"]
)
def test_without_results_there_is_no_section(name: str) -> None:
    assert section(name) == ""


def test_what_is_lost_comes_before_what_says_nothing() -> None:
    html = section("slices", slices=SLICES)
    assert html.index("much</bdi>") < html.index("few</bdi>")


def stratum(name: str, observed: float, *, passed: bool) -> ClassFilter:
    check = ClassCheck(name="labels", observed=observed, expected=0.05, p_value=0.1, passed=passed)
    verdict = "safe" if passed else "unsafe"
    return ClassFilter(
        name=name, n_candidates=9, n_passed=9, n_kept=9, reasons={}, metrics={}, checks=(check,),
        verdict=verdict,
    )  # fmt: skip


def checked(*classes: ClassFilter) -> FilterResult:
    return candidates_with({}).model_copy(update={"classes": classes})


def test_unsafe_classes_come_first_and_what_failed_stands_out() -> None:
    fine, odd = stratum("fine", 0.06, passed=True), stratum("<b>", 0.41, passed=False)
    html = section("filter", candidates=checked(fine, odd))
    assert "1 of 2 classes are unsafe." in html
    assert html.index("&lt;b&gt;") < html.index("fine")
    assert "<b>" not in html
    assert html.count(" !</td>") == 1
    assert "–" in html, "a check that could not be made"


def test_classes_without_checks_give_no_section() -> None:
    assert section("filter", candidates=checked()) == ""
    untold = stratum("a", 0.1, passed=True).model_copy(update={"checks": ()})
    assert section("filter", candidates=checked(untold)) == ""


def test_of_many_classes_a_hundred_are_shown() -> None:
    many = (stratum(f"c{i}", 0.06, passed=True) for i in range(120))
    html = section("filter", candidates=checked(*many))
    assert "None of 120 classes is unsafe." in html
    assert "and 20 more classes in report.json" in html


def test_fidelity_stands_beside_that_of_real_images_by_class_and_together() -> None:
    both = {
        "frechet_distance": 3.21, "real_frechet_distance": 2.34, "real_frechet_largest": 2.95,
    }  # fmt: skip
    of_class = stratum("fine", 0.06, passed=True).model_copy(update={"metrics": both})
    together = {name: 10 * value for name, value in both.items()}
    filtered = checked(of_class).model_copy(
        update={"metrics": together, "feature_space": "features of your encoder <b>.onnx"}
    )
    html = section("per-class", candidates=filtered)
    assert "in the features of your encoder: 32.1; between real images, in as many: 23.4 (" in html
    assert "19 are below 29.5)" in html
    for text in ("3.21", "2.34", "all together", "your encoder &lt;b&gt;.onnx"):
        assert text in html
    assert "Fréchet" not in section("per-class", candidates=checked(of_class))


def trial(name: str, score: float, *, kept: bool, reason: str = "", **setting: object) -> Trial:
    strategy = Strategy.model_validate({"name": name, "family": "weights", **setting})
    return Trial(strategy=strategy, score=score, spread=0.012, n_scores=3, kept=kept, reason=reason)


def info(n: int = 2) -> SearchResult:
    trials = (
        trial("class weights", 0.8, kept=True, amount=0.5),
        *(trial("<b>odd</b>", 0.7, kept=False, reason="<i>low</i>") for _ in range(n - 1)),
    )
    pilots = Rung(name="pilots", step_share=1 / 3, n_seeds=1, trials=trials)
    return SearchResult(rungs=(pilots,), n_settings=8, skipped={"vae": "not asked for"})


def test_nothing_is_shown_where_nothing_was_searched() -> None:
    assert section("search", search=SearchResult(rungs=(), n_settings=8)) == ""


def test_every_trial_is_shown_with_its_score_and_outcome() -> None:
    page = section("search", search=info())
    assert "amount 0.5" in page
    assert "80.0" in page
    assert "± 1.2 (3)" in page
    assert "<td>kept</td>" in page
    assert "33.3 % of an estimator" in page
    assert "2 tried (1 seed" in page
    assert "not asked for" in page


def test_names_and_reasons_are_escaped() -> None:
    page = section("search", search=info())
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;odd" in page


def test_a_long_rung_is_cut_and_says_so() -> None:
    page = section("search", search=info(65))
    assert page.count('<th scope="row">') == 60
    assert "and 5 more with lower scores in report.json" in page


def test_times_are_shown_only_where_there_are_some() -> None:
    assert "Time</th>" not in section("search", search=info())
    rung = info().rungs[0]
    timed = tuple(t.model_copy(update={"seconds": 2.5}) for t in rung.trials)
    with_times = SearchResult(rungs=(rung.model_copy(update={"trials": timed}),), n_settings=8)
    assert "2.5 s" in section("search", search=with_times)


def test_settings_are_in_words() -> None:
    assert Strategy(name="as is", family="as_is").setting == "–"
    strategy = Strategy(
        name="resampling + classic", family="classic", classic_prob=0.25, classic_strength=2.0
    )
    assert strategy.setting == "amount 1, p 0.25, 2 times as strong"


def test_the_report_has_the_search_on_its_page_and_in_its_json() -> None:
    files = build_report(ReportData(title="a", label="y", search=info()))
    assert b'id="search"' in files["report.html"]
    found = json.loads(files["report.json"])["search"]
    assert found["rungs"][0]["trials"][0]["strategy"]["amount"] == 0.5
    without = build_report(ReportData(title="a", label="y"))
    assert json.loads(without["report.json"])["search"] is None
    assert b'id="search"' not in without["report.html"]
