"""Picture sheets for the report: real, classic, synthetic and nearest training images per class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.augmentation.images import ImagePolicy, record_seed
from prefect_augment.datatypes import BalancePlan, DatasetFacts, GateReport, ImageFacts, ShardFact
from prefect_augment.encoding.images import encode_column
from prefect_augment.encoding.pixels import decode_image, image_bytes
from prefect_augment.errors import MissingExtraError
from prefect_augment.evaluation.sheets import CELL, N_COLUMNS, sheet
from prefect_augment.params import Classic
from prefect_augment.shards.parquet import label_names, read_shard
from prefect_augment.storage import Store

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
    facts: DatasetFacts,
    plan: BalancePlan,
    gate: GateReport | None,
    *,
    pictures: Literal["real", "synthetic", "none"],
    classic: Classic | None = None,
) -> dict[str, bytes]:
    """Return a sheet for each class that was to be brought up, the rarest first.

    Parameters
    ----------
    store : Store
        Under which the staged records lie.
    facts : DatasetFacts
        Of the ingest stage. Only fit records are shown.
    plan : BalancePlan
        Says which classes were to be brought up; the :data:`MAX_SHEETS` rarest get a sheet.
    gate : GateReport, optional
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
    if pictures == "none" or facts.image is None:
        return {}
    classes = _classes_to_show(plan)
    fit = [shard for shard in facts.shards if shard.split == "fit"]
    real = _images_of(store, fit, facts, classes) if pictures == "real" else None
    made = _images_of(store, gate.kept if gate else (), facts, classes)
    sheets = {}
    for name in classes:
        rows = _rows(
            _of_class(real, facts.label, name),
            _of_class(made, facts.label, name),
            facts.image,
            ImagePolicy.from_params(classic) if classic else None,
        )
        if rows.real or rows.synthetic:
            sheets[name] = sheet(
                name, rows.real, rows.synthetic, rows.nearest, classic=rows.classic
            )
    return sheets


def _classes_to_show(plan: BalancePlan) -> list[str]:
    n_real: dict[str, int] = {}
    for entry in plan.classes:
        n_real[entry.label] = n_real.get(entry.label, 0) + entry.n_real
    wanted = {entry.label for entry in plan.classes if entry.target > entry.n_real}
    return sorted(wanted, key=lambda name: (n_real[name], name))[:MAX_SHEETS]


def _images_of(
    store: Store, shards: Sequence[ShardFact], facts: DatasetFacts, classes: Sequence[str]
) -> pa.Table | None:
    """Return ids, labels and images of these classes; shards that hold none of them stay unread."""
    assert facts.image is not None
    columns = ["aug_id", facts.label, facts.image.column]
    tables = [
        _of_classes(read_shard(store, shard.path, columns), facts.label, classes)
        for shard in shards
        if any(shard.class_counts.get(name) for name in classes)
    ]
    return pa.concat_tables(tables).unify_dictionaries() if tables else None


def _of_classes(table: pa.Table, label: str, names: Sequence[str]) -> pa.Table:
    return table.filter(pc.is_in(pa.array(label_names(table[label])), pa.array(list(names))))


def _of_class(table: pa.Table | None, label: str, name: str) -> pa.Table | None:
    return None if table is None else _of_classes(table, label, [name])


class _Rows(NamedTuple):
    real: list[Pixels]
    classic: list[Pixels]
    synthetic: list[Pixels]
    nearest: list[Pixels]


def _rows(
    real: pa.Table | None, made: pa.Table | None, image: ImageFacts, policy: ImagePolicy | None
) -> _Rows:
    """Return a class's rows. Records of one file often resemble one another: ids are an order by chance."""
    rows = _Rows([], [], [], [])
    if made is not None:
        made = made.slice(0, N_COLUMNS)  # the gate puts the best of a class first
        rows.synthetic.extend(_pictures(made, image.column))
    if real is None or not real.num_rows:
        return rows
    real = real.sort_by("aug_id")
    shown = real.slice(0, N_COLUMNS)
    rows.real.extend(_pictures(shown, image.column))
    rows.classic.extend(_copies(rows.real, shown.column("aug_id").to_pylist(), policy))
    if made is not None and made.num_rows:
        places = _nearest(made, real, image)
        rows.nearest.extend(_pictures(real.take(pa.array(places)), image.column))
    return rows


def _pictures(table: pa.Table, column: str) -> list[Pixels]:
    """Return the images, large JPEGs at a part of their size: they are shown small."""
    return [
        decode_image(data, max_pixels=None, at_least=2 * CELL)
        for data in image_bytes(table.column(column), name=column)
    ]


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


def _nearest(made: pa.Table, real: pa.Table, image: ImageFacts) -> NDArray[np.int64]:
    """Return for each image made the place of the real one that is nearest in pixels."""
    size, channels, column = NEAREST_SIZE, image.n_channels, image.column
    x, reals = (
        encode_column(table.column(column), size=size, channels=channels, name=column)
        .reshape(table.num_rows, -1)
        .astype(np.float32)
        for table in (made, real)
    )
    squares = (reals**2).sum(axis=1) - 2 * x @ reals.T  # but for a term that all share
    return np.asarray(squares.argmin(axis=1), dtype=np.int64)
