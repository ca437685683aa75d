"""Image files as records: which files count, their class, and the table they make.

Files come from a folder or archive as :class:`Member` objects; class folders, metadata, annotations
(:mod:`.annotations`) or WebDataset members give the labels. Every file becomes a record, is rejected with a
reason, or is skipped by a documented rule.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from prefect_augment.errors import InputError
from prefect_augment.params import Source
from prefect_augment.shards.image_columns import IMAGE_TYPE, OBJECTS_TYPE, image_metadata
from prefect_augment.sources.base import Rejected, SourceRecords

Layout = Literal["folder", "webdataset", "coco", "voc", "yolo"]

SPLIT_NAMES = frozenset({"train", "training", "validation", "valid", "test", "testing", "holdout"})
#: How the note begins that warns of masks beside images.
MASKS = "looks like masks"


@dataclass(frozen=True)
class Member:
    """One file of a folder or an archive."""

    path: str  # relative, forward slashes, valid Unicode
    position: int  # in the archive or listing, from 1
    data: bytes = b""  # empty with a reason, or before load()
    reason: str = ""  # why it cannot be read
    load: Callable[[], bytes] | None = None
    size: tuple[int, int] | None = None  # width and height in pixels, if known

    def read(self) -> bytes:
        """Return the content."""
        return self.load() if self.load is not None else self.data


@dataclass(frozen=True)
class Labels:
    """The labels that a layout gives the image files."""

    of_path: dict[str, str]  # image path -> class
    used: frozenset[str] = frozenset()  # other files that the labels were read from
    # Path -> boxes (x, y, width, height in pixels), categories.
    objects: dict[str, dict[str, list[Any]]] | None = None
    missing: str = "unlabelled: not in a class folder"  # why an image not in of_path has no label
    notes: tuple[str, ...] = field(default=())


def class_folders(paths: Sequence[str]) -> Labels:
    """Return the class of each file: the first folder of its path, below a common outer one.

    Folders within a class (patients, days) are ignored. Raises InputError if the outer folders are splits
    (train, test …).
    """
    images = [path.split("/") for path in paths if not is_other(path)]
    cut = _outer_depth(images)
    inside = [parts for parts in images if len(parts) > cut + 1]
    outer = inside[0][:cut] if inside else []
    tops = {parts[cut] for parts in inside}
    is_split = len(tops) > 1 and {top.lower() for top in tops} <= SPLIT_NAMES
    if is_split and min(len(parts) for parts in inside) > cut + 2:
        raise InputError(
            f"the folders {', '.join(map(repr, sorted(tops)))} look like splits with the classes below them; give one "
            "of them as source.uri and the one to test on as source.holdout_uri.",
            folders=sorted(tops),
        )
    of_path = {}
    for path in paths:
        parts = path.split("/")
        if len(parts) > cut + 1 and parts[:cut] == outer and parts[cut] in tops:
            of_path[path] = parts[cut]
    return Labels(of_path, notes=_mask_notes(paths, of_path))


def _outer_depth(paths: Sequence[list[str]]) -> int:
    """Return how many outer folders hold all classes, as an archive's own name often does."""
    depth = 0
    while True:
        below = [parts[depth:] for parts in paths if len(parts) > depth + 1]
        tops = {parts[0] for parts in below}
        # With images right in it, the only folder is a class.
        if len(tops) != 1 or any(len(parts) == 2 for parts in below):
            return depth
        depth += 1


