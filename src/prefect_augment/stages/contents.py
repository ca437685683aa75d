"""What the real training records of a dataset look like, in few numbers; the hold-out is not read."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from prefect_augment.datatypes import DatasetFacts, ShardFact
from prefect_augment.encoding.folded import fold_ids
from prefect_augment.encoding.pixels import decode_image, image_bytes, resize
from prefect_augment.evaluation.contents import column_content
from prefect_augment.facts_drift import ColumnContent, Contents
from prefect_augment.reading.staged import iter_shards
from prefect_augment.storage import Store

__all__ = ["Sampled", "column_values", "read_sample"]

MOST_ROWS = 100_000  # looked at: a distance of 0.01 is seen with so many
MOST_IMAGES = 1_000  # decoding takes a millisecond each, or ten
SKETCH = 512  # ids kept: 10 kB of report.json
SIDE = 8  # pixels of the mean picture

Kind = Literal["numeric", "category"]


class Sampled:
    """The records that were looked at, column by column."""

    def __init__(self, facts: DatasetFacts, run: str, values: Mapping[str, tuple[Kind, Any]]):
        self.facts, self.run, self.values = facts, run, values
        self.ids: list[str] = []
        self.n_looked_at = 0
        self.pictures: NDArray[np.float32] | None = None

    def contents(self, *, show: bool) -> Contents:
        """Return what is kept of them for the next version; no value where ``show`` is False."""
        classes: dict[str, int] = {}
        for shard in _training(self.facts):
            for name, n in shard.class_counts.items():
                classes[name] = classes.get(name, 0) + n
        pictures = self.pictures if show and self.pictures is not None else np.zeros((0, 0))
        return Contents(
            run=self.run,
            n_records=sum(classes.values()),
            n_looked_at=self.n_looked_at,
            classes=classes,
            columns=tuple(
                column_content(name, kind, values, show=show)
                for name, (kind, values) in self.values.items()
            ),
            sketch=tuple(self.ids),
            mean_picture=_rounded(pictures.mean(axis=0)) if pictures.size else (),
            picture_spread=_rounded(pictures.std(axis=0)) if pictures.size else (),
        )

    def on(self, before: Contents) -> dict[str, ColumnContent]:
        """Return the columns, counted at the points and in the bins of an earlier version."""
        old = {c.name: c for c in before.columns}
        return {
            name: column_content(name, kind, values, like=old.get(name))
            for name, (kind, values) in self.values.items()
        }


def _rounded(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(round(float(v), 3) for v in values)


def read_sample(store: Store, facts: DatasetFacts, *, run: str) -> Sampled:
    """Read the training records with the smallest ids: an order by chance, the same in every version.

    Parameters
    ----------
    store : Store
        Under which the staged records lie.
    facts : DatasetFacts
        Of the ingest stage.
    run : str
        Names what the report is of.
    """
    shards = _training(facts)
    folded = [fold_ids(table["aug_id"]) for table in iter_shards(store, shards, ["aug_id"])]
    ids = np.concatenate([np.zeros(0, np.uint64), *folded])
    most = MOST_IMAGES if facts.image else MOST_ROWS
    last = np.partition(ids, most)[most] if len(ids) > most else None
    kinds = _kinds(facts)
    columns = [facts.image.column] if facts.image else [*kinds]
    tables = []
    for table in iter_shards(store, shards, ["aug_id", *columns]):
        if last is not None:
            table = table.filter(pa.array(fold_ids(table["aug_id"]) < last))
        tables.append(_measured(table, facts) if facts.image else table)
    found = Sampled(facts, run, {})
    found.n_looked_at = sum(table.num_rows for table in tables)
    found.ids = [f"{key:016x}" for key in np.sort(ids)[:SKETCH].tolist()]
    if not found.n_looked_at:
        return found
    whole = pa.concat_tables(tables).unify_dictionaries()
    found.values = {name: (kind, column_values(whole[name], kind)) for name, kind in kinds.items()}
    if facts.image:
        found.pictures = np.array(whole["picture"].to_pylist(), dtype=np.float32)
    return found


def _training(facts: DatasetFacts) -> list[ShardFact]:
    return [s for s in facts.shards if s.split in ("fit", "val")]


def _kinds(facts: DatasetFacts) -> dict[str, Kind]:
    if facts.image:
        return dict.fromkeys(("brightness", "contrast", "width", "height"), "numeric")
    kinds: dict[str, Kind] = {}
    for column in facts.columns:
        if column.kind == "numeric" or column.kind == "category":
            kinds[column.name] = column.kind
    return kinds


def _measured(table: pa.Table, facts: DatasetFacts) -> pa.Table:
    """Measure images: all that is kept of each are four numbers and 64 pixels."""
    assert facts.image is not None
    rows: dict[str, list[Any]] = {
        name: [] for name in ("brightness", "contrast", "width", "height", "picture")
    }
    for data in image_bytes(table[facts.image.column], name=facts.image.column):
        with Image.open(BytesIO(data)) as image:
            width, height = image.size
        pixels = decode_image(data, max_pixels=None, at_least=64).astype(np.float32)
        gray = pixels.mean(axis=2)
        small = resize(gray.round().astype(np.uint8)[:, :, None], SIDE, SIDE)
        measured = (float(gray.mean()), float(gray.std()), width, height, small.ravel().tolist())
        for name, value in zip(rows, measured, strict=True):
            rows[name].append(value)
    types = [pa.float64(), pa.float64(), pa.int64(), pa.int64(), pa.list_(pa.uint8())]
    return pa.table({n: pa.array(v, t) for (n, v), t in zip(rows.items(), types, strict=True)})


def column_values(column: pa.ChunkedArray, kind: str) -> NDArray[np.generic]:
    """Return a column as numbers, dates or texts, with NaN, NaT or None for null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind == "category":
        return np.array(column.cast(pa.string()).to_pylist(), dtype=object)
    if pa.types.is_temporal(column.type) and not pa.types.is_duration(column.type):
        if pa.types.is_time(column.type):
            column = column.cast(pa.string())
            return np.array(column.to_pylist(), dtype=object)
        stamps = (
            column.cast(pa.timestamp("us")) if not pa.types.is_timestamp(column.type) else column
        )
        return np.array(stamps.to_numpy(), dtype="datetime64[us]")
    if pa.types.is_duration(column.type):
        column = column.cast(pa.int64())
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
