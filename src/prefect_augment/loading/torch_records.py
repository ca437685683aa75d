"""Groups of records in a dataset's shards, and their rows as ``(x, y)`` for torch. Needs torch and Pillow."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from prefect_augment.array_types import Bool, Float, Float32, Int
from prefect_augment.encoding.pixels import decode_image, with_channels
from prefect_augment.encoding.values import is_text, plain, value_type
from prefect_augment.errors import ParameterError
from prefect_augment.schema import ShardInfo
from prefect_augment.shards.base import OpenShard, check_count, open_shard
from prefect_augment.shards.image_columns import IMAGE_TYPE, main_image
from prefect_augment.storage import Store

# Shards that a worker keeps open: their footers are not fetched again for every group.
OPEN_SHARDS = 16
# Threads that wait for footers.
OPENERS = 8


def class_codes(column: pa.ChunkedArray, classes: Sequence[str]) -> Int:
    """Return the index of each record's class, shape (n_records,)."""
    codes = pc.index_in(plain(column).cast(pa.string()), value_set=pa.array(classes, pa.string()))
    return np.asarray(codes.to_numpy(zero_copy_only=False), dtype=np.int64)


@dataclass(frozen=True)
class Groups:
    """All groups of records, known before records are read."""

    schema: pa.Schema  # of all shards
    paths: tuple[str, ...]  # of the shards
    shard: Int  # (n_groups,) place in paths
    number: Int  # (n_groups,) place in the shard
    n_rows: Int  # (n_groups,)
    synthetic: Bool  # (n_groups,)
    # (n_groups, n_classes) sums of aug_weight; no columns if nothing is drawn by weight
    weights: Float
    largest: Float  # (n_classes,) largest aug_weight
    n_of_class: Int  # (n_classes,) records

    @property
    def n_records(self) -> int:
        """Records in all groups."""
        return int(self.n_rows.sum())

    def at(self, group: int) -> tuple[str, int]:
        """Return the shard's path, and the group's place in it."""
        return self.paths[self.shard[group]], int(self.number[group])


def read_groups(
    store: Store,
    shards: Sequence[ShardInfo],
    label: str,
    classes: Sequence[str],
    *,
    weighted: bool,
    verify: bool,
) -> Groups:
    """Read every shard's groups once, and their weights if records are drawn by weight."""
    if not shards:
        raise ParameterError("there is no record to read: the version has none of these origins.")

    def read_shard(shard: ShardInfo) -> tuple[pa.Schema, tuple[int, ...], Float, Float]:
        with open_shard(store, shard.path, sha256=shard.sha256 if verify else "") as opened:
            n = opened.group_rows
            check_count(store, shard, sum(n))
            sums = np.zeros((len(n), len(classes) if weighted else 0))
            largest = np.zeros(sums.shape[1])
            for g in range(len(n) if weighted else 0):
                table = opened.read([label, "aug_weight"], groups=[g])
                weights = table["aug_weight"].to_numpy().astype(np.float64)
                codes = class_codes(table[label], classes)
                sums[g] = np.bincount(codes, weights, minlength=len(classes))
                np.maximum.at(largest, codes, weights)
            return opened.schema, n, sums, largest

    with ThreadPoolExecutor(OPENERS) as pool:
        read = list(pool.map(read_shard, shards))
    n_groups = [len(n) for _, n, _, _ in read]
    return Groups(
        schema=read[0][0],
        paths=tuple(s.path for s in shards),
        shard=np.repeat(np.arange(len(shards)), n_groups),
        number=np.concatenate([np.arange(n) for n in n_groups]),
        n_rows=np.array([rows for _, n, _, _ in read for rows in n], dtype=np.int64),
        synthetic=np.repeat([s.origin == "synthetic" for s in shards], n_groups),
        weights=np.concatenate([sums for _, _, sums, _ in read]),
        largest=np.max([largest for _, _, _, largest in read], axis=0),
        n_of_class=np.array(
            [sum(s.class_counts.get(name, 0) for s in shards) for name in classes], dtype=np.int64
        ),
    )


class OpenShards:
    """The recently used shards that one reader has open; digests are checked if given."""

    def __init__(self, store: Store, digests: Mapping[str, str]) -> None:
        self._store = store
        self._digests = digests
        self._open: OrderedDict[str, OpenShard] = OrderedDict()

    def at(self, path: str) -> OpenShard:
        """Return the open shard."""
        if path not in self._open:
            self._open[path] = open_shard(self._store, path, sha256=self._digests.get(path, ""))
        self._open.move_to_end(path)
        while len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        return self._open[path]

    def close(self) -> None:
        """Close them all."""
        for shard in self._open.values():
            shard.close()


def _codes_of_values(kind: pa.DataType, classes: Sequence[str]) -> dict[Any, int] | None:
    """Return the class index by label value; None for a type whose values differ from their names.

    A lookup per record, since Arrow's kernels take longer to start than an epoch of few records.
    """
    kind = value_type(kind)
    if not (pa.types.is_integer(kind) or is_text(kind)):
        return None
    try:
        values = pa.array(classes, pa.string()).cast(kind).to_pylist()
    except pa.ArrowInvalid:
        return None
    return {value: code for code, value in enumerate(values)}


