"""The report: everything a run says, on one page that opens offline, safe against any name."""

import html
import json
import math
import re
import subprocess
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from support.staging import class_plan, plan_of, recipe_of
from support.steps import candidates_with

from prefect_augment.evaluation.metrics.column_shapes import ColumnShape, summarise_shapes
from prefect_augment.figures import style as drawing
from prefect_augment.figures.image_grid import picture_png, sheet
from prefect_augment.report.html import doubted_pictures, render_page
from prefect_augment.report.json import DoubtedLabel, Neighbour, ReportData, published_schema
from prefect_augment.report.report import build_report, markdown_summary, plan_table
from prefect_augment.report.view_model import redact
from prefect_augment.schema import (
    BalancePlan,
    ClassFilter,
    ColumnInfo,
    Difference,
    EstimatorScore,
    FilterResult,
    Findings,
    Interval,
    Recipe,
    Strategy,
    StrategyScore,
    Verdict,
)

HOSTILE = '<img src="http://leak.invalid/a.png" onerror="alert(1)">'
CLASSES = {
    "normal": 4200,
    "scratch": 1710,
    HOSTILE: 820,
    "| pipe `code` [link](http://leak.invalid) ![i](http://leak.invalid/b.png)": 300,
    "🛠️ broken 🎉 $x_1$": 121,
    "中文类别": 60,
    "../../etc/passwd": 25,
    "a class name that goes on and on, " * 6: 5,
}
TOO_SMALL = list(CLASSES)[-1]
COMPARED = list(CLASSES)[:-1]
STRATEGIES = {
    "as is": ("as_is", 0.70),
    "threshold": ("threshold", 0.751),
    "class weights": ("weights", 0.748),
    "resampling": ("resampling", 0.755),
    "SMOTE": ("classic", 0.761),
    "trees": ("model", 0.774),
    "SMOTE + trees": ("mixture", 0.783),
    "external records": ("external", 0.72),
}
SECRET = "real-secret-value"


def around(estimate: float, half: float) -> Interval:
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half)


def estimator_score(value: float) -> EstimatorScore:
    return EstimatorScore(
        balanced_accuracy=value,
        macro_f1=value - 0.04,
        auprc=float("nan"),  # as where a class has no validation record
        worst_recall=value - 0.3,
        worst_class=COMPARED[4],
        brier=0.12,
        recall=dict.fromkeys(COMPARED, value),
    )


def strategy_scores() -> tuple[StrategyScore, ...]:
    return tuple(
        StrategyScore(
            strategy=Strategy.model_validate({"name": name, "family": family, "amount": 0.5}),
            seed=seed,
            score=score + 0.004 * seed,
            estimators={
                "boosting": estimator_score(score),
                "logistic": estimator_score(score - 0.01),
            },
            n_train=5800,
            n_validation=1448,
        )
        for name, (family, score) in STRATEGIES.items()
        for seed in range(3)
    )


def balance_plan() -> BalancePlan:
    return plan_of(
        class_plan(
            name, n, max(n, 210), n_synthetic=min(n, max(0, 210 - n)),
            n_classic=max(0, 210 - 2 * n), compared=name != TOO_SMALL,
        )
        for name, n in CLASSES.items()
    )  # fmt: skip


