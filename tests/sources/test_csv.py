"""CSV is read as it was meant where that can be seen, and every guess is said."""

import gzip
import io
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from support.sources import whole

from prefect_augment.errors import InputError, ParameterError, SchemaError
from prefect_augment.params import Source
from prefect_augment.sources.base import SourceRecords
from prefect_augment.sources.csv import read_batches


def read(text: str | bytes, **options: Any) -> SourceRecords:
    data = text if isinstance(text, bytes) else text.encode()
    return whole(
        read_batches(io.BytesIO(data), name="in.csv", source=Source(uri="in.csv", **options))
    )


def columns(records: SourceRecords) -> dict[str, list[Any]]:
    return records.table.to_pydict()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32"),
        ("cp1252", "cp1252"),
    ],
)
def test_encoding_is_found_and_said(encoding: str, found: str) -> None:
    records = read("naïve,b\n1,ä\n2,ö\n".encode(encoding))
    assert columns(records) == {"naïve": [1, 2], "b": ["ä", "ö"]}
    assert f"read as {found}," in records.notes[0]


def test_a_given_encoding_goes_before_the_guess() -> None:
    assert columns(read("a,b\n1,ж\n2,щ\n".encode("cp1251"), encoding="cp1251"))["b"] == ["ж", "щ"]


@pytest.mark.parametrize(
    ("data", "options", "error", "says"),
    [
        (b"a,b\n1,\x81\n", {}, InputError, "utf-8 or cp1252; say what it is with source.encoding"),
        (b"a,b\n1,\xff\n", {"encoding": "ascii"}, InputError, "cannot be read as ascii"),
        (b"a,b\n1,2\n", {"encoding": "klingon"}, ParameterError, "'klingon' is unknown"),
        (b"a,b\n1,\x00\n", {}, InputError, "zero bytes"),
        (b"\x1f\x8bnot gzip at all", {}, InputError, "cannot be unpacked"),
        (b"a,b\n1,2\n", {"separator": ";;"}, ParameterError, "give one character"),
    ],
)
def test_bytes_that_are_not_text_are_refused(
    data: bytes, options: dict[str, str], error: type, says: str
) -> None:
    with pytest.raises(error, match=says):
        read(data, **options)


