"""CSV, TSV and their relatives as a source: text in, typed records out, every guess said in a note.

Encoding, separator, decimal mark and header are found by looking at the bytes, or taken from
:class:`~prefect_augment.params.Source`. Lines that do not fit are rejected with number and reason.
What the columns hold is decided by :mod:`prefect_augment.shards.csv_types`.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO

import numpy as np
import pyarrow as pa

from prefect_augment.errors import InputError, ParameterError, SchemaError
from prefect_augment.params import Source
from prefect_augment.shards.base import Rejected, SourceRecords
from prefect_augment.shards.csv_types import find_decimal_mark, is_number, type_columns
from prefect_augment.shards.packed import gunzip

__all__ = ["read_records"]

SEPARATORS = (",", ";", "\t", "|")
SEPARATOR_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SAMPLE_ROWS = 200  # rows that decide on separator and header
ROWS_AT_ONCE = 65_536  # Python strings of so many rows are alive at a time
MAX_RAW = 2_000  # characters of a rejected line that quarantine keeps
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_records(file: IO[bytes], *, name: str, source: Source) -> SourceRecords:
    """Records of one CSV file, typed by what its columns hold.

    - Encoding: by byte order mark, else UTF-8, else UTF-16 where every other byte is zero, else
      cp1252; gzip is unpacked.
    - Separator: of comma, semicolon, tab and bar the one that cuts most lines into as many fields as
      the first; quoted fields may hold separators and line breaks.
    - Header: the first line, unless it holds numbers where the columns below hold numbers.
    - Empty fields are null. Types: see :func:`prefect_augment.shards.csv_types.type_columns`.

    Parameters
    ----------
    file : binary file
        The whole object.
    name : str
        Its path, for messages.
    source : Source
        Encoding, separator and decimal mark where they are given, and the label.

    Returns
    -------
    SourceRecords
        ``positions`` are line numbers, counted from 1.

    Raises
    ------
    InputError
        If the file is empty, has only a header, is not text, or hardly any line fits.
    SchemaError
        If two columns have the same name.
    """
    text, encoding = _decode(file.read(), name, source.encoding)
    if not text.strip():
        raise InputError(f"{name} is empty; expected a header and at least one record.", path=name)
    separator = _find_separator(text, source.separator)
    skip_blanks = _has_blanks_after(text, separator)
    lines = _Lines(text)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=skip_blanks, strict=True)
    header, has_header = _header(text, separator, skip_blanks, source, name)
    if has_header:
        next(reader)
    columns, positions, rejected = _read_rows(reader, lines, header, name)
    _refuse_unreadable(len(positions), rejected, name)
    table, notes = _without_blank_column(pa.table(columns, names=header))

    mark = source.decimal if source.decimal != "auto" else find_decimal_mark(table, separator)
    typed = type_columns(table, decimal=mark, label=source.label)
    rows = typed.rejected_rows
    unparsed = [
        Rejected(
            int(positions[i]),
            reason,
            separator.join(v or "" for v in table.slice(i, 1).to_pylist()[0].values()),
        )
        for i, reason in sorted(rows.items())
    ]
    keep = np.ones(len(positions), dtype=bool)
    keep[list(rows)] = False
    found = f"read as {encoding}, separator {SEPARATOR_NAMES.get(separator, repr(separator))}"
    found += ", decimal comma" if mark == "," else ""
    found += "" if has_header else ", no header line: columns are named column_1, column_2 …"
    found += ", blanks after separators left out" if skip_blanks else ""
    return SourceRecords(
        table=typed.table.filter(pa.array(keep)) if rows else typed.table,
        positions=positions[keep],
        rejected=tuple(sorted([*rejected, *unparsed], key=lambda r: r.position)),
        notes=(found, *notes, *typed.notes),
    )


# --- encoding ---------------------------------------------------------------------------------


def _decode(data: bytes, name: str, wished: str) -> tuple[str, str]:
    """Return the text and the encoding's name."""
    if data[:2] == b"\x1f\x8b":
        data = gunzip(data, name)
    encodings = [wished] if wished != "auto" else _likely_encodings(data)
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except LookupError as exc:
            raise ParameterError(
                f"encoding {wished!r} is unknown; use e.g. utf-8, cp1252 or utf-16."
            ) from exc
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            raise InputError(
                f"{name} holds zero bytes: it is not text, or its encoding must be given.",
                path=name,
            )
        return text, encoding.removesuffix("-sig")
    raise InputError(
        f"{name} cannot be read as {' or '.join(encodings)}; say what it is with source.encoding.",
        path=name,
    )


def _likely_encodings(data: bytes) -> list[str]:
    for mark, encoding in BOMS:
        if data.startswith(mark):
            return [encoding]
    start = data[:4096]
    if len(start) >= 4 and start[1::2].count(0) > len(start) // 4 and start[::2].count(0) == 0:
        return ["utf-16-le"]
    if len(start) >= 4 and start[::2].count(0) > len(start) // 4 and start[1::2].count(0) == 0:
        return ["utf-16-be"]
    return ["utf-8", "cp1252"]


# --- layout -----------------------------------------------------------------------------------


def _find_separator(text: str, wished: str) -> str:
    if wished != "auto":
        separator = "\t" if wished in ("\\t", "tab") else wished
        if len(separator) != 1 or separator in '"\r\n':
            raise ParameterError(
                f"separator {wished!r} cannot be used; give one character, or \\t."
            )
        return separator
    return max(SEPARATORS, key=lambda s: (_fit(text, s), -SEPARATORS.index(s)))


