"""Kinds of a table's columns: numeric, category, identifier, or not learnt.

A kind is detected only where it is unambiguous; a :class:`~prefect_augment.params.ColumnOverride` decides
the rest. No value is changed here. :mod:`prefect_augment.encoding.labels` handles the label.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.encoding.record_ids import value_hashes
from prefect_augment.encoding.values import is_integer_like, is_text, plain, value_type
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.params import ColumnOverride
from prefect_augment.schema import ColumnInfo, ColumnKind
from prefect_augment.storage.external_sort import DistinctCounter
from prefect_augment.storage.spill import Workspace

# Below this many values "no two are equal" happens by chance (ten ages, ten postcodes).
MIN_UNIQUE_RECORDS = 20
# Text with fewer than two records per value, and more values than this, has nothing to learn from.
MIN_FREE_TEXT_VALUES = 50
ID_TOKENS = frozenset(
    {"id", "ids", "uid", "uuid", "guid", "udi", "pk", "key", "index", "idx", "row", "rownum"}
)
# A body mass index repeats as well, and says nothing about who a record is of.
OWNER_TOKENS = ID_TOKENS - {"key", "index", "idx", "row", "rownum"}
BELONG_TOGETHER = "if records of one belong together"
OWNERS = ("patient", "subject", "participant", "customer", "client", "user", "account", "household")


def describe_columns(
    table: pa.Table, *, label: str, overrides: Sequence[ColumnOverride] = ()
) -> tuple[ColumnInfo, ...]:
    """Describe each column but the label, in the table's order.

    Kinds, first match:

    - ``empty``: only nulls (NaN counts as null);
    - ``opaque``: nested or binary values, and text with hardly any two values equal; kept in real
      records, null in synthetic ones;
    - ``constant``: one value and no nulls;
    - ``identifier``: text without blanks or integers, all distinct, the integers contiguous or in a
      column named like an id; synthetic records get fresh ones;
    - ``category``: text, booleans, dictionaries;
    - ``numeric``: numbers, decimals, dates, timestamps, times, durations.

    Overrides take precedence; one that names no column, or numbers where there are none, raises
    ParameterError. ``n_unique`` counts values other than null, -1 where they cannot be compared.
    """
    with Workspace() as workspace:
        summaries = {
            field.name: ColumnSummary(field.type, workspace)
            for field in table.schema
            if field.name != label
        }
        for name, summary in summaries.items():
            summary.add(table.column(name))
        return describe_summaries(table.schema, summaries, overrides=overrides, label=label)


def describe_summaries(
    schema: pa.Schema,
    summaries: "Mapping[str, ColumnSummary]",
    *,
    label: str,
    overrides: Sequence[ColumnOverride] = (),
) -> tuple[ColumnInfo, ...]:
    """Return the same as :func:`describe_columns` of columns that were summarised batch by batch."""
    by_name = check_columns(schema, label=label, overrides=overrides)
    return tuple(
        _describe(name, schema.field(name).type, summaries[name], by_name.get(name))
        for name in schema.names
        if name != label
    )


@dataclass(frozen=True)
class ColumnCounts:
    """Counts of a column's values that add up over batches."""

    n_records: int = 0
    n_null: int = 0  # NaN too
    n_infinite: int = 0
    n_with_blanks: int = 0  # texts
    low: int | None = None  # of whole numbers
    high: int | None = None

    def plus(self, other: "ColumnCounts") -> "ColumnCounts":
        """Return the counts of both."""
        lows, highs = ((self.low, other.low), (self.high, other.high))
        return ColumnCounts(
            self.n_records + other.n_records,
            self.n_null + other.n_null,
            self.n_infinite + other.n_infinite,
            self.n_with_blanks + other.n_with_blanks,
            min((low for low in lows if low is not None), default=None),
            max((high for high in highs if high is not None), default=None),
        )


