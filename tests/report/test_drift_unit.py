"""Drift: what changed between two versions, told apart from what chance does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prefect_augment.evaluation.metrics.column_profile import MAX_LEVELS, column_content
from prefect_augment.evaluation.metrics.drift import (
    class_drifts,
    column_drifts,
    drift_sentence,
    effective,
    n_shared,
    strategy_drifts,
)
from prefect_augment.schema.drift import ColumnContent, ColumnDrift, Contents, Drift

from prefect_augment.report.section_drift import section
from prefect_augment.schema.base import Interval, Verdict

N = 1500


def contents(columns: tuple[ColumnContent, ...] = (), n: int = N, **changes: Any) -> Contents:
    fields: dict[str, Any] = {
        "run": "r",
        "n_records": n,
        "n_looked_at": n,
        "classes": {"a": n},
        "columns": columns,
    }
    return Contents(**(fields | changes))


def compared(
    old: dict[str, NDArray[Any]], now: dict[str, NDArray[Any]], shared: int = 0
) -> dict[str, ColumnDrift]:
    """Columns of two versions, compared as a run does it."""

    def kept(values: dict[str, NDArray[Any]], like: Contents | None = None) -> Contents:
        of = {c.name: c for c in like.columns} if like else {}
        columns = tuple(
            column_content(
                name, "category" if x.dtype == object else "numeric", x, like=of.get(name)
            )
            for name, x in values.items()
        )
        return contents(columns, n=len(next(iter(values.values()))))

    before = kept(old)
    on = {c.name: c for c in kept(now, before).columns}
    return {c.column: c for c in column_drifts(before, kept(now), on, shared)}


def drawn(rng: np.random.Generator, n: int, shift: float = 0.0) -> dict[str, NDArray[Any]]:
    """Columns of many shapes: normal, skewed, whole numbers, dates, levels, and one mostly empty."""
    sparse = rng.normal(shift, 1, n)
    sparse[rng.random(n) < 0.9] = np.nan
    return {
        "normal": rng.normal(shift, 1, n),
        "skewed": rng.lognormal(shift, 1, n),
        "whole": rng.poisson(3 + 3 * shift, n).astype(float),
        "date": np.datetime64("2020-01-01") + (rng.exponential(100 + 100 * shift, n)).astype(int),
        "levels": rng.choice(np.array(list("abcdefgh"), dtype=object), n, p=levels(shift)),
        "sparse": sparse,
    }


def levels(shift: float) -> NDArray[np.float64]:
    p = np.array([0.4, 0.2, 0.15, 0.1, 0.06, 0.04, 0.03, 0.02])
    p[0] -= shift / 2
    p[3] += shift / 2
    return p


@pytest.mark.parametrize("is_growing", [False, True])
def test_the_same_source_is_flagged_in_at_most_one_of_a_hundred_versions(is_growing: bool) -> None:
    """Also where most records are shared: the noise is then less, and the bound with it."""
    flagged = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        old = drawn(rng, 400)
        new = drawn(rng, 400)
        now = {k: np.concatenate([v, new[k]]) for k, v in old.items()} if is_growing else new
        found = compared(old, now, shared=400 if is_growing else 0)
        flagged += any(c.status != "same" for c in found.values())
    assert flagged <= 6  # of 200; more come by chance in less than one of 100 times at 1 %


@pytest.mark.parametrize("name", ["normal", "skewed", "whole", "date", "levels"])
def test_new_records_of_another_source_are_found_in_each_kind_of_column(name: str) -> None:
    rng = np.random.default_rng(1)
    old, new = drawn(rng, N), drawn(rng, N // 5, shift=0.5)
    now = {k: np.concatenate([v, new[k]]) for k, v in old.items()}
    found = compared(old, now, shared=N)
    assert found[name].status == "changed"
    # Records that were taken for all new would hide it: the noise is twice as large.
    apart = compared(old, now)
    assert (apart[name].noise or 0) > 2 * (found[name].noise or 0)


def test_distance_is_that_of_the_whole_samples() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, N), rng.normal(0.4, 1, N)
    pooled = np.sort(np.concatenate([a, b]))
    cdf = [np.searchsorted(np.sort(x), pooled, side="right") / N for x in (a, b)]
    exact = np.abs(cdf[0] - cdf[1]).max()
    assert compared({"x": a}, {"x": b})["x"].distance == pytest.approx(exact, abs=1 / 64)


def test_more_empty_values_are_a_change_though_the_values_are_as_before() -> None:
    rng = np.random.default_rng(3)
    old, now = rng.normal(0, 1, N), rng.normal(0, 1, N)
    now[: N // 5] = np.nan
    found = compared({"x": old}, {"x": now})["x"]
    assert (found.status, found.null_changed) == ("changed", True)
    assert (found.null_before, found.null_now) == (0.0, 0.2)


def test_new_and_vanished_levels_are_named_with_their_records() -> None:
    old = np.array(["a"] * 900 + ["b"] * 100, dtype=object)
    now = np.array(["a"] * 900 + ["c"] * 30, dtype=object)
    found = compared({"x": old}, {"x": now})["x"]
    assert found.new_levels == {"c": 30}
    assert found.vanished_levels == {"b": 100}
    assert found.status == "changed"


def test_more_levels_than_are_kept_are_not_compared_but_their_nulls_are() -> None:
    """Each version knows its own most frequent ones: of equal rare ones they differ by chance."""
    rng = np.random.default_rng(0)
    old, now = (rng.integers(0, 5 * MAX_LEVELS, 4000).astype(str).astype(object) for _ in range(2))
    found = compared({"x": old}, {"x": now})["x"]
    assert (found.status, found.new_levels, found.vanished_levels) == ("not compared", {}, {})
    now[::3] = None
    assert compared({"x": old}, {"x": now})["x"].null_changed


def test_columns_that_came_went_or_became_another_kind_are_said() -> None:
    x = np.arange(20.0)
    text = np.array(["a", "b"] * 10, dtype=object)
    found = compared(
        {"gone": x, "kind": x, "empty": x * np.nan}, {"kind": text, "new": x, "empty": x}
    )
    assert {name: c.status for name, c in found.items()} == {
        "gone": "gone",
        "new": "new",
        "kind": "not compared",
        "empty": "changed",  # it was empty, and is not
    }
    assert found["kind"].why == "it was numeric and is category"


def test_classes_are_flagged_beyond_chance_and_where_they_come_or_go() -> None:
    found = {
        c.name: c
        for c in class_drifts({"a": 900, "b": 90, "c": 5}, {"a": 950, "b": 95, "d": 4}, 900)
    }
    assert {name: c.changed for name, c in found.items()} == {
        "a": False,
        "b": False,
        "c": True,
        "d": True,
    }
    assert found["d"].is_new
    moved = {c.name: c for c in class_drifts({"a": 900, "b": 90}, {"a": 900, "b": 180}, 990)}
    assert moved["b"].changed


def test_records_in_common_are_counted_by_their_smallest_ids() -> None:
    rng = np.random.default_rng(4)
    ids = [f"{k:016x}" for k in rng.integers(0, 2**63, 5000)]

    def of(chosen: list[str]) -> Contents:
        return contents(n=len(chosen), sketch=tuple(sorted(chosen)[:512]))

    assert n_shared(of(ids[:3000]), of(ids)) == 3000, "a source that grew holds all of them"
    assert n_shared(of(ids), of(ids)) == 5000
    assert n_shared(of(ids[:2500]), of(ids[2500:])) == 0
    assert n_shared(of(ids[:4000]), of(ids[1000:])) == pytest.approx(3000, abs=250)
    assert n_shared(of(ids[:100]), of(ids[50:150])) == 50, "few are known all"


def test_noise_is_less_the_more_is_shared() -> None:
    assert effective(100, 100, 0) == pytest.approx(50)
    assert effective(1000, 1100, 1000) == pytest.approx(11000)
    assert math.isinf(effective(100, 100, 100))


def verdict_of(**scores: float) -> Verdict:
    return Verdict(
        decision="inconclusive",
        reasons=(),
        chosen="a",
        baseline="a",
        published="a",
        strategies={},
        balanced_accuracy={
            name: Interval(estimate=e, low=e - 0.02, high=e + 0.02) for name, e in scores.items()
        },
        differences=(),
        minimum_detectable_effect=0.02,
        class_recall={},
        class_decisions={},
        not_compared={},
        n_holdout=100,
        n_seeds=1,
    )


def test_strategies_are_compared_by_name_and_flagged_beyond_their_intervals() -> None:
    found = {
        a.name: a
        for a in strategy_drifts(
            ({"a": 0.5, "b": 0.6}, verdict_of(a=0.70, b=0.70)),
            ((), verdict_of(a=0.76, b=0.72, c=0.8)),
        )
    }
    assert {name: a.changed for name, a in found.items()} == {"a": True, "b": False, "c": False}
    assert (found["a"].validation_before, found["a"].validation_now) == (0.5, None)
    assert found["c"].holdout_before is None


def drift(**changes: Any) -> Drift:
    rng = np.random.default_rng(5)
    columns = compared(drawn(rng, N), drawn(rng, N, shift=0.5))
    fields: dict[str, Any] = {
        "version": 3,
        "n_before": N,
        "n_now": N + 300,
        "n_shared": N,
        "classes": class_drifts({"ok <b>": N}, {"ok <b>": N, "worn": 300}, N),
        "columns": tuple(columns.values()),
        "strategies": strategy_drifts(({"as is": 0.7}, None), ((), None)),
        "recipe_before": "SMOTE",
        "recipe_now": "trees",
    }
    return Drift(**(fields | changes))


def test_sentence_names_what_changed() -> None:
    said = drift_sentence(drift())
    assert said.startswith("Since version 3: 300 records more (20.0 %). New classes: “worn”.")
    assert "Columns that changed beyond chance: “" in said
    assert "The recipe was “SMOTE” and is “trees”." in said
    same = drift(n_now=N, classes=(), columns=(), recipe_now="SMOTE")
    assert drift_sentence(same) == "Since version 3: as many records."


def test_section_shows_every_column_and_escapes_names() -> None:
    assert section(None) == ""
    html = section(drift(sentence="s", notes=("a note <b>",)))
    for name in drawn(np.random.default_rng(0), 5):
        assert f">{name}</bdi>" in html
    assert "ok &lt;b&gt;" in html
    assert "a note &lt;b&gt;" in html
    assert html.count("<img ") == 2
    assert "by chance up to" in html


def test_mean_pictures_are_compared_and_drawn() -> None:
    dark, bright = (40.0,) * 64, (90.0,) * 64
    spread = (30.0,) * 64
    before = contents(mean_picture=dark, picture_spread=spread)
    now = contents(mean_picture=bright, picture_spread=spread)
    (found,) = column_drifts(before, now, {}, 0)
    assert found.kind == "picture"
    assert found.status == "changed"
    assert found.distance == pytest.approx(50 / 30)
    (same,) = column_drifts(before, before, {}, N)
    assert same.status == "same"
    assert "The mean of all images before and now" in section(drift(columns=(found,)))


def test_mean_pictures_of_one_source_are_flagged_in_at_most_one_of_a_hundred_versions() -> None:
    flagged = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        # Brightness moves all pixels together; some are black but for a few pictures.
        pixels = rng.normal(120, 30, (2, 400, 1)) + rng.normal(0, 20, (2, 400, 64))
        pixels[:, :, :20] *= rng.random((2, 400, 20)) < 0.01
        before, now = (
            contents(n=400, mean_picture=tuple(x.mean(0)), picture_spread=tuple(x.std(0)))
            for x in pixels
        )
        (found,) = column_drifts(before, now, {}, 0)
        flagged += found.status == "changed"
    assert flagged <= 9  # of 300; more come by chance in less than one of 100 times at 1 %


def test_real_values_are_kept_only_where_they_may_be_shown() -> None:
    kept = column_content("x", "numeric", np.array([1.5, np.nan]), show=False)
    assert kept == ColumnContent(name="x", kind="numeric", n=1, n_null=1)
    text = column_content("x", "category", np.array(["secret", None], dtype=object), show=False)
    assert "secret" not in text.model_dump_json()
