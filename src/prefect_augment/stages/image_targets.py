"""Boxes, masks and keypoints of staged images: read for one record, moved with it, written for its copies.

``objects`` is a struct of lists, one entry per box (``bbox``: left, top, width, height in pixels; ``category`` and
whatever else stands there goes with it; ``keypoints``: x, y and visibility in turns, as COCO has them). Every
image column beside the first is a mask of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.augmentation.targets import Targets
from prefect_augment.encoding.images import image_array
from prefect_augment.encoding.pixels import decode_image, encode_png
from prefect_augment.errors import SchemaError

__all__ = ["OBJECTS", "ImageTargets", "MovedRecord"]

OBJECTS = "objects"


@dataclass(frozen=True)
class MovedRecord:
    """What belongs to one copy: ``objects``, and the bytes of each mask; None where it is its parent's."""

    objects: dict[str, list[Any]] | None = None
    masks: Mapping[str, bytes] | None = None


@dataclass(frozen=True)
class ImageTargets:
    """Which columns of records move with the image.

    Attributes
    ----------
    has_objects : bool
    masks : tuple of str
    """

    has_objects: bool
    masks: tuple[str, ...]

    @classmethod
    def of(cls, schema: pa.Schema, image: str) -> ImageTargets:
        """Find them in a schema."""
        objects = schema.field(OBJECTS).type if OBJECTS in schema.names else None
        has_objects = (
            objects is not None
            and pa.types.is_struct(objects)
            and objects.get_field_index("bbox") >= 0
        )
        masks = [
            field.name
            for field in schema
            if field.name != image
            and pa.types.is_struct(field.type)
            and {"bytes", "path"} <= {f.name for f in field.type}
        ]
        return cls(has_objects, tuple(masks))

    def __bool__(self) -> bool:
        return self.has_objects or bool(self.masks)

    def read(self, record: Mapping[str, Any], shape: Sequence[int]) -> Targets:
        """Return what belongs to an image.

        Parameters
        ----------
        record : mapping of str to object
            Its columns as Python values.
        shape : sequence of int
            The image's height and width.

        Raises
        ------
        SchemaError
            If a mask has another size than the image.
        """
        objects = (record.get(OBJECTS) if self.has_objects else None) or {}
        masks = []
        for name in self.masks:
            value = record[name]
            if value is None or value["bytes"] is None:
                continue
            mask = decode_image(value["bytes"], max_pixels=None)
            if mask.shape[:2] != tuple(shape[:2]):
                raise SchemaError(
                    f"record {record['aug_id']}: the mask {name!r} has {mask.shape[1]}×{mask.shape[0]} pixels and the "
                    f"image {shape[1]}×{shape[0]}; leave the column out, or give masks of the image's size."
                )
            masks.append(mask)
        return Targets(
            boxes=np.array(objects.get("bbox") or [], np.float32).reshape(-1, 4),
            keypoints=_points(objects)[:, :2],
            masks=tuple(masks),
        )

    def write(self, record: Mapping[str, Any], moved: Targets) -> MovedRecord:
        """Return what belongs to the copy of a record."""
        objects = (record.get(OBJECTS) if self.has_objects else None) or None
        if objects is not None:
            objects = _moved_objects(objects, moved)
        there = [name for name in self.masks if record[name] and record[name]["bytes"] is not None]
        return MovedRecord(
            objects, {name: encode_png(m) for name, m in zip(there, moved.masks, strict=True)}
        )

    def replaced(
        self, table: pa.Table, moved: Sequence[MovedRecord | None], ids: Sequence[str]
    ) -> pa.Table:
        """Return copies, whose columns are still their parents', with what was moved."""
        if self.has_objects and any(m for m in moved):
            at, field = table.column_names.index(OBJECTS), table.schema.field(OBJECTS)
            values = [
                old if m is None else m.objects
                for old, m in zip(table[OBJECTS].to_pylist(), moved, strict=True)
            ]
            table = table.set_column(at, field, pa.array(values, field.type))
        for name in self.masks:
            at, field = table.column_names.index(name), table.schema.field(name)
            rows = table[name].to_pylist()
            found = [(m.masks or {}).get(name) if m else None for m in moved]
            data = [
                new if new is not None else (row or {}).get("bytes")
                for row, new in zip(rows, found, strict=True)
            ]
            paths = [
                f"classic/{aug_id}-{name}.png" if new is not None else (row or {}).get("path")
                for row, new, aug_id in zip(rows, found, ids, strict=True)
            ]
            table = table.set_column(at, field, image_array(data, paths, field.type))
        return table


def _points(objects: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return x, y and visibility of all keypoints of all objects, (n, 3)."""
    flat = [value for of_object in objects.get("keypoints") or [] for value in of_object or []]
    return np.array(flat, np.float32).reshape(-1, 3)


def _moved_objects(objects: Mapping[str, list[Any]], moved: Targets) -> dict[str, list[Any]]:
    """Return the objects that are left: each member's entries of these, and boxes and keypoints as they are now."""
    places = moved.places.tolist()
    found = {name: [values[i] for i in places] for name, values in objects.items() if values}
    found = {name: found.get(name, []) for name in objects}
    found["bbox"] = moved.boxes.tolist()
    if objects.get("keypoints"):
        points = _points(objects)
        # A point that has left the image is one without a place, as COCO says it.
        seen = points[:, 2:] * moved.inside[:, None]
        now = np.where(seen > 0, np.concatenate([moved.keypoints, seen], axis=1), 0.0)
        ends = np.cumsum([len(of_object or []) // 3 for of_object in objects["keypoints"]])
        split = np.split(now, ends[:-1])
        found["keypoints"] = [split[i].ravel().tolist() for i in places]
    return found