class ColumnSummary:
    """Counts and the exact number of distinct values of a column, batch by batch."""

    def __init__(self, kind: pa.DataType, workspace: Workspace) -> None:
        self.counts = ColumnCounts()
        self._values = DistinctCounter(workspace)
        self.is_comparable = is_comparable(value_type(kind))

    @property
    def n_values(self) -> int:
        """Values other than null."""
        return self.counts.n_records - self.counts.n_null

    @cached_property
    def n_unique(self) -> int:
        """Distinct values; -1 where they cannot be compared."""
        return self._values.n_distinct() if self.is_comparable else -1

    def add(self, column: pa.ChunkedArray | pa.Array) -> ColumnCounts:
        """Add a batch and return its counts."""
        counts = _counts(column)
        self.counts = self.counts.plus(counts)
        self.add_values(column)
        return counts

    def add_values(self, column: pa.ChunkedArray | pa.Array) -> None:
        """Add a batch's distinct values, without its counts."""
        if self.is_comparable and len(column):
            self._values.add(value_hashes(column))

    def add_counts(self, counts: ColumnCounts) -> None:
        """Add the counts of values added elsewhere."""
        self.counts = self.counts.plus(counts)


def _counts(column: pa.ChunkedArray | pa.Array) -> ColumnCounts:
    if pa.types.is_nested(value_type(column.type)):
        return ColumnCounts(len(column), column.null_count)
    values = plain(column).drop_null()
    n_infinite = n_with_blanks = 0
    low = high = None
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64())
        values = values.filter(pc.invert(pc.is_nan(values)))
        n_infinite = pc.sum(pc.is_inf(values)).as_py() or 0
    elif is_text(values.type):
        n_with_blanks = pc.sum(pc.match_substring_regex(values, r"\s")).as_py() or 0
    elif pa.types.is_integer(values.type) and len(values):
        bounds = pc.min_max(values).as_py()
        low, high = bounds["min"], bounds["max"]
    n = len(column)
    return ColumnCounts(n, n - len(values), n_infinite, n_with_blanks, low, high)


def check_columns(
    schema: pa.Schema, *, label: str, overrides: Sequence[ColumnOverride]
) -> dict[str, ColumnOverride]:
    """Return the overrides by column; refuse one that names no column, the label, or a column twice."""
    by_name: dict[str, ColumnOverride] = {}
    for override in overrides:
        if override.name not in schema.names:
            raise ParameterError(
                f"source.columns names {override.name!r}, which is not a column"
                f"{did_you_mean(override.name, schema.names)}.",
                column=override.name,
            )
        if override.name == label:
            raise ParameterError(
                f"source.columns names the label {label!r}; the label's kind is fixed.",
                column=label,
            )
        if override.name in by_name:
            raise ParameterError(
                f"source.columns names {override.name!r} twice; keep one entry.",
                column=override.name,
            )
        kind = schema.field(override.name).type
        if override.kind == "numeric" and not _is_number_like(value_type(kind)):
            raise ParameterError(
                f"column {override.name!r} holds {kind}, which cannot be numeric; "
                "convert it in the source, or take kind: category.",
                column=override.name,
            )
        if override.kind == "category" and not is_comparable(value_type(kind)):
            raise ParameterError(
                f"column {override.name!r} holds {kind}, which cannot be a category; take kind: opaque.",
                column=override.name,
            )
        by_name[override.name] = override
    return by_name


def _describe(
    name: str, arrow_type: pa.DataType, summary: ColumnSummary, override: ColumnOverride | None
) -> ColumnInfo:
    kind, note = _kind(name, arrow_type, summary)
    if override is not None and override.kind != "drop":
        kind, note = override.kind, "set in source.columns"
    elif repeats := _repeated_owner(name, arrow_type, summary):
        note = f"{note}; {repeats}" if note else repeats
    if summary.counts.n_infinite:
        infinite = (
            f"{summary.counts.n_infinite} infinite values: kept in real records, read as missing by models and "
            "estimators"
        )
        note = f"{note}; {infinite}" if note else infinite
    return ColumnInfo(
        name=name,
        arrow_type=str(arrow_type),
        kind=kind,
        n_null=summary.counts.n_null,
        n_unique=summary.n_unique,
        note=note,
    )


def _kind(name: str, arrow_type: pa.DataType, summary: ColumnSummary) -> tuple[ColumnKind, str]:
    """The kind of one column and why."""
    values = value_type(arrow_type)
    if summary.n_values == 0:
        return "empty", "no value in any record"
    if summary.n_unique < 0:
        return (
            "opaque",
            f"{arrow_type} is kept untouched in real records and null in synthetic ones",
        )
    if summary.n_unique == 1 and summary.n_values == summary.counts.n_records:
        return "constant", "one value in every record"
    if is_text(values):
        return _text_kind(summary)
    if pa.types.is_integer(values) and not pa.types.is_dictionary(arrow_type):
        why = _integer_identifier(name, summary)
        return ("identifier", why) if why else ("numeric", "")
    if pa.types.is_boolean(values) or pa.types.is_dictionary(arrow_type):
        return "category", ""
    return "numeric", ""


