"""Detection sets as files: images beside their boxes in the convention of COCO, Pascal VOC or YOLO.

``<split>/images/<aug_id>.<jpg, png, …>`` and, by convention:

- coco: ``<split>/annotations.json``;
- voc: ``<split>/annotations/<aug_id>.xml``, with fractions of pixels;
- yolo: ``<split>/labels/<aug_id>.txt`` relative to the image, and ``data.yaml`` with the names.

Read again (``source.format`` of the same name), each gives the same images, boxes and categories.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import yaml

from prefect_augment.encoding.annotations import OBJECTS
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.publish.export import ExportReport, check_beside, chosen_shards, swapped
from prefect_augment.schema import Manifest, Origin, ShardInfo
from prefect_augment.shards.image_columns import main_image
from prefect_augment.shards.staged import iter_shards
from prefect_augment.sources.images.validation import header_of
from prefect_augment.storage import Store, open_store, read_manifest

logger = logging.getLogger(__name__)

ENDINGS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg"}


def export_boxes(
    store: Store,
    folder: Store | str,
    *,
    convention: str,
    version: int | None = None,
    splits: Sequence[str] = (),
    origins: Sequence[Origin] = (),
    options: dict[str, Any] | None = None,
) -> ExportReport:
    """Write one version of a detection set as images and annotations in the convention coco, voc or yolo.

    The other arguments are those of :func:`.export.export`; ``folder`` has to be empty. Raises
    ParameterError for an unknown convention, split or origin, or an unsuitable folder, and SchemaError
    if the version holds no images with boxes.
    """
    if convention not in _WRITERS:
        raise ParameterError(
            f"annotations {convention!r} is no convention; choose one of: {', '.join(_WRITERS)}."
        )
    target = folder if isinstance(folder, Store) else open_store(folder, options=options)
    check_beside(store, target)
    if existing := target.list():
        raise ParameterError(
            f"the export {target.uri} holds files, e.g. {existing[0]}; choose an empty folder."
        )
    manifest = read_manifest(store, version)
    shards = chosen_shards(manifest, splits, origins)
    if target.is_local:
        with swapped(Path(target.root)) as temporary:
            output = _write(store, open_store(temporary), manifest, shards, convention)
    else:
        output = _write(store, target, manifest, shards, convention)
    logger.info("Version %d of %s is exported to %s.", manifest.version, store.uri, target.uri)
    return ExportReport(
        folder=target.uri,
        version=manifest.version,
        n_records=output.n_records,
        n_files=output.n_files,
        n_bytes=output.n_bytes,
        created=True,
    )


@dataclass
class _Output:
    n_records: Counter[str] = field(default_factory=Counter)
    n_files: int = 0
    n_bytes: int = 0

    def put(self, target: Store, path: str, data: bytes) -> None:
        target.put(path, data)
        self.n_files += 1
        self.n_bytes += len(data)


@dataclass(frozen=True)
class _Image:
    """One image with its boxes."""

    name: str  # of its file
    size: tuple[int, int]  # width, height
    boxes: list[tuple[str, list[float]]]  # category; x, y, width, height


def _write(
    store: Store, target: Store, manifest: Manifest, shards: Sequence[ShardInfo], convention: str
) -> _Output:
    output = _Output()
    # Class numbers are the same in every split.
    names = sorted({name for shard in shards for name in _categories(store, shard)})
    for split in sorted({shard.split for shard in shards}):
        images = []
        for data, image in _images(store, [s for s in shards if s.split == split]):
            output.put(target, f"{split}/images/{image.name}", data)
            images.append(image)
        output.n_records[split] = len(images)
        for path, content in _WRITERS[convention](split, images, names):
            output.put(target, path, content)
    if convention == "yolo":
        listed = {split: f"{split}/images" for split in output.n_records}
        text = yaml.safe_dump({**listed, "names": dict(enumerate(names))})
        output.put(target, "data.yaml", text.encode())
    return output


def _categories(store: Store, shard: ShardInfo) -> set[str]:
    categories: set[str] = set()
    for table in iter_shards(store, [shard]):
        if OBJECTS not in table.column_names:
            raise SchemaError(
                f"the dataset {store.uri} has no column {OBJECTS!r}; export it without --annotations."
            )
        for objects in table[OBJECTS].to_pylist():
            categories.update(str(c) for c in (objects or {}).get("category") or ())
    return categories


def _images(store: Store, shards: Sequence[ShardInfo]) -> Iterator[tuple[bytes, _Image]]:
    for table in iter_shards(store, shards):
        column = main_image(table.schema)
        for record in table.select([column, OBJECTS, "aug_id"]).to_pylist():
            data = record[column]["bytes"]
            header = header_of(data)
            objects = record[OBJECTS] or {}
            pairs = zip(objects.get("category") or (), objects.get("bbox") or (), strict=True)
            boxes = [(str(name), [float(v) for v in box]) for name, box in pairs]
            ending = ENDINGS.get(str(header.format), str(header.format).lower())
            name = f"{record['aug_id']}.{ending}"
            yield data, _Image(name, header.size, boxes)


Files = Iterator[tuple[str, bytes]]


def _coco(split: str, images: Sequence[_Image], names: Sequence[str]) -> Files:
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, image in enumerate(images, start=1):
        width, height = image.size
        file_name = f"images/{image.name}"
        entries.append({"id": i, "file_name": file_name, "width": width, "height": height})
        for name, box in image.boxes:
            entry = {
                "id": len(annotations) + 1,
                "image_id": i,
                "category_id": names.index(name) + 1,
            }
            annotations.append(entry | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    whole = {"images": entries, "annotations": annotations, "categories": categories}
    yield f"{split}/annotations.json", json.dumps(whole).encode()


def _voc(split: str, images: Sequence[_Image], names: Sequence[str]) -> Files:
    for image in images:
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = image.name
        size = ET.SubElement(root, "size")
        for side, n in zip(("width", "height"), image.size, strict=True):
            ET.SubElement(size, side).text = str(n)
        for name, (x, y, w, h) in image.boxes:
            thing = ET.SubElement(root, "object")
            ET.SubElement(thing, "name").text = name
            box = ET.SubElement(thing, "bndbox")
            for side, value in zip(
                ("xmin", "ymin", "xmax", "ymax"), (x, y, x + w, y + h), strict=True
            ):
                ET.SubElement(box, side).text = repr(value)
        stem = image.name.rpartition(".")[0]
        yield f"{split}/annotations/{stem}.xml", ET.tostring(root, encoding="utf-8")


def _yolo(split: str, images: Sequence[_Image], names: Sequence[str]) -> Files:
    for image in images:
        width, height = image.size
        lines = [
            f"{names.index(name)} {(x + w / 2) / width!r} {(y + h / 2) / height!r} {w / width!r} {h / height!r}\n"
            for name, (x, y, w, h) in image.boxes
        ]
        stem = image.name.rpartition(".")[0]
        yield f"{split}/labels/{stem}.txt", "".join(lines).encode()


_WRITERS: Mapping[str, Callable[[str, Sequence[_Image], Sequence[str]], Files]] = {
    "coco": _coco,
    "voc": _voc,
    "yolo": _yolo,
}
