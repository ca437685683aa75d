"""Requested column values: read as their column's type and checked against its domain."""

from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.encoding.columns import did_you_mean, listing
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.encoding.values import values_to_json
from prefect_augment.errors import ParameterError

__all__ = ["condition_value", "require_column"]


def require_column(encoder: TableEncoder, name: str, what: str, *, fixed: bool) -> None:
    """Raise ParameterError for a column that is unknown, or that cannot be constrained.

    ``what`` names the request in the message. With ``fixed``, a constant or a column that the
    stratum determines is accepted.
    """
    names = encoder.schema.names
    if name not in names:
        raise ParameterError(
            f"{what} names {name!r}, which is not a column{did_you_mean(name, names)}; there are: "
            f"{listing(names)}.",
            column=name,
        )
    if name in encoder.names or (fixed and encoder.is_fixed(name)):
        return
    if name == encoder.label or name in encoder.by:
        raise ParameterError(
            f"{what} names {name!r}, which the class (with balance.by, the stratum) determines already; "
            f"request one of {listing(encoder.strata, 5)} instead.",
            column=name,
        )
    raise ParameterError(
        f"{what} names {name!r}, which no model learns (an identifier, a constant, free text or a "
        "column without values); leave it out, or say with source.columns what it is.",
        column=name,
    )


def condition_value(encoder: TableEncoder, name: str, value: Any) -> tuple[float, Any]:
    """Return a requested value in the matrix form and as JSON.

    Raises ParameterError if the column is unknown or not learnt, or the value is outside its
    domain.
    """
    require_column(encoder, name, "the request", fixed=False)
    codec = encoder.codec(name)
    if _is_missing(value):
        if codec.missing is None:
            raise ParameterError(
                f"a missing value is requested in column {name!r}, where no training record lacks one; "
                "give a value.",
                column=name,
            )
        return float("nan"), None
    array = _as_array(value, codec.kind, name)
    x = codec.encode(array)
    written = values_to_json(array, column=name)[0]
    if np.isnan(x[0]) or not codec.in_domain(x)[0] or codec.decode(x) != array:
        raise ParameterError(
            f"the value {value!r} is requested in column {name!r}, but is none of its values: "
            f"{codec.domain_text()}.",
            column=name,
        )
    return float(x[0]), written


def _is_missing(value: Any) -> bool:
    """Tell whether a value is None, or the NaN, NaT or NA of any library."""
    try:
        return bool(pa.array([value], from_pandas=True).null_count)
    except pa.ArrowInvalid:
        return False


def _as_array(value: Any, kind: pa.DataType, name: str) -> pa.Array:
    """One value in a column's type; text is parsed as that type."""
    try:
        if not (pa.types.is_integer(kind) and value != int(value)):  # Arrow would truncate it
            return pa.array([value], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError, ValueError):
        pass
    try:
        return pa.array([str(value)]).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise ParameterError(
            f"the value {value!r} is requested in column {name!r}, which holds {kind}; give such a value.",
            column=name,
        ) from exc
