"""Image labels from the files beside them: WebDataset members, COCO, Pascal VOC, YOLO.

For classification an image has one class: of its objects' classes the rarest in the data set, counted by
images. All boxes stay in ``objects``.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from prefect_augment.errors import InputError
from prefect_augment.params import Source
from prefect_augment.sources.base import untrusted
from prefect_augment.sources.images.files import (
    Labels,
    Layout,
    Member,
    class_folders,
    ending_of,
    is_image_name,
)
from prefect_augment.sources.images.metadata import label_of, metadata_labels, parsed
from prefect_augment.sources.images.validation import BadImageError, header_of
from prefect_augment.text import load_yaml

Box = tuple[str, list[float]]  # category; x, y, width, height in pixels
MISSING = "unlabelled: no annotation"


def read_labels(members: Sequence[Member], source: Source) -> Labels:
    """Return the labels of image files by the layout that ``source.format`` names, ``auto`` detects it.

    ``source.label`` may name a field of WebDataset's JSON members. Raises InputError if the layout is absent.
    """
    beside = [m.path for m in members if not is_image_name(m.path)]
    name = f"{', '.join(beside[:3])}{' …' if len(beside) > 3 else ''}" or "the images' names"
    with untrusted(name, "annotations of images"):
        if source.format in READERS:
            return READERS[source.format](members, source)
        labels = metadata_labels(members, source)
        return READERS[_find_layout(members)](members, source) if labels is None else labels


def _find_layout(members: Sequence[Member]) -> Layout:
    """Return the layout that labels most images; class folders for none."""
    images = [m.path for m in members if is_image_name(m.path)]
    keys = {_key(path) for path in images}
    stems = {_stem(path) for path in images}
    of: dict[Layout, set[str]] = defaultdict(set)
    for member in members:
        ending = ending_of(member.path)
        if ending in (".cls", ".json") and _key(member.path) in keys:
            of["webdataset"].add(_key(member.path))
        elif ending == ".xml" and b"<annotation" in member.data[:500]:
            of["voc"].add(_stem(member.path))
        elif ending == ".txt" and _stem(member.path) in stems and _yolo_lines(member.data):
            of["yolo"].add(_stem(member.path))
    for layout, named in of.items():
        if 2 * len(named) >= len(keys):
            return layout
    if any(b'"annotations"' in member.data and _coco(member) for member in members):
        return "coco"
    return "folder"


def _key(path: str) -> str:
    """WebDataset's sample key: the path up to the first dot of the name."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


LABEL_FIELDS = ("label", "cls", "class", "category", "target", "label_name", "class_name")