@pytest.mark.parametrize(
    ("separator", "name"), [(",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "bar")]
)
def test_separator_is_found_and_said(separator: str, name: str) -> None:
    text = "\n".join(
        separator.join(row) for row in [["a", "b", "c"], ["1", "x y", ""], ["2", "z", "q"]]
    )
    records = read(text)
    assert columns(records) == {"a": [1, 2], "b": ["x y", "z"], "c": [None, "q"]}
    assert f"separator {name}" in records.notes[0]


def test_a_given_separator_goes_before_the_guess() -> None:
    assert columns(read("a,b;c\nx,y;3\n", separator=";")) == {"a,b": ["x,y"], "c": [3]}
    assert columns(read("a\tb\n1\t2\n", separator="\\t")) == {"a": [1], "b": [2]}


@pytest.mark.parametrize(
    ("text", "values", "note"),
    [
        (
            "a;b\n1,5;x\n-2,25e1;y\n3;z\n",
            {"a": [1.5, -22.5, 3.0], "b": ["x", "y", "z"]},
            "decimal comma",
        ),
        ("a, b\n1, x\n2, y\n", {"a": [1, 2], "b": ["x", "y"]}, "blanks after separators"),
        (
            "n,t\n1,NA\nNA,x\n?,-\n,\n",
            {"n": [1, None, None, None], "t": ["NA", "x", "-", None]},
            "column 'n': 2 values such as NA or ? read as missing",
        ),
    ],
    ids=["decimal comma", "blanks", "words for missing"],
)
def test_what_a_file_has_of_its_own_is_read_and_noted(
    text: str, values: dict[str, list[Any]], note: str
) -> None:
    """Words for missing are null in numbers and stay in text."""
    records = read(text)
    assert columns(records) == values
    assert note in "\n".join(records.notes)


def test_decimal_point_stays_beside_a_semicolon() -> None:
    assert columns(read("a;b\n1.5;x,y\n2.5;z\n")) == {"a": [1.5, 2.5], "b": ["x,y", "z"]}


def test_quoted_fields_hold_separators_quotes_and_line_breaks() -> None:
    records = read('a,b\r\n1,"x, ""y""\r\nz"\r\n2,plain\r\n')
    assert columns(records) == {"a": [1, 2], "b": ['x, "y"\r\nz', "plain"]}
    assert records.positions.tolist() == [2, 4]


def test_rows_that_do_not_fit_are_rejected_with_line_and_reason() -> None:
    records = read('a,b\n1,x\n2\n\n3,y,z\n4,"q"r\n5,ok\n6,ok\n')
    assert columns(records) == {"a": [1, 5, 6], "b": ["x", "ok", "ok"]}
    assert records.positions.tolist() == [2, 7, 8]
    assert [(r.position, r.reason, r.raw) for r in records.rejected] == [
        (3, "1 fields where the header has 2", "2"),
        (5, "3 fields where the header has 2", "3,y,z"),
        (6, "a quote inside a field is not doubled", '4,"q"r'),
    ]


def test_a_quote_that_never_closes_is_refused() -> None:
    with pytest.raises(InputError, match="the quote opened in line 3 is never closed"):
        read('a,b\n1,x\n2,"y\n3,z\n')


def test_a_file_that_hardly_fits_is_refused_with_advice() -> None:
    with pytest.raises(InputError, match=r"3 of 4 lines do not fit.*source.separator"):
        read("a,b\n1,2\n1,2,3\n1,2,3\n1,2,3\n")


@pytest.mark.parametrize("text", ["", "\n\n", "a,b\n", "a,b\n\n"])
def test_a_file_without_records_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"in\.csv (is empty|has a header and no records)"):
        read(text)


def test_duplicate_column_names_are_refused_by_name() -> None:
    with pytest.raises(SchemaError, match="more than one column named 'a', 'b'"):
        read("a,b,a,b\n1,2,3,4\n")


def test_a_missing_header_is_seen_and_said() -> None:
    records = read("1,2.5,x\n3,4.5,y\n")
    assert records.table.column_names == ["column_1", "column_2", "column_3"]
    assert records.table.num_rows == 2
    assert "no header line" in records.notes[0]


TEXTS = "red,round,apple\ngreen,long,pear\nred,long,apple\n"


def test_a_header_that_may_be_a_record_is_asked_about_and_can_be_set() -> None:
    asked = read(TEXTS)
    assert asked.table.column_names == ["red", "round", "apple"]
    assert "may be a record (also among the values below it: 'red', 'apple')" in asked.notes[1]
    for source in ({"header": "no"}, {"label": "column_3"}):
        records = read(TEXTS, **source)
        assert records.table["column_3"].to_pylist() == ["apple", "pear", "apple"]
    assert len(read(TEXTS, header="yes").notes) == 1
    assert len(read("color,form\nred,round\n").notes) == 1
    numbers = read("1,2\n3,4\n", header="yes")
    assert columns(numbers) == {"1": [3], "2": [4]}


def test_a_cell_of_a_megabyte_is_read() -> None:
    text = "x" * (1 << 20)
    assert columns(read(f'a,b\n1,"{text}"\n')) == {"a": [1], "b": [text]}


def test_a_workbook_with_the_ending_of_a_csv_file_is_named() -> None:
    with pytest.raises(InputError, match=r"of the format Excel.*name it .xlsx"):
        read(b"PK\x03\x04\x14\x00\x00\x00" + bytes(100))


def test_a_header_of_years_is_one_where_it_holds_the_label() -> None:
    assert read("2023,2024,label\n1,2,x\n3,4,y\n", label="label").table.column_names == [
        "2023",
        "2024",
        "label",
    ]


def test_a_nameless_empty_last_column_is_left_out() -> None:
    records = read("a,b,\n1,2,\n3,4,\n")
    assert records.table.column_names == ["a", "b"]


def test_gzip_is_unpacked() -> None:
    assert columns(read(gzip.compress(b"a,b\n1,2\n"))) == {"a": [1], "b": [2]}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "+3"], pa.int64()),
        (["1", "2.5", "1e3"], pa.float64()),
        (["1.0", "inf", "-Infinity"], pa.float64()),
        (["true", "FALSE", "True"], pa.bool_()),
        (["2024-01-31", "1999-12-01"], pa.date32()),
        (["2024-01-31T10:20:30", "2024-01-31 10:20"], pa.timestamp("us")),
        (["2024-01-31T10:20:30.123456789", "2024-01-31 10:20"], pa.timestamp("ns")),
        (["2024-01-31T10:20:30Z", "2024-01-31T10:20:30+02:00"], pa.timestamp("us", tz="UTC")),
        (["007", "12"], pa.string()),
        (["1", "99999999999999999999"], pa.string()),
        (["2024-02-30", "2024-02-29"], pa.string()),
        (["1", "x"], pa.string()),
        (["yes", "no"], pa.string()),
        (["NA", "na"], pa.string()),
        (["", ""], pa.null()),
    ],
    ids=lambda v: str(v),
)
def test_type_of(values: list[str], kind: pa.DataType) -> None:
    text = "other,c\n" + "".join(f"x{i},{v}\n" for i, v in enumerate(values))
    assert read(text).table.schema.field("c").type == kind