def verdict(**changes: Any) -> Verdict:
    def recall(start: float) -> dict[str, Interval]:
        return {name: around(start - 0.05 * i, 0.02) for i, name in enumerate(COMPARED)}

    fields: dict[str, Any] = {
        "decision": "accept",
        "reasons": ("The interval lies above zero.", f"The class {HOSTILE} gained most."),
        "chosen": "SMOTE + trees",
        "baseline": "SMOTE",
        "published": "SMOTE + trees",
        "strategies": {"as is": {"boosting": estimator_score(0.7)}},
        "balanced_accuracy": {
            "as is": around(0.701, 0.022),
            "SMOTE": around(0.752, 0.021),
            "SMOTE + trees": around(0.776, 0.02),
        },
        "differences": (
            Difference(strategy="SMOTE + trees", against="SMOTE", interval=around(0.024, 0.0196)),
            Difference(strategy="SMOTE + trees", against="as is", interval=around(0.075, 0.026)),
        ),
        "gain": Difference(
            strategy="SMOTE + trees", against="as is", interval=around(0.075, 0.026)
        ),
        "minimum_detectable_effect": 0.0196,
        "class_recall": {
            "as is": recall(0.90),
            "SMOTE": recall(0.91),
            "SMOTE + trees": recall(0.93),
        },
        "class_decisions": dict.fromkeys(COMPARED, "inconclusive"),
        "not_compared": {TOO_SMALL: "5 records are too few"},
        "n_holdout": 1812,
        "n_seeds": 3,
        "without_twins": {"as is": 0.698},
        "n_without_twins": 1790,
    }
    return Verdict.model_validate(fields | changes)


def filter_result() -> FilterResult:
    classes = tuple(
        ClassFilter(
            name=name, n_candidates=100, n_passed=83, n_kept=40,
            reasons={"near copy": 6, "looks like another class": 11},
            metrics={"density": 0.97, "coverage": 0.91},
        )
        for name in COMPARED[4:]
    )  # fmt: skip
    return candidates_with({}).model_copy(
        update={"feature_space": "standardised columns", "classes": classes}
    )


def recipe() -> Recipe:
    return recipe_of(
        "SMOTE + trees",
        "mixture",
        class_weight=dict.fromkeys(CLASSES, 1.0),
        synthetic={COMPARED[4]: 89},
        thresholds={"boosting": {COMPARED[2]: 1.25}},
        sentence=f"Rare classes were topped up; use aug_weight. {HOSTILE}",
    )


def doubted(aug_id: str, label: str, suggested: str, record: Any, file: str = "") -> DoubtedLabel:
    said = {"label": label, "suggested": suggested, "score": 0.93}
    return DoubtedLabel(aug_id=aug_id, record=record, picture=file, **said)


