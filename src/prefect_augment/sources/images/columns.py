"""Image columns of a table as ``struct<bytes, path>``, which `datasets` decodes; the bytes are the source's own."""

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.errors import ParameterError
from prefect_augment.shards.image_columns import (
    IMAGE_TYPE,
    image_columns,
    image_metadata,
    image_slices,
    main_image,
)
from prefect_augment.sources.images.validation import looks_like

#: The column that ``source.group_pattern`` makes.
GROUP = "group"

SNIFFED = 20


def find_image_columns(table: pa.Table) -> list[str]:
    """Return the image columns: structs of bytes and path, and binary columns that begin like image files."""
    return [name for name in table.column_names if _holds_images(table, name)]


def as_image_columns(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return the table with these columns as ``struct<bytes, path>``, and metadata to match."""
    if not names:
        return table
    for name in names:
        place = table.column_names.index(name)
        field = pa.field(name, IMAGE_TYPE, nullable=table.schema.field(name).nullable)
        table = table.set_column(place, field, _as_images(table.column(name)))
    return table.replace_schema_metadata(image_metadata(table.schema, names))


def _holds_images(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    if _is_image_struct(kind):
        return True
    if not is_binary(kind):
        return False
    values = table.column(name).drop_null().slice(0, SNIFFED).to_pylist()
    return bool(values) and all(looks_like(value) for value in values)


def _is_image_struct(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or {f.name for f in kind} != {"bytes", "path"}:
        return False
    path = kind.field("path").type
    texts = pa.types.is_string(path) or pa.types.is_large_string(path) or pa.types.is_null(path)
    return is_binary(kind.field("bytes").type) and texts


def is_binary(kind: pa.DataType) -> bool:
    """Tell whether values are bytes."""
    t = pa.types
    return bool(t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind))


def _as_images(column: pa.ChunkedArray) -> pa.ChunkedArray:
    chunks = []
    for chunk in column.chunks:
        if pa.types.is_struct(chunk.type):
            data, path = pc.struct_field(chunk, "bytes"), pc.struct_field(chunk, "path")
        else:
            data, path = chunk, pa.nulls(len(chunk), pa.string())
        chunks.append(
            pa.StructArray.from_arrays(
                [data.cast(pa.binary()), path.cast(pa.string())], fields=list(IMAGE_TYPE)
            )
        )
    return pa.chunked_array(chunks, IMAGE_TYPE)


def image_bytes(column: pa.ChunkedArray) -> Iterator[bytes]:
    """Return the bytes of each image; empty for none."""
    return (bytes(image or b"") for image in image_slices(column))


def with_group_column(table: pa.Table, pattern: str) -> pa.Table:
    """Append the group that the pattern finds in each image's path, empty for none; ParameterError if it cannot."""
    image = main_image(table.schema)
    if not image:
        raise ParameterError(
            "source.group_pattern looks at the paths of images, and there is no image column; use source.group_column."
        )
    if GROUP in table.column_names:
        raise ParameterError(
            f"source.group_pattern makes a column {GROUP!r}, and the source has one; "
            f"use source.group_column={GROUP!r}, or rename it."
        )
    paths = pc.fill_null(pc.struct_field(table[image], "path"), "")
    try:
        matches = pc.extract_regex(paths, _with_named_group(pattern))
    except pa.ArrowInvalid as exc:
        raise ParameterError(
            f"source.group_pattern cannot be used ({exc}): it is matched in linear time (RE2), without look-arounds "
            "and back-references; write it without them."
        ) from exc
    groups = pc.fill_null(pc.struct_field(matches, [0]), "")
    table = table.append_column(GROUP, groups)
    return table.replace_schema_metadata(image_metadata(table.schema, image_columns(table.schema)))


def _with_named_group(pattern: str) -> str:
    """Return a pattern with a name for its one group, which Arrow's RE2 wants."""
    # Escapes, classes of characters, and the first parenthesis that is in neither and opens a group.
    tokens = re.finditer(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]|(?P<group>\((?!\?))", pattern, re.DOTALL)
    start = next((token.end() for token in tokens if token["group"]), None)
    return pattern if start is None else f"{pattern[:start]}?P<group>{pattern[start:]}"
