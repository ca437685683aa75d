"""CSV, TSV and relatives as a source: text in, typed records out, every guess reported in a note."""

import codecs
import contextlib
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import IO

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Int
from prefect_augment.errors import EmptyFileError, InputError, ParameterError
from prefect_augment.params import Source
from prefect_augment.sources.archives import refuse_bomb, size_of, unpacked
from prefect_augment.sources.base import Rejected, SourceRecords, refuse_duplicates
from prefect_augment.sources.csv_types import ColumnTyper, count_decimals, is_number
from prefect_augment.sources.other_formats import what_it_is
from prefect_augment.storage.spill import Workspace

SEPARATORS = (",", ";", "\t", "|")
SEPARATOR_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SAMPLE_ROWS = 200  # rows that decide on separator and header
# Python strings of so many rows, or characters, are alive at a time.
ROWS_AT_ONCE = 32_768
BYTES_AT_ONCE = 4 << 20
# Characters in a field: more is a quote that is never closed, sooner than a text.
MAX_FIELD = 16 << 20
MAX_RAW = 2_000  # characters of a rejected line that quarantine keeps


def read_batches(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
    """Yield the records of one CSV file, typed by the content of its columns.

    - Encoding: by byte order mark, else UTF-8, else UTF-16 where every other byte is zero, else cp1252;
      gzip is unpacked.
    - Separator: of comma, semicolon, tab and bar the one that cuts most lines into as many fields as the
      first; quoted fields may hold separators and line breaks.
    - Header: as ``source.header`` says; else the first line, unless it holds numbers where the columns below hold
      numbers, or the label is ``column_3`` or the like. A first line that may be data is noted.
    - Empty fields are null. :class:`.csv_types.ColumnTyper` infers types when all lines have been seen; until
      then they are spilled as text.

    Lines that do not parse are rejected with their number, from 1. Raises InputError if the file is empty,
    has only a header, is not text, or hardly any line parses; SchemaError for duplicate column names.
    """
    if csv.field_size_limit() < MAX_FIELD:  # one for all readers of the process
        csv.field_size_limit(MAX_FIELD)
    text = Text(file, name, source.encoding)
    if text.is_blank:
        raise EmptyFileError(
            f"{name} is empty; expected a header and at least one record.", path=name
        )
    # Layout, from the first rows.
    separator = _find_separator(text, source.separator)
    skip_blanks = _has_blanks_after(text, separator)
    header, has_header, doubts = _header(text, separator, skip_blanks, source, name)
    with Workspace() as workspace:
        # Rows as text, then types, then records.
        blocks = _Blocks(workspace, header)
        with text.open() as file_lines:
            taken: list[str] = []
            reader = csv.reader(
                _noted(file_lines, taken),
                delimiter=separator,
                skipinitialspace=skip_blanks,
                strict=True,
            )
            if has_header:
                _skip_header(reader, name)
            blocks.read(reader, taken, name)
        names, notes = blocks.without_blank_column()
        typers, mark = blocks.typers(names, source, separator)
        layout = (
            f"read as {text.encoding}, separator {SEPARATOR_NAMES.get(separator, repr(separator))}"
        )
        layout += ", decimal comma" if mark == "," else ""
        layout += "" if has_header else ", no header line: columns are named column_1, column_2 …"
        layout += ", blanks after separators left out" if skip_blanks else ""
        missing = (
            f"column {name!r}: {typer.n_missing_words} values such as NA or ? read as missing"
            for name, typer in zip(names, typers, strict=True)
            if typer.n_missing_words
        )
        file_notes = (layout, *doubts, *notes, *missing)
        for batch in blocks.typed(names, typers, separator):
            yield replace(batch, notes=file_notes)
            file_notes = ()


def _skip_header(reader: Iterator[list[str]], name: str) -> None:
    try:
        next(reader)
    except csv.Error as exc:
        raise InputError(
            f"{name}: the header in the first line cannot be read ({exc}); double the quotes inside of names, and "
            "close the others.",
            path=name,
            line=1,
        ) from exc


def _find_separator(text: "Text", requested: str) -> str:
    if requested != "auto":
        separator = "\t" if requested in ("\\t", "tab") else requested
        if len(separator) != 1 or separator in '"\r\n':
            raise ParameterError(
                f"separator {requested!r} cannot be used; give one character, or \\t."
            )
        return separator
    return max(SEPARATORS, key=lambda s: (_regularity(text, s), -SEPARATORS.index(s)))


def _regularity(text: "Text", separator: str) -> tuple[float, int]:
    """Return how well a separator cuts the first rows: share of rows as wide as the first, number of fields."""
    rows = _sample(text, separator)
    width = len(rows[0]) if rows else 0
    if width < 2:
        return 0.0, 0
    alike = sum(len(row) == width for row in rows) / len(rows)
    return round(alike, 1), width


def _sample(text: "Text", separator: str, *, skip_blanks: bool = False) -> list[list[str]]:
    """The first rows, as far as they can be read."""
    rows: list[list[str]] = []
    with text.open() as lines:
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=skip_blanks)
        with contextlib.suppress(csv.Error):  # a field that is too long; the rows before it will do
            rows.extend(row for row in islice(reader, SAMPLE_ROWS) if row)
    return rows


