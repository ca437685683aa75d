"""Image validation: which images decode, and their sizes and formats; others go to quarantine.

Each image is decoded once, in threads, a few at a time. Workers of an engine check shares of the images, and stage
the outcome by the hash of the bytes; where that is missing, the image is decoded here.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise, repeat
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.array_types import Array, Int, Int32
from prefect_augment.errors import InputError
from prefect_augment.schema import ImageInfo
from prefect_augment.shards.base import as_stream, keys_of
from prefect_augment.sources.images.columns import image_bytes
from prefect_augment.sources.images.validation import (
    THUMB_SIDE,
    BadImageError,
    ImageCheck,
    check_image,
)
from prefect_augment.split.near_duplicates import ThumbRows, Thumbs, Top, likeliest
from prefect_augment.storage import Stage
from prefect_augment.storage.keys import KEY
from prefect_augment.storage.spill import ArraySpill

#: Mode, format, width, height, whether animated, whether turned.
Traits = tuple[str, str, int, int, bool, bool]
TRAITS = pa.struct(
    [
        *((name, pa.string()) for name in ("mode", "format")),
        *((name, pa.int32()) for name in ("width", "height")),
        *((name, pa.bool_()) for name in ("is_animated", "is_rotated")),
    ]
)
TRAIT_NAMES = tuple(field.name for field in TRAITS)

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


def image_info(
    column: str,
    traits: Int32,
    distinct: Sequence[Traits],
    *,
    clusters: Array | None,
    n_near_holdout: int = 0,
) -> ImageInfo:
    """Summarise images from their traits, as indexes into ``distinct``, and near-duplicate clusters, (n_records,)."""
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    counts = Counter({distinct[k]: n for k, n in Counter(traits.tolist()).items()})
    for (mode, kind, width, height, _, _), n in counts.items():
        sizes[width, height] += n
        modes[mode] += n
        formats[kind] += n
    members = np.zeros(0, dtype=np.int64)
    if clusters is not None:
        members = np.unique(clusters, return_counts=True)[1]
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
        n_clusters=int((members > 1).sum()),
        n_clustered=int(members[members > 1].sum()),
        largest_cluster=int(members.max(initial=0)),
        n_near_holdout=n_near_holdout,
    )


class ImageChecker:
    """Decodes images once, batch by batch, in threads (hence a context manager), but for ``known`` ones."""

    def __init__(
        self, column: str, max_megapixels: float, known: "StagedChecks | None" = None
    ) -> None:
        self.column = column
        self._limit = max_megapixels
        self._known = known
        self._thumbs = ArraySpill(THUMB_SIDE * THUMB_SIDE)
        self._traits: list[Int32] = []
        self._distinct: dict[Traits, int] = {}
        self._first_bad = ""
        self._n_bad = 0

    def __enter__(self) -> None:
        self._pool = _decoders()

    def __exit__(self, *of: object) -> None:
        self._pool.shutdown()

    def check(self, column: pa.ChunkedArray) -> tuple[list[str], list[str]]:
        """Decode a batch, keep what describes valid images, and return reason and detail of each, empty if valid."""
        n = len(column)
        reasons, details = [""] * n, [""] * n
        for start in range(0, n, BATCH):
            batch = list(image_bytes(column.slice(start, BATCH)))
            known = {} if self._known is None else self._known.of(batch)
            others = [data for i, data in enumerate(batch) if i not in known]
            rest = iter(_decoded(self._pool, others, self._limit))
            done = (known[i] if i in known else next(rest) for i in range(len(batch)))
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


_traits = attrgetter(*TRAIT_NAMES)


def _decoders() -> ThreadPoolExecutor:
    """As many threads as Arrow has, which OMP_NUM_THREADS bounds, and at most four."""
    return ThreadPoolExecutor(min(4, pa.cpu_count()))


def _decoded(
    pool: ThreadPoolExecutor, batch: Sequence[bytes], max_megapixels: float
) -> list[ImageCheck | BadImageError]:
    parts = [batch[i : i + UNIT] for i in range(0, len(batch), UNIT)]
    done = pool.map(_checked, parts, repeat(max_megapixels))
    return [check for part in done for check in part]


def _checked(batch: Sequence[bytes], max_megapixels: float) -> list[ImageCheck | BadImageError]:
    checks: list[ImageCheck | BadImageError] = []
    for data in batch:
        try:
            checks.append(check_image(data, max_megapixels=max_megapixels))
        except BadImageError as exc:
            checks.append(exc)
    return checks


STAGED = pa.schema(
    [
        ("key", pa.binary(16)),
        ("thumb", pa.binary()),  # empty for a bad image
        ("reason", pa.string()),
        ("detail", pa.string()),
        *TRAITS,
    ]
)


def stage_checks(
    batches: Iterable[Sequence[bytes]], stage: Stage, name: str, *, max_megapixels: float
) -> int:
    """Check images and stage the outcome of each batch, unless it is staged; return how many images there are."""
    there = set(stage.store.list(stage.prefix))
    n = 0
    with _decoders() as pool:
        for number, batch in enumerate(batches):
            n += len(batch)
            path = f"{stage.prefix}/checks-{name}-{number:05d}.arrow"
            if path not in there:
                checks = _decoded(pool, batch, max_megapixels)
                keyed = zip(_keys(batch), checks, strict=True)
                rows = [{"key": key, **_row(check)} for key, check in keyed]
                stage.store.put(path, bytes(as_stream(pa.Table.from_pylist(rows, STAGED))))
    return n


def _row(check: ImageCheck | BadImageError) -> dict[str, Any]:
    if isinstance(check, BadImageError):
        return {"thumb": b"", "reason": check.reason, "detail": check.detail}
    return {**vars(check), "thumb": check.thumb.tobytes(), "reason": ""}


def _keys(images: Iterable[bytes]) -> list[bytes]:
    return [blake2b(data, digest_size=16).digest() for data in images]


class StagedChecks:
    """What :func:`stage_checks` has staged, by the bytes' hash; thumbnails are on local disk."""

    def __init__(self, stage: Stage, name: str = "") -> None:
        self._stage, self._name = stage, name  # of the listing; of all where it is empty

    def distinct(self, known: NDArray[Any]) -> Thumbs:
        """Return the thumbnails of the valid images but the known ones, one of each, sorted by content key."""
        keys, order, thumbs, others = self._read
        is_valid = pc.equal(others["reason"], "").to_numpy()[order]
        rows = np.flatnonzero(is_valid & ~np.isin(keys, known))
        rows = rows[np.unique(keys[rows], return_index=True)[1]]
        return ThumbRows(thumbs, order[rows])

    def of(self, images: Sequence[bytes]) -> dict[int, ImageCheck | BadImageError]:
        """Return the checks of those images that have one, by place."""
        keys, order, thumbs, others = self._read
        if not len(keys):
            return {}
        own = np.array(_keys(images), dtype=KEY)
        at = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
        known = np.flatnonzero(keys[at] == own)
        rows = order[at[known]]
        checks: dict[int, ImageCheck | BadImageError] = {}
        for place, thumb, row in zip(
            known.tolist(), thumbs[rows], others.take(pa.array(rows)).to_pylist(), strict=True
        ):
            reason, detail = row.pop("reason"), row.pop("detail")
            checks[place] = (
                BadImageError(reason, detail) if reason else ImageCheck(**row, thumb=thumb)
            )
        return checks

    @cached_property
    def _read(self) -> tuple[NDArray[Any], Int, ArraySpill, pa.Table]:
        """The sorted keys, the row of each, and all rows."""
        keys = [np.zeros(0, dtype=KEY)]
        thumbs = ArraySpill(THUMB_SIDE * THUMB_SIDE)
        others = [STAGED.empty_table()]
        none = bytes(THUMB_SIDE * THUMB_SIDE)
        for table in self._tables():
            keys.append(keys_of(table["key"]))
            data = b"".join(thumb or none for thumb in table["thumb"].to_pylist())
            thumbs.append(np.frombuffer(data, dtype=np.int8))
            others.append(table)
        every = np.concatenate(keys)
        order = np.argsort(every)
        rest = pa.concat_tables(others).drop_columns(["key", "thumb"])
        return every[order], order, thumbs, rest.combine_chunks()

    def _tables(self) -> Iterator[pa.Table]:
        store, prefix = self._stage.store, self._stage.prefix
        for path in sorted(store.list(prefix)):
            if path.startswith(f"{prefix}/checks-{self._name}"):
                yield pa.ipc.open_stream(store.read(path)).read_all()


