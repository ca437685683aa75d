"""Values that another tool wrote, read as the real column's type: which fit, and why others do not.

Tools lose types: whole numbers come as floats, everything comes as text out of a CSV file. What loses
nothing is taken; whole numbers that were interpolated are rounded, and counted; what is no value of the
column at all is said, so that its record can be set aside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.encoding.values import plain

__all__ = ["Read", "class_codes", "read_as"]

SHOWN = 40  # characters of a value
TRUE, FALSE = frozenset({"true", "1", "1.0"}), frozenset({"false", "0", "0.0"})


@dataclass(frozen=True)
class Read:
    """A column as it was read.

    Attributes
    ----------
    values : pyarrow.Array
        Of the wanted type; null where a value does not fit.
    unfit : dict of int to str
        Why, by row.
    n_rounded : int
        Fractions in a column of whole numbers.
    """

    values: pa.Array
    unfit: dict[int, str] = field(default_factory=dict)
    n_rounded: int = 0


def read_as(column: pa.ChunkedArray | pa.Array, kind: pa.DataType, levels: pa.Array | None) -> Read:
    """Return a column in another type.

    Parameters
    ----------
    column : pyarrow array
        As it was read.
    kind : pyarrow.DataType
        The real column's, without dictionary.
    levels : pyarrow.Array, optional
        Of a category: the values that real records have.
    """
    values = plain(column)
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    found = _converted(values, kind)
    if levels is None or not len(found.values):
        return found
    strange = pc.and_(
        pc.is_valid(found.values), pc.invert(pc.is_in(found.values, value_set=levels))
    ).to_numpy(zero_copy_only=False)
    if not strange.any():
        return found
    why = {
        int(i): f"{_shown(found.values[int(i)].as_py())}, which no real record has"
        for i in np.flatnonzero(strange)
    }
    return Read(_without(found.values, strange), {**found.unfit, **why}, found.n_rounded)


def _converted(values: pa.Array, kind: pa.DataType) -> Read:
    t = pa.types
    if values.type == kind:
        return Read(values)
    if t.is_boolean(kind):
        return _each(values, kind, _as_bool)
    if t.is_integer(kind) and (t.is_floating(values.type) or t.is_decimal(values.type)):
        return _rounded(values.cast(pa.float64(), safe=False), kind)
    try:
        return Read(values.cast(kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    if t.is_floating(kind) and t.is_integer(values.type):
        return Read(values.cast(kind, safe=False))  # beyond 2**53: what a float can say of it
    if t.is_integer(kind) and _is_text(values.type):
        numbers = _each(values, pa.float64(), float)
        whole = _rounded(numbers.values, kind)
        return Read(whole.values, {**whole.unfit, **numbers.unfit}, whole.n_rounded)
    if t.is_floating(kind) and t.is_floating(values.type):
        return Read(values.cast(kind, safe=False))
    return _each(values, kind, None)


def _rounded(values: pa.Array, kind: pa.DataType) -> Read:
    """Numbers as whole ones."""
    x = values.to_numpy(zero_copy_only=False).astype(np.float64)
    missing = np.isnan(x)
    whole = np.rint(x)
    bits = kind.bit_width - (0 if pa.types.is_unsigned_integer(kind) else 1)
    low = 0.0 if pa.types.is_unsigned_integer(kind) else -(2.0**bits)
    with np.errstate(invalid="ignore"):
        beyond = ~missing & ~((whole >= low) & (whole < 2.0**bits))
    lost = missing | beyond
    n_rounded = int((~lost & (whole != x)).sum())
    made = pa.array(np.where(lost, 0, whole).astype(np.int64), mask=lost).cast(kind)
    unfit = {int(i): f"{x[i]:g}, which is no {kind}" for i in np.flatnonzero(beyond)}
    return Read(made, unfit, n_rounded)


def _each(values: pa.Array, kind: pa.DataType, convert: Any) -> Read:
    """Convert each different value by itself."""
    coded = values.dictionary_encode()
    made: list[Any] = []
    wrong: dict[int, str] = {}
    for code, value in enumerate(coded.dictionary):
        try:
            # An empty cell of a CSV file is no value.
            text = value.as_py()
            if isinstance(text, str) and not text.strip() and not _is_text(kind):
                made.append(None)
            elif convert is not None:
                made.append(convert(text))
            else:
                made.append(pa.array([text], values.type).cast(kind)[0].as_py())
        except (ValueError, TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            made.append(None)
            wrong[code] = f"{_shown(value.as_py())}, which is no {kind}"
    codes = coded.indices.to_numpy(zero_copy_only=False)
    unfit = {int(i): wrong[int(codes[i])] for i in np.flatnonzero(np.isin(codes, list(wrong)))}
    return Read(pa.array(made, kind).take(coded.indices), unfit)


def _as_bool(value: Any) -> bool | None:
    if value is None or value != value:
        return None
    text = str(value).strip().casefold()
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise ValueError(text)


def class_codes(column: pa.ChunkedArray | pa.Array, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the class of each label, however it is spelled as a value: 1, 1.0, "1" and " 1" are one.

    Parameters
    ----------
    column : pyarrow array
        Labels of any type.
    classes : tuple of str
        The real classes' names.

    Returns
    -------
    ndarray of int64, shape (n,)
        Places in ``classes``; -1 for an unknown one, -2 for none.
    """
    values = plain(column)
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    coded = values.dictionary_encode()
    index = {name: k for k, name in enumerate(classes)}
    # "1.0" is the class "1" only where no other class is spelled so.
    known = {_folded(name): k for name, k in index.items()}
    found = []
    for value in coded.dictionary.to_pylist():
        text = str(value)
        blank = value is None or value != value or not text.strip()
        found.append(-2 if blank else index.get(text, known.get(_folded(text), -1)))
    codes = coded.indices.to_numpy(zero_copy_only=False).astype(np.float64)
    missing = np.isnan(codes)
    places = np.array([*found, -2], dtype=np.int64)
    return places[np.where(missing, len(found), codes).astype(np.int64)]


def _folded(text: str) -> str:
    """A spelling that types do not change; a label's case says something and stays."""
    text = text.strip()
    if text in ("True", "False"):
        return text.casefold()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _without(values: pa.Array, rows: NDArray[np.bool_]) -> pa.Array:
    return pc.if_else(pa.array(rows), pa.scalar(None, values.type), values)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    # In quotes, as every value of a record, which a report may have to hide.
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
