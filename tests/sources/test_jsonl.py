"""JSON lines in: what pandas, Arrow and `datasets` write comes back, and no line is lost without a word."""

import gzip
import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json
import pytest
from hypothesis import given, strategies as st
from support.sources import whole

from prefect_augment.errors import InputError
from prefect_augment.params import Source
from prefect_augment.report.view_model import redactor
from prefect_augment.sources import jsonl
from prefect_augment.sources.base import SourceRecords

SOURCE = Source(label="label")


def read(text: str | bytes) -> SourceRecords:
    data = text.encode() if isinstance(text, str) else text
    return whole(jsonl.read_batches(io.BytesIO(data), name="in.jsonl", source=SOURCE))


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


VALUES: dict[str, Any] = {
    "bool": st.booleans(),
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False),
    "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
}
KINDS = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string()}


@pytest.mark.slow
@given(st.data())
def test_what_python_writes_comes_back_with_its_types(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4))
    n = data.draw(st.integers(1, 8))
    columns = {
        f"c{j} ü": data.draw(st.lists(st.none() | VALUES[kind], min_size=n, max_size=n))
        for j, kind in enumerate(kinds)
    }
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    found = read(lines(records))
    assert found.rejected == ()
    assert found.table.to_pylist() == records
    for (name, values), kind in zip(columns.items(), kinds, strict=True):
        some = any(value is not None for value in values)
        assert found.table.schema.field(name).type == (KINDS[kind] if some else pa.null())
    assert found.positions.tolist() == list(range(1, n + 1))


def test_what_pandas_writes_comes_back() -> None:
    frame = pd.DataFrame(
        {
            "x": [1.5, None, -3.0],
            "n": pd.array([1, None, 2**53 + 1], dtype="Int64"),
            "flag": pd.array([True, None, False], dtype="boolean"),
            "when": pd.to_datetime(["2026-01-01 00:00", "2026-02-28 12:30", None]),
            "text": ["a\nb", "7", None],
            "label": ["u", "v", "u"],
        }
    )
    text = frame.to_json(orient="records", lines=True, date_format="iso", double_precision=15)
    found = read(text)
    assert [str(f.type) for f in found.table.schema] == [
        "double", "int64", "bool", "timestamp[us]", "string", "string",
    ]  # fmt: skip
    back = found.table.to_pandas()
    assert back["when"].tolist()[:2] == frame["when"].tolist()[:2]
    assert found.table["n"].to_pylist() == [1, None, 2**53 + 1]
    assert found.table["text"].to_pylist() == ["a\nb", "7", None]
    assert any("'when': text read as a point in time" in note for note in found.notes)


def test_types_are_those_that_arrow_s_own_reader_finds() -> None:
    rng = np.random.default_rng(0)
    records = [
        {
            "x": float(rng.normal()),
            "n": int(rng.integers(100)),
            "label": "ab"[i % 2],
            "box": [[float(i), 1.5], [2.0]],
            "site": {"name": f"s{i}", "depth": i if i % 3 else None},
        }
        for i in range(50)
    ]
    text = lines(records)
    theirs = pyarrow.json.read_json(io.BytesIO(text.encode()))
    assert read(text).table.equals(theirs)


def test_columns_come_in_the_order_of_the_file_and_what_is_left_out_is_missing() -> None:
    found = read('{"a": 1}\n{"b": "x", "a": 2}\n\n{"c": null}\n')
    assert found.table.to_pylist() == [
        {"a": 1, "b": None, "c": None},
        {"a": 2, "b": "x", "c": None},
        {"a": None, "b": None, "c": None},
    ]
    assert found.positions.tolist() == [1, 2, 4]
    assert found.notes == ("5 values that lines leave out are read as missing",)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not JSON: Expecting ',' delimiter at character 9"),
        (b'{"a": 1, "a": 2}', "the key 'a' comes more than once"),
        (b"[1, 2]", "not an object but a list"),
        (b"3", "not an object but a number"),
        (b"null", "not an object but null"),
        (b'{"a": "\xff"}', "not UTF-8, or half a character"),
        (b'{"a": "\\ud800"}', "not UTF-8, or half a character"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    ],
    ids=["cut", "twice", "list", "number", "null", "bytes", "surrogate", "deep", "digits"],
)
def test_a_line_that_is_no_record_is_rejected_with_number_and_reason(
    line: bytes, reason: str
) -> None:
    good = b'{"a": 1}\n'
    found = read(good * 3 + line + b"\n" + good)
    assert found.table["a"].to_pylist() == [1] * 4
    assert found.positions.tolist() == [1, 2, 3, 5]
    (rejected,) = found.rejected
    assert rejected.position == 4
    assert rejected.reason.startswith(reason)
    assert len(rejected.raw) <= jsonl.MAX_RAW


def test_a_value_unlike_nearly_all_others_is_rejected() -> None:
    records = [{"x": i, "label": "a"} for i in range(300)]
    records[7]["x"] = "?"  # type: ignore[assignment]
    found = read(lines(records))
    assert found.table.schema.field("x").type == pa.int64()
    (rejected,) = found.rejected
    assert (rejected.position, rejected.reason) == (
        8, "column 'x': '?' is not a number, as over 99 % of its values are",
    )  # fmt: skip


