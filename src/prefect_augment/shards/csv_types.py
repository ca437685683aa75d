"""Types of text columns: what a CSV column holds, and the rows that do not hold it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["TypedTable", "find_decimal_mark", "is_number", "type_columns"]

# A column is of a type if more than this share of its values is; the rows of the rest are rejected.
MIN_PARSED = 0.99
# … but only where the others differ enough to be measurements: of codes 1, 2, 3 and a rare A the A is
# a rare value and no mistake.
MIN_DISTINCT = 20
MISSING_WORDS = ("na", "n/a", "nan", "null", "none", "?", "-")

INTEGER = r"^[+-]?\d+$"
LEADING_ZERO = r"^[+-]?0\d+$"
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
COMMA_NUMBER = r"^[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?$"
POINT_NUMBER = r"^[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?$"
INFINITE = r"^[+-]?(inf|infinity)$"
DATE = r"^\d{4}-\d{2}-\d{2}$"
CLOCK = r"\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?"
TIMESTAMP = rf"^\d{{4}}-\d{{2}}-\d{{2}}[T ]{CLOCK}$"
ZONED = rf"^\d{{4}}-\d{{2}}-\d{{2}}[T ]{CLOCK}(Z|[+-]\d{{2}}:?\d{{2}})$"


@dataclass(frozen=True)
class TypedTable:
    """A table with types, the rows that do not fit them with the reason, and what to say about it."""

    table: pa.Table
    rejected_rows: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def is_number(text: str) -> bool:
    """Tell whether a field is a number, with point or comma."""
    text = text.strip()
    return bool(
        re.match(NUMBER, text) or re.match(COMMA_NUMBER, text) or re.match(INFINITE, text.lower())
    )


def find_decimal_mark(table: pa.Table, separator: str) -> str:
    """Return the decimal mark that more values have: a comma only where it does not separate fields."""
    if separator == ",":
        return "."
    n_comma = sum(_count(table[name], COMMA_NUMBER) for name in table.column_names)
    n_point = sum(_count(table[name], POINT_NUMBER) for name in table.column_names)
    return "," if n_comma > n_point else "."


def _count(column: pa.ChunkedArray, pattern: str) -> int:
    return int(pc.sum(pc.match_substring_regex(column, pattern)).as_py() or 0)


def type_columns(table: pa.Table, *, decimal: str, label: str) -> TypedTable:
    """Return the table with each column as the narrowest type that all its values have.

    Types, in this order: boolean (``true``/``false`` in any case), int64, float64, date, timestamp
    (ISO 8601; microseconds, or nanoseconds where digits ask for them; UTC where all have a zone),
    else text. Numbers with a leading zero (``007``) and integers beyond 64 bits stay text, as they
    are codes. Where all other values are of a type, ``NA``, ``N/A``, ``NaN``, ``null``, ``None``,
    ``?`` and ``-`` count as missing; in text they stay what they are.

    Where more than 99 % of a column's values are of a type, and more than 20 of these differ, the
    rows of the others are rejected. The label is never treated so: a rare class may be the one that
    is spelled differently.

    Parameters
    ----------
    table : pyarrow.Table
        Text columns with nulls.
    decimal : str
        ``.`` or ``,``.
    label : str
        The label column's name, where it is known.
    """
    columns: list[pa.ChunkedArray] = []
    rejected: dict[int, str] = {}
    notes: list[str] = []
    for name in table.column_names:
        parsed = _parse_column(table[name], decimal, strict=name == label)
        columns.append(parsed.values)
        if parsed.n_missing_words:
            notes.append(
                f"column {name!r}: {parsed.n_missing_words} values such as NA or ? read as missing"
            )
        for i in parsed.bad_rows:
            value = table[name][i].as_py()
            rejected.setdefault(
                i,
                f"column {name!r}: {value[:60]!r} is not a {parsed.kind}, as over 99 % of its values are",
            )
    return TypedTable(pa.table(columns, names=table.column_names), rejected, tuple(notes))


@dataclass(frozen=True)
class _Parsed:
    values: pa.ChunkedArray
    kind: str = "text"
    bad_rows: Sequence[int] = ()
    n_missing_words: int = 0


@dataclass(frozen=True)
class _Kind:
    """A type that text may hold: which texts look like it, and how they become it."""

    name: str
    pattern: str
    convert: Callable[[pa.ChunkedArray], pa.ChunkedArray]
    is_date: bool = False


def _parse_column(text: pa.ChunkedArray, decimal: str, *, strict: bool) -> _Parsed:
    trimmed = pc.utf8_trim_whitespace(text)
    trimmed = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    n_values = len(trimmed) - trimmed.null_count
    if n_values == 0:
        return _Parsed(pa.chunked_array([pa.nulls(len(text))]), "null")
    words = pc.is_in(pc.utf8_lower(trimmed), value_set=pa.array(MISSING_WORDS))
    n_words = pc.sum(words).as_py()
    if n_words:
        trimmed = pc.if_else(words, None, trimmed)
    if n_words == n_values or _count(trimmed, LEADING_ZERO):
        return _Parsed(text)
    if decimal == ",":
        trimmed = _with_point(trimmed)
    for kind in KINDS:
        bad = _misfits(trimmed, kind, strict=strict)
        if bad is None:
            continue
        if bad:
            trimmed = pc.if_else(pa.array(_mask(len(trimmed), bad)), None, trimmed)
        try:
            return _Parsed(kind.convert(trimmed), kind.name, bad, n_words)
        except pa.ArrowInvalid:  # an integer beyond 64 bits: a code, and a float would lose digits
            return _Parsed(text)
    return _Parsed(text)


def _misfits(trimmed: pa.ChunkedArray, kind: _Kind, *, strict: bool) -> list[int] | None:
    """Rows that are not of the kind; None if too many are not for the column to be of it."""
    fits = pc.match_substring_regex(trimmed, kind.pattern, ignore_case=True)
    n_values = len(trimmed) - trimmed.null_count
    if kind.is_date and pc.any(fits).as_py():
        fits = pc.and_(fits, _converts(trimmed, fits, kind))
    n_fit = int(pc.sum(fits).as_py() or 0)
    if n_fit == n_values:
        return []
    if strict or n_fit <= MIN_PARSED * n_values:
        return None
    if kind.name == "whole number" and _misfits(trimmed, NUMBER_KIND, strict=True) == []:
        return None  # the misfits are decimals: the column holds numbers
    if pc.count_distinct(trimmed.filter(fits)).as_py() <= MIN_DISTINCT:
        return None
    return [int(i) for i in pc.indices_nonzero(pc.fill_null(pc.invert(fits), False)).to_pylist()]


def _converts(trimmed: pa.ChunkedArray, fits: pa.ChunkedArray, kind: _Kind) -> pa.Array:
    """Which of the values that look like a date are one: 2024-02-30 is not."""
    looks = pc.if_else(fits, trimmed, None)
    try:
        kind.convert(looks)
    except pa.ArrowInvalid:
        distinct = looks.unique().drop_null()
        return pc.is_in(
            looks,
            value_set=pa.array([v.as_py() for v in distinct if _is_valid(v, kind)], pa.string()),
        )
    return looks.is_valid()


def _is_valid(value: pa.Scalar, kind: _Kind) -> bool:
    try:
        kind.convert(pa.chunked_array([[value.as_py()]], type=pa.string()))
    except pa.ArrowInvalid:
        return False
    return True


def _mask(n: int, rows: Sequence[int]) -> list[bool]:
    mask = [False] * n
    for i in rows:
        mask[i] = True
    return mask


def _with_point(trimmed: pa.ChunkedArray) -> pa.ChunkedArray:
    """Give comma numbers a point; anything else stays as it is and will not parse as a number."""
    is_comma = pc.match_substring_regex(trimmed, COMMA_NUMBER)
    return pc.if_else(is_comma, pc.replace_substring(trimmed, ",", "."), trimmed)


def _to_timestamp(text: pa.ChunkedArray) -> pa.ChunkedArray:
    nano = _count(text, r"\.\d{7,9}") > 0
    return text.cast(pa.timestamp("ns" if nano else "us"))


def _to_utc(text: pa.ChunkedArray) -> pa.ChunkedArray:
    nano = _count(text, r"\.\d{7,9}") > 0
    return text.cast(pa.timestamp("ns" if nano else "us", tz="UTC"))


NUMBER_KIND = _Kind(
    "number",
    f"({NUMBER})|({INFINITE})",
    lambda t: pc.replace_substring_regex(t, r"^\+", "").cast(pa.float64()),
)
KINDS = (
    _Kind("truth value", r"^(true|false)$", lambda t: pc.utf8_lower(t).cast(pa.bool_())),
    _Kind(
        "whole number",
        INTEGER,
        lambda t: pc.replace_substring_regex(t, r"^\+", "").cast(pa.int64()),
    ),
    NUMBER_KIND,
    _Kind("date", DATE, lambda t: t.cast(pa.date32()), is_date=True),
    _Kind("point in time", TIMESTAMP, _to_timestamp, is_date=True),
    _Kind("point in time with zone", ZONED, _to_utc, is_date=True),
)