def _fit(text: str, separator: str) -> tuple[float, int]:
    """How well a separator cuts the first rows alike: share of rows like the first, number of fields."""
    rows = _sample(text, separator)
    width = len(rows[0]) if rows else 0
    if width < 2:
        return 0.0, 0
    alike = sum(len(row) == width for row in rows) / len(rows)
    return round(alike, 1), width


def _sample(text: str, separator: str, *, skip_blanks: bool = False) -> list[list[str]]:
    """The first rows, as far as they can be read."""
    rows: list[list[str]] = []
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=skip_blanks
    )
    with contextlib.suppress(csv.Error):  # a field that is too long; the rows before it are enough
        rows.extend(row for row in islice(reader, SAMPLE_ROWS) if row)
    return rows


def _has_blanks_after(text: str, separator: str) -> bool:
    """Tell whether the writer put a blank after every separator."""
    later = [field for row in _sample(text, separator)[1:] for field in row[1:]]
    return separator != "\t" and bool(later) and all(field.startswith(" ") for field in later)


def _header(
    text: str, separator: str, skip_blanks: bool, source: Source, name: str
) -> tuple[list[str], bool]:
    """Return the columns' names and whether they stand in the first line."""
    rows = _sample(text, separator, skip_blanks=skip_blanks)
    first, below = [field.strip() for field in rows[0]], rows[1:]
    if source.label not in first and _is_data(first, below):
        return [f"column_{j + 1}" for j in range(len(first))], False
    if not below:
        raise InputError(
            f"{name} has a header and no records; expected at least one record.", path=name
        )
    names = [field or f"column_{j + 1}" for j, field in enumerate(first)]
    repeated = sorted(field for field, n in Counter(names).items() if n > 1)
    if repeated:
        raise SchemaError(
            f"{name} has more than one column named {', '.join(map(repr, repeated))}; "
            "rename or drop all but one of each.",
            columns=repeated,
        )
    return names, True


def _is_data(first: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Tell whether the first line holds numbers wherever the lines below hold nothing else."""
    rows = [row for row in below if len(row) == len(first)]
    numeric = [
        j
        for j in range(len(first))
        if any(row[j] for row in rows) and all(is_number(row[j]) for row in rows if row[j])
    ]
    return bool(numeric) and all(is_number(first[j]) for j in numeric)


# --- rows -------------------------------------------------------------------------------------


class _Lines:
    """Lines of a text, remembering the ones since the last row: what a rejected row looked like."""

    def __init__(self, text: str) -> None:
        self._lines = iter(io.StringIO(text, newline=""))
        self.taken: list[str] = []
        self.n_taken = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.taken.append(line)
        self.n_taken += 1
        return line


def _read_rows(
    reader: Iterator[list[str]], lines: _Lines, header: Sequence[str], name: str
) -> tuple[list[pa.ChunkedArray], np.ndarray[tuple[int], np.dtype[np.int64]], list[Rejected]]:
    """Return the columns as text with nulls, the rows' line numbers, and the lines that do not fit."""
    chunks: list[list[pa.Array]] = [[] for _ in header]
    rows: list[list[str]] = []
    positions: list[int] = []
    rejected: list[Rejected] = []

    def flush() -> None:
        for parts, values in zip(chunks, zip(*rows, strict=True), strict=True):
            parts.append(pa.array([value or None for value in values], type=pa.string()))
        rows.clear()

    while True:
        lines.taken.clear()
        line = lines.n_taken + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as exc:
            rejected.append(_unreadable(exc, line, lines, name))
            continue
        if not row:
            continue
        if len(row) == len(header):
            rows.append(row)
            positions.append(line)
        else:
            reason = f"{len(row)} fields where the header has {len(header)}"
            rejected.append(Rejected(line, reason, "".join(lines.taken).rstrip("\r\n")[:MAX_RAW]))
        if len(rows) >= ROWS_AT_ONCE:
            flush()
    if rows:
        flush()
    columns = [pa.chunked_array(parts, type=pa.string()) for parts in chunks]
    return columns, np.asarray(positions, dtype=np.int64), rejected


def _unreadable(exc: csv.Error, line: int, lines: _Lines, name: str) -> Rejected:
    """Reject a row with a stray quote; refuse the file if a quote never closes, as it hides all that follows."""
    message = str(exc)
    if "unexpected end of data" in message or "field larger" in message:
        raise InputError(
            f"{name}: the quote opened in line {line} is never closed, so the lines after it cannot be told apart; "
            "close it or double it.",
            path=name,
            line=line,
        ) from exc
    return Rejected(
        line, "a quote inside a field is not doubled", "".join(lines.taken).rstrip("\r\n")[:MAX_RAW]
    )


def _refuse_unreadable(n_rows: int, rejected: Sequence[Rejected], name: str) -> None:
    if len(rejected) > n_rows:
        first = rejected[0]
        raise InputError(
            f"{name}: {len(rejected)} of {n_rows + len(rejected)} lines do not fit, the first is line {first.position} "
            f"({first.reason}); is the separator right? Say it with source.separator.",
            path=name,
        )
    if n_rows == 0:
        raise InputError(
            f"{name} has a header and no records; expected at least one record.", path=name
        )


def _without_blank_column(table: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """Leave out the empty column that a separator at the end of every line makes."""
    last = table.column_names[-1]
    if (
        re.fullmatch(r"column_\d+", last)
        and table.num_columns > 1
        and table[last].null_count == table.num_rows
    ):
        return table.drop_columns([last]), (
            "the last column has neither name nor values and is left out",
        )
    return table, ()