_NO_ROWS = np.zeros(0, dtype=np.int8)  # takes on the type of what it is joined with


def stage_pairs(stage: Stage, known: NDArray[Any], *, part: int, n_parts: int) -> int:
    """Compare a part of the source's images, stage likely near-duplicates, and return how many images there are."""
    thumbs = StagedChecks(stage, "source-").distinct(known)
    path = f"{_pairs(stage, thumbs)}{part}-of-{n_parts}.arrow"
    if len(thumbs) and not stage.store.exists(path):
        tops = [*likeliest(thumbs, part=part, n_parts=n_parts)]
        n_rows = [len(top.rows) for top in tops]
        widths = np.repeat([top.others.shape[1] for top in tops], n_rows).astype(np.int32)
        starts = pa.array(np.concatenate([[0], widths.cumsum()]), pa.int32())
        others = np.concatenate([_NO_ROWS, *(top.others.ravel() for top in tops)])
        likeness = np.concatenate([_NO_ROWS, *(top.likeness.ravel() for top in tops)])
        columns = {
            "bucket": pa.array(np.repeat([top.bucket for top in tops], n_rows), pa.int64()),
            "row": pa.array(np.concatenate([_NO_ROWS, *(top.rows for top in tops)]), pa.int64()),
            "others": pa.ListArray.from_arrays(starts, pa.array(others, pa.int64())),
            "likeness": pa.ListArray.from_arrays(starts, pa.array(likeness, pa.float32())),
        }
        stage.store.put(path, bytes(as_stream(pa.table(columns))))
    return len(thumbs)


