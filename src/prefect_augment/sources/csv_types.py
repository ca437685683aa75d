"""Type inference for the text columns of CSV files, and the rows that do not fit."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

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
TIME = r"\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?"
TIMESTAMP = rf"^\d{{4}}-\d{{2}}-\d{{2}}[T ]{TIME}$"
NANO = r"\.\d{7,9}"
ZONED = rf"^\d{{4}}-\d{{2}}-\d{{2}}[T ]{TIME}(Z|[+-]\d{{2}}:?\d{{2}})$"


def is_number(text: str) -> bool:
    """Tell whether a field is a number, with point or comma."""
    text = text.strip()
    return bool(
        re.match(NUMBER, text) or re.match(COMMA_NUMBER, text) or re.match(INFINITE, text.lower())
    )


def count_decimals(column: pa.Array) -> tuple[int, int]:
    """Return how many values are numbers with a comma, and with a point."""
    return _count(column, COMMA_NUMBER), _count(column, POINT_NUMBER)


def _count(column: pa.Array, pattern: str) -> int:
    return int(pc.sum(pc.match_substring_regex(column, pattern)).as_py() or 0)


class ColumnTyper:
    """Finds the narrowest type that all values of a text column have, block by block.

    Types, in this order: boolean (``true``/``false`` in any case), int64, float64, date, timestamp (ISO 8601;
    microseconds, or nanoseconds where digits need them; UTC where all have a zone), else text. Numbers with a
    leading zero (``007``) and integers beyond 64 bits are codes and stay text. Where all other values are of
    a type, ``NA``, ``N/A``, ``NaN``, ``null``, ``None``, ``?`` and ``-`` are missing; in text they are text.

    If more than 99 % of the values are of a type, and more than 20 of these differ, the others are misfits,
    to be rejected with their rows; not with ``strict``, for the label, as a rare class may be spelled differently.

    Call :meth:`look` with every block, :meth:`decide` once, then :meth:`convert` with every block again.
    """

    def __init__(self, *, decimal: str, strict: bool) -> None:
        self._decimal = decimal
        self._strict = strict
        self._n_values = 0
        self._has_leading_zero = False
        self._seen = {kind.name: _Seen() for kind in TEXT_TYPES}
        self._kind: TextKind | None = None
        self._unit = "us"
        self.n_missing_words = 0
        self.type: pa.DataType = pa.string()

    def look(self, text: pa.Array) -> None:
        """Count the values of a block per type."""
        trimmed, n_values, n_words = _trimmed(text)
        self._n_values += n_values
        self.n_missing_words += n_words
        left = n_values - n_words
        if left == 0 or self._has_leading_zero:
            return
        if _count(trimmed, LEADING_ZERO):
            self._has_leading_zero = True
            return
        if self._decimal == ",":
            trimmed = _with_point(trimmed)
        for kind in TEXT_TYPES:
            n_matching = self._seen[kind.name].add(trimmed, kind)
            if kind.name == "whole number" and n_matching == left:
                self._seen[NUMBER_KIND.name].add(trimmed, NUMBER_KIND)
            if n_matching == left:  # then no value is of a kind that comes after
                return

    def decide(self) -> None:
        """Decide on the type."""
        n_words, n_values = self.n_missing_words, self._n_values - self.n_missing_words
        if self._n_values == 0:
            self.type = pa.null()
        elif n_values and not self._has_leading_zero:
            for kind in TEXT_TYPES:
                seen = self._seen[kind.name]
                if not self._is(kind, seen, n_values):
                    continue
                # An integer beyond 64 bits is a code, and a float would lose digits.
                if seen.fails or (seen.is_nano and seen.fails_as_nano):
                    break
                self._kind = kind
                self._unit = "ns" if seen.is_nano else "us"
                self.type = kind.type_of(self._unit)
                break
        self.n_missing_words = n_words if self._kind is not None else 0

    def _is(self, kind: "TextKind", seen: "_Seen", n_values: int) -> bool:
        if seen.n_matching == n_values:
            return True
        if self._strict or seen.n_matching <= MIN_PARSED * n_values:
            return False
        if kind.name == "whole number" and self._seen[NUMBER_KIND.name].n_matching == n_values:
            return False  # the misfits are decimals: the column holds numbers
        return len(seen.distinct) > MIN_DISTINCT

    def convert(self, text: pa.Array) -> tuple[pa.Array, dict[int, str]]:
        """Return a block's values in the type, and its misfits by their row with the reason."""
        if self._kind is None:
            return (pa.nulls(len(text)) if pa.types.is_null(self.type) else text), {}
        trimmed = _trimmed(text)[0]
        if self._decimal == ",":
            trimmed = _with_point(trimmed)
        fits = _fits(trimmed, self._kind)
        bad = pc.fill_null(pc.invert(fits), False)
        misfits: dict[int, str] = {}
        if pc.any(bad, min_count=0).as_py():
            trimmed = pc.if_else(bad, None, trimmed)
            for i in pc.indices_nonzero(bad).to_pylist():
                value = text[i].as_py()
                misfits[i] = (
                    f"{value[:60]!r} is not a {self._kind.name}, as over 99 % of its values are"
                )
        return self._kind.convert(trimmed, self._unit), misfits


