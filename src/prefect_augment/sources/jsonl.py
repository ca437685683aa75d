"""JSON lines as a source: one object per line in, typed records out, every guess reported in a note.

The file is read twice, as the last line may decide a column's type: first for columns and types, then for
records. Lines that do not fit are rejected with number and reason. Text dates are ISO 8601.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import IO, Any

import numpy as np
import pyarrow as pa

from prefect_augment.errors import EmptyFileError, InputError
from prefect_augment.params import Source
from prefect_augment.sources.archives import refuse_bomb, size_of, unpacked
from prefect_augment.sources.base import Rejected, SourceRecords
from prefect_augment.sources.csv_types import DATE_KINDS, MIN_DISTINCT, MIN_PARSED, Seen, TextKind

# What Arrow raises on a value that has not the type it should have.
CONVERSION_ERRORS = (pa.ArrowException, OverflowError, TypeError, ValueError)


ROWS_AT_ONCE = 65_536
BYTES_AT_ONCE = 8 << 20  # of lines; as Python values they take about ten times that
MAX_LINE_BYTES = 64 << 20
MAX_RAW = 2_000  # characters of a rejected line that quarantine keeps
BOM = b"\xef\xbb\xbf"
INT64 = range(-(2**63), 2**63)
UINT64 = range(2**64)
#: Kinds of JSON values, in words.
WORDS = {
    "bool": "truth values",
    "int": "numbers",
    "float": "numbers",
    "text": "text",
    "nested": "lists or objects",
}
_KINDS = {bool: "bool", int: "int", float: "float", str: "text"}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_batches(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
    """Yield the records of one file of JSON lines in batches, typed by the content of its columns.

    - UTF-8; gzip is unpacked; blank lines are skipped.
    - Columns are the keys of all objects in order of appearance; an absent key or ``null`` is missing.
    - Types: boolean, int64 (uint64 where needed), float64, text; nested values become Arrow lists and
      structs. Text that is an ISO 8601 date or time in every record becomes one.
    - If more than 99 % of a column's values are of one type, lines with others are rejected; else the column
      is text, as JSON spells it. The label is always text then: a rare class may be spelled differently.

    ``positions`` are line numbers from 1; the first batch has the notes. Raises InputError if there is no
    record, hardly any line is an object, or the file unpacks to far more than its size.
    """
    columns, n_rows, invalid = _scan(file, name)
    _refuse_unreadable(n_rows, invalid, name)
    types = {key: column.decide(key, source.label) for key, column in columns.items()}
    notes = tuple(note for key, kind in types.items() for note in [kind.note] if note)
    n_short = sum(n_rows - column.n_seen for column in columns.values())
    if n_short:
        notes += (f"{n_short} values that lines leave out are read as missing",)
    for rows in _batches(_lines(file, name)):
        yield _build(rows, types, notes)
        notes = ()


@dataclass(frozen=True)
class _Line:
    number: int
    raw: bytes
    record: dict[str, Any] = field(default_factory=dict)
    reason: str = ""  # why there is no record

    def rejected(self, reason: str = "") -> Rejected:
        raw = self.raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
        return Rejected(self.number, reason or self.reason, raw[:MAX_RAW])


def _lines(file: IO[bytes], name: str) -> Iterator[_Line]:
    n_bytes = size_of(file)
    total = 0
    with unpacked(file, name) as stream:
        for number in count(1):
            if not (raw := stream.readline(MAX_LINE_BYTES + 1)):
                break
            total += len(raw)
            refuse_bomb(name, n_bytes, total)
            if len(raw) > MAX_LINE_BYTES:
                raise InputError(
                    f"{name}: line {number} is longer than {MAX_LINE_BYTES:,} bytes; expected one JSON object "
                    "per line.",
                    path=name,
                    line=number,
                )
            if number == 1:
                raw = raw.removeprefix(BOM)
            if raw.strip():
                yield _parsed(number, raw)


def _parsed(number: int, raw: bytes) -> _Line:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        return _Line(number, raw, reason="not UTF-8, or half a character")
    except RecursionError:
        return _Line(number, raw, reason="nested too deeply")
    except json.JSONDecodeError as exc:
        return _Line(number, raw, reason=f"not JSON: {exc.msg} at character {exc.pos + 1}")
    except ValueError as exc:  # a key that comes twice, a number of thousands of digits
        return _Line(number, raw, reason=str(exc).split(";")[0])
    if not isinstance(value, dict):
        return _Line(number, raw, reason=f"not an object but {_TYPE_NAMES[type(value)]}")
    return _Line(number, raw, value)


_TYPE_NAMES = {
    list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number",
    type(None): "null",
}  # fmt: skip


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0][:60]!r} comes more than once")
    return record


def _batches(lines: Iterator[_Line]) -> Iterator[list[_Line]]:
    rows: list[_Line] = []
    size = 0
    for line in lines:
        rows.append(line)
        size += len(line.raw)
        if len(rows) >= ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _refuse_unreadable(n_rows: int, rejected: Sequence[Rejected], name: str) -> None:
    if not n_rows and not rejected:
        raise EmptyFileError(
            f"{name} is empty; expected one JSON object per line, and at least one.", path=name
        )
    if len(rejected) > n_rows:
        first = rejected[0]
        raise InputError(
            f"{name}: {len(rejected)} of {n_rows + len(rejected)} lines are no JSON objects, the first is line "
            f"{first.position} ({first.reason}); expected one object per line. A file that is one JSON list has to be "
            "written again, one object per line.",
            path=name,
        )


@dataclass(frozen=True)
class _Type:
    arrow: pa.DataType
    json_types: frozenset[str]
    note: str = ""
    is_spelled: bool = False  # values as JSON spells them
    date: TextKind | None = None
    words: str = ""


@dataclass
class _Column:
    counts: Counter[str] = field(default_factory=Counter)
    n_seen: int = 0
    low: int = 0
    high: int = 0
    nested: pa.DataType | None = None
    is_mixed_nested: bool = False
    # Kinds of dates that all texts can be.
    dates: list[Seen] = field(default_factory=lambda: [Seen(kind) for kind in DATE_KINDS])

    def add(self, values: Sequence[Any]) -> None:
        """Count the values of one batch, without absent ones."""
        self.n_seen += len(values)
        types = [_kind(value) for value in values]
        self.counts.update(kind for kind in types if kind)
        whole = [v for v, kind in zip(values, types, strict=True) if kind == "int"]
        self.low, self.high = min([self.low, *whole]), max([self.high, *whole])
        texts = [v for v, kind in zip(values, types, strict=True) if kind == "text"]
        if texts and self.dates:
            array = pa.array(texts, pa.string())
            self.dates = [date for date in self.dates if date.add(array) == len(texts)]
        self._add_nested([v for v, kind in zip(values, types, strict=True) if kind == "nested"])

    def _add_nested(self, values: Sequence[Any]) -> None:
        if not values or self.is_mixed_nested:
            return
        try:
            kind = pa.infer_type(values)
            schemas = [pa.schema([("v", one)]) for one in (self.nested or kind, kind)]
            self.nested = pa.unify_schemas(schemas, promote_options="permissive").field("v").type
        except (pa.ArrowException, OverflowError):
            self.is_mixed_nested = True

    def decide(self, name: str, label: str) -> _Type:
        n_values = self.counts.total()
        if not n_values:
            return _Type(pa.null(), frozenset())
        numbers = self.counts["int"] + self.counts["float"]
        sizes = {**{k: self.counts[k] for k in ("bool", "text", "nested")}, "float": numbers}
        main = max(sizes, key=lambda kind: sizes[kind])
        is_main = name != label and sizes[main] > max(MIN_PARSED * n_values, MIN_DISTINCT)
        if is_main or sizes[main] == n_values:
            return self._plain(name, main)
        held = " and ".join(sorted({WORDS[kind] for kind, n in self.counts.items() if n}))
        return _spelled(f"column {name!r} holds {held} and is read as text")

    def _plain(self, name: str, main: str) -> _Type:
        """Return the type of a column whose values are all, or nearly all, of one JSON type."""
        if main == "bool":
            return _Type(pa.bool_(), frozenset({"bool"}), words="a truth value")
        if main == "text":
            return self._text(name)
        if main == "nested":
            if self.is_mixed_nested or self.nested is None:
                return _spelled(
                    f"column {name!r} holds lists or objects unlike one another and is read as text"
                )
            return _Type(self.nested, frozenset({"nested"}), words="a list or an object")
        if self.counts["float"]:
            return _Type(pa.float64(), frozenset({"int", "float"}), words="a number")
        if self.low in INT64 and self.high in INT64:
            return _Type(pa.int64(), frozenset({"int"}), words="a number")
        if self.low in UINT64 and self.high in UINT64:
            return _Type(pa.uint64(), frozenset({"int"}), words="a number")
        return _spelled(f"column {name!r} holds numbers beyond 64 bits and is read as text")

    def _text(self, name: str) -> _Type:
        for date in self.dates:
            if (arrow := date.type) is not None:
                note = f"column {name!r}: text read as a {date.kind.name}"
                return _Type(arrow, frozenset({"text"}), note, date=date.kind, words="text")
        return _Type(pa.string(), frozenset({"text"}), words="text")


def _spelled(note: str) -> _Type:
    return _Type(pa.string(), frozenset(WORDS), note, is_spelled=True)


def _kind(value: Any) -> str:
    """Return the JSON type of a value; empty for null."""
    return "" if value is None else _KINDS.get(type(value), "nested")


def _scan(file: IO[bytes], name: str) -> tuple[dict[str, _Column], int, list[Rejected]]:
    """Return the columns' counts, the number of objects, and the other lines."""
    columns: dict[str, _Column] = {}
    rejected: list[Rejected] = []
    n_rows = 0
    for lines in _batches(_lines(file, name)):
        rejected += [line.rejected() for line in lines if line.reason]
        records = [line.record for line in lines if not line.reason]
        n_rows += len(records)
        for key in dict.fromkeys(key for record in records for key in record):
            columns.setdefault(key, _Column()).add([r[key] for r in records if key in r])
    return columns, n_rows, rejected