def _webdataset(members: Sequence[Member], source: Source) -> Labels:
    """Return the classes in ``<key>.cls`` or ``<key>.json`` beside ``<key>.jpg``."""
    images = {m.path: _key(m.path) for m in members if is_image_name(m.path)}
    keys = set(images.values())
    of_key: dict[str, str] = {}
    used = set()
    not_real = set()
    for member in members:
        key, ending = _key(member.path), ending_of(member.path)
        if ending not in (".cls", ".json", ".txt") or key not in keys:
            continue
        used.add(member.path)
        label = _text(member.data).strip() if ending == ".cls" else ""
        record = parsed(member.data) if ending == ".json" else None
        if isinstance(record, dict):
            fields = (label_of(record.get(name)) for name in (source.label, *LABEL_FIELDS))
            label = next(filter(None, fields), "")
            if record.get("aug_origin", "real") != "real":  # one of ours
                not_real.add(key)
        if label and (ending == ".cls" or key not in of_key):
            of_key[key] = label
    if not of_key:
        raise InputError(
            "no image has a .cls or .json member with a label beside it; say source.label where the JSON's field has a "
            f"name other than {', '.join(LABEL_FIELDS)}, or source.format=folder for class folders."
        )
    used |= {path for path, key in images.items() if key in not_real}
    of_path = {path: of_key[key] for path, key in images.items() if key in of_key.keys() - not_real}
    notes = (f"{len(not_real)} records that were made and are not real (aug_origin) were left out",)
    return Labels(
        of_path,
        frozenset(used),
        missing="unlabelled: no .cls or .json with a label",
        notes=notes if not_real else (),
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _from_boxes(
    boxes: Mapping[str, Sequence[Box]], used: set[str], *, what: str, notes: Sequence[str] = ()
) -> Labels:
    """Return labels by the rarest class; an image without objects has none."""
    n_images = Counter(name for of_image in boxes.values() for name in {c for c, _ in of_image})
    of_path = {
        path: min({c for c, _ in of_image}, key=lambda name: (n_images[name], name))
        for path, of_image in boxes.items()
        if of_image
    }
    n_several = sum(len({c for c, _ in of_image}) > 1 for of_image in boxes.values())
    all_notes = [f"labels come from {what}", *notes]
    if n_several:
        all_notes.append(
            f"{n_several} images hold objects of several classes: their label is the rarest of these in the data set, "
            "and all boxes are in the column objects"
        )
    has_boxes = any(box for of_image in boxes.values() for _, box in of_image)
    objects: dict[str, dict[str, list[Any]]] = {
        path: {
            "bbox": [box for _, box in of_image if box],
            "category": [name for name, box in of_image if box],
        }
        for path, of_image in boxes.items()
    }
    return Labels(
        of_path, frozenset(used), objects if has_boxes else None, MISSING, tuple(all_notes)
    )


def _by_name(members: Sequence[Member]) -> Callable[[str], str | None]:
    """Return a function that finds an image by its path, the end of its path, or its unique name."""
    images = [m.path for m in members if is_image_name(m.path)]
    exact = set(images)
    named: defaultdict[str, list[str]] = defaultdict(list)
    for path in images:
        named[path.rpartition("/")[2]].append(path)

    def find(name: str) -> str | None:
        name = name.replace("\\", "/").removeprefix("./")
        if name in exact:
            return name
        candidates = named.get(name.rpartition("/")[2], [])
        ending = [p for p in candidates if p.endswith(f"/{name}")]
        if len(ending) == 1:
            return ending[0]
        return candidates[0] if len(candidates) == 1 else None

    return find


def _lost(n: int) -> list[str]:
    return [f"{n} annotated images are not in the source"] if n else []


def _coco(member: Member) -> dict[str, Any] | None:
    value = parsed(member.data) if ending_of(member.path) == ".json" else None
    lists = ("images", "annotations", "categories")
    if isinstance(value, dict) and all(isinstance(value.get(name), list) for name in lists):
        return value
    return None


def _coco_labels(members: Sequence[Member], source: Source) -> Labels:
    find = _by_name(members)
    boxes: defaultdict[str, list[Box]] = defaultdict(list)
    used: set[str] = set()
    n_lost = 0
    for member in members:
        coco = _coco(member)
        if coco is None:
            continue
        used.add(member.path)
        try:
            names = {c["id"]: str(c["name"]) for c in coco["categories"]}
            paths = {i["id"]: find(str(i["file_name"])) for i in coco["images"]}
            n_lost += sum(path is None for path in paths.values())
            for annotation in coco["annotations"]:
                path = paths.get(annotation["image_id"])
                if path is not None:
                    box = [float(v) for v in annotation.get("bbox") or ()]
                    boxes[path].append((names[annotation["category_id"]], box))
        except (LookupError, TypeError, ValueError, ArithmeticError) as exc:
            raise InputError(
                f"{member.path} is not whole COCO: {type(exc).__name__} {exc}; expected images (id, file_name), "
                "categories (id, name) and annotations (image_id, category_id, bbox).",
                path=member.path,
            ) from exc
    if not used:
        raise InputError(
            "no COCO file is in the source; expected a .json with images, annotations and categories."
        )
    return _from_boxes(
        boxes, used, what=f"COCO annotations ({', '.join(sorted(used))})", notes=_lost(n_lost)
    )


def _voc_labels(members: Sequence[Member], source: Source) -> Labels:
    find = _by_name(members)
    stems: defaultdict[str, list[str]] = defaultdict(list)
    for member in members:
        if is_image_name(member.path):
            stems[_stem(member.path)].append(member.path)
    boxes: dict[str, list[Box]] = {}
    used: set[str] = set()
    n_lost = n_broken = 0
    for member in members:
        if ending_of(member.path) != ".xml":
            continue
        used.add(member.path)
        annotation = _voc_boxes(member.data)
        if annotation is None:
            n_broken += 1
            continue
        name, of_image = annotation
        same = stems.get(_stem(member.path), [])
        path = find(name) or (same[0] if len(same) == 1 else None)
        if path is None:
            n_lost += 1
        else:
            boxes[path] = of_image
    if not used:
        raise InputError("no Pascal VOC file is in the source; expected an .xml for each image.")
    broken = [f"{n_broken} .xml files are not Pascal VOC"] if n_broken else []
    what = f"Pascal VOC annotations ({len(used)} .xml files)"
    return _from_boxes(boxes, used, what=what, notes=[*broken, *_lost(n_lost)])


def _voc_boxes(data: bytes) -> tuple[str, list[Box]] | None:
    """Return file name and boxes of one annotation; None for another file."""
    plain = data.replace(b"\0", b"")  # of UTF-16 and UTF-32
    if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
        return None  # entities can be made to grow without end; VOC has none
    try:
        root = ET.fromstring(data)  # noqa: S314 - no entities, see above
        boxes: list[Box] = []
        for thing in root.iter("object"):
            corner = thing.find("bndbox")
            box = []
            if corner is not None:
                x0, y0, x1, y1 = (
                    float(corner.findtext(side, "nan")) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                box = [x0, y0, x1 - x0, y1 - y0]
            name = thing.findtext("name", "").strip()
            if name:
                boxes.append((name, box))
    except (ET.ParseError, ValueError, LookupError, ArithmeticError, RecursionError):
        return None  # an unknown encoding is a LookupError
    return root.findtext("filename", "").strip(), boxes


YOLO_LINE = re.compile(rb"^\s*\d+(\s+[-+.\deE]+){4,}\s*$")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "names.txt", "predefined_classes.txt")


def _yolo_lines(data: bytes) -> list[list[float]] | None:
    """Return the numbers of each line; None for a file that is not YOLO, empty for an image without objects."""
    lines = [line for line in data.splitlines() if line.strip()]
    if not all(YOLO_LINE.match(line) for line in lines):
        return None
    try:
        numbers = [[float(v) for v in line.split()] for line in lines]
    except ValueError:
        return None
    return numbers if all(math.isfinite(line[0]) for line in numbers) else None


def _yolo_labels(members: Sequence[Member], source: Source) -> Labels:
    names, used = _yolo_names(members)
    text = {m.path: m.data for m in members if ending_of(m.path) == ".txt" and m.path not in used}
    boxes: dict[str, list[Box]] = {}
    n_broken = 0
    for member in members:
        if not is_image_name(member.path):
            continue
        where = next((p for p in _label_paths(member.path) if p in text), None)
        if where is None:
            continue
        used.add(where)
        lines = _yolo_lines(text[where])
        if lines is None:
            n_broken += 1
            continue
        boxes[member.path] = _yolo_boxes(lines, names, member)
    if not boxes:
        raise InputError(
            "no YOLO labels are in the source; expected a .txt of the same stem for each image, beside it or under "
            "labels/ where the images are under images/."
        )
    broken = [f"{n_broken} .txt files are not YOLO labels"] if n_broken else []
    unnamed = [] if names else ["no data.yaml or classes.txt names the classes: they are numbers"]
    return _from_boxes(
        boxes, used, what=f"YOLO annotations of {len(boxes)} images", notes=[*unnamed, *broken]
    )


def _label_paths(image: str) -> list[str]:
    """Return where an image's labels may be: beside it, or under ``labels`` instead of ``images``."""
    stem = image.rpartition(".")[0] + ".txt"
    segments = stem.split("/")
    swapped = [
        "/".join([*segments[:i], "labels", *segments[i + 1 :]])
        for i, segment in enumerate(segments[:-1])
        if segment.lower() == "images"
    ]
    return [*swapped, stem]


def _yolo_names(members: Sequence[Member]) -> tuple[dict[int, str], set[str]]:
    """Return class names by number, and the files that define them."""
    for member in sorted(members, key=lambda m: (m.path.count("/"), m.path)):
        name = member.path.rpartition("/")[2].lower()
        if name in NAME_FILES:
            lines = [line.strip() for line in _text(member.data).splitlines()]
            return dict(enumerate(line for line in lines if line)), {member.path}
        if ending_of(name) not in (".yaml", ".yml"):
            continue
        try:
            value = load_yaml(member.data)
        except ValueError:
            continue
        names = value.get("names") if isinstance(value, dict) else None
        if isinstance(names, list):
            return dict(enumerate(map(str, names))), {member.path}
        if isinstance(names, dict) and all(str(k).isdecimal() for k in names):
            return {int(k): str(v) for k, v in names.items()}, {member.path}
    return {}, set()


def _yolo_boxes(lines: list[list[float]], names: Mapping[int, str], image: Member) -> list[Box]:
    """Return boxes in pixels; none where the image's size cannot be read (it is then rejected)."""
    try:
        width, height = image.size or header_of(image.read()).size
    except BadImageError:
        width = height = 0
    boxes: list[Box] = []
    for line in lines:
        name = names.get(int(line[0]), str(int(line[0])))
        if len(line) > 5 or not width:  # an outline, not a box
            boxes.append((name, []))
            continue
        x, y, w, h = line[1:5]
        boxes.append((name, [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]))
    return boxes


READERS: dict[str, Callable[[Sequence[Member], Source], Labels]] = {
    "folder": lambda members, source: class_folders([m.path for m in members]),
    "webdataset": _webdataset,
    "coco": _coco_labels,
    "voc": _voc_labels,
    "yolo": _yolo_labels,
}
