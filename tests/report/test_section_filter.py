"""The report's section on classes as a whole."""

from __future__ import annotations

from prefect_augment.report.section_filter import section

from prefect_augment.schema.base import ClassCheck, ClassFilter, FilterResult


def stratum(name: str, found: float, *, passed: bool) -> ClassFilter:
    check = ClassCheck(name="labels", found=found, expected=0.05, p_value=0.1, passed=passed)
    verdict = "safe" if passed else "unsafe"
    return ClassFilter(
        name=name, n_candidates=9, n_passed=9, n_kept=9, reasons={}, metrics={}, checks=(check,),
        verdict=verdict,
    )  # fmt: skip


def report(*classes: ClassFilter) -> FilterResult:
    return FilterResult(
        root="", path="", key="", purpose="utility", classes=classes, kept=(), dropped=(),
        feature_space="",
    )  # fmt: skip


def test_unsafe_classes_come_first_and_what_failed_stands_out() -> None:
    html = section(report(stratum("fine", 0.06, passed=True), stratum("<b>", 0.41, passed=False)))
    assert "1 of 2 classes are unsafe." in html
    assert html.index("&lt;b&gt;") < html.index("fine")
    assert "<b>" not in html
    assert html.count("<strong>") == 1
    assert "–" in html, "a check that could not be made"


def test_nothing_to_say_gives_no_section() -> None:
    assert section(None) == ""
    assert section(report()) == ""
    untold = stratum("a", 0.1, passed=True).model_copy(update={"checks": ()})
    assert section(report(untold)) == ""


def test_of_many_classes_a_hundred_are_shown() -> None:
    html = section(report(*(stratum(f"c{i}", 0.06, passed=True) for i in range(120))))
    assert "None of 120 classes is unsafe. 20 more are in report.json." in html