class RowMaker:
    """Makes ``(x, y)`` of rows."""

    def __init__(
        self,
        schema: pa.Schema,
        features: Sequence[str],
        label: str,
        classes: Sequence[str],
        channels: Literal[1, 3] | None,
        decode: bool,
        transform: Callable[[Any], Any] | None,
    ) -> None:
        types = {name: schema.field(name).type for name in features}
        self.features = features
        self.label = label
        self.classes = classes
        self.channels = channels
        self.decode = decode
        self.transform = transform
        self.images = [name for name, kind in types.items() if kind == IMAGE_TYPE]
        self.numbers = [name for name, kind in types.items() if _is_number(kind)]
        # Dates come as ISO text.
        self.texts = [
            name
            for name, kind in types.items()
            if is_text(value_type(kind)) or pa.types.is_temporal(value_type(kind))
        ]
        self.main = main_image(schema)
        self._code = _codes_of_values(schema.field(label).type, classes)

    def codes(self, table: pa.Table) -> list[int]:
        """Return the index of each record's class."""
        column = table[self.label]
        if self._code is None:
            return [int(code) for code in class_codes(column, self.classes)]
        return [self._code[value] for value in column.to_pylist()]

    def prepare(self, table: pa.Table, images: Mapping[str, list[memoryview | None]]) -> "Records":
        """Return a group's records column by column, which is much less work than one by one.

        Images come as views of their bytes, and only those of given records are copied.
        """
        matrix = np.zeros((table.num_rows, len(self.numbers)), dtype=np.float32)
        for j, name in enumerate(self.numbers):
            matrix[:, j] = _as_floats(table[name])
        others = [n for n in self.features if n not in self.numbers and n not in self.images]
        if "aug_id" in table.column_names:
            others.append("aug_id")
        columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in others}
        for name in columns.keys() & self.texts:
            columns[name] = ["" if value is None else str(value) for value in columns[name]]
        return Records(self, matrix, {**columns, **images}, self.codes(table))

    def join(self, groups: "Sequence[Records]") -> "Records":
        """Return the records of several groups as one."""
        if len(groups) == 1:
            return groups[0]
        columns = {
            name: list(itertools.chain.from_iterable(g.columns[name] for g in groups))
            for name in groups[0].columns
        }
        y = list(itertools.chain.from_iterable(g.y for g in groups))
        return Records(self, np.concatenate([g.matrix for g in groups]), columns, y)


@dataclass(frozen=True)
class Records:
    """Decoded records: numbers as a matrix, classes as indices, other columns as lists."""

    maker: RowMaker
    matrix: Float32
    columns: dict[str, list[Any]]
    y: list[int]

    def at(self, rows: Sequence[int]) -> Iterator[tuple[Any, int]]:
        """Return ``(x, y)`` of these rows, in this order."""
        maker = self.maker
        if maker.features == (maker.main,) and not maker.decode:
            x: Iterator[Any] = map(_as_bytes, map(self.columns[maker.main].__getitem__, rows))
            if maker.transform is not None:
                x = map(maker.transform, x)
        else:
            x = map(self.x, rows)
        return zip(x, map(self.y.__getitem__, rows), strict=True)

    def x(self, row: int, change: Callable[[Any], Any] | None = None) -> Any:
        """Return one record's ``x``, with its image changed by ``change``."""
        maker = self.maker
        if len(maker.numbers) == len(maker.features):
            x: Any = torch.from_numpy(self.matrix[row])
        elif maker.features == (maker.main,):
            x = self._picture(maker.main, row, change)
        else:
            x = {name: self._value(name, row, change) for name in maker.features}
        return x if maker.transform is None else maker.transform(x)

    def _value(self, name: str, row: int, change: Callable[[Any], Any] | None) -> Any:
        maker = self.maker
        if name in maker.numbers:
            return self.matrix[row, maker.numbers.index(name)]
        if name in maker.images:
            return self._picture(name, row, change if name == maker.main else None)
        return self.columns[name][row]

    def _picture(self, name: str, row: int, change: Callable[[Any], Any] | None) -> Any:
        """Return pixels, shape (channels, height, width), or bytes; None for a null image."""
        image = _as_bytes(self.columns[name][row])
        if image is None or not self.maker.decode:
            return image
        # Ingest has checked the size of these images.
        pixels = decode_image(image)
        if self.maker.channels is not None:
            pixels = with_channels(pixels, self.maker.channels)
        if change is not None:
            pixels = change(pixels)
        # A copy, because Pillow's array is read-only.
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _as_bytes(image: memoryview | None) -> bytes | None:
    return None if image is None else bytes(image)


def _is_number(kind: pa.DataType) -> bool:
    t, kind = pa.types, value_type(kind)
    return bool(
        t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind) or t.is_boolean(kind)
    )


def _as_floats(column: pa.ChunkedArray) -> Float32:
    """Return the numbers, NaN for null."""
    values = plain(column)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    converted = values.cast(pa.float32(), safe=False)
    return np.asarray(pc.fill_null(converted, float("nan")).to_numpy(zero_copy_only=False))
