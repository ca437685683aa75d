"""Image validation: which images decode, and their sizes and formats; others go to quarantine.

Each image is decoded once, in threads, a few at a time.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Int32
from prefect_augment.errors import InputError
from prefect_augment.schema import ImageInfo
from prefect_augment.sources.images.columns import image_bytes
from prefect_augment.sources.images.validation import (
    THUMB_SIDE,
    BadImageError,
    ImageCheck,
    check_image,
)
from prefect_augment.storage.spill import ArraySpill

#: Mode, format, width, height, whether animated, whether turned.
Traits = tuple[str, str, int, int, bool, bool]

# Images taken out of the source at a time, and by one thread: handing over costs as much as a small image.
BATCH, UNIT = 512, 32
# Gray modes of Pillow; LA has an alpha channel, which is composited away.
GRAY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"})
SHOWN_SIZES = 20


@dataclass(frozen=True)
class Images:
    """Thumbnails and traits of the valid images."""

    column: str
    thumbs: ArraySpill  # (n_records, 1024) int8, as in ImageCheck
    traits: Int32  # (n_records,) index into kinds
    distinct_traits: list[Traits]  # (mode, format, width, height, is_animated, is_rotated)


def image_info(column: str, counts: Mapping[Traits, int], **extra: int) -> ImageInfo:
    """Summarise images from their traits' counts; ``extra`` are other fields of ImageInfo."""
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    for (mode, kind, width, height, _, _), n in counts.items():
        sizes[width, height] += n
        modes[mode] += n
        formats[kind] += n
    ordered = sorted(sizes, key=lambda s: (-sizes[s], -s[0] * s[1], s))
    sides = [side for size in sizes for side in size]
    return ImageInfo(
        column=column,
        modes=dict(sorted(modes.items())),
        formats=dict(sorted(formats.items())),
        sizes={f"{w}x{h}": sizes[w, h] for w, h in ordered[:SHOWN_SIZES]},
        n_sizes=len(sizes),
        most_common_size=ordered[0] if ordered else (0, 0),
        smallest_side=min(sides, default=0),
        largest_side=max(sides, default=0),
        n_channels=1 if modes.keys() <= GRAY else 3,
        n_animated=sum(n for t, n in counts.items() if t[4]),
        n_rotated=sum(n for t, n in counts.items() if t[5]),
        **extra,
    )


class ImageChecker:
    """Decodes images once, batch by batch, in threads (hence a context manager).

    Images over ``max_megapixels`` are refused by their header.
    """

    def __init__(self, column: str, max_megapixels: float) -> None:
        self.column = column
        self._limit = max_megapixels
        self._thumbs = ArraySpill(THUMB_SIDE * THUMB_SIDE)
        self._traits: list[Int32] = []
        self._distinct: dict[Traits, int] = {}
        self._first_bad = ""
        self._n_bad = 0

    def __enter__(self) -> None:
        self._pool = ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1)))

    def __exit__(self, *of: object) -> None:
        self._pool.shutdown()

    def check(self, column: pa.ChunkedArray) -> tuple[list[str], list[str]]:
        """Decode a batch, keep what describes the valid images, and return a reason and detail per record.

        Both are empty for a valid image.
        """
        n = len(column)
        reasons, details = [""] * n, [""] * n
        for start in range(0, n, BATCH):
            batch = list(image_bytes(column.slice(start, BATCH)))
            parts = [batch[i : i + UNIT] for i in range(0, len(batch), UNIT)]
            done = [
                check
                for part in self._pool.map(_checked, parts, repeat(self._limit))
                for check in part
            ]
            good = []
            for i, check in enumerate(done, start=start):
                if isinstance(check, BadImageError):
                    reasons[i], details[i] = check.reason, check.detail
                    self._n_bad += 1
                    self._first_bad = self._first_bad or f"{check.reason} ({check.detail})"
                else:
                    good.append(check)
            if good:
                self._thumbs.append(np.stack([check.thumb for check in good]))
                codes = [self._distinct.setdefault(_traits(f), len(self._distinct)) for f in good]
                self._traits.append(np.array(codes, dtype=np.int32))
        return reasons, details

    def refuse_none(self) -> None:
        """Raise InputError if no image of the source is valid."""
        if self._n_bad and not len(self._thumbs):
            raise InputError(
                f"none of the source's {self._n_bad} images can be used; the first is {self._first_bad}."
            )

    def images(self) -> Images:
        """Return thumbnails and traits of the valid images."""
        traits = [np.zeros(0, dtype=np.int32), *self._traits]
        return Images(self.column, self._thumbs, np.concatenate(traits), list(self._distinct))


_traits = attrgetter("mode", "format", "width", "height", "is_animated", "is_rotated")


def _checked(batch: Sequence[bytes], max_megapixels: float) -> list[ImageCheck | BadImageError]:
    return [_check_one(data, max_megapixels) for data in batch]


def _check_one(data: bytes, max_megapixels: float) -> ImageCheck | BadImageError:
    try:
        return check_image(data, max_megapixels=max_megapixels)
    except BadImageError as exc:
        return exc


MODES = {"L": "grey", "LA": "grey with transparency", "RGB": "colour", "P": "with a palette"}
MODES |= {"1": "black and white", "RGBA": "colour with transparency"}


def image_notes(info: ImageInfo | None) -> tuple[str, ...]:
    """Describe the images in sentences, for people."""
    if info is None:
        return ()
    modes = ", ".join(f"{n:,} {MODES.get(mode, mode)}" for mode, n in info.modes.items())
    sizes = "all {} × {} px".format(*info.most_common_size)
    if info.n_sizes > 1:
        sides = f"{info.smallest_side} to {info.largest_side} px"
        sizes = f"{info.n_sizes:,} sizes of {sides}, most often" + sizes.removeprefix("all")
    notes = [f"images: {modes}; {sizes}"]
    if info.n_animated:
        notes.append(f"{info.n_animated} animated images: their first frame is used")
    if info.n_rotated:
        notes.append(f"{info.n_rotated} images are turned upright by their EXIF orientation")
    if info.n_clusters:
        notes.append(
            f"{info.n_clustered} near-duplicate images in {info.n_clusters} clusters (the largest of "
            f"{info.largest_cluster}) stay on one side of the split"
        )
    if info.n_near_holdout:
        notes.append(
            f"{info.n_near_holdout} images have a near-duplicate in the hold-out; they are kept, so its scores "
            "may be a little too good"
        )
    return tuple(notes)
