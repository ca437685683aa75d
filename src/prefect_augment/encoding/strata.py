"""Strata, and columns in the source's exact types; shared by the encoders of tables and images."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Int
from prefect_augment.encoding.values import plain, value_type, values_from_json, values_to_json
from prefect_augment.errors import ParameterError
from prefect_augment.schema import class_order

# Stratum -> column (the label and the ``by`` columns) -> value as JSON.
StratumValues = Mapping[str, Mapping[str, Any]]


def table_strata(table: pa.Table, *, label: str, by: Sequence[str] = ()) -> list[str]:
    """Return the stratum of each record of a table, see :func:`stratum_names`."""
    return stratum_names(_texts(table, label), {name: _texts(table, name) for name in by})


def _texts(table: pa.Table, name: str) -> list[str]:
    return plain(table.column(name)).cast(pa.string()).to_pylist()  # type: ignore[no-any-return]


def stratum_values(table: pa.Table, label: str, by: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return per stratum the values of label and ``by`` columns: the most frequent of its name."""
    names = table_strata(table, label=label, by=by)
    columns = [values_to_json(plain(table.column(name)), column=name) for name in (label, *by)]
    counts = Counter(zip(names, *columns, strict=True))
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], -item[1], repr(item[0])))
    known: dict[str, dict[str, Any]] = {}
    for (stratum, *values), _ in ordered:
        known.setdefault(stratum, dict(zip((label, *by), values, strict=True)))
    return {name: known[name] for name in class_order(known)}


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema as it is read from storage: Arrow renames the fields inside a map."""
    return pa.ipc.read_schema(pa.BufferReader(schema.serialize()))


def stratum_codes(strata: Sequence[str], known: StratumValues) -> Int:
    """Return the index of each record's stratum among the known; raises ParameterError for an unknown one."""
    index = {name: k for k, name in enumerate(known)}
    unknown = sorted(set(strata) - set(index))
    if unknown:
        raise ParameterError(
            f"unknown strata {unknown}; the encoder has seen: {', '.join(map(repr, index))}."
        )
    return np.array([index[name] for name in strata], dtype=np.int64)


def stratum_column(field: pa.Field, known: StratumValues, codes: Int) -> pa.Array:
    """Return the label or a ``by`` column of records whose strata these are."""
    values = [entry[field.name] for entry in known.values()]
    return values_from_json(values, value_type(field.type)).take(pa.array(codes))


def dictionaries_of(table: pa.Table, schema: pa.Schema) -> dict[str, pa.Array]:
    """Return each dictionary column's values in the source's order, unused ones included, as pandas shows them."""
    values = {}
    for field in schema:
        if pa.types.is_dictionary(field.type):
            chunks = table.column(field.name).unify_dictionaries().chunks
            values[field.name] = (
                chunks[0].dictionary if chunks else pa.array([], field.type.value_type)
            )
    return values


def conform_column(
    field: pa.Field, column: pa.Array, dictionaries: Mapping[str, pa.Array]
) -> pa.Array:
    """Return the column in its field's type; raises ParameterError for a null that the field forbids."""
    if column.null_count and not field.nullable:
        raise ParameterError(
            f"column {field.name!r} may not be null, and a record has no value for it; "
            "a model may leave a value out only where it has seen that."
        )
    if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
        levels = dictionaries[field.name]
        indices = pc.index_in(column, value_set=plain(levels), skip_nulls=True)
        if levels.type != field.type.value_type:  # a view that was loaded as plain text
            levels = levels.cast(field.type.value_type)
        return pa.DictionaryArray.from_arrays(
            indices.cast(field.type.index_type), levels, ordered=field.type.ordered
        )
    if pa.types.is_run_end_encoded(field.type) and not pa.types.is_run_end_encoded(column.type):
        return pc.run_end_encode(column, run_end_type=field.type.run_end_type)
    return column if column.type == field.type else column.cast(field.type)


# How a null of a ``by`` column is written; a real text "null" falls into the same cell.
NULL_TEXT = "null"


def stratum_names(labels: Sequence[str], by: Mapping[str, Sequence[str | None]]) -> list[str]:
    r"""Return each record's stratum: its class, or ``"class | column=value | …"`` with ``by`` columns.

    ``|`` and ``\`` in a class or value are escaped with ``\``, so two strata never share a name; None is
    written as :data:`NULL_TEXT`.

    Examples
    --------
    >>> stratum_names(["sick", "well"], {"sex": ["f", None]})
    ['sick | sex=f', 'well | sex=null']
    """
    if not by:
        return list(labels)
    columns = [[f"{_escape(name)}={_value(v)}" for v in values] for name, values in by.items()]
    return [
        " | ".join((_escape(label), *cell)) for label, *cell in zip(labels, *columns, strict=True)
    ]


def stratum_parts(name: str, by: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the class, and the value of each ``by`` column as text: the inverse of :func:`stratum_names`."""
    if not by:
        return name, {}
    # A bar inside a class or value has a backslash before it, not a blank.
    label, *cells = name.split(" | ")
    pairs = zip(by, cells, strict=True)
    return _unescape(label), {column: _unescape(cell)[len(column) + 1 :] for column, cell in pairs}


def _value(value: str | None) -> str:
    return NULL_TEXT if value is None else _escape(value)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