def _has_blanks_after(text: "Text", separator: str) -> bool:
    """Tell whether the writer put a blank after every separator."""
    later = [field for row in _sample(text, separator)[1:] for field in row[1:]]
    return separator != "\t" and bool(later) and all(field.startswith(" ") for field in later)


def _header(
    text: "Text", separator: str, skip_blanks: bool, source: Source, name: str
) -> tuple[list[str], bool, tuple[str, ...]]:
    """Return the column names, whether the first line holds them, and what speaks against it."""
    rows = _sample(text, separator, skip_blanks=skip_blanks)
    first, below = [field.strip() for field in rows[0]], rows[1:]
    numbered = [f"column_{j + 1}" for j in range(len(first))]
    if source.header == "no" or (
        source.header == "auto"
        and source.label not in first
        and (source.label in numbered or _is_data(first, below))
    ):
        return numbered, False, ()
    names = [field or f"column_{j + 1}" for j, field in enumerate(first)]
    refuse_duplicates(names, name)
    doubts = () if source.header == "yes" else _doubts(first, below)
    return names, True, doubts


def _doubts(first: Sequence[str], below: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Say where the first line looks like a record: it has values of the lines below, or numbers."""
    again = [
        j
        for j, field in enumerate(first)
        if field and any(row[j:] and row[j].strip() == field for row in below)
    ]
    values = again or [j for j, field in enumerate(first) if is_number(field)]
    if not again and len(values) < len(first) / 2:  # years as columns are numbers, beside others
        return ()
    shown = ", ".join(repr(first[j]) for j in values[:3])
    why = "also among the values below it" if again else "numbers"
    note = (
        f"the first line was read as column names, and may be a record ({why}: {shown}). If it is one, set "
        "source.header to 'no' and name the label column_1, column_2 …; if not, 'yes'"
    )
    return (note,)


def _is_data(first: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Tell whether the first line holds numbers wherever the lines below hold nothing else."""
    rows = [row for row in below if len(row) == len(first)]
    numeric = [
        j
        for j in range(len(first))
        if any(row[j] for row in rows) and all(is_number(row[j]) for row in rows if row[j])
    ]
    return bool(numeric) and all(is_number(first[j]) for j in numeric)


def _noted(lines: Iterable[str], taken: list[str]) -> Iterator[str]:
    """Yield lines; those since the last row are kept as the raw text of a rejected one."""
    for line in lines:
        taken.append(line)
        yield line


class _Blocks:
    """The rows of a file as blocks of text columns, spilled until their types are known."""

    def __init__(self, workspace: Workspace, header: Sequence[str]) -> None:
        self._header = list(header)
        self._texts = workspace.spill()
        self._positions: list[Int] = []  # line numbers of the rows, per block
        self._rejected: list[Rejected] = []

    def read(self, reader: Iterator[list[str]], taken: list[str], name: str) -> None:
        """Read all rows; ``taken`` are the lines that the reader has taken."""
        rows: list[list[str]] = []
        positions: list[int] = []
        n_rows = n_bytes = 0
        line = 1
        while True:
            line += len(taken)
            taken.clear()
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error as exc:
                self._rejected.append(_unreadable(exc, line, taken, name))
                continue
            if not row:
                continue
            if len(row) == len(self._header):
                rows.append(row)
                positions.append(line)
                n_bytes += sum(map(len, taken))
                n_rows += 1
            else:
                reason = f"{len(row)} fields where the header has {len(self._header)}"
                self._rejected.append(Rejected(line, reason, _raw(taken)))
            if len(rows) >= ROWS_AT_ONCE or n_bytes > BYTES_AT_ONCE:
                self._put(rows, positions)
                rows, positions, n_bytes = [], [], 0
        if rows:
            self._put(rows, positions)
        _refuse_unreadable(n_rows, self._rejected, name)

    def _put(self, rows: list[list[str]], positions: list[int]) -> None:
        columns = [
            pa.array([value or None for value in values], type=pa.string())
            for values in zip(*rows, strict=True)
        ]
        self._texts.append(pa.table(columns, names=[f"{j}" for j in range(len(columns))]))
        self._positions.append(np.asarray(positions, dtype=np.int64))

    def without_blank_column(self) -> tuple[list[str], tuple[str, ...]]:
        """Drop the empty column that a separator at the end of every line makes."""
        last = len(self._header) - 1
        if (
            last == 0
            or not re.fullmatch(r"column_\d+", self._header[-1])
            or any(t.column(last).null_count < t.num_rows for t in self._texts)
        ):
            return self._header, ()
        return self._header[:-1], ("the last column has neither name nor values and is left out",)

    def typers(
        self, names: Sequence[str], source: Source, separator: str
    ) -> tuple[list[ColumnTyper], str]:
        mark = source.decimal if source.decimal != "auto" else self._mark(len(names), separator)
        typers = [ColumnTyper(decimal=mark, strict=name == source.label) for name in names]
        for block in self._texts:
            for j, typer in enumerate(typers):
                typer.look(block.column(j).combine_chunks())
        for typer in typers:
            typer.decide()
        return typers, mark

    def _mark(self, n_columns: int, separator: str) -> str:
        """Return the more frequent decimal mark: a comma only where it does not separate fields."""
        if separator == ",":
            return "."
        n_comma = n_point = 0
        for block in self._texts:
            for j in range(n_columns):
                comma, point = count_decimals(block.column(j).combine_chunks())
                n_comma, n_point = n_comma + comma, n_point + point
        return "," if n_comma > n_point else "."

    def typed(
        self, names: Sequence[str], typers: Sequence[ColumnTyper], separator: str
    ) -> Iterator[SourceRecords]:
        """Yield the blocks with their types, the first with the lines that do not fit; misfits are rejected."""
        rejected = self._rejected
        for block, positions in zip(self._texts, self._positions, strict=True):
            texts = [block.column(j).combine_chunks() for j in range(len(names))]
            columns: list[pa.Array] = []
            reasons: dict[int, str] = {}
            for name, typer, text in zip(names, typers, texts, strict=True):
                values, misfits = typer.convert(text)
                columns.append(values)
                for i, reason in misfits.items():
                    reasons.setdefault(i, f"column {name!r}: {reason}")
            table = pa.table(columns, names=list(names))
            for i, why in reasons.items():
                raw = separator.join(t[i].as_py() or "" for t in texts)
                rejected.append(Rejected(int(positions[i]), why, raw))
            if reasons:
                keep = np.ones(len(positions), dtype=bool)
                keep[list(reasons)] = False
                table, positions = table.filter(pa.array(keep)), positions[keep]
            yield SourceRecords(table, positions, tuple(sorted(rejected, key=lambda r: r.position)))
            rejected = []


def _raw(taken: Sequence[str]) -> str:
    return "".join(taken).rstrip("\r\n")[:MAX_RAW]


def _unreadable(exc: csv.Error, line: int, taken: Sequence[str], name: str) -> Rejected:
    """Reject a row with a stray quote; refuse the file if a quote never closes and hides the rest."""
    message = str(exc)
    if "unexpected end of data" in message or "field larger" in message:
        what = (
            "is never closed"
            if "unexpected" in message
            else f"holds more than {MAX_FIELD >> 20} MiB, so it is probably never closed"
        )
        raise InputError(
            f"{name}: the quote opened in line {line} {what}, and the lines after it cannot be told apart; "
            "close it or double it.",
            path=name,
            line=line,
        ) from exc
    return Rejected(line, "a quote inside a field is not doubled", _raw(taken))


def _refuse_unreadable(n_rows: int, rejected: Sequence[Rejected], name: str) -> None:
    if len(rejected) > n_rows:
        first = rejected[0]
        raise InputError(
            f"{name}: {len(rejected)} of {n_rows + len(rejected)} lines do not fit, the first is line {first.position} "
            f"({first.reason}); is the separator right? Say it with source.separator.",
            path=name,
        )
    if n_rows == 0:
        raise EmptyFileError(
            f"{name} has a header and no records; expected at least one record.", path=name
        )


PIECE_BYTES = 1 << 20
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Text:
    """The decoded text of a file, piece by piece, any number of times; gzip is unpacked, ``auto`` looks at all bytes.

    Raises InputError if it is not text of its encoding or damaged gzip, ParameterError for an unknown encoding.
    """

    def __init__(self, file: IO[bytes], name: str, requested: str) -> None:
        self._file = file
        self._name = name
        self._n_bytes = size_of(file)
        encodings = [requested]
        if requested == "auto":
            encodings = _likely_encodings(next(self._pieces(), b""))
        for encoding in encodings:
            try:
                decoder = codecs.getincrementaldecoder(encoding)()
            except LookupError as exc:
                raise ParameterError(
                    f"encoding {requested!r} is unknown; use e.g. utf-8, cp1252 or utf-16."
                ) from exc
            try:
                self.is_blank = self._look(decoder)
            except UnicodeDecodeError:
                continue
            self._codec = encoding
            self.encoding = encoding.removesuffix("-sig")
            return
        raise InputError(
            f"{name} cannot be read as {' or '.join(encodings)}; say what it is with source.encoding.",
            path=name,
        )

    def _look(self, decoder: codecs.IncrementalDecoder) -> bool:
        """Decode all of it and return whether it is blank."""
        is_blank, has_zero = True, False
        for piece in self._pieces():
            text = decoder.decode(piece)
            has_zero = has_zero or "\0" in text
            is_blank = is_blank and not text.strip()
        decoder.decode(b"", final=True)
        if has_zero:
            start = next(self._pieces(), b"")
            why = what_it_is(start, self._name) or "it is not text, or its encoding must be given"
            raise InputError(f"{self._name} holds zero bytes: {why}.", path=self._name)
        return is_blank

    def _pieces(self) -> Iterator[bytes]:
        total = 0
        with unpacked(self._file, self._name) as raw:
            while piece := raw.read(PIECE_BYTES):
                total += len(piece)
                refuse_bomb(self._name, self._n_bytes, total)
                yield piece

    @contextmanager
    def open(self) -> Iterator[Iterator[str]]:
        """Yield the lines, with their line ends."""
        with unpacked(self._file, self._name) as raw:
            text = io.TextIOWrapper(raw, self._codec, newline="")
            try:
                yield text
            finally:
                text.detach()  # the file stays open


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
