"""The report's section on the search: every trial is there, and no string of a user is markup."""

from __future__ import annotations

import json

from prefect_augment.report.section_search import MAX_TRIALS, section, setting_text

from prefect_augment.report.report import ReportData, build_report
from prefect_augment.schema.base import Strategy
from prefect_augment.schema.experiment import Rung, SearchResult, Trial
from prefect_augment.schema.report import Findings


def trial(name: str, score: float, *, kept: bool, reason: str = "", **setting: object) -> Trial:
    strategy = Strategy.model_validate({"name": name, "family": "weights", **setting})
    return Trial(strategy=strategy, score=score, spread=0.012, n_scores=3, kept=kept, reason=reason)


def info(n: int = 2) -> SearchResult:
    trials = (
        trial("class weights", 0.8, kept=True, amount=0.5),
        *(trial("<b>odd</b>", 0.7, kept=False, reason="<i>low</i>") for _ in range(n - 1)),
    )
    pilots = Rung(name="pilots", effort=1 / 3, n_seeds=1, trials=trials)
    return SearchResult(rungs=(pilots,), n_settings=8, skipped={"vae": "not asked for"})


def test_nothing_is_shown_where_nothing_was_searched() -> None:
    assert section(None) == ""
    assert section(SearchResult(rungs=(), n_settings=8)) == ""


def test_every_trial_is_shown_with_its_score_and_fate() -> None:
    page = section(info())
    assert "amount 0.5" in page
    assert "80.0" in page
    assert "± 1.2 (3)" in page
    assert "<strong>kept</strong>" in page
    assert "33.3 % of an estimator" in page
    assert "2 tried (1 seed" in page
    assert "not asked for" in page


def test_names_and_reasons_are_escaped() -> None:
    page = section(info())
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;odd" in page


def test_a_long_rung_is_cut_and_says_so() -> None:
    page = section(info(MAX_TRIALS + 5))
    assert page.count('<th scope="row">') == MAX_TRIALS
    assert "The 5 with the lowest scores are in report.json" in page


def test_times_are_shown_only_where_there_are_some() -> None:
    assert "Time</th>" not in section(info())
    rung = info().rungs[0]
    timed = tuple(t.model_copy(update={"seconds": 2.5}) for t in rung.trials)
    with_times = SearchResult(rungs=(rung.model_copy(update={"trials": timed}),), n_settings=8)
    assert "2.5 s" in section(with_times)


def test_settings_are_said_in_words() -> None:
    assert setting_text(Strategy(name="as is", family="as_is")) == "–"
    strategy = Strategy(
        name="resampling + classic", family="classic", classic_prob=0.25, classic_strength=2.0
    )
    assert setting_text(strategy) == "amount 1, p 0.25, 2 times as strong"


def test_the_report_has_the_search_on_its_page_and_in_its_json() -> None:
    files = build_report(ReportData(title="a", label="y", findings=Findings(search=info())))
    assert b'id="search"' in files["report.html"]
    found = json.loads(files["report.json"])["search"]
    assert found["rungs"][0]["trials"][0]["strategy"]["amount"] == 0.5
    without = build_report(ReportData(title="a", label="y"))
    assert json.loads(without["report.json"])["search"] is None
    assert b'id="search"' not in without["report.html"]