def _build(
    lines: Sequence[_Line], types: dict[str, _Type], notes: tuple[str, ...]
) -> SourceRecords:
    """Return the records of some lines, with the misfits rejected."""
    rejected: list[Rejected] = []
    valid: list[_Line] = []
    for line in lines:
        reason = line.reason or _misfit(line.record, types)
        if reason:
            rejected.append(line.rejected(reason))
        else:
            valid.append(line)
    arrays = []
    misfits: dict[int, str] = {}
    for key, kind in types.items():
        values = [line.record.get(key) for line in valid]
        try:
            arrays.append(_array(values, kind))
        except CONVERSION_ERRORS:
            misfits |= {
                i: f"column {key!r}: {_spell(v)[:60]!r} does not fit the column's other values"
                for i, v in enumerate(values)
                if not _fits(v, kind)
            }
    if misfits:
        rest = [replace(line, reason=misfits.get(i, "")) for i, line in enumerate(valid)]
        built = _build(rest, types, notes)
        both = sorted((*rejected, *built.rejected), key=lambda r: r.position)
        return replace(built, rejected=tuple(both))
    return SourceRecords(
        table=pa.table(arrays, names=list(types)),
        positions=np.array([line.number for line in valid], dtype=np.int64),
        rejected=tuple(rejected),
        notes=notes,
    )


def _fits(value: Any, kind: _Type) -> bool:
    """Tell whether a nested value can be of a column's type."""
    try:
        _array([value], kind)
    except CONVERSION_ERRORS:
        return False
    return True


def _misfit(record: dict[str, Any], types: dict[str, _Type]) -> str:
    for key, value in record.items():
        kind = types[key]
        if value is not None and _kind(value) not in kind.json_types:
            text = value if isinstance(value, str) else _spell(value)
            return (
                # In quotes, as every value of a record, which a report may have to hide.
                f"column {key!r}: {text[:60]!r} is not {kind.words}, as over 99 % of its values are"
            )
    return ""


def _array(values: list[Any], kind: _Type) -> pa.Array:
    if kind.is_spelled:
        values = [v if v is None or isinstance(v, str) else _spell(v) for v in values]
    if kind.date is not None:
        return kind.date.convert(pa.array(values, pa.string()), kind.arrow)
    return pa.array(values, kind.arrow)


def _spell(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