def mostly(values: list[str], name: str = "c", **options: Any) -> SourceRecords:
    return read(f"{name},t\n" + "".join(f"{v},x\n" for v in values), **options)


def test_rare_values_that_do_not_parse_reject_their_row_with_the_reason() -> None:
    records = mostly([*map(str, range(500)), "12,,5".replace(",,", "_"), *map(str, range(300))])
    assert records.table.schema.field("c").type == pa.int64()
    assert records.table.num_rows == 800
    (rejected,) = records.rejected
    assert rejected.position == 502
    assert (
        rejected.reason
        == "column 'c': '12_5' is not a whole number, as over 99 % of its values are"
    )
    assert rejected.raw == "12_5,x"


def test_an_impossible_date_among_many_rejects_its_row() -> None:
    days = [f"2024-{m:02}-{d:02}" for m in range(1, 13) for d in range(1, 29)]
    records = mostly([*days, "2024-02-31"])
    assert records.table.schema.field("c").type == pa.date32()
    assert [r.position for r in records.rejected] == [len(days) + 2]


def test_one_decimal_among_whole_numbers_makes_numbers() -> None:
    records = mostly([*map(str, range(500)), "0.5"])
    assert records.table.schema.field("c").type == pa.float64()
    assert records.rejected == ()


def test_a_rare_code_among_few_is_a_value_and_no_mistake() -> None:
    assert mostly(["1", "2", "3"] * 300 + ["A"]).table.schema.field("c").type == pa.string()


def test_a_rare_class_is_never_rejected() -> None:
    records = mostly([*map(str, range(500)), "unknown"], label="c")
    assert records.rejected == ()


field = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=6)


@pytest.mark.slow
@given(rows=st.lists(st.tuples(field, field), min_size=2, max_size=20))
def test_text_survives_a_round_trip(rows: list[tuple[str, str]]) -> None:
    """Marked with a letter so that no value is a number, a word for missing or blank."""
    import csv

    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    marked = [(f"x{a}", f"x{b}") for a, b in rows]
    writer.writerows([("first", "second"), *marked])
    records = read(sink.getvalue(), separator=",")
    assert list(zip(*columns(records).values(), strict=True)) == marked
