"""The label column: detection, classes, and checks."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.encoding.columns import did_you_mean, is_comparable, is_temporal, listing
from prefect_augment.encoding.values import is_text, plain, value_type, without_nan
from prefect_augment.errors import LabelError

# A label has records to learn each class from: more values than this need at least
# MIN_RECORDS_PER_CLASS records each, in the mean.
MAX_RARE_CLASSES = 20
MIN_RECORDS_PER_CLASS = 5
LABEL_NAMES = ("label", "target", "class", "y", "labels", "category", "outcome", "diagnosis")


def find_label(table: pa.Table, requested: str = "") -> str:
    """Return the label column: ``given``, else the one column named label, target, class, y and the like.

    Raises LabelError if the given column is missing, or no single column qualifies.
    """
    names: list[str] = table.column_names
    if requested:
        if requested in names:
            return requested
        raise LabelError(
            f"label column {requested!r} is not in the source{did_you_mean(requested, names)}; "
            f"its columns are: {listing(names)}.",
            label=requested,
            columns=names,
        )
    named = [name for name in names if name.strip().casefold() in LABEL_NAMES]
    valid = [name for name in named if _can_be_label(table.column(name))]
    if len(valid) == 1:
        return valid[0]
    candidates = valid or [name for name in names if _has_few_values(table.column(name))]
    raise LabelError(
        f"no label column is given, and {'several' if valid else 'none'} of the columns is named like one; "
        f"say which it is with label (--label). Columns with few values: {listing(candidates) or 'none'}.",
        label="",
        columns=names,
    )


def _can_be_label(column: pa.ChunkedArray) -> bool:
    try:
        check_label(column, name="")
    except LabelError:
        return False
    return True


def _has_few_values(column: pa.ChunkedArray) -> bool:
    values = plain(column).drop_null()
    if (
        pa.types.is_floating(values.type)
        or not is_comparable(values.type)
        or is_temporal(values.type)
    ):
        return False
    return 2 <= len(values.unique()) <= MAX_RARE_CLASSES


def label_text(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return the class name of each record: its label as text, null where there is no label."""
    return without_nan(plain(column)).cast(pa.string())


def missing_labels(column: pa.ChunkedArray | pa.Array) -> pa.BooleanArray:
    """Return which records have no label: null, NaN or blank text."""
    text = label_text(column)
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), True)


def class_names(column: pa.ChunkedArray | pa.Array) -> tuple[str, ...]:
    """Return the classes in the order of their values: numbers by size, false before true, else as text."""
    distinct = plain(column).unique().drop_null()
    if not is_text(distinct.type) and not pa.types.is_null(distinct.type):
        order = distinct.cast(pa.int8()) if pa.types.is_boolean(distinct.type) else distinct
        distinct = distinct.take(pc.array_sort_indices(order))
    names = [name for name in label_text(distinct).to_pylist() if name is not None]
    return tuple(sorted(names) if is_text(distinct.type) else names)


def check_label(column: pa.ChunkedArray | pa.Array, *, name: str) -> None:
    """Raise LabelError if a column cannot be the label; nulls and blanks are ignored.

    It cannot if it is nested, binary or a date, has fewer than two values, looks like an identifier or
    a continuous value, or has classes that differ only by case, blanks or Unicode form.
    """
    check_label_type(column.type, name=name)
    values = plain(column)
    values = values.filter(pc.invert(missing_labels(values)))
    check_classes(values.unique(), len(values), len(column), name=name)


def check_classes(distinct: pa.Array, n_values: int, n_records: int, *, name: str) -> None:
    """Refuse a label by its different values and how many records have one; see :func:`check_label`."""
    names = class_names(distinct)
    if len(names) < 2:
        held = f"only the class {names[0]!r}" if names else "no value"
        raise LabelError(
            f"label column {name!r} has {held} in {n_records} records; expected at least two classes.",
            label=name,
            classes=names,
        )
    problem = _no_label(distinct, n_values)
    if problem:
        what, advice = problem
        counts = f"{len(distinct)} different values in {n_values} records"
        raise LabelError(f"label column {name!r} looks like {what}: {counts}. {advice}", label=name)
    _refuse_variants(names, name)


def check_label_type(kind: pa.DataType, *, name: str) -> None:
    """Refuse a label column whose values are no classes: nested, binary, dates."""
    values = value_type(kind)
    if not is_comparable(values) or is_temporal(values):
        raise LabelError(
            f"label column {name!r} holds {kind}; expected text, whole numbers or booleans. "
            "Choose another column, or derive a class from it.",
            label=name,
        )


def _no_label(distinct: pa.Array, n_values: int) -> tuple[str, str] | None:
    """What the values look like where they are no classes, and what to do; None where they may be classes."""
    text, n_classes = is_text(distinct.type), len(distinct)
    if (n_classes == n_values > 2) or (text and n_classes > 10 and 2 * n_classes > n_values):
        is_id = text or pa.types.is_integer(distinct.type)
        what = "an identifier" if is_id else "a continuous value"
        return what, "Choose the column that holds the class."
    if n_classes <= MAX_RARE_CLASSES:
        return None
    has_fractions = False
    if pa.types.is_floating(distinct.type) or pa.types.is_decimal(distinct.type):
        x = distinct.cast(pa.float64())
        has_fractions = bool(pc.any(pc.not_equal(x, pc.floor(x))).as_py())
    if n_classes * MIN_RECORDS_PER_CLASS <= n_values and not has_fractions:
        return None
    what = "free text or an identifier" if text else "a continuous value"
    return what, "Cut it into classes first, or choose another column."


def _refuse_variants(names: Sequence[str], name: str) -> None:
    """Refuse ``Yes`` beside ``yes ``: one class by mistake in two spellings would be balanced as two."""
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for spelled in names:
        normal = unicodedata.normalize("NFKC", spelled).casefold()
        spellings[" ".join(normal.split())].append(spelled)
    pairs = [group for group in spellings.values() if len(group) > 1]
    if pairs:
        shown = "; ".join(" and ".join(repr(s) for s in group) for group in pairs[:5])
        raise LabelError(
            f"label column {name!r} has classes that differ only by case or blanks: {shown}. "
            f"Give each class one spelling in the source, e.g. with str.strip() and str.lower(); "
            "if they are different classes, name them so that they can be told apart.",
            label=name,
            pairs=pairs,
        )
