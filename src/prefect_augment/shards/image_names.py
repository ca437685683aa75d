"""Names of files: which are images, which are left out, which nobody meant to be there."""

from __future__ import annotations

from fnmatch import fnmatchcase

from prefect_augment.params import Source

__all__ = [
    "ending_of",
    "is_ignored",
    "is_image_name",
    "is_other",
    "matches",
    "wanted",
]

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
    """Tell whether a path is hidden, or something that a file manager or archiver left."""
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
    """Tell whether the name ends like something that is no image."""
    return ending_of(path) in OTHER_ENDINGS


def matches(path: str, pattern: str) -> bool:
    """Glob, whatever the case: against the name, or by segments where the pattern has a slash."""
    path, pattern = path.lower(), pattern.lower()
    if "/" not in pattern:
        return fnmatchcase(path.rpartition("/")[2], pattern)
    return _match_segments(path.split("/"), pattern.split("/"))


def _match_segments(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_match_segments(path[i:], pattern[1:]) for i in range(len(path) + 1))
    return (
        bool(path) and fnmatchcase(path[0], pattern[0]) and _match_segments(path[1:], pattern[1:])
    )


def wanted(path: str, source: Source) -> bool:
    """Tell whether ``source.include`` and ``source.exclude`` leave a file in."""
    if source.include and not any(matches(path, p) for p in source.include):
        return False
    return not any(matches(path, p) for p in source.exclude)