def _text_kind(summary: ColumnSummary) -> tuple[ColumnKind, str]:
    """Tell categories, identifiers and free text apart."""
    if (
        summary.n_unique == summary.n_values >= MIN_UNIQUE_RECORDS
        and not summary.counts.n_with_blanks
    ):
        return "identifier", "a text of its own in every record"
    if summary.n_unique > MIN_FREE_TEXT_VALUES and 2 * summary.n_unique > summary.n_values:
        return (
            "opaque",
            f"free text ({summary.n_unique} different values): kept in real records, null in synthetic ones",
        )
    return "category", ""


def _integer_identifier(name: str, summary: ColumnSummary) -> str:
    """Why an integer column is an identifier; empty if it is not one."""
    counts = summary.counts
    if summary.n_unique < counts.n_records or counts.n_records < MIN_UNIQUE_RECORDS:
        return ""
    assert counts.low is not None
    assert counts.high is not None
    if counts.high - counts.low == summary.n_unique - 1:
        return f"row number: every integer from '{counts.low}' to '{counts.high}' once"
    is_named = not ID_TOKENS.isdisjoint(_words(name))
    return "named like an identifier, no two values equal" if is_named else ""


def _repeated_owner(name: str, arrow_type: pa.DataType, summary: ColumnSummary) -> str:
    """What to do about a column that is named like whose record it is, where several are of one; empty if it is not."""
    values = value_type(arrow_type)
    words = _words(name)
    is_named = not OWNER_TOKENS.isdisjoint(words) or (len(words) == 1 and words[0] in OWNERS)
    if not (is_named and (is_text(values) or pa.types.is_integer(values))):
        return ""
    if not MIN_UNIQUE_RECORDS <= summary.n_unique < summary.n_values:
        return ""
    return (
        f"{summary.n_unique:,} values in {summary.n_values:,} records: {BELONG_TOGETHER}, name it as "
        "source.group_column, so that they stay on one side of the split"
    )


def learnt_owners(columns: Sequence[ColumnInfo]) -> list[str]:
    """Columns that models learn though they are named like whose record it is, and nobody said what they are."""
    learnt = (c for c in columns if c.kind in ("numeric", "category"))
    return [c.name for c in learnt if BELONG_TOGETHER in c.note]


def _words(name: str) -> list[str]:
    """The words of a name: those of ``customer_id``, ``CustomerID`` and ``UUID``; ``paid`` is one."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def _is_number_like(kind: pa.DataType) -> bool:
    t = pa.types
    return is_integer_like(kind) or bool(
        t.is_floating(kind) or t.is_null(kind) or t.is_boolean(kind)
    )


def is_temporal(kind: pa.DataType) -> bool:
    """Tell whether values are dates, times or durations; calendar intervals have no order."""
    return bool(pa.types.is_temporal(kind) and not pa.types.is_interval(kind))


def is_comparable(kind: pa.DataType) -> bool:
    """Tell whether Arrow can find equal values: all but nested and binary ones."""
    return is_text(kind) or _is_number_like(kind)


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """Return ``" (did you mean 'income'?)"`` for the nearest of ``names``, or nothing."""
    by_lower = {other.strip().casefold(): other for other in reversed(names)}
    nearest = difflib.get_close_matches(name.strip().casefold(), list(by_lower), n=1, cutoff=0.6)
    return f" (did you mean {by_lower[nearest[0]]!r}?)" if nearest else ""


def listing(names: Sequence[str], limit: int = 40) -> str:
    """Return the names quoted, with commas, at most ``limit`` of them."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def require_columns(schema: pa.Schema, names: Sequence[str], *, what: str) -> None:
    """Refuse a parameter that names a missing column."""
    for name in names:
        if name and name not in schema.names:
            raise SchemaError(
                f"{what} {name!r} is not a column of the source{did_you_mean(name, schema.names)}; "
                f"its columns are: {listing(schema.names)}.",
                column=name,
            )
