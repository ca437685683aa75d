"""Sheets of images: those of the report, per class and with the nearest training images, and a preview."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Float32, Pixels, String
from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed
from prefect_augment.augmentation.label_preservation import policy_sheet
from prefect_augment.encoding.arrays import TRAINED_ON
from prefect_augment.encoding.images import encode_column, image_array
from prefect_augment.encoding.pixels import decode_image, image_bytes
from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.figures.image_grid import CELL, N_COLUMNS, picture_png, sheet
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Classic, Source
from prefect_augment.schema import BalancePlan, DatasetInfo, FilterResult, ShardInfo
from prefect_augment.shards.base import label_names, open_shard
from prefect_augment.shards.staged import iter_shards, load_info
from prefect_augment.storage import Store, open_store

logger = logging.getLogger(__name__)

MAX_SHEETS = 12
NEAREST_SIZE = 32
NEAREST_RULE = (
    "In the pictures, the nearest training image is the one of the class with the smallest sum of "
    f"squared pixel differences at {NEAREST_SIZE}×{NEAREST_SIZE} pixels."
)


def picture_sheets(
    store: Store,
    info: DatasetInfo,
    plan: BalancePlan,
    candidates: FilterResult | None,
    *,
    pictures: Literal["real", "synthetic", "none"],
    classic: Classic | None = None,
) -> dict[str, bytes]:
    """A PNG per class that was to be augmented, the :data:`MAX_SHEETS` rarest first.

    Real images are training records. Of ``candidates`` the best of each class are shown.
    ``pictures="synthetic"`` leaves out all rows made of real images, classic copies included.
    ``classic`` shows that policy's copies. A class without images has no sheet.
    """
    if pictures == "none" or info.image is None:
        return {}
    n_real = plan.real_counts
    wanted = {entry.label for entry in plan.classes if entry.target > entry.n_real}
    classes = sorted(wanted, key=lambda name: (n_real[name], name))[:MAX_SHEETS]
    training = [shard for shard in info.shards if shard.split == "training"]
    real = _shown(store, training, info, classes, by_id=True) if pictures == "real" else {}
    synthetic = _shown(store, candidates.kept if candidates else (), info, classes, by_id=False)
    policy = ImagePolicy.from_params(classic) if classic else None
    nearest = _nearest(store, training, info, synthetic) if real and synthetic else {}
    sheets = {}
    for name in classes:
        rows = [_pictures(images.get(name, [])) for images in (real, synthetic, nearest)]
        ids = [image.aug_id for image in real.get(name, [])]
        if rows[0] or rows[1]:
            sheets[name] = sheet(name, *rows, classic=_copies(rows[0], ids, policy))
    return sheets


def single_pictures(
    store: Store, info: DatasetInfo, ids: Sequence[str]
) -> tuple[list[bytes], list[str]]:
    """A PNG of each of these training and validation images, and its file name, empty where it has none."""
    shards = [shard for shard in info.shards if shard.split in TRAINED_ON]
    by_id = _images(store, shards, info, ids)
    images = [by_id[aug_id] for aug_id in ids]
    return [picture_png(pixels) for pixels in _pictures(images)], [image.path for image in images]


class _Image(NamedTuple):
    aug_id: str
    data: bytes
    path: str


def _of_classes(
    store: Store,
    shards: Sequence[ShardInfo],
    info: DatasetInfo,
    classes: Collection[str],
    columns: Sequence[str],
) -> Iterator[tuple[String, pa.Table]]:
    """Records of some classes with their class; shards without any of them are not read."""
    wanted = pa.array(sorted(classes), pa.string())
    relevant = [s for s in shards if any(s.class_counts.get(name) for name in classes)]
    for table in iter_shards(store, relevant, [info.label, *columns]):
        labels = pa.array(label_names(table[info.label]), pa.string())
        mask = pc.is_in(labels, wanted)
        yield np.array(labels.filter(mask).to_pylist(), dtype=str), table.filter(mask)


def _shown(
    store: Store,
    shards: Sequence[ShardInfo],
    info: DatasetInfo,
    classes: Sequence[str],
    *,
    by_id: bool,
) -> dict[str, list[_Image]]:
    """The images of each class that its sheet shows.

    The first of synthetic images, since the filter puts the best first. Real ones by id, a random
    order: images that follow one another in a file often look alike.
    """
    assert info.image is not None
    ids: dict[str, list[str]] = {name: [] for name in classes}
    for labels, table in _of_classes(store, shards, info, classes, ["aug_id"]):
        keys = np.array(table["aug_id"].to_pylist(), dtype=str)
        for name, own in ids.items():
            own += keys[labels == name].tolist()
            ids[name] = (sorted(own) if by_id else own)[:N_COLUMNS]
    shown = [aug_id for own in ids.values() for aug_id in own]
    images = _images(store, shards, info, shown)
    return {name: [images[aug_id] for aug_id in own] for name, own in ids.items() if own}


def _images(
    store: Store, shards: Sequence[ShardInfo], info: DatasetInfo, ids: Sequence[str]
) -> dict[str, _Image]:
    """The images with these ids; row groups without any of them are not read."""
    assert info.image is not None
    column, wanted = info.image.column, pa.array(ids, pa.string())
    images = {}
    for entry in shards:
        with open_shard(store, entry.path) as shard:
            for group in range(len(shard.group_rows)):
                is_wanted = pc.is_in(shard.read(["aug_id"], groups=[group])["aug_id"], wanted)
                if not pc.any(is_wanted).as_py():
                    continue
                table = shard.read(["aug_id", column], groups=[group]).filter(is_wanted)
                paths: list[str | None] = [None] * len(table)
                if pa.types.is_struct(table[column].type):
                    paths = pc.struct_field(table[column], "path").to_pylist()
                for key, data, path in zip(
                    table["aug_id"].to_pylist(),
                    image_bytes(table[column], name=column),
                    paths,
                    strict=True,
                ):
                    images[key] = _Image(key, data, path or "")
    return images


def _pictures(images: Sequence[_Image]) -> list[Pixels]:
    """The decoded images, large JPEGs at reduced size since they are shown small."""
    return [decode_image(image.data, at_least=2 * CELL) for image in images]


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
        # Nothing else in this run needs the extra, or it would have failed before.
        logger.info("the report shows no classic copies: %s", exc)
        return []


def _nearest(
    store: Store,
    shards: Sequence[ShardInfo],
    info: DatasetInfo,
    synthetic: Mapping[str, Sequence[_Image]],
) -> dict[str, list[_Image]]:
    """For each synthetic image the nearest training image of its class in pixels; of ties the smallest id."""
    assert info.image is not None
    column, channels = info.image.column, info.image.n_channels
    x = {
        name: _vectors(
            image_array([i.data for i in images], [None] * len(images), pa.binary()), channels
        )
        for name, images in synthetic.items()
    }
    best: dict[str, list[tuple[float, str]]] = {
        name: [(np.inf, "")] * len(images) for name, images in synthetic.items()
    }
    for labels, table in _of_classes(store, shards, info, synthetic, ["aug_id", column]):
        keys = np.array(table["aug_id"].to_pylist(), dtype=str)
        for name in synthetic:
            rows = np.flatnonzero(labels == name)
            if not rows.size:
                continue
            reals = _vectors(table[column].take(pa.array(rows)), channels)
            # Squared distances without the term that all rows share, (n_synthetic, n_real).
            squares = (reals**2).sum(axis=1) - 2 * x[name] @ reals.T
            for i, distances in enumerate(squares):
                nearest = [
                    (float(distances[j]), str(keys[rows[j]]))
                    for j in np.flatnonzero(distances == distances.min())
                ]
                best[name][i] = min(best[name][i], *nearest)
    ids = sorted({key for nearest in best.values() for _, key in nearest if key})
    images = _images(store, shards, info, ids)
    return {name: [images[key] for _, key in nearest if key] for name, nearest in best.items()}


def _vectors(column: pa.Array | pa.ChunkedArray, channels: int) -> Float32:
    pixels = encode_column(column, size=NEAREST_SIZE, channels=channels)
    return pixels.reshape(len(column), -1).astype(np.float32)


def preview(
    source: Source, classic: Classic, *, seed: int = 0, source_options: dict[str, Any] | None = None
) -> bytes:
    """A sheet (PNG below 200 kB) of images of the rarest classes under each operation; stores nothing.

    ParameterError if the source has no images, or the policy is none.
    """
    policy = ImagePolicy.from_params(classic)
    policy.check()
    with TemporaryDirectory() as folder:
        store = open_store(folder)
        info = load_info(
            ingest(source, store=store, seed=seed, source_options=source_options), store
        )
        if info.image is None or policy.is_none:
            raise ParameterError(
                "a preview needs images and a policy; the source is a table, or classic.image is 'none'."
            )
        counts = info.part_counts["training"]
        wanted = sorted(counts, key=lambda name: (counts[name], name))[:N_COLUMNS]
        training = [s for s in info.shards if s.split == "training"]
        shown = _shown(store, training, info, wanted, by_id=False)
        first = [shown[name][0] for name in wanted]
        return policy_sheet(_pictures(first), [image.aug_id for image in first], policy)
