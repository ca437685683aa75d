"""Boxes, masks and keypoints of staged images: read, transformed with the image, written for its copies.

``objects`` is a struct of lists, one entry per box: ``bbox`` (left, top, width, height in pixels), ``category``,
``keypoints`` (x, y, visibility, as in COCO) and any other fields. Image columns after the first are masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.array_types import Bool, Float, Float32, Int
from prefect_augment.encoding.images import image_array
from prefect_augment.encoding.pixels import decode_image, encode_png
from prefect_augment.errors import SchemaError

OBJECTS = "objects"


@dataclass(frozen=True)
class MovedRecord:
    """The targets of one copy: ``objects`` and each mask's bytes; None where they are its parent's."""

    objects: dict[str, list[Any]] | None = None
    masks: Mapping[str, bytes] | None = None


@dataclass(frozen=True)
class ImageTargets:
    """The columns of records that are transformed with the image."""

    has_objects: bool
    masks: tuple[str, ...]

    @classmethod
    def of(cls, schema: pa.Schema, image: str) -> "ImageTargets":
        """Return the target columns of a schema."""
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

    def read(
        self, record: Mapping[str, Any], shape: Sequence[int], min_visibility: float
    ) -> "Targets":
        """Return the targets of one record (columns as Python values) whose image has this (height, width).

        Raises SchemaError if a mask has another size than the image.
        """
        objects = (record.get(OBJECTS) if self.has_objects else None) or {}
        masks = []
        for name in self.masks:
            value = record[name]
            if value is None or value["bytes"] is None:
                continue
            mask = decode_image(value["bytes"])
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
            min_visibility=min_visibility,
        )

    def write(self, record: Mapping[str, Any], moved: "Targets") -> MovedRecord:
        """Return the targets for the copy of a record."""
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
        """Return copies with their transformed targets in place of their parents'."""
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
            masks = [(m.masks or {}).get(name) if m else None for m in moved]
            data = [
                new if new is not None else (row or {}).get("bytes")
                for row, new in zip(rows, masks, strict=True)
            ]
            paths = [
                f"classic/{aug_id}-{name}.png" if new is not None else (row or {}).get("path")
                for row, new, aug_id in zip(rows, masks, ids, strict=True)
            ]
            table = table.set_column(at, field, image_array(data, paths, field.type))
        return table


def _points(objects: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return x, y and visibility of all keypoints of all objects, (n, 3)."""
    flat = [value for of_object in objects.get("keypoints") or [] for value in of_object or []]
    return np.array(flat, np.float32).reshape(-1, 3)


def _moved_objects(objects: Mapping[str, list[Any]], moved: "Targets") -> dict[str, list[Any]]:
    """Return the remaining objects: all fields of those in ``moved``, boxes and keypoints updated."""
    places = moved.places.tolist()
    left = {name: [values[i] for i in places] for name, values in objects.items() if values}
    left = {name: left.get(name, []) for name in objects}
    left["bbox"] = moved.boxes.tolist()
    if objects.get("keypoints"):
        points = _points(objects)
        # A point that has left the image is one without a place, as COCO says it.
        seen = points[:, 2:] * moved.inside[:, None]
        now = np.where(seen > 0, np.concatenate([moved.keypoints, seen], axis=1), 0.0)
        ends = np.cumsum([len(of_object or []) // 3 for of_object in objects["keypoints"]])
        split = np.split(now, ends[:-1])
        left["keypoints"] = [split[i].ravel().tolist() for i in places]
    return left


def _none(columns: int) -> Float32:
    return np.zeros((0, columns), dtype=np.float32)


@dataclass(frozen=True)
class Targets:
    """Boxes, keypoints and masks of one image."""

    boxes: Float32 = field(default_factory=lambda: _none(4))  # (n_boxes, 4): as in COCO, pixels
    keypoints: Float32 = field(default_factory=lambda: _none(2))  # (n_keypoints, 2): x, y in pixels
    masks: tuple[NDArray[np.uint8], ...] = ()  # (height, width) each
    # (n_boxes,) indices into the boxes read; (n_keypoints,) whether still in the image
    places: Int = field(default_factory=lambda: np.zeros(0, np.int64))
    inside: Bool = field(default_factory=lambda: np.zeros(0, np.bool_))
    min_visibility: float = 0.1  # share of a box's area that has to be left in the image

    def started(self, width: int, height: int) -> "Targets":
        """Return these with all keypoints inside, and only boxes that overlap the image."""
        starts, ends = self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]
        has_area = (np.minimum(ends, [width, height]) > np.maximum(starts, 0)).all(axis=1)
        return replace(
            self,
            boxes=self.boxes[has_area],
            places=np.flatnonzero(has_area),
            inside=np.ones(len(self.keypoints), np.bool_),
        )

    def moved(self, matrix: Float, width: int, height: int) -> "Targets":
        """Return boxes and keypoints under an affine map (2, 3) of pixel centres, old to new; masks as they are.

        A box becomes the upright hull of its four corners, cut to the new image (width, height), or is dropped if
        it keeps less than ``min_visibility`` of its area.
        """
        linear, offset = matrix[:, :2], matrix[:, 2]
        x, y, w, h = self.boxes.astype(np.float64).T
        corners = np.stack([[x, y], [x + w, y], [x, y + h], [x + w, y + h]])  # (4, 2, n)
        # Box edges lie half a pixel before the centre of their first pixel.
        moved = np.einsum("ij,kjn->kin", linear, corners - 0.5) + offset[None, :, None] + 0.5
        low, high = moved.min(axis=0), moved.max(axis=0)  # (2, n)
        size = np.array([[width], [height]], dtype=np.float64)
        cut_low, cut_high = np.clip(low, 0, size), np.clip(high, 0, size)
        area, left = np.prod(high - low, axis=0), np.prod(cut_high - cut_low, axis=0)
        keep = (left > 0) & (left >= self.min_visibility * area)
        boxes = np.concatenate([cut_low, cut_high - cut_low])[:, keep].T.astype(np.float32)
        points = self.keypoints.astype(np.float64) @ linear.T + offset
        inside = ((points > -0.5) & (points < size[:, 0] - 0.5)).all(axis=1)
        return replace(
            self,
            boxes=boxes,
            places=self.places[keep],
            keypoints=points.astype(np.float32),
            inside=self.inside & inside,
        )
