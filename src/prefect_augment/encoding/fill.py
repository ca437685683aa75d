"""Columns that no model learns: constants, all-null ones, identifiers, and opaque ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.encoding.values import plain, values_from_json, values_to_json
from prefect_augment.errors import ParameterError

__all__ = ["fill_column", "fit_fill"]


def fit_fill(field: pa.Field, column: pa.ChunkedArray, kind: str) -> dict[str, Any]:
    """Return, as JSON, the rule that fills a column without a codec (constant, empty, identifier, opaque).

    Constants are repeated; ``empty`` and ``opaque`` columns become null, as do nullable identifiers that are
    no numbers. Other identifiers are fresh: signed and float ones count down from ``min(0, smallest) - 1``,
    unsigned ones from the type's maximum (the next free number would collide with validation or hold-out
    records), text is ``synthetic-`` and 16 digits of the ``aug_id``. Raises ParameterError if the column
    may not be null and no rule fits.
    """
    values = plain(column)
    if kind == "constant" and values.null_count < len(values):
        return {
            "rule": "constant",
            "value": values_to_json(values.drop_null()[:1], column=field.name)[0],
        }
    if kind == "identifier":
        signed = pa.types.is_signed_integer(values.type) or (
            pa.types.is_floating(values.type) and not field.nullable
        )
        if signed:
            smallest = pc.min(values).as_py() if values.null_count < len(values) else 0
            return {"rule": "count", "first": min(0, int(np.floor(smallest))) - 1}
        if pa.types.is_unsigned_integer(values.type):
            return {"rule": "count", "first": 2**values.type.bit_width - 1}
        if not field.nullable and (
            pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        ):
            return {"rule": "text"}
    if not field.nullable:
        raise ParameterError(
            f"column {field.name!r} ({kind}, {field.type}) may not be null and cannot be made, so "
            "synthetic records "
            "have no value for it; drop it with a source.columns entry, make it nullable, or use "
            "model none.",
            column=field.name,
        )
    return {"rule": "null"}


def fill_column(
    field: pa.Field,
    rule: dict[str, Any],
    *,
    places: NDArray[np.int64],
    aug_ids: Sequence[str] | None,
) -> pa.Array:
    """Return the column's values for new records by a rule of :func:`fit_fill`, dictionaries decoded.

    ``places`` holds a number per record that no other record has; text identifiers need ``aug_ids``.
    """
    n = len(places)
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if rule["rule"] == "constant":
        value = values_from_json([rule["value"]], kind)
        values = value.take(pa.array(np.zeros(n, dtype=np.int64)))
    elif rule["rule"] == "count":
        values = _counted(field, kind, rule["first"], places)
    elif rule["rule"] == "text":
        if aug_ids is None:
            raise ParameterError(
                f"column {field.name!r} is named after each record's aug_id; pass aug_ids."
            )
        values = pa.array([f"synthetic-{aug_id[:16]}" for aug_id in aug_ids], type=kind)
    else:
        values = pa.nulls(n, field.type)
    return values


def _counted(field: pa.Field, kind: pa.DataType, first: int, places: NDArray[np.int64]) -> pa.Array:
    """Return ``first - place``; raises ParameterError beyond the type's range."""
    if not pa.types.is_integer(kind):
        return pa.array((first - places).astype(np.float64)).cast(kind)
    lowest = 0 if pa.types.is_unsigned_integer(kind) else -(2 ** (kind.bit_width - 1))
    if len(places) and first - int(places.max()) < lowest:
        raise ParameterError(
            f"identifier column {field.name!r} is {kind}, which has no fresh number left for "
            f"{int(places.max()) + 1} synthetic records; widen its type, or drop it with a "
            "source.columns entry.",
            column=field.name,
        )
    wide = np.uint64 if pa.types.is_unsigned_integer(kind) else np.int64
    return pa.array(wide(first) - places.astype(wide)).cast(kind)
