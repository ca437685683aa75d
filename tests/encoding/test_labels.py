"""A label is found where only one column can be it; what cannot be a label is refused with advice."""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prefect_augment.encoding.labels import (
    check_label,
    class_names,
    find_label,
    label_text,
    missing_labels,
)
from prefect_augment.errors import LabelError

N = 200
rng = np.random.default_rng(0)
LABEL = ["yes", "no"] * (N // 2)


def test_a_missing_label_column_names_the_columns_and_the_nearest() -> None:
    table = pa.table({"age": [1, 2], "Income": ["a", "b"]})
    with pytest.raises(LabelError, match=r"did you mean 'Income'\?.*'age', 'Income'") as caught:
        find_label(table, "incom")
    assert caught.value.columns == ["age", "Income"]


def test_a_label_is_found_by_its_name_where_only_one_can_be_it() -> None:
    table = pa.table({"x": rng.normal(size=N), "Target": LABEL, "y": rng.normal(size=N)})
    assert find_label(table) == "Target"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["label", "class"], r"several .*'label', 'class'"),
        (["outcome_code"], r"none .*'outcome_code'\."),
    ],
)
def test_possible_labels_are_listed_where_several_or_none_is_named_like_one(
    names: list[str], says: str
) -> None:
    table = pa.table({"x": rng.normal(size=N), **dict.fromkeys(names, LABEL)})
    with pytest.raises(LabelError, match=says):
        find_label(table)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["only"] * N, "only the class 'only' in 200 records"),
        ([None] * N, "no value"),
        (["", "  "] * (N // 2), "no value"),
        (rng.normal(size=N), "continuous"),
        (np.round(rng.random(N) * 40) / 2, "continuous"),
        (rng.permutation(10 * N)[:N], "an identifier"),
        ([f"u{i}" for i in range(N)], "an identifier"),
        ([f"u{i % 120}" for i in range(N)], "an identifier"),
        ([i % 90 for i in range(N)], "continuous"),
        ([[1], [2]] * (N // 2), "holds list"),
        ([b"a", b"b"] * (N // 2), "holds binary"),
        ([dt.date(2020, 1, 1), dt.date(2020, 1, 2)] * (N // 2), "holds date32"),
        (pa.array([1, 2] * (N // 2), pa.duration("s")), "holds duration"),
    ],
)
def test_a_label_that_cannot_be_one_is_refused(values: Any, says: str) -> None:
    with pytest.raises(LabelError, match=says):
        check_label(pa.array(values), name="target")


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b"],
        [True, False, True],
        [0.0, 1.0, float("nan"), None],
        [i % 100 for i in range(2000)],
        pa.array([1, 2, 1]).dictionary_encode(),
        ["a/b", "../etc", 'it\'s "x"', "🦊", "<b>bold</b>"],
    ],
    ids=["text", "bool", "whole floats", "many integers", "dictionary", "odd names"],
)
def test_a_usable_label_passes(values: Any) -> None:
    array = values if isinstance(values, pa.Array) else pa.array(values)
    check_label(pa.concat_arrays([array] * 3), name="target")


@pytest.mark.parametrize("pair", [("Yes", "yes"), ("yes", " yes"), ("a b", "a  b"), ("ﬁn", "fin")])
def test_classes_that_differ_only_by_spelling_are_named(pair: tuple[str, str]) -> None:
    with pytest.raises(LabelError, match="differ only by case or blanks") as caught:
        check_label(pa.array([*pair, "no"] * 10), name="target")
    assert caught.value.pairs == [sorted(pair)]


def test_class_names_are_in_the_order_of_their_values() -> None:
    assert class_names(pa.array([10, 9, None, 10])) == ("9", "10")
    assert class_names(pa.array([True, False])) == ("false", "true")
    assert class_names(pa.array(["10", "9"])) == ("10", "9")
    assert class_names(pa.array([2.0, 1.0, float("nan")])) == ("1", "2")


def test_missing_labels_are_null_nan_or_blank() -> None:
    assert missing_labels(pa.array(["a", None, " ", ""])).to_pylist() == [False, True, True, True]
    assert missing_labels(pa.array([1.0, float("nan"), None])).to_pylist() == [False, True, True]
    assert label_text(pa.array([True, None])).to_pylist() == ["true", None]
