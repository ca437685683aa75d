"""Picture sheets for the report: real, classic, synthetic and nearest training images per class."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed
from prefect_augment.encoding.images import encode_column, image_array
from prefect_augment.encoding.pixels import decode_image, image_bytes
from prefect_augment.errors import MissingExtraError
from prefect_augment.figures.image_grid import CELL, N_COLUMNS, sheet
from prefect_augment.params import Classic
from prefect_augment.schema.base import BalancePlan, DatasetInfo, FilterResult, ShardInfo
from prefect_augment.shards.base import label_names, open_shard
from prefect_augment.shards.staged import iter_shards
from prefect_augment.storage.store import Store

__all__ = ["NEAREST_RULE", "picture_sheets"]

logger = logging.getLogger(__name__)

MAX_SHEETS = 12
NEAREST_SIZE = 32
NEAREST_RULE = (
    "In the pictures, the nearest training image is the one of the class with the smallest sum of "
    f"squared pixel differences at {NEAREST_SIZE}×{NEAREST_SIZE} pixels."
)

Pixels = NDArray[np.uint8]


def picture_sheets(
    store: Store,
    info: DatasetInfo,
    plan: BalancePlan,
    candidates: FilterResult | None,
    *,
    pictures: Literal["real", "synthetic", "none"],
    classic: Classic | None = None,
) -> dict[str, bytes]:
    """Return a sheet for each class that was to be brought up, the rarest first.

    Parameters
    ----------
    store : Store
        Under which the staged records lie.
    info : DatasetInfo
        Of the ingest stage. Only training records are shown.
    plan : BalancePlan
        Says which classes were to be brought up; the :data:`MAX_SHEETS` rarest get a sheet.
    candidates : FilterResult, optional
        The synthetic images that were kept; the best of each class are shown.
    pictures : {"real", "synthetic", "none"}
        "synthetic" leaves out every row made of real images, classic copies included.
    classic : Classic, optional
        Shows what this policy makes of the real images.

    Returns
    -------
    dict of str to bytes
        PNGs by class; a class without an image to show has none.
    """
    if pictures == "none" or info.image is None:
        return {}
    classes = _classes_to_show(plan)
    training = [shard for shard in info.shards if shard.split == "training"]
    real = _shown(store, training, info, classes, by_id=True) if pictures == "real" else {}
    made = _shown(store, candidates.kept if candidates else (), info, classes, by_id=False)
    policy = ImagePolicy.from_params(classic) if classic else None
    nearest = _nearest(store, training, info, made) if real and made else {}
    sheets = {}
    for name in classes:
        pictures_of = [_pictures(found.get(name, [])) for found in (real, made, nearest)]
        ids = [image.aug_id for image in real.get(name, [])]
        if pictures_of[0] or pictures_of[1]:
            sheets[name] = sheet(name, *pictures_of, classic=_copies(pictures_of[0], ids, policy))
    return sheets


def _classes_to_show(plan: BalancePlan) -> list[str]:
    n_real: dict[str, int] = {}
    for entry in plan.classes:
        n_real[entry.label] = n_real.get(entry.label, 0) + entry.n_real
    wanted = {entry.label for entry in plan.classes if entry.target > entry.n_real}
    return sorted(wanted, key=lambda name: (n_real[name], name))[:MAX_SHEETS]


class _Image(NamedTuple):
    aug_id: str
    data: bytes


def _of_classes(
    store: Store,
    shards: Sequence[ShardInfo],
    info: DatasetInfo,
    classes: Collection[str],
    columns: Sequence[str],
) -> Iterator[tuple[NDArray[np.str_], pa.Table]]:
    """Yield records of these classes with their class; shards that hold none of them stay unread."""
    wanted = pa.array(sorted(classes), pa.string())
    found = [s for s in shards if any(s.class_counts.get(name) for name in classes)]
    for table in iter_shards(store, found, [info.label, *columns]):
        labels = pa.array(label_names(table[info.label]), pa.string())
        chosen = pc.is_in(labels, wanted)
        yield np.array(labels.filter(chosen).to_pylist(), dtype=str), table.filter(chosen)


def _shown(
    store: Store,
    shards: Sequence[ShardInfo],
    info: DatasetInfo,
    classes: Sequence[str],
    *,
    by_id: bool,
) -> dict[str, list[_Image]]:
    """Return the images of each class that its sheet shows.

    Of synthetic ones the first: the filter puts the best of a class first. Real ones by id: those of one
    file often resemble one another, and ids are an order by chance.
    """
    assert info.image is not None
    ids: dict[str, list[str]] = {name: [] for name in classes}
    for labels, table in _of_classes(store, shards, info, classes, ["aug_id"]):
        keys = np.array(table["aug_id"].to_pylist(), dtype=str)
        for name, found in ids.items():
            found += keys[labels == name].tolist()
            ids[name] = (sorted(found) if by_id else found)[:N_COLUMNS]
    shown = [aug_id for found in ids.values() for aug_id in found]
    images = _images(store, shards, info, shown)
    return {name: [images[aug_id] for aug_id in found] for name, found in ids.items() if found}


def _images(
    store: Store, shards: Sequence[ShardInfo], info: DatasetInfo, ids: Sequence[str]
) -> dict[str, _Image]:
    """Return the images with these ids; groups of rows that hold none of them stay unread."""
    assert info.image is not None
    column, wanted = info.image.column, pa.array(ids, pa.string())
    images = {}
    for result in shards:
        with open_shard(store, result.path) as shard:
            for group in range(len(shard.group_rows)):
                is_wanted = pc.is_in(shard.read(["aug_id"], groups=[group])["aug_id"], wanted)
                if not pc.any(is_wanted).as_py():
                    continue
                table = shard.read(["aug_id", column], groups=[group]).filter(is_wanted)
                for key, data in zip(
                    table["aug_id"].to_pylist(),
                    image_bytes(table[column], name=column),
                    strict=True,
                ):
                    images[key] = _Image(key, data)
    return images


def _pictures(images: Sequence[_Image]) -> list[Pixels]:
    """Return the images, large JPEGs at a part of their size: they are shown small."""
    return [decode_image(image.data, max_pixels=None, at_least=2 * CELL) for image in images]


def _copies(
    real: Sequence[Pixels], keys: Sequence[str], policy: ImagePolicy | None
) -> list[Pixels]:
    if policy is None or not policy.operations:
        return []
    try:
        return [
            policy.apply(pixels, seed=record_seed(0, key, 0), prob=1.0)
            for pixels, key in zip(real, keys, strict=True)
        ]
    except MissingExtraError as exc:
        # Nothing else of this run needed it, or the run would have failed before.
        logger.info("the report shows no classic copies: %s", exc)
        return []


def _nearest(
    store: Store,
    shards: Sequence[ShardInfo],
    info: DatasetInfo,
    made: Mapping[str, Sequence[_Image]],
) -> dict[str, list[_Image]]:
    """Return for each image made the training image of its class that is nearest in pixels.

    Of several that are equally near, the one with the smallest id.
    """
    assert info.image is not None
    column, channels = info.image.column, info.image.n_channels
    x = {
        name: _vectors(
            image_array([i.data for i in images], [None] * len(images), pa.binary()), channels
        )
        for name, images in made.items()
    }
    best: dict[str, list[tuple[float, str]]] = {
        name: [(np.inf, "")] * len(images) for name, images in made.items()
    }
    for labels, table in _of_classes(store, shards, info, made, ["aug_id", column]):
        keys = np.array(table["aug_id"].to_pylist(), dtype=str)
        for name in made:
            rows = np.flatnonzero(labels == name)
            if not rows.size:
                continue
            reals = _vectors(table[column].take(pa.array(rows)), channels)
            squares = (reals**2).sum(axis=1) - 2 * x[
                name
            ] @ reals.T  # but for a term that all share
            for i, distances in enumerate(squares):
                found = [
                    (float(distances[j]), str(keys[rows[j]]))
                    for j in np.flatnonzero(distances == distances.min())
                ]
                best[name][i] = min(best[name][i], *found)
    ids = sorted({key for found in best.values() for _, key in found if key})
    images = _images(store, shards, info, ids)
    return {name: [images[key] for _, key in found if key] for name, found in best.items()}


def _vectors(column: pa.Array | pa.ChunkedArray, channels: int) -> NDArray[np.float32]:
    pixels = encode_column(column, size=NEAREST_SIZE, channels=channels)
    return pixels.reshape(len(column), -1).astype(np.float32)