def test_values_in_reasons_can_be_hidden_whatever_their_kind_and_length() -> None:
    records: list[dict[str, Any]] = [{"name": f"p{i}", "pay": 1000 + i} for i in range(400)]
    records[7]["name"], records[9]["pay"] = 4711994477, "Miller, Johanna Elisabeth " * 5
    hide = redactor({"name", "pay"})
    reasons = [hide(rejected.reason) for rejected in read(lines(records)).rejected]
    assert [reason[:18] for reason in reasons] == ["column 'name': '…'", "column 'pay': '…' "]
    assert not any(word in reason for word in ("4711", "Miller") for reason in reasons)


def test_a_label_of_two_kinds_is_text_and_no_class_is_lost() -> None:
    records = [{"label": i % 3} for i in range(300)]
    records[7]["label"] = "seven"  # type: ignore[assignment]
    found = read(lines(records))
    assert found.rejected == ()
    assert set(found.table["label"].to_pylist()) == {"0", "1", "2", "seven"}
    assert found.notes == ("column 'label' holds numbers and text and is read as text",)


def test_mixed_columns_are_text_as_json_spells_them() -> None:
    found = read('{"v": 1}\n{"v": "1"}\n{"v": [true, "ü"]}\n{"v": null}\n{"v": false}\n')
    assert found.table["v"].to_pylist() == ["1", "1", '[true, "ü"]', None, "false"]


def test_integers_keep_all_digits() -> None:
    assert read('{"n": 18446744073709551615}\n').table.schema.field("n").type == pa.uint64()
    found = read('{"n": 123456789012345678901234567890}\n{"n": -1}\n')
    assert found.table["n"].to_pylist() == ["123456789012345678901234567890", "-1"]


def test_dates_are_read_only_where_all_are_dates() -> None:
    assert str(read('{"d": "2024-02-29"}\n').table.schema.field("d").type) == "date32[day]"
    assert read('{"d": "2024-02-29"}\n{"d": "2024-02-30"}\n').table["d"].to_pylist() == [
        "2024-02-29", "2024-02-30",
    ]  # fmt: skip
    zoned = read('{"d": "2024-02-29T00:00:00Z"}\n{"d": "2024-03-01T00:00:00.123456789+02:00"}\n')
    assert str(zoned.table.schema.field("d").type) == "timestamp[ns, tz=UTC]"


def test_dates_beyond_nanoseconds_stay_dates_unless_nanoseconds_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The type is decided by all lines, and the first ones have long been looked at by then."""
    monkeypatch.setattr(jsonl, "ROWS_AT_ONCE", 1)
    old = '{"d": "1600-01-01T00:00:00"}\n'
    assert str(read(old * 2).table.schema.field("d").type) == "timestamp[us]"
    found = read(old + '{"d": "2026-01-01T00:00:00.123456789"}\n').table["d"]
    assert found.to_pylist() == ["1600-01-01T00:00:00", "2026-01-01T00:00:00.123456789"]


def test_the_type_is_found_in_the_whole_file_and_not_in_its_first_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records: list[dict[str, Any]] = [{"x": i, "d": "2024-01-01 00:00:00"} for i in range(10)]
    records += [{"x": 0.5, "d": "2024-01-01 00:00:00.123456789", "late": [1]}]
    together = read(lines(records))
    monkeypatch.setattr(jsonl, "ROWS_AT_ONCE", 3)
    file = io.BytesIO(lines(records).encode())
    parts = list(jsonl.read_batches(file, name="in.jsonl", source=SOURCE))
    assert [part.table.num_rows for part in parts] == [3, 3, 3, 2]
    assert {str(part.table.schema) for part in parts} == {str(together.table.schema)}
    assert pa.concat_tables([part.table for part in parts]).equals(together.table)
    assert str(together.table.schema.field("x").type) == "double"
    assert str(together.table.schema.field("d").type) == "timestamp[ns]"


def test_gzip_and_a_byte_order_mark_make_no_difference() -> None:
    text = lines([{"a": 1, "label": "x"}, {"a": 2, "label": "y"}]).encode()
    plain = read(text)
    for other in (gzip.compress(text), b"\xef\xbb\xbf" + text, text.replace(b"\n", b"\r\n")):
        assert read(other).table.equals(plain.table)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty; expected one JSON object per line"),
        (b"\n \n", "is empty"),
        (b'[\n{"a": 1},\n{"a": 2}\n]\n', "3 of 4 lines are no JSON objects.*one JSON list"),
        (gzip.compress(b'{"a": 1}\n' * 1000)[:-12], "cannot be unpacked"),
    ],
    ids=["empty", "blank", "list", "cut off"],
)
def test_a_file_that_is_no_json_lines_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read(data)


def test_one_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 100)
    with pytest.raises(InputError, match="line 2 is longer than 100 bytes"):
        read('{"a": 1}\n' + json.dumps({"a": "x" * 200}))