def staged_pairs(stage: Stage, thumbs: Thumbs) -> Iterable[Top]:
    """Return what :func:`stage_pairs` has staged of exactly these images, by bucket; the rest is compared here."""
    store = stage.store
    there = [p for p in store.list(stage.prefix) if p.rpartition("/")[2].startswith("pairs-")]
    own = _pairs(stage, thumbs) if there else ""
    there = [path for path in there if path.startswith(own)]
    if not there:
        return likeliest(thumbs)
    n_parts = int(there[0].rpartition("-")[2].removesuffix(".arrow"))
    tops: list[Top] = []
    for part in range(n_parts):
        path = f"{own}{part}-of-{n_parts}.arrow"
        if path in there:
            tops += _tops(pa.ipc.open_stream(store.read(path)).read_all())
        else:
            tops += likeliest(thumbs, part=part, n_parts=n_parts)
    return sorted(tops, key=attrgetter("bucket"))


def _pairs(stage: Stage, thumbs: Thumbs) -> str:
    """How the staged pairs of these images are called."""
    digest = blake2b(digest_size=16)
    for start in range(0, len(thumbs), BATCH):
        digest.update(thumbs[start : start + BATCH].tobytes())
    return f"{stage.prefix}/pairs-{digest.hexdigest()}-"


def _tops(table: pa.Table) -> Iterator[Top]:
    buckets, rows = (table[name].to_numpy() for name in ("bucket", "row"))
    starts = np.flatnonzero(np.diff(buckets, prepend=-1)).tolist()
    for start, stop in pairwise([*starts, len(rows)]):
        some = table.slice(start, stop - start)
        others, likeness = (
            some[name].combine_chunks().flatten().to_numpy().reshape(stop - start, -1)
            for name in ("others", "likeness")
        )
        yield Top(int(buckets[start]), rows[start:stop], others, likeness)


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