def full_report(**changes: Any) -> ReportData:
    rng = np.random.default_rng(0)
    columns, day = ("temperature", "site <b>", "installed"), np.datetime64("2019-01-01")
    shapes = {
        "temperature": ColumnShape("numeric", rng.normal(9, 2, 80), rng.normal(9, 2, 90)),
        "site <b>": ColumnShape("category", np.array([SECRET, "b", "c"]), np.array(["b", "c"])),
        "installed": ColumnShape("numeric", *(day + rng.integers(0, 900, n) for n in (80, 90))),
    }
    record = {c: f"{c} of a synthetic record" for c in columns}
    beside = record | {"site <b>": SECRET}
    fields: dict[str, Any] = {
        "title": "predictive maintenance <i>",
        "label": "failure type",
        "plan": balance_plan(),
        "notes": (f"A column was called {HOSTILE}.",),
        "columns": tuple(
            ColumnInfo(name=c, arrow_type="double", kind="numeric", n_null=3, n_unique=5)
            for c in columns
        ),
        "part_counts": {
            "holdout": {n: k // 4 for n, k in CLASSES.items()},
            "training": {n: k - k // 5 for n, k in CLASSES.items()},
            "validation": {n: k // 5 for n, k in CLASSES.items()},
        },
        "strategy_scores": strategy_scores(),
        "verdict": verdict(),
        "recipe": recipe(),
        "candidates": filter_result(),
        "counts_before": {n: {"real": k} for n, k in CLASSES.items()},
        "counts_after": {n: {"real": k, "synthetic": 10} for n, k in CLASSES.items()},
        "weighted_counts": {n: float(max(k, 700)) for n, k in CLASSES.items()},
        "quarantine": {"no label": 12},
        "rare_classes": tuple(COMPARED[4:]),
        "shapes": summarise_shapes(shapes, show_real=changes.get("pictures", "real") == "real"),
        "neighbours": (
            Neighbour(label=HOSTILE, synthetic=record, real=beside, distance=0.31),
            Neighbour(
                label="scratch", synthetic=record, real={"temperature": "3"}, distance=math.nan
            ),
        ),
        "doubted": (
            doubted("7c", "scratch", HOSTILE, {"site <b>": SECRET, "temperature": "3.5"}),
            doubted("8d", HOSTILE, "scratch", {"temperature": "17.5"}),
        ),
        "seed": 7,
        "model_kind": "trees",
        "model_digest": "9c1f" * 16,
        "digests": {"dataset": "ab12" * 16},
        "software": {"numpy": "2.4", "Python": "3.11", "python": "3.11"},
    }
    return ReportData(**(fields | changes))


MINIMAL = ReportData(title="demo", label="y")


def findings() -> dict[str, Any]:
    """Every measurement, under names that try to break out."""
    operation = {"rate": 0.4, "low": 0.3, "worst_class": HOSTILE, "worst_rate": 0.9}
    measured = Findings.model_validate(
        {
            "drift": {
                "version": 3,
                "n_before": 4000,
                "n_now": 4200,
                "classes": [{"name": n, "before": k, "now": k + 9} for n, k in CLASSES.items()],
                "sentence": f"Since version 3: {HOSTILE}",
            },
            "training": {"curves": [{"loss": "a" * 90, "points": [(1, 2.0), (2, 1.0)]}]},
            "policy": {
                "policy": HOSTILE,
                "digest": "d",
                "accuracy": 0.9,
                "n_images": 80,
                "operations": [{**operation, "name": HOSTILE, "becomes": "", "damages": True}],
                "picture": "p",
            },
        }
    )
    return dict(measured)


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def ids(self) -> set[str | None]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}


def text_of(data: ReportData) -> str:
    """What a reader sees, without drawing the pictures: they take a second."""
    return Page(render_page(redact(data), ())).text


@pytest.fixture
def coarse_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what a page holds; how its charts look is for `test_charts.py` and the browser."""
    monkeypatch.setattr(drawing, "DOTS_PER_INCH", (40,))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return build_report(full_report())


@pytest.fixture(scope="module")
def page(files: dict[str, bytes]) -> Page:
    return Page(files["report.html"])


@pytest.mark.slow
def test_report_has_page_results_recipe_and_small_pictures(files: dict[str, bytes]) -> None:
    pictures = {name: png for name, png in files.items() if name.endswith(".png")}
    assert set(files) - set(pictures) == {"report.html", "report.json", "recipe.json"}
    assert set(pictures) == {
        "strategies_holdout.png", "strategies_validation.png", "class_counts.png",
        "class_recall.png", "column_shapes_1.png", "differences.png",
    }  # fmt: skip
    for png in pictures.values():
        assert png.startswith(b"\x89PNG")
        assert len(png) < 200_000


@pytest.mark.slow
def test_page_needs_nothing_from_outside(page: Page, files: dict[str, bytes]) -> None:
    loading = {"script", "link", "iframe", "object", "base", "form"}
    assert loading.isdisjoint(tag for tag, _ in page.tags)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, value)
        assert not any(name.startswith("on") for name in attributes)
    assert len(page.all("img")) == 6
    style = files["report.html"].decode().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.slow
def test_all_but_the_answer_and_two_pictures_is_folded(page: Page) -> None:
    open_ = [a["id"] for a in page.all("section")][:2]
    assert open_ == ["classes", "strategies"]
    folded = [a for a in page.all("details") if a.get("class") == "fold"]
    assert len(folded) == len(page.all("section")) - 2
    assert not any("open" in a for a in page.all("details"))


@pytest.mark.slow
def test_verdict_comes_first_and_says_why(page: Page) -> None:
    text = page.text
    order = [
        "Gain shown", "The interval lies above zero.", "SMOTE + trees against as is", "+7.5 points",
        "What was published", "What to do now", "Classes before and after",
        "Strategies that were compared", "Per class", "Column shapes", "nearest real ones",
        "Data quality", "Method and limits", "Lineage",
    ]  # fmt: skip
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_without_a_gain_no_figure_stands_beside_the_answer() -> None:
    page = Page(render_page(full_report(verdict=verdict(gain=None)), ()))
    assert "Smallest difference" not in page.text
    assert "+7.5 points" not in page.text.partition("What was published")[0]


@pytest.mark.slow
def test_user_strings_are_text_and_never_markup(page: Page) -> None:
    assert HOSTILE in page.text
    assert "predictive maintenance <i>" in page.text
    assert not page.all("i")
    assert not page.all("b")
    assert all((a["src"] or "").startswith("data:") for a in page.all("img"))


def test_measurements_have_sections_and_their_names_are_text() -> None:
    page = Page(render_page(full_report(**findings()), ()))
    assert {"drift", "training", "policy"} <= page.ids
    assert [a["href"] for a in page.all("a")] == ["#drift"]
    assert page.text.index("Since version 3") < page.text.index("Classes before and after")
    assert all((a["src"] or "").startswith("data:") for a in page.all("img"))
    without = Page(render_page(full_report(), ()))
    assert {"drift", "training", "policy"}.isdisjoint(without.ids)


def test_drift_stands_in_the_summary() -> None:
    assert "**Drift.** Since version 3" in markdown_summary(full_report(**findings()))
    assert "Drift" not in markdown_summary(full_report())


@pytest.mark.slow
def test_every_class_is_on_the_page_with_its_fate(page: Page) -> None:
    for name in CLASSES:
        assert name in page.text
    assert "5 records are too few" in page.text
    assert "looks like another class: 11, near copy: 6" in page.text


@pytest.mark.slow
def test_every_heading_of_a_table_says_what_it_heads(page: Page) -> None:
    scopes = {a.get("scope") for a in page.all("th")}
    assert scopes == {"col", "row", "rowgroup"}


@pytest.mark.slow
def test_pictures_are_described_in_words(page: Page) -> None:
    alts = [a["alt"] or "" for a in page.all("img")]
    assert any("normal: 4,200 to 4,210" in alt for alt in alts)
    assert any("SMOTE + trees against SMOTE: +2.4 (+0.4 to +4.4)" in alt for alt in alts)


def test_invisible_characters_are_made_visible() -> None:
    names = {"": 1, "  ": 2, "a\x00b": 3}
    data = ReportData(
        title="t\x1b", label="y", counts_before={n: {"real": k} for n, k in names.items()}
    )
    files = build_report(data)
    text = Page(files["report.html"]).text
    assert "(empty)" in text
    assert "(blank: 2 characters)" in text
    assert "a\u2400b" in text
    assert b"\x00" not in files["report.html"]
    assert json.loads(files["report.json"])["counts_before"]["a\x00b"] == {"real": 3}


@pytest.mark.slow
@pytest.mark.usefixtures("coarse_charts")
def test_equal_data_give_equal_bytes_whatever_the_order_of_mappings() -> None:
    data = full_report()
    files = build_report(data)
    names = [
        "part_counts", "counts_before", "counts_after", "weighted_counts", "quarantine", "digests",
        "software",
    ]  # fmt: skip
    backwards = {name: dict(reversed(getattr(data, name).items())) for name in names}
    backwards["strategy_scores"] = data.strategy_scores[::-1]
    again = build_report(data.model_copy(update=backwards))
    assert list(again) == list(files)
    for name in set(files) - {"report.json"}:  # it lists the scores as they were given
        assert again[name] == files[name], name
    assert build_report(full_report()) == files


@pytest.mark.slow
def test_results_behind_the_page_are_strict_json_with_sorted_keys(files: dict[str, bytes]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    info = json.loads(files["report.json"], parse_constant=refuse)
    assert list(info) == sorted(info)
    assert info["schema_version"] == 3
    jsonschema.validate(info, published_schema())
    assert info["verdict"]["decision"] == "accept"
    assert info["strategy_scores"][0]["estimators"]["boosting"]["auprc"] is None
    assert len(info["strategy_scores"]) == 3 * len(STRATEGIES)
    assert sum(next(s for s in info["shapes"] if s["column"] == "temperature")["real"]) == (
        pytest.approx(1.0)
    )
    assert Recipe.model_validate_json(files["recipe.json"]) == recipe()


@pytest.mark.slow
@pytest.mark.usefixtures("coarse_charts")
@pytest.mark.parametrize("pictures", ["synthetic", "none"])
def test_real_values_only_appear_if_pictures_is_real(
    pictures: str, files: dict[str, bytes]
) -> None:
    assert SECRET.encode() in files["report.html"]
    assert SECRET.encode() in files["report.json"]
    hidden = build_report(full_report(pictures=pictures))
    for name, content in hidden.items():
        assert SECRET.encode() not in content, name
    assert "may not show real records" in Page(hidden["report.html"]).text
    assert ("column_shapes_1.png" in hidden) == (pictures == "synthetic")


def test_a_run_that_did_nothing_still_has_a_page_that_says_so() -> None:
    files = build_report(MINIMAL)
    assert set(files) == {"report.html", "report.json"}
    text = Page(files["report.html"]).text
    assert "Not compared" in text
    assert "No comparison on held-out real records was run" in text
    assert text.count("Not run:") >= 6
    assert "recipe.json" not in text


@pytest.mark.parametrize(
    "missing",
    [
        {"plan": None},
        {"verdict": None},
        {"recipe": None},
        {"candidates": None},
        {"candidates": None, "model_kind": ""},
        {"strategy_scores": ()},
        {"part_counts": {}},
        {"counts_before": {}, "counts_after": {}, "weighted_counts": {}},
        {"columns": (), "seed": None},
        {"shapes": (), "neighbours": ()},
        {"doubted": ()},
    ],
    ids=lambda m: ", ".join(m),
)
def test_any_part_of_a_run_may_be_missing(missing: dict[str, Any]) -> None:
    data = full_report(**missing)
    assert "Method and limits" in text_of(data)
    assert markdown_summary(data).startswith("## Verdict")


@pytest.mark.slow
@pytest.mark.usefixtures("coarse_charts")
@pytest.mark.parametrize(
    ("missing", "pictures"),
    [
        (
            {"verdict": None, "recipe": None, "candidates": None},
            {"class_counts.png", "strategies_validation.png", "column_shapes_1.png"},
        ),
        (
            {"plan": None, "strategy_scores": (), "counts_after": {}, "shapes": ()},
            {"strategies_holdout.png", "differences.png", "class_recall.png"},
        ),
    ],
)
def test_pictures_are_drawn_of_what_there_is(missing: dict[str, Any], pictures: set[str]) -> None:
    assert {n for n in build_report(full_report(**missing)) if n.endswith(".png")} == pictures


def test_a_refused_run_says_that_nothing_was_published() -> None:
    data = full_report(status="refused", verdict=verdict(decision="reject"))
    text = text_of(data)
    assert "Loss shown" in text
    assert "so nothing was published" in text
    assert "What to do now" not in text
    assert "**Published.**" not in markdown_summary(data)


def test_an_evaluation_publishes_nothing_by_intent() -> None:
    text = text_of(full_report(status="evaluated"))
    assert "this run evaluated data that was there already" in text


def test_no_gain_is_said_where_the_strategies_are_one_and_the_same() -> None:
    same = verdict(
        decision="inconclusive", chosen="as is", baseline="as is", published="as is", differences=()
    )
    data = full_report(verdict=same)
    assert "No gain shown" in text_of(data)
    assert "Verdict: no gain shown" in markdown_summary(data)


def test_undefined_figures_are_dashes_not_nan() -> None:
    nan = around(float("nan"), 0.0)
    odd = verdict(
        minimum_detectable_effect=float("inf"),
        balanced_accuracy={"as is": nan, "SMOTE + trees": around(0.7, 0.1)},
        differences=(Difference(strategy="SMOTE + trees", against="as is", interval=nan),),
    )
    data = full_report(verdict=odd)
    for text in (text_of(data), markdown_summary(data)):
        assert {"nan", "inf"}.isdisjoint(re.findall(r"\w+", text.lower()))


@pytest.mark.slow
def test_a_thousand_classes_are_all_in_the_table_and_the_rarest_in_the_picture() -> None:
    counts = {f"class {i}": {"real": 5000 - i} for i in range(1000)}
    data = ReportData(title="many", label="y", counts_before=counts, counts_after=counts)
    files = build_report(data)
    text = Page(files["report.html"]).text
    assert all(f"class {i}" in text for i in (0, 499, 999))
    assert "The picture shows the 30 smallest of 1,000 classes" in text
    assert len(files["class_counts.png"]) < 200_000
    assert "and 950 smaller classes" in markdown_summary(data)


def test_weights_alone_are_shown_as_what_they_make_of_each_class() -> None:
    """A recipe that only weights changes no count; the page shows the balance all the same."""
    names = {"a": 90, "b": 10}
    counts = {n: {"real": k} for n, k in names.items()}
    data = MINIMAL.model_copy(
        update={
            "plan": plan_of((class_plan(n, k, 90) for n, k in names.items()), rule="majority"),
            "recipe": recipe_of("class weights", "weights", class_weight={"a": 50 / 90, "b": 5.0}),
            "counts_before": counts,
            "counts_after": counts,
            "weighted_counts": dict.fromkeys(names, 50.0),
        }
    )
    text = " ".join(text_of(data).split())
    assert "9 times the records of the smallest; with the recipe's weights 1 times" in text


def test_summary_says_verdict_classes_strategies_and_recipe() -> None:
    text = markdown_summary(full_report())
    assert text.startswith("## Verdict: gain shown\n")
    assert "| normal | 4,200 | 4,210 | 90.0 (88.0 to 92.0) | 93.0 (91.0 to 95.0) |" in text
    assert "| SMOTE + trees | 78.7 |" in text
    assert "Differences below 2.0 points cannot be told from chance" in text
    assert "Rare classes were topped up; use aug\\_weight." in text
    assert "**Purpose of the synthetic records.** utility: picked for training" in text
    assert "Purpose" not in markdown_summary(MINIMAL)


def test_summary_escapes_markdown_and_html() -> None:
    text = markdown_summary(full_report())
    assert "<img" not in text
    assert "&lt;img src=" in text
    assert "\\| pipe \\`code\\` \\[link\\](http" in text
    for line in text.splitlines():
        if line.startswith("| ") and "4,200" not in line:
            assert line.replace("\\|", "").count("|") in (3, 7)  # as many cells as the head has


def test_summary_renders_as_plain_text_in_a_markdown_reader() -> None:
    from markdown_it import MarkdownIt  # comes with rich, which the command line needs

    reader = MarkdownIt("commonmark").enable("table")
    rendered = Page(reader.render(markdown_summary(full_report())).encode())
    assert {"img", "a", "code"}.isdisjoint(tag for tag, _ in rendered.tags)
    for name in CLASSES:
        assert name.strip() in rendered.text


@pytest.mark.slow
def test_summary_shows_pictures_inline_where_it_is_given_them(files: dict[str, bytes]) -> None:
    text = markdown_summary(full_report(), images={"class_counts.png": files["class_counts.png"]})
    assert "](data:image/png;base64,iVBOR" in text
    assert "data:" not in markdown_summary(full_report())


def test_summary_of_a_run_that_did_nothing_says_so() -> None:
    text = markdown_summary(MINIMAL)
    assert "## Verdict: not compared" in text
    assert "Not run: no strategies were compared." in text


def test_plan_table_has_one_row_per_stratum_and_a_column_per_group() -> None:
    plan = balance_plan()
    rows = plan_table(plan)
    assert [row["class"] for row in rows] == list(CLASSES)
    assert rows[6] == {
        "class": "../../etc/passwd", "real": 25, "target": 210, "synthetic": 25, "classic": 160,
        "compared": "yes", "note": "",
    }  # fmt: skip
    stratum = plan.classes[0].model_copy(update={"by": {"real": "yes"}})
    grouped = plan_table(plan.model_copy(update={"classes": (stratum,)}))
    assert grouped[0]["by real"] == "yes"
    assert grouped[0]["real"] == 4200


class _Requests(ThreadingHTTPServer):
    """A proxy that answers nothing and remembers the hosts it was asked for."""

    def __init__(self) -> None:
        self.hosts: set[str] = set()
        super().__init__(("127.0.0.1", 0), _Refuse)


class _Refuse(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Requests)
        host = self.path.split("://")[-1].split("/")[0].split(":")[0]
        self.server.hosts.add(host)
        self.send_error(404)

    do_CONNECT = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Keep the test's output to itself."""


@pytest.fixture
def proxy() -> Iterator[_Requests]:
    server = _Requests()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


# Frames of a given width, since a window of Chromium is at least 500 px wide. Each page is measured
# with its details folded open; the control picture shows that the proxy sees what a page asks for.
_MEASURE = """<!doctype html><body><img src="http://control.invalid/seen.png">{frames}<script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach(d => d.open = true);
    const outside = [...page.querySelectorAll("body *")].filter(
      e => !e.parentElement.closest(".scroll") && e.getBoundingClientRect().right > root.clientWidth + 1);
    return {{
      width: root.clientWidth, content: root.scrollWidth,
      outside: outside.map(e => e.tagName + "." + e.className),
      scrolling: [...page.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth).length,
      images: page.images.length,
      loaded: [...page.images].filter(i => i.complete && i.naturalWidth > 100).length,
    }};
  }});
  const out = document.createElement("pre"); out.id = "found";
  out.textContent = JSON.stringify(found); document.body.append(out);
}});
</script>"""


def measure(
    pages: list[bytes], widths: tuple[int, ...], folder: Path, browser: str, port: int
) -> list[dict[str, Any]]:
    """What Chromium makes of each page at each width, page by page."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page.decode())}">'
        "</iframe>"
        for page in pages
        for width in widths
    )
    wrapper = folder / "pages.html"
    wrapper.write_text(_MEASURE.format(frames=frames), encoding="utf-8")
    # Containers run as root, where Chromium has no sandbox.
    words = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", f"--proxy-server=127.0.0.1:{port}",
        "--proxy-bypass-list=<-loopback>", "--virtual-time-budget=20000", "--dump-dom",
        wrapper.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    found = done.stdout.rsplit('<pre id="found">', 1)[1].split("</pre>")[0]
    return list(json.loads(html.unescape(found)))


# Chromium itself asks its maker for the time and for updates.
BROWSERS_OWN = ("google.com", "googleapis.com", "gvt1.com", "gstatic.com")


@pytest.mark.e2e
def test_page_opens_in_chromium_without_a_request(
    tmp_path: Path, chromium: str, proxy: _Requests
) -> None:
    table = full_report(**findings())
    image = image_report(**findings(), images={"policy.png": image_report().images["sheet_1.png"]})
    pages = [build_report(data)["report.html"] for data in (table, image, MINIMAL)]
    found = measure(pages, (1280, 390), tmp_path, chromium, proxy.server_address[1])
    for page in found:
        assert page["content"] == page["width"], page
        assert page["outside"] == [], page
        assert page["loaded"] == page["images"]
    assert [page["width"] for page in found] == [1280, 390] * 3
    assert [page["images"] for page in found] == [7, 7, 12, 12, 0, 0]
    assert found[1]["scrolling"] >= 3  # wide tables scroll by themselves
    hosts = {host for host in proxy.hosts if not host.endswith(BROWSERS_OWN)}
    assert hosts == {"control.invalid"}


def image_report(**changes: Any) -> ReportData:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    sheets = {name: f"sheet_{i}.png" for i, name in enumerate(list(CLASSES)[2:5], start=1)}
    images = {file: sheet(name, pixels, pixels, pixels) for name, file in sheets.items()}
    images |= {f"doubted_{i}.png": picture_png(pixels[i - 1]) for i in (1, 2)}
    fields = {"modality": "image", "sheets": sheets, "shapes": (), "neighbours": ()}
    fields["doubted"] = (
        doubted("7c", "scratch", HOSTILE, {"file": f"{SECRET}.png"}, "doubted_1.png"),
        doubted("8d", HOSTILE, "scratch", {}, "doubted_2.png"),
    )
    return full_report(**(fields | {"images": images | changes.pop("images", {})} | changes))


@pytest.mark.slow
def test_images_have_sheets_in_the_page_among_the_files_and_by_name_in_the_results() -> None:
    data = image_report()
    files = build_report(data)
    assert json.loads(files["report.json"])["sheets"] == data.sheets
    assert all(files[file] == data.images[file] for file in data.sheets.values())
    page = Page(files["report.html"])
    assert {"pictures", "classes", "strategies"} <= page.ids
    assert len([img for img in page.all("img") if "images of" in (img["alt"] or "")]) == 3
    # The picture has no glyphs for an emoji; the caption has the whole name.
    plain = text_of(image_report(sheets={}))
    assert page.text.count("🛠️ broken 🎉 $x_1$") > plain.count("🛠️ broken 🎉")


def test_doubted_images_are_shown_with_labels_and_file_only_where_real_ones_may_be() -> None:
    data = image_report()
    charts = doubted_pictures(data)
    assert [chart.png for chart in charts] == [data.images[f"doubted_{i}.png"] for i in (1, 2)]
    page = Page(render_page(data, charts))
    shown = [img["alt"] or "" for img in page.all("img")]
    assert shown[0] == "An image with the label scratch."
    assert page.text.count(f"{SECRET}.png") == 1
    assert "8d" in page.text.split("Labels to look at")[1], "an image without a file has its id"
    hidden = image_report(pictures="synthetic")
    assert doubted_pictures(redact(hidden)) == []
    assert SECRET not in text_of(hidden)


def test_images_have_no_sections_about_columns() -> None:
    page = Page(render_page(image_report(), ()))
    assert {"shapes", "neighbours"}.isdisjoint(page.ids)
    assert {(a["href"] or "").removeprefix("#") for a in page.all("a")} <= page.ids
    assert "SMOTE)" not in page.text
    assert "columns' domains" not in page.text


@pytest.mark.slow
@pytest.mark.usefixtures("coarse_charts")
def test_report_without_pictures_has_no_sheet_anywhere() -> None:
    data = image_report(pictures="none")
    files = build_report(data)
    assert not [name for name in files if name.startswith("sheet")]
    assert json.loads(files["report.json"])["sheets"] == {}
    assert "may show no records" in Page(files["report.html"]).text


@pytest.mark.parametrize("pictures", ["real", "synthetic"])
def test_missing_sheets_are_said(pictures: str) -> None:
    text = text_of(image_report(sheets={}, pictures=pictures))
    assert "Not run" in text.split("Strategies that were compared")[0]


def test_tables_have_no_pictures_section() -> None:
    assert "Pictures of the rare classes" not in text_of(full_report())
