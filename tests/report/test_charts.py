"""The report's pictures: small, equal for equal data, and safe against any name."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from prefect_augment.evaluation.metrics.column_shapes import ColumnShape, summarise_shapes
from prefect_augment.figures.style import MAX_BYTES, drawable
from prefect_augment.report.charts import (
    MAX_ROWS,
    ForestRow,
    class_counts_chart,
    forest_chart,
    recall_chart,
    shapes_chart,
)
from prefect_augment.report.view_model import ClassRow
from prefect_augment.schema import Interval

NASTY = [
    "<script>alert(1)</script>",
    "$x_1$ \\frac{",
    "中文类别",
    "🛠️ broken 👨‍👩‍👧",
    "new\nline\ttab",
    "\u202egnirts",
    "﷽" * 40,
    "x" * 5000,
    "",
    "\x00\x07",
]


def interval(estimate: float, half: float = 3.0) -> Interval:
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half)


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.verify()
        return image.size


def is_dark(png: bytes) -> bool:
    """Whether anything was drawn on the white card."""
    with Image.open(io.BytesIO(png)) as image:
        return bool((np.asarray(image.convert("L")) < 100).mean() > 0.001)


def all_charts(names: list[str]) -> list[bytes]:
    counts = [ClassRow(i, n, 10 * i, {"real": 10 * i, "synthetic": i}) for i, n in enumerate(names)]
    shapes = {
        n: ColumnShape("category", np.array([*names, None], dtype=object), np.array(names[:2]))
        for n in names[:6]
    }
    recalls = [ClassRow(0, n, 0, {}, recall_as_is=interval(0.5, 0.1)) for n in names]
    return [
        class_counts_chart(counts),
        forest_chart([ForestRow(n, interval(50.0), mark="chosen") for n in names], label="%"),
        recall_chart(recalls, before="a", after="b"),
        shapes_chart(summarise_shapes(shapes)[:6]),
    ]


@pytest.mark.slow
def test_names_that_the_font_cannot_draw_do_not_warn_or_fail() -> None:
    # Warnings are errors here, so a missing glyph or an unclosed "$" would fail this test.
    for png in all_charts(NASTY):
        assert is_dark(png)


@pytest.mark.parametrize("name", NASTY)
def test_drawn_names_fit_on_one_line(name: str) -> None:
    shown = drawable(name, width=12)
    assert shown.strip()
    assert shown.isprintable()
    assert len(shown) < 60


def test_names_that_cannot_be_drawn_are_told_apart_by_number() -> None:
    assert drawable("猫", number=3) != drawable("犬", number=4)
    assert drawable("cat", number=3) == "cat"


def test_long_names_end_in_an_ellipsis_and_short_ones_stay() -> None:
    assert drawable("scratch", width=12) == "scratch"
    assert drawable("scratch" * 9, width=12).endswith("…")


@pytest.mark.slow
def test_equal_data_give_equal_bytes_also_in_another_process() -> None:
    code = (
        "import hashlib;from prefect_augment.report.charts import *;"
        "print(hashlib.sha256(class_counts_chart([ClassRow(1,'a',5,{'real':5,'copy':3})])).hexdigest())"
    )
    one, other = (
        subprocess.check_output(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    )
    assert one == other


def test_pictures_carry_no_date_and_no_software_name() -> None:
    png = class_counts_chart([ClassRow(1, "a", 5, {"real": 5})])
    assert b"Software" not in png
    assert b"matplotlib" not in png.lower()
    assert b"tIME" not in png


@pytest.mark.slow
def test_full_pictures_stay_below_the_size_limit() -> None:
    rng = np.random.default_rng(0)
    names = [f"class number {i:02d} with a long name" for i in range(MAX_ROWS)]
    counts = {"real": 10_000, "classic": 70, "synthetic": 99}
    bars = [ClassRow(0, n, int(rng.integers(1, 10_000)), counts, 2e4) for n in names]
    forest = [ForestRow(n, interval(rng.uniform(0, 90)), (10.0, 20.0), "chosen") for n in names]
    shapes = {
        f"column {i}": ColumnShape("numeric", rng.normal(size=500), rng.normal(size=500))
        for i in range(6)
    }
    for png in (
        class_counts_chart(bars),
        forest_chart(forest, label="%", zero=True, effect=3.0, legend="95 % interval"),
        shapes_chart(summarise_shapes(shapes)),
    ):
        assert len(png) < MAX_BYTES
        assert size(png)[0] > 600


def test_too_many_rows_are_refused_with_advice() -> None:
    with pytest.raises(ValueError, match="choose fewer"):
        class_counts_chart([ClassRow(1, "a", 1, {})] * (MAX_ROWS + 1))


@pytest.mark.parametrize(
    "bars",
    [
        [],
        [ClassRow(2, "empty", 0, {})],
        [ClassRow(2, "one", 1, {"real": 1})],
        [ClassRow(2, "new", 0, {"synthetic": 5}), ClassRow(2, "large", 10**9, {"real": 10**9})],
    ],
)
def test_counts_of_none_and_of_billions_can_be_drawn(bars: list[ClassRow]) -> None:
    assert size(class_counts_chart(bars))[0] > 0


def test_the_added_records_change_the_picture() -> None:
    b = ClassRow(2, "b", 50, {"real": 50})
    plain, added = ({"real": 5, **more} for more in ({}, {"synthetic": 45}))
    assert class_counts_chart([ClassRow(1, "a", 5, plain), b]) != class_counts_chart(
        [ClassRow(1, "a", 5, added), b]
    )


def test_undefined_intervals_can_be_drawn() -> None:
    nan = Interval(estimate=float("nan"), low=float("nan"), high=float("nan"))
    assert size(forest_chart([ForestRow("a", nan)], label="%", zero=True, effect=float("inf")))[0]


def one(shape: ColumnShape, *, show_real: bool = True):  # type: ignore[no-untyped-def]
    return summarise_shapes({"x": shape}, show_real=show_real)[0]


def test_equal_samples_have_distance_0_and_disjoint_ones_1() -> None:
    low, high = np.arange(50.0), np.arange(50.0) + 100
    assert one(ColumnShape("numeric", low, low)).distance == 0.0
    assert one(ColumnShape("numeric", low, high)).distance == 1.0
    cats, dogs = np.array(["cat"] * 5), np.array(["dog"] * 9)
    assert one(ColumnShape("category", cats, cats)).distance == 0.0
    assert one(ColumnShape("category", cats, dogs)).distance == 1.0


def test_numeric_distance_is_that_of_scipy() -> None:
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(3)
    a, b = rng.normal(size=83), rng.normal(0.4, 1.3, size=57)
    found = one(ColumnShape("numeric", a, b)).distance
    assert found == pytest.approx(ks_2samp(a, b).statistic, abs=1e-12)


def test_shares_sum_to_one_and_nulls_are_counted_apart() -> None:
    values = np.array([1.0, 2.0, np.nan, 1e9, -np.inf])
    shape = one(ColumnShape("numeric", values, np.array([1.0, np.nan])))
    assert sum(shape.real) == pytest.approx(1.0)
    assert shape.null_real == pytest.approx(0.4)  # an infinite value has no place on the axis
    assert shape.null_synthetic == 0.5


def test_whole_numbers_get_whole_bins() -> None:
    shape = one(ColumnShape("numeric", np.arange(10.0), np.arange(10.0)))
    assert shape.edges == tuple(i - 0.5 for i in range(11))
    assert shape.real == pytest.approx([0.1] * 10)


def test_rare_levels_are_summed() -> None:
    values = np.array(list("aaabbbccddeefghij"), dtype=object)
    shape = one(ColumnShape("category", values, values))
    assert shape.levels[-1] == "4 others"
    assert sum(shape.real) == pytest.approx(1.0)


def test_real_values_leave_no_trace_where_they_may_not_be_shown() -> None:
    hidden = one(ColumnShape("numeric", np.array([7777.0]), np.array([1.0, 2.0])), show_real=False)
    assert hidden == one(ColumnShape("numeric", np.array([]), np.array([1.0, 2.0])))
    assert max(hidden.edges) < 10
    levels = ColumnShape("category", np.array(["secret"]), np.array(["public"]))
    assert one(levels, show_real=False).levels == ("public",)


@pytest.mark.parametrize(
    "values",
    [
        np.array([]),
        np.array([np.nan, np.nan]),
        np.array([3.25] * 4),
        np.array([1e300, -1e300, 0.1]),
        np.array([1e-320, 5e-324]),
        np.array([2.0**60, 2.0**61]),
        np.array(["2024-01-01", "NaT"], dtype="datetime64[s]"),
        np.array(["0001-01-01", "9999-12-31"], dtype="datetime64[s]"),
        np.array(["12:30", None], dtype=object),
        np.array([True, False]),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["numeric", "category"])
def test_any_values_can_be_drawn(values: np.ndarray, kind: str) -> None:
    shapes = summarise_shapes({"x": ColumnShape(kind, values, values)})  # type: ignore[arg-type]
    assert size(shapes_chart(shapes))[0] > 0


def test_most_different_columns_come_first_whatever_their_order() -> None:
    same, other = np.arange(9.0), np.arange(9.0) + 50
    shapes = {"b": ColumnShape("numeric", same, same), "a": ColumnShape("numeric", same, other)}
    backwards = dict(reversed(shapes.items()))
    assert [s.column for s in summarise_shapes(shapes)] == ["a", "b"]
    assert summarise_shapes(shapes) == summarise_shapes(backwards)