def _mask_notes(paths: Iterable[str], of_path: dict[str, str]) -> tuple[str, ...]:
    """Warn if every image has a file of the same stem and another ending: masks, most likely."""
    stems: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in paths:
        if path in of_path and is_image_name(path):
            stems[of_path[path]][ending_of(path)].add(path.rpartition(".")[0])
    pairs: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name, by_ending in stems.items():
        for one in (".jpg", ".jpeg", ".bmp", ".tif", ".tiff"):
            for other in (".png", ".bmp", ".gif"):
                if one != other and by_ending.get(one) and by_ending[one] <= by_ending[other]:
                    pairs[one, other].append(name)
    return tuple(
        f"{MASKS}: in {_some(names)} every {one} has a {other} of the same stem, and both are read as images "
        f"of the class; source.exclude='*{other}' leaves them out"
        for (one, other), names in sorted(pairs.items())
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, sorted(names)[:5]))
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True)
class ImageFiles:
    """Which files are records, and notes on the others."""

    records: list[Member]  # sorted by path; maybe not read yet
    labels: Labels
    label: str  # name of the label column
    rejected: tuple[Rejected, ...]  # with the reason
    notes: tuple[str, ...]

    def labels_digest(self, paths: Collection[str] | None = None) -> str:
        """Return a hash of the classes of the files, or some of them, that are records."""
        digest = blake2b(digest_size=16)
        for member in self.records:
            if paths is None or member.path in paths:
                label = self.labels.of_path[member.path]
                digest.update(f"{member.path}\0{label}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def batch(self, members: Sequence[Member]) -> SourceRecords:
        """Return these records, which are read: ``image``, the label, ``objects`` where there are boxes."""
        data = pa.array([m.data for m in members], pa.binary())
        paths = pa.array([m.path for m in members], pa.string())
        images = pa.StructArray.from_arrays([data, paths], fields=list(IMAGE_TYPE))
        columns: dict[str, Any] = {
            "image": images,
            self.label: pa.array([self.labels.of_path[m.path] for m in members], pa.string()),
        }
        if self.labels.objects is not None:
            none: dict[str, list[Any]] = {"bbox": [], "category": []}
            boxes = [self.labels.objects.get(m.path, none) for m in members]
            columns["objects"] = pa.array(boxes, OBJECTS_TYPE)
        table = pa.table(columns)
        table = table.replace_schema_metadata(image_metadata(table.schema, ["image"]))
        return SourceRecords(table, np.array([m.position for m in members], dtype=np.int64))


def choose_records(
    members: Sequence[Member],
    source: Source,
    *,
    read_labels: Callable[[Sequence[Member], Source], Labels],
) -> ImageFiles:
    """Return which files are records; ``source`` filters image files, ``read_labels`` is the layout."""
    seen = sorted((m for m in members if not is_ignored(m.path)), key=lambda m: m.path)
    left = [m for m in seen if is_other(m.path) or wanted(m.path, source)]
    labels = read_labels([m for m in left if not m.reason], source)
    records: list[Member] = []
    rejected: list[Rejected] = []
    skipped: Counter[str] = Counter()
    for member in left:
        if member.path in labels.used:
            continue
        is_labelled = member.path in labels.of_path
        if not member.reason and not is_labelled and not is_image_name(member.path):
            skipped[ending_of(member.path) or "no ending"] += 1
            continue
        reason = member.reason
        if not reason and is_other(member.path):
            reason = f"not an image ({ending_of(member.path)})"
        elif not reason and not is_labelled:
            reason = labels.missing
        if reason:
            rejected.append(Rejected(member.position, reason, member.path))
        else:
            records.append(member)
    notes = list(labels.notes)
    if len(left) < len(seen):
        n = len(seen) - len(left)
        notes.append(
            f"{n} image file{'s were' if n > 1 else ' was'} left out by source.include or source.exclude"
        )
    if skipped:
        endings = ", ".join(f"{n} {ending}" for ending, n in skipped.most_common(5))
        n = sum(skipped.values())
        notes.append(
            f"{n} file{'s that are no images were' if n > 1 else ' that is no image was'} skipped: {endings}"
        )
    return ImageFiles(records, labels, source.label or "label", tuple(rejected), tuple(notes))


_IMAGES = "jpg jpeg jpe jfif png gif bmp tif tiff webp jp2 avif ppm pgm pbm pnm"
# Kinds of files that are found beside images; others without an image's ending are tried as images.
_OTHERS = """
txt md rst csv tsv json jsonl xml yaml yml toml ini cfg log html htm pdf doc docx xls xlsx py ipynb sh npy npz mat pkl
pt h5 hdf5 parquet zip tar gz tgz 7z rar db sqlite names data cls mp4 avi mov mp3 wav svg tfrecord lst url lnk
"""
IMAGE_ENDINGS = frozenset(f".{ending}" for ending in _IMAGES.split())
OTHER_ENDINGS = frozenset(f".{ending}" for ending in _OTHERS.split())
# Written by file managers and archivers, never by people.
IGNORED_NAMES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"})


def is_ignored(path: str) -> bool:
    """Tell whether a path is hidden, or written by a file manager or archiver."""
    return any(
        (segment.startswith(".") and segment != "..") or segment.lower() in IGNORED_NAMES
        for segment in path.split("/")
    )


def ending_of(path: str) -> str:
    """Return the ending of a file's name in lower case, with its dot; empty where there is none."""
    stem, dot, ending = path.rpartition("/")[2].rpartition(".")
    return (dot + ending).lower() if stem else ""


def is_image_name(path: str) -> bool:
    """Tell whether the name ends like an image's."""
    return ending_of(path) in IMAGE_ENDINGS


def is_other(path: str) -> bool:
    """Tell whether the name has a known ending that is not an image's."""
    return ending_of(path) in OTHER_ENDINGS


def matches(path: str, pattern: str) -> bool:
    """Match a glob, ignoring case: the name, or path segments if the pattern has a slash."""
    path, pattern = path.lower(), pattern.lower()
    if "/" not in pattern:
        return fnmatchcase(path.rpartition("/")[2], pattern)
    return match_segments(path, pattern)


def match_segments(path: str, pattern: str) -> bool:
    """Match a glob by segments: ``*`` stays within one, ``**`` spans any number."""
    segments = path.split("/")
    n = len(segments)
    reached = {0}  # how many segments of the path the pattern so far may have taken
    for part in pattern.split("/"):
        if part == "**":
            reached = set(range(min(reached), n + 1))
        else:
            reached = {i + 1 for i in reached if i < n and fnmatchcase(segments[i], part)}
        if not reached:
            return False
    return n in reached


def wanted(path: str, source: Source) -> bool:
    """Tell whether ``source.include`` and ``source.exclude`` leave a file in."""
    if source.include and not any(matches(path, p) for p in source.include):
        return False
    return not any(matches(path, p) for p in source.exclude)
