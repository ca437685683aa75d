"""Type inference for the text columns of CSV files, and the rows that do not fit."""

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

# A column is of a type if more than this share of its values is; the rows of the rest are rejected.
MIN_PARSED = 0.99
# … but only where the others differ enough to be measurements: of codes 1, 2, 3 and a rare A the A is
# a rare value and no mistake.
MIN_DISTINCT = 20
MISSING_WORDS = ("na", "n/a", "nan", "null", "none", "?", "-")

LEADING_ZERO = r"^[+-]?0\d+$"
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
COMMA_NUMBER = r"^[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?$"
POINT_NUMBER = r"^[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?$"
INFINITE = r"^[+-]?(inf|infinity)$"
TIME = r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?"
NANO = r"\.\d{7,9}"


def is_number(text: str) -> bool:
    """Tell whether a field is a number, with point or comma."""
    pattern = f"{NUMBER}|{COMMA_NUMBER}|{INFINITE}"
    return re.match(pattern, text.strip(), re.IGNORECASE) is not None


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
        self._seen = {kind.name: Seen(kind) for kind in TEXT_TYPES}
        self._kind: TextKind | None = None
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
        for name, seen in self._seen.items():
            n_matching = seen.add(trimmed)
            if name == "whole number" and n_matching == left:
                self._seen["number"].add(trimmed)
            if n_matching == left:  # then no value is of a kind that comes after
                return

    def decide(self) -> None:
        """Decide on the type."""
        n_values = self._n_values - self.n_missing_words
        if self._n_values == 0:
            self.type = pa.null()
        elif n_values and not self._has_leading_zero:
            seen = next((s for s in self._seen.values() if self._is(s, n_values)), None)
            # An integer beyond 64 bits is a code, and a float would lose digits.
            if seen is not None and seen.type is not None:
                self._kind, self.type = seen.kind, seen.type
        if self._kind is None:
            self.n_missing_words = 0

    def _is(self, seen: "Seen", n_values: int) -> bool:
        if seen.n_matching == n_values:
            return True
        if self._strict or seen.n_matching <= MIN_PARSED * n_values:
            return False
        if seen.kind.name == "whole number" and self._seen["number"].n_matching == n_values:
            return False  # the misfits are decimals: the column holds numbers
        return len(seen.distinct) > MIN_DISTINCT

    def convert(self, text: pa.Array) -> tuple[pa.Array, dict[int, str]]:
        """Return a block's values in the type, and its misfits by their row with the reason."""
        if self._kind is None:
            return (pa.nulls(len(text)) if pa.types.is_null(self.type) else text), {}
        trimmed = _trimmed(text)[0]
        if self._decimal == ",":
            trimmed = _with_point(trimmed)
        bad = pc.fill_null(pc.invert(_fits(trimmed, self._kind)), False)
        why = f"is not a {self._kind.name}, as over 99 % of its values are"
        misfits = {
            i: f"{text[i].as_py()[:60]!r} {why}" for i in pc.indices_nonzero(bad).to_pylist()
        }
        if misfits:
            trimmed = pc.if_else(bad, None, trimmed)
        return self._kind.convert(trimmed, self.type), misfits


class Seen:
    """The values of a column that are of one kind."""

    def __init__(self, kind: "TextKind") -> None:
        self.kind = kind
        self.n_matching = 0
        self.distinct: set[str] = set()  # no more than are needed
        self._fails = self._is_nano = self._fails_as_nano = False

    @property
    def type(self) -> pa.DataType | None:
        """The type that holds all of them, or None."""
        if self._fails or (self._is_nano and self._fails_as_nano):
            return None
        return self.kind.in_nanoseconds if self._is_nano else self.kind.type

    def add(self, trimmed: pa.Array) -> int:
        """Count a block and return how many of its values match."""
        fits = _fits(trimmed, self.kind)
        n_matching = int(pc.sum(fits).as_py() or 0)
        if n_matching == 0:
            return 0
        self.n_matching += n_matching
        fitting = pc.if_else(fits, trimmed, None)
        if len(self.distinct) <= MIN_DISTINCT:
            self.distinct.update(
                fitting.unique().drop_null().slice(0, 2 * MIN_DISTINCT).to_pylist()
            )
        if self.kind.name == "whole number":
            self._fails |= not _converts(fitting, self.kind, self.kind.type)
        if pa.types.is_timestamp(self.kind.type):
            self._is_nano |= _count(fitting, NANO) > 0
            self._fails_as_nano |= not _converts(fitting, self.kind, self.kind.in_nanoseconds)
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
    if not pa.types.is_temporal(kind.type) or not pc.any(fits, min_count=0).as_py():
        return fits
    looks = pc.if_else(fits, trimmed, None)
    if _converts(looks, kind, kind.type) and _count(looks, NANO) == 0:
        return fits
    valid = [v for v in looks.unique().drop_null().to_pylist() if _is_valid(v, kind)]
    return pc.and_(fits, pc.is_in(looks, value_set=pa.array(valid, pa.string())))


def _is_valid(value: str, kind: "TextKind") -> bool:
    type_ = kind.in_nanoseconds if re.search(NANO, value) else kind.type
    return _converts(pa.array([value], pa.string()), kind, type_)


def _converts(values: pa.Array, kind: "TextKind", type_: pa.DataType) -> bool:
    """Tell whether all texts are of the kind: 2024-02-30 is no date, nor 1600 a point in nanoseconds."""
    try:
        kind.convert(values, type_)
    except pa.ArrowInvalid:
        return False
    return True


@dataclass(frozen=True)
class TextKind:
    """A type that text may hold, and the pattern of its texts."""

    name: str
    pattern: str
    type: pa.DataType

    @property
    def in_nanoseconds(self) -> pa.DataType:
        """The type of points in time that end in 2262 and have nine digits of a second."""
        is_time = pa.types.is_timestamp(self.type)
        return pa.timestamp("ns", self.type.tz) if is_time else self.type

    def convert(self, text: pa.Array, type_: pa.DataType) -> pa.Array:
        """Return texts in the type, or in nanoseconds; raises ArrowInvalid where one has no such value."""
        if pa.types.is_boolean(type_):
            text = pc.utf8_lower(text)
        elif not pa.types.is_temporal(type_):
            text = pc.replace_substring_regex(text, r"^\+", "")
        return text.cast(type_)


def _with_point(trimmed: pa.Array) -> pa.Array:
    """Replace the comma of comma numbers by a point; other values stay and will not parse."""
    is_comma = pc.match_substring_regex(trimmed, COMMA_NUMBER)
    return pc.if_else(is_comma, pc.replace_substring(trimmed, ",", "."), trimmed)


TEXT_TYPES = (
    TextKind("truth value", r"^(true|false)$", pa.bool_()),
    TextKind("whole number", r"^[+-]?\d+$", pa.int64()),
    TextKind("number", f"({NUMBER})|({INFINITE})", pa.float64()),
    TextKind("date", r"^\d{4}-\d{2}-\d{2}$", pa.date32()),
    TextKind("point in time", rf"^{TIME}$", pa.timestamp("us")),
    TextKind(
        "point in time with zone", rf"^{TIME}(Z|[+-]\d{{2}}:?\d{{2}})$", pa.timestamp("us", "UTC")
    ),
)
DATE_KINDS = tuple(kind for kind in TEXT_TYPES if pa.types.is_temporal(kind.type))
