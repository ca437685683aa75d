"""Records whose image can be decoded, and what the images are like; others go to quarantine.

Each image is decoded once, in threads, a few at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.datatypes import ImageFacts
from prefect_augment.errors import InputError
from prefect_augment.params import Source
from prefect_augment.shards.image_check import (
    THUMB_SIDE,
    BadImageError,
    ImageCheck,
    check_image,
)
from prefect_augment.stages.image_columns import image_bytes
from prefect_augment.stages.source import Progress, SourceTable

__all__ = ["Images", "check_images", "image_notes", "usable_images"]

# Images taken out of the source at a time, and by one thread: handing over costs as much as a small image.
BATCH, UNIT = 512, 32
# Gray modes of Pillow; LA has an alpha channel, which is composited away.
GRAY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"})
SHOWN_SIZES = 20


@dataclass(frozen=True)
class Images:
    """What was found about the images of records.

    Parameters
    ----------
    column : str
        Where they are.
    thumbs : ndarray of int8, shape (n_records, 1024)
        As :class:`prefect_augment.shards.image_check.ImageCheck` has them.
    traits : ndarray of object, shape (n_records,)
        ``(mode, format, width, height, is_animated, is_rotated)``, one object for equal ones.
    """

    column: str
    thumbs: NDArray[np.int8]
    traits: NDArray[np.object_]

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Images:
        """Return the same of these records."""
        return Images(self.column, self.thumbs[rows], self.traits[rows])

    def facts(self, **found: int) -> ImageFacts:
        """Return the counts, and what was ``found`` beyond this."""
        traits = self.traits.tolist()
        sizes = Counter((width, height) for _, _, width, height, _, _ in traits)
        ordered = sorted(sizes, key=lambda s: (-sizes[s], -s[0] * s[1], s))
        modes = Counter(mode for mode, *_ in traits)
        sides = [side for size in sizes for side in size]
        return ImageFacts(
            column=self.column,
            modes=dict(sorted(modes.items())),
            formats=dict(sorted(Counter(t[1] for t in traits).items())),
            sizes={f"{w}x{h}": sizes[w, h] for w, h in ordered[:SHOWN_SIZES]},
            n_sizes=len(sizes),
            most_common_size=ordered[0] if ordered else (0, 0),
            smallest_side=min(sides, default=0),
            largest_side=max(sides, default=0),
            n_channels=1 if modes.keys() <= GRAY else 3,
            n_animated=sum(t[4] for t in traits),
            n_rotated=sum(t[5] for t in traits),
            **found,
        )


def check_images(
    column: pa.ChunkedArray,
    *,
    name: str,
    max_megapixels: float,
    on_progress: Progress | None = None,
) -> tuple[Images, list[str], list[str]]:
    """Decode every image once.

    Parameters
    ----------
    column : pyarrow.ChunkedArray of struct<bytes, path>
        The images.
    name : str
        The column's name.
    max_megapixels : float
        Larger images are refused by their header.
    on_progress : callable, optional
        Called with a fraction in [0, 1] and what is being done.

    Returns
    -------
    images : Images
        Of all records; zeros where an image cannot be used.
    reasons, details : list of str, length n_records
        Why it cannot; empty where it can.
    """
    n = len(column)
    thumbs = np.zeros((n, THUMB_SIDE * THUMB_SIDE), dtype=np.int8)
    traits = np.empty(n, dtype=object)
    reasons, details = [""] * n, [""] * n
    known: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        for start in range(0, n, BATCH):
            batch = list(image_bytes(column.slice(start, BATCH)))
            parts = [batch[i : i + UNIT] for i in range(0, len(batch), UNIT)]
            done = (
                found
                for part in pool.map(_checked, parts, repeat(max_megapixels))
                for found in part
            )
            for i, found in enumerate(done, start=start):
                if isinstance(found, BadImageError):
                    reasons[i], details[i] = found.reason, found.detail
                    continue
                thumbs[i] = found.thumb
                seen = _traits(found)
                traits[i] = known.setdefault(seen, seen)
            if on_progress is not None:
                on_progress(min(1.0, (start + BATCH) / n), f"checked {start + len(batch)} images")
    return Images(name, thumbs, traits), reasons, details


def _traits(found: ImageCheck) -> tuple[Any, ...]:
    return (
        found.mode,
        found.format,
        found.width,
        found.height,
        found.is_animated,
        found.is_rotated,
    )


def _checked(batch: Sequence[bytes], max_megapixels: float) -> list[ImageCheck | BadImageError]:
    return [_check_one(data, max_megapixels) for data in batch]


def _check_one(data: bytes, max_megapixels: float) -> ImageCheck | BadImageError:
    try:
        return check_image(data, max_megapixels=max_megapixels)
    except BadImageError as exc:
        return exc


def image_notes(facts: ImageFacts | None) -> tuple[str, ...]:
    """Say in sentences what was found about images, for people."""
    if facts is None:
        return ()
    modes = ", ".join(f"{n} {mode}" for mode, n in facts.modes.items())
    width, height = facts.most_common_size
    modes_and_sizes = (
        f"modes {modes}; {facts.n_sizes} sizes of {facts.smallest_side} to {facts.largest_side} px"
    )
    notes = [f"images: {modes_and_sizes}, most often {width}x{height}"]
    if facts.n_animated:
        notes.append(f"{facts.n_animated} animated images: their first frame is used")
    if facts.n_rotated:
        notes.append(f"{facts.n_rotated} images are turned upright by their EXIF orientation")
    if facts.n_clusters:
        notes.append(
            f"{facts.n_clustered} near-duplicate images in {facts.n_clusters} clusters (the largest of "
            f"{facts.largest_cluster}) stay on one side of the split"
        )
    if facts.n_near_holdout:
        notes.append(
            f"{facts.n_near_holdout} images have a near-duplicate in the hold-out; they are kept, so its scores "
            "may be a little too good"
        )
    return tuple(notes)


def usable_images(
    data: SourceTable, column: str, source: Source, *, on_progress: Progress | None = None
) -> tuple[SourceTable, Images]:
    """Return the records whose image can be used, and what was found about these.

    Parameters
    ----------
    data : SourceTable
        Records.
    column : str
        Their image column.
    source : Source
        ``max_megapixels`` bounds what is decoded.
    on_progress : callable, optional
        Called with a fraction in [0, 1] and what is being done.

    Raises
    ------
    InputError
        If no image can be used.
    MissingExtraError
        If Pillow is not installed.
    """
    images, reasons, details = check_images(
        data.table[column],
        name=column,
        max_megapixels=source.max_megapixels,
        on_progress=on_progress,
    )
    unusable = np.array([reason != "" for reason in reasons], dtype=bool)
    if unusable.all():
        shown = f"; the first is {reasons[0]} ({details[0]})" if reasons else ""
        raise InputError(f"none of the source's {len(reasons)} images can be used{shown}.")
    rows = np.flatnonzero(unusable)
    data = data.without(unusable, [reasons[i] for i in rows], details=[details[i] for i in rows])
    return data, images.take(~unusable)
