"""The common schema of all files of a source."""

import re
from collections.abc import Sequence

import pyarrow as pa

from prefect_augment.errors import SchemaError
from prefect_augment.shards.parquet import LINEAGE

# Columns of our own published and staged records; engines such as DuckDB ignore case.
RESERVED = frozenset(
    [*LINEAGE.names, "content_key", "aug_stratum", "aug_ordinal", "aug_score", "aug_reason"]
)

#: Formats without types of their own: what we read into them may give way (see :func:`one_schema`).
UNTYPED_FORMATS = frozenset({"csv", "jsonl"})


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema with the values' own types in place of dictionaries."""
    for i, field in enumerate(schema):
        if pa.types.is_dictionary(field.type):
            schema = schema.set(i, field.with_type(field.type.value_type))
    return schema


def plain_name(arrow_type: str) -> str:
    """Return a type's name without the width of its offsets, in which pandas, polars and Arrow differ."""
    return re.sub(r"\blarge_(?=string|binary|utf8)", "", arrow_type)


def refuse_lineage_names(schema: pa.Schema, path: str) -> None:
    """Refuse a file with columns named like ours."""
    taken = [name for name in schema.names if name.casefold() in RESERVED]
    if taken:
        raise SchemaError(
            f"{path} has columns named like lineage columns: {', '.join(map(repr, taken))}; rename them in the source. "
            "(A dataset published by this tool can be a source as a whole: give its folder.)",
            columns=taken,
        )


def one_schema(schemas: Sequence[pa.Schema], paths: Sequence[str], *, widen: bool) -> pa.Schema:
    """Return the first schema's columns, in its order; refuse other names or types.

    With ``widen`` (text formats, whose types we infer) integers become floats, dates timestamps, null anything.
    """
    first = schemas[0]
    if all(schema == first for schema in schemas):
        return first
    for schema, path in zip(schemas[1:], paths[1:], strict=True):
        refuse_other_names(schema, path, like=first, where=paths[0])
    fields = []
    for field_ in first:
        same_named = [schema.field(field_.name) for schema in schemas]
        kind = _common_type([f.type for f in same_named], field_.name, paths, widen=widen)
        fields.append(field_.with_type(kind).with_nullable(any(f.nullable for f in same_named)))
    return pa.schema(fields, metadata=first.metadata)


def refuse_other_names(schema: pa.Schema, path: str, *, like: pa.Schema, where: str) -> None:
    """Refuse a table that lacks a column of another, or has one more."""
    missing = [name for name in like.names if name not in schema.names]
    extra = [name for name in schema.names if name not in like.names]
    if missing or extra:
        what = (
            f"lacks column {missing[0]!r}, which {where} has"
            if missing
            else f"has column {extra[0]!r}, which {where} has not"
        )
        raise SchemaError(
            f"{path} {what}; expected {like.names}, found {schema.names}.",
            path=path,
            column=(missing or extra)[0],
        )


def _common_type(
    types: Sequence[pa.DataType], name: str, paths: Sequence[str], *, widen: bool
) -> pa.DataType:
    common = types[0]
    for kind, path in zip(types[1:], paths[1:], strict=True):
        wider = shared_type(common, kind, widen=widen)
        if wider is None:
            raise SchemaError(
                f"column {name!r} is {kind} in {path} and {common} in {paths[0]}; files of one source have the "
                "same types. Convert one of them.",
                path=path,
                column=name,
                expected=str(common),
                found=str(kind),
            )
        common = wider
    return common


def shared_type(one: pa.DataType, other: pa.DataType, *, widen: bool) -> pa.DataType | None:
    """Return the type that holds the values of both, ``one`` where that does; None for none.

    Dictionaries may differ in the width of their codes. ``widen`` is for text formats, see :func:`one_schema`.
    """
    if plain_name(str(one)) == plain_name(str(other)):
        return one
    return _wider_type(one, other) if widen else _same_dictionary(one, other)


def _same_dictionary(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the wider of two dictionary types that differ only in their codes, else None."""
    t = pa.types
    if not (t.is_dictionary(one) and t.is_dictionary(other)):
        return None
    if (one.value_type, one.ordered) != (other.value_type, other.ordered):
        return None
    return one if one.index_type.bit_width >= other.index_type.bit_width else other


def _wider_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds both in the spelling of a CSV file, or None."""
    t = pa.types
    for a, b in ((one, other), (other, one)):
        if t.is_null(a) or (t.is_int64(a) and t.is_float64(b)):
            return b
        if t.is_date(a) and t.is_timestamp(b) and b.tz is None:
            return b
        if t.is_timestamp(a) and t.is_timestamp(b) and a.tz == b.tz and a.unit == "us":
            return b
    return None
