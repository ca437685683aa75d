"""Image columns: their Arrow form, their metadata, and the main one."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OBJECTS_TYPE = pa.struct(
    [("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.string()))]
)

FEATURES_KEY = b"huggingface"
# Of several image columns, the one named so is the picture; others are masks and the like.
IMAGE_NAMES = ("image", "img", "picture", "photo")


def image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold images, in the schema's order."""
    return [field.name for field in schema if field.type == IMAGE_TYPE]


def image_slices(column: pa.ChunkedArray) -> list[memoryview | None]:
    """Return a view of each image's bytes; None for null."""
    images: list[memoryview | None] = []
    for chunk in pc.struct_field(column, "bytes").chunks:
        if len(chunk):
            _, where, data = chunk.buffers()
            ends = np.frombuffer(where, np.int32)[chunk.offset :][: len(chunk) + 1].tolist()
            view = memoryview(data or b"").cast("B")
            slices = [view[start:end] for start, end in itertools.pairwise(ends)]
            if chunk.null_count:
                there = chunk.is_valid().to_pylist()
                images += [
                    one if is_there else None for one, is_there in zip(slices, there, strict=True)
                ]
            else:
                images += slices
    return images


def main_image(schema: pa.Schema) -> str:
    """Return the column with the images to learn: one named image, else the first; empty for none."""
    names = image_columns(schema)
    named = [name for preferred in IMAGE_NAMES for name in names if name.lower() == preferred]
    return (named or names or [""])[0]


def image_metadata(schema: pa.Schema, images: Sequence[str]) -> dict[bytes, bytes]:
    """Return the schema's metadata with a ``huggingface`` key by which `datasets` decodes the images.

    The source's own key is kept for other columns; a column of a type without a name there rules it out.
    """
    metadata = dict(schema.metadata or {})
    try:
        key = json.loads(metadata.get(FEATURES_KEY, b"{}"))
        known = dict((key.get("info") or {}).get("features") or {})
    except (ValueError, AttributeError, TypeError):
        key, known = {}, {}
    features: dict[str, Any] = {}
    for column in schema:
        kept = known.get(column.name)
        if column.name in images:
            is_image = isinstance(kept, dict) and kept.get("_type") == "Image"
            features[column.name] = kept if is_image else {"_type": "Image"}
            continue
        feature = kept if kept is not None else _feature(column.type)
        if feature is None:
            metadata.pop(FEATURES_KEY, None)
            return metadata
        features[column.name] = feature
    info = {**(key.get("info") or {}), "features": features}
    metadata[FEATURES_KEY] = json.dumps({**key, "info": info}).encode()
    return metadata


def _feature(kind: pa.DataType) -> Any:
    """Return the name that `datasets` has for an Arrow type, or None."""
    t = pa.types
    if t.is_struct(kind):
        members = {f.name: _feature(f.type) for f in kind}
        return None if any(m is None for m in members.values()) else members
    if t.is_list(kind):
        member = _feature(kind.value_type)
        return None if member is None else [member]
    named = {pa.float32(): "float32", pa.float64(): "float64", pa.bool_(): "bool"}
    if kind in named:
        return {"dtype": named[kind], "_type": "Value"}
    same = (t.is_integer, t.is_string, t.is_large_string, t.is_date, t.is_timestamp, t.is_binary)
    if any(is_kind(kind) for is_kind in same):
        return {"dtype": str(kind), "_type": "Value"}
    return None
