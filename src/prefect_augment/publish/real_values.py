"""What a shared folder must not hold: real records, values of single ones, and hashes of them.

Read from staged records a column at a time, so that memory holds one column and the rare values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.array_types import Bool, ByteString, Float, Int
from prefect_augment.encoding.record_ids import content_digests
from prefect_augment.encoding.values import is_text, plain, value_type
from prefect_augment.schema import DatasetInfo
from prefect_augment.shards.image_columns import image_slices, main_image
from prefect_augment.shards.staged import iter_shards
from prefect_augment.storage import Store, sha256_hex
from prefect_augment.storage.keys import group_ids


@dataclass(frozen=True)
class Rare:
    """A column's rare values, sorted, and a record that has each."""

    values: Float | NDArray[np.object_]
    rows: Int

    def find(self, values: Float | NDArray[np.object_]) -> Int:
        """Row of the record that has each value, -1 where none has, (n,)."""
        if not len(self.values) or not len(values):
            return np.full(len(values), -1)
        place = np.searchsorted(self.values, values).clip(0, len(self.values) - 1)
        return np.where(self.values[place] == values, self.rows[place], -1)


@dataclass
class RealValues:
    """The real records of a dataset, as the search asks for them."""

    store: Store
    info: DatasetInfo
    min_records: int
    # Numbers and times of a single training record, which no engine may draw; of a single record of any
    # part, which no other file may hold; texts of fewer than min_records records.
    learnt: dict[str, Rare] = field(default_factory=dict)
    numbers: dict[str, Rare] = field(default_factory=dict)
    texts: dict[str, Rare] = field(default_factory=dict)
    hashes: set[str] = field(default_factory=set)  # ids, content keys and image digests, in hex

    @classmethod
    def of(
        cls, store: Store, info: DatasetInfo, *, min_records: int, known: Sequence[str] = ()
    ) -> "RealValues":
        """Read the staged records; ``known`` are columns that the classes show by themselves."""
        real = cls(store, info, max(2, min_records))
        schema = next(iter_shards(store, info.shards)).schema
        is_training = np.concatenate(
            [np.full(s.n_records, s.split == "training") for s in info.shards]
        )
        for name in [column.name for column in info.columns if column.name not in known]:
            kind = value_type(schema.field(name).type)
            if is_text(kind):
                real.texts[name] = _rare(texts_of(real._column(name)), None, real.min_records)
            elif pa.types.is_temporal(kind):
                texts = texts_of(real._column(name))
                real.texts[name] = _rare(texts, None, 2)
                real.learnt[name] = _rare(texts, is_training, 2)
            elif _is_number(kind):
                x = numbers_of(real._column(name))
                real.numbers[name] = _single(x, np.isfinite(x))
                real.learnt[name] = _single(x, np.isfinite(x) & is_training)
        for name in ("aug_id", "content_key"):
            real.hashes.update(real._column(name).to_pylist())
        if image := main_image(schema):
            for table in iter_shards(store, info.shards, [image]):
                real.hashes.update(
                    sha256_hex(bytes(one)) for one in image_slices(table[image]) if one is not None
                )
        return real

    def lone_rows(self, columns: Sequence[str], *, training: bool) -> set[bytes]:
        """Digests over some columns of records that no other record equals there."""
        split = [s for s in self.info.shards if (s.split == "training") == training]
        everyone, own = (
            digests_of(iter_shards(self.store, shards, [*columns]), columns)
            for shards in (self.info.shards, split)
        )
        values, counts = np.unique(everyone, return_counts=True)
        return set(values[counts == 1].tolist()) & set(own.tolist())

    def _column(self, name: str) -> pa.Array:
        parts = [plain(t[name]) for t in iter_shards(self.store, self.info.shards, [name])]
        return pa.concat_arrays(parts) if parts else pa.array([], pa.string())


def _single(x: Float, among: Bool) -> Rare:
    """Numbers that one of these records has."""
    rows = np.flatnonzero(among)
    values, first, counts = np.unique(x[rows], return_index=True, return_counts=True)
    # A grid of which every place is taken tells nobody apart, and engines draw from it.
    step = np.diff(values).min() if len(values) > 1 else 0.0
    if step and len(values) == 1 + round((values[-1] - values[0]) / step):
        return Rare(values[:0], rows[:0])
    return Rare(values[counts == 1], rows[first[counts == 1]])


def _rare(texts: NDArray[np.object_], among: Bool | None, least: int) -> Rare:
    rows = np.array([i for i, t in enumerate(texts.tolist()) if t], dtype=np.int64)
    if among is not None:
        rows = rows[among[rows]]
    if not len(rows):
        return Rare(texts[:0], rows)
    ids = group_ids(texts[rows])
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    chosen = rows[first[counts < least]]
    return Rare(texts[chosen], chosen)


def _is_number(kind: pa.DataType) -> bool:
    t = pa.types
    return bool(t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind))


def numbers_of(values: pa.Array) -> Float:
    """Numbers as float64, NaN for null, (n,)."""
    if not _is_number(values.type):
        return np.full(len(values), np.nan)
    x = pc.cast(values, pa.float64(), safe=False)
    return np.asarray(x.to_numpy(zero_copy_only=False), dtype=np.float64)


def texts_of(values: pa.Array) -> NDArray[np.object_]:
    """Values as text, None for null, (n,)."""
    texts = np.empty(len(values), dtype=object)
    texts[:] = [t or "" for t in values.cast(pa.string()).to_pylist()]
    return texts


def digests_of(tables: Iterator[pa.Table], columns: Sequence[str]) -> ByteString:
    """A digest of each record's values in these columns, equal for equal values."""
    parts = [content_digests(table.select(list(columns))) for table in tables]
    return np.concatenate([np.zeros(0, "S16"), *parts])
