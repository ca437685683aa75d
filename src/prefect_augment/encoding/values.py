"""Arrow values as plain arrays, integers and JSON, and back without loss."""

import base64
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Array, Bool
from prefect_augment.errors import SchemaError

# Arrow has few functions for views.
_WITHOUT_VIEW = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
_WIDE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


def plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return the column as one array of values of its :func:`value_type`."""
    if isinstance(column, pa.ChunkedArray):
        chunks, column = column.chunks, column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # where 32-bit offsets overflow
            column = pa.concat_arrays(
                [chunk.cast(_WIDE.get(chunk.type, chunk.type)) for chunk in chunks]
            )
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        if column.type.value_type in _WITHOUT_VIEW:
            levels = column.dictionary.cast(_WITHOUT_VIEW[column.type.value_type])
            column = pa.DictionaryArray.from_arrays(column.indices, levels)
        column = column.dictionary_decode()
    return column.cast(_WITHOUT_VIEW[column.type]) if column.type in _WITHOUT_VIEW else column


def without_nan(values: pa.Array) -> pa.Array:
    """Return the values with NaN as null."""
    if not pa.types.is_floating(values.type):
        return values
    is_nan = pc.is_nan(values.cast(pa.float64()))
    return pc.if_else(is_nan, pa.scalar(None, values.type), values)


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's values, whatever they are wrapped in."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_run_end_encoded(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return _WITHOUT_VIEW.get(kind, kind)


def is_integer_like(kind: pa.DataType) -> bool:
    """Tell whether values are whole numbers underneath: integers, decimals, moments, spans."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_decimal(kind)
        or (pa.types.is_temporal(kind) and not pa.types.is_interval(kind))
    )


def to_integers(values: pa.Array) -> Array:
    """Return the whole numbers underneath, 0 for null; int64, or Python integers if too large."""
    kind = values.type
    if pa.types.is_decimal(kind):
        with decimal.localcontext(prec=100):
            numbers = [0 if v is None else int(v.scaleb(kind.scale)) for v in values.to_pylist()]
        return _int64_or_object(numbers)
    if not pa.types.is_integer(kind):
        values = values.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    array = np.asarray(values.fill_null(0).to_numpy(zero_copy_only=False))
    if array.dtype == np.uint64 and array.size and array.max() >= 2**63:
        return array.astype(object)
    return array.astype(np.int64)


def _int64_or_object(numbers: list[int]) -> Array:
    small = all(-(2**63) <= v < 2**63 for v in numbers)
    return np.array(numbers, dtype=np.int64 if small else object)


def from_integers(numbers: Array, missing: Bool, kind: pa.DataType) -> pa.Array:
    """Return whole numbers as values of the type; the inverse of :func:`to_integers`."""
    if pa.types.is_decimal(kind):
        with decimal.localcontext(prec=100):
            values = [
                None if gone else decimal.Decimal(int(v)).scaleb(-kind.scale)
                for v, gone in zip(numbers.tolist(), missing.tolist(), strict=True)
            ]
        return pa.array(values, type=kind)
    if pa.types.is_integer(kind):
        if numbers.dtype == object:
            numbers = numbers.astype(np.uint64 if pa.types.is_unsigned_integer(kind) else np.int64)
        return pa.array(np.where(missing, np.zeros_like(numbers), numbers), mask=missing).cast(kind)
    width = pa.int32() if kind.bit_width == 32 else pa.int64()
    return pa.array(numbers.astype(np.int64), mask=missing).cast(width).view(kind)


def values_to_json(values: pa.Array, *, column: str) -> list[Any]:
    """Return an array as plain JSON values, exactly; raises SchemaError for a type without such a form."""
    kind = values.type
    if is_integer_like(kind):
        numbers = to_integers(values).tolist()
        return [
            v if valid else None
            for v, valid in zip(numbers, values.is_valid().to_pylist(), strict=True)
        ]
    if pa.types.is_floating(kind):
        return [None if v is None else float(v).hex() for v in values.to_pylist()]
    if is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return values.to_pylist()  # type: ignore[no-any-return]
    if _is_binary(kind):
        return [None if v is None else base64.b64encode(v).decode() for v in values.to_pylist()]
    raise SchemaError(
        f"column {column!r} has type {kind}, whose values cannot be learnt; "
        "give it kind opaque or drop in source.columns.",
        column=column,
    )


def values_from_json(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return the array that :func:`values_to_json` wrote down."""
    if is_integer_like(kind):
        missing = np.array([v is None for v in values], dtype=bool)
        numbers = [0 if v is None else v for v in values]
        return from_integers(_int64_or_object(numbers), missing, kind)
    if pa.types.is_floating(kind):
        return pa.array(
            [None if v is None else float.fromhex(v) for v in values], pa.float64()
        ).cast(kind)
    if _is_binary(kind):
        return pa.array([None if v is None else base64.b64decode(v) for v in values], type=kind)
    return pa.array(values, type=kind)


def is_text(kind: pa.DataType) -> bool:
    """Tell whether values are text."""
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _is_binary(kind: pa.DataType) -> bool:
    is_fixed: bool = pa.types.is_fixed_size_binary(kind)
    return is_fixed or kind in (pa.binary(), pa.large_binary(), pa.binary_view())