class _Seen:
    """The values of a column that match one type."""

    def __init__(self) -> None:
        self.n_matching = 0
        self.distinct: set[str] = set()  # no more than are needed
        self.fails = False
        self.is_nano = False
        self.fails_as_nano = False

    def add(self, trimmed: pa.Array, kind: "TextKind") -> int:
        """Count a block and return how many of its values match."""
        fits = _fits(trimmed, kind)
        n_matching = int(pc.sum(fits).as_py() or 0)
        if n_matching == 0:
            return 0
        self.n_matching += n_matching
        fitting = pc.if_else(fits, trimmed, None)
        if len(self.distinct) <= MIN_DISTINCT:
            self.distinct.update(
                fitting.unique().drop_null().slice(0, 2 * MIN_DISTINCT).to_pylist()
            )
        if kind.name == "whole number":
            self.fails |= not converts(fitting, kind, "us")
        if kind.has_unit:
            self.is_nano |= _count(fitting, NANO) > 0
            self.fails_as_nano |= not converts(fitting, kind, "ns")
        return n_matching


def _trimmed(text: pa.Array) -> tuple[pa.Array, int, int]:
    """Return the values without blanks around them, null for missing ones; the number of values and words."""
    trimmed = pc.utf8_trim_whitespace(text)
    trimmed = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    n_values = len(trimmed) - trimmed.null_count
    words = pc.is_in(pc.utf8_lower(trimmed), value_set=pa.array(MISSING_WORDS))
    n_words = pc.sum(words).as_py() or 0
    return (pc.if_else(words, None, trimmed) if n_words else trimmed), n_values, n_words


def _fits(trimmed: pa.Array, kind: "TextKind") -> pa.Array:
    """Return which values are of the type, null for none; 2024-02-30 looks like a date and is not."""
    fits = pc.match_substring_regex(trimmed, kind.pattern, ignore_case=True)
    if not kind.is_date or not pc.any(fits, min_count=0).as_py():
        return fits
    looks = pc.if_else(fits, trimmed, None)
    if converts(looks, kind, "us") and _count(looks, NANO) == 0:
        return fits
    distinct = [v for v in looks.unique().drop_null().to_pylist() if _is_valid(v, kind)]
    return pc.and_(fits, pc.is_in(looks, value_set=pa.array(distinct, pa.string())))


def _is_valid(value: str, kind: "TextKind") -> bool:
    one = pa.array([value], pa.string())
    return converts(one, kind, "ns" if re.search(NANO, value) else "us")


def converts(values: pa.Array, kind: "TextKind", unit: str) -> bool:
    """Tell whether all texts are of the kind: 2024-02-30 is no date, nor 1600 a point in nanoseconds."""
    try:
        kind.convert(values, unit)
    except pa.ArrowInvalid:
        return False
    return True


@dataclass(frozen=True)
class TextKind:
    """A type that text may hold: the pattern of its texts, and the conversion."""

    name: str
    pattern: str
    convert: Callable[[pa.Array, str], pa.Array]
    type_of: Callable[[str], pa.DataType]
    is_date: bool = False
    has_unit: bool = False


def _with_point(trimmed: pa.Array) -> pa.Array:
    """Replace the comma of comma numbers by a point; other values stay and will not parse."""
    is_comma = pc.match_substring_regex(trimmed, COMMA_NUMBER)
    return pc.if_else(is_comma, pc.replace_substring(trimmed, ",", "."), trimmed)


def _plain_number(text: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(text, r"^\+", "")


NUMBER_KIND = TextKind(
    "number",
    f"({NUMBER})|({INFINITE})",
    lambda t, unit: _plain_number(t).cast(pa.float64()),
    lambda unit: pa.float64(),
)
TEXT_TYPES = (
    TextKind(
        "truth value",
        r"^(true|false)$",
        lambda t, unit: pc.utf8_lower(t).cast(pa.bool_()),
        lambda unit: pa.bool_(),
    ),
    TextKind(
        "whole number",
        INTEGER,
        lambda t, unit: _plain_number(t).cast(pa.int64()),
        lambda unit: pa.int64(),
    ),
    NUMBER_KIND,
    TextKind(
        "date", DATE, lambda t, unit: t.cast(pa.date32()), lambda unit: pa.date32(), is_date=True
    ),
    TextKind(
        "point in time",
        TIMESTAMP,
        lambda t, unit: t.cast(pa.timestamp(unit)),
        pa.timestamp,
        is_date=True,
        has_unit=True,
    ),
    TextKind(
        "point in time with zone",
        ZONED,
        lambda t, unit: t.cast(pa.timestamp(unit, tz="UTC")),
        lambda unit: pa.timestamp(unit, tz="UTC"),
        is_date=True,
        has_unit=True,
    ),
)
DATE_KINDS = tuple(kind for kind in TEXT_TYPES if kind.is_date)
