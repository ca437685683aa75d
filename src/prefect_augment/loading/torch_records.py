"""Rows of groups as records ``(x, y)`` for torch. Needs torch, and Pillow for decoded images."""

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from prefect_augment.array_types import Float32, Int
from prefect_augment.errors import MissingExtraError
from prefect_augment.shards.image_columns import IMAGE_TYPE, main_image


def class_codes(column: pa.ChunkedArray, classes: Sequence[str]) -> Int:
    """Return the index of each record's class, shape (n_records,)."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    codes = pc.index_in(column.cast(pa.string()), value_set=pa.array(classes, pa.string()))
    indices: Int = codes.to_numpy().astype(np.int64)
    return indices


def _codes_of_values(kind: pa.DataType, classes: Sequence[str]) -> dict[Any, int] | None:
    """Return the class index by label value; None for a type whose values differ from their names.

    A lookup per record, since Arrow's kernels take longer to start than an epoch of few records.
    """
    t, plain = pa.types, _plain(kind)
    if not (t.is_integer(plain) or t.is_string(plain) or t.is_large_string(plain)):
        return None
    try:
        values = pa.array(classes, pa.string()).cast(plain).to_pylist()
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
        self.texts = [name for name, kind in types.items() if _is_text(kind)]
        self.main = main_image(schema)
        self._code = _codes_of_values(schema.field(label).type, classes)
        if self.images and decode:
            _pixels()

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
        columns = {name: self._values(name, table[name]) for name in others}
        return Records(self, matrix, {**columns, **images}, self.codes(table))

    def _values(self, name: str, column: pa.ChunkedArray) -> list[Any]:
        values: list[Any] = column.to_pylist()
        if name in self.texts:
            return ["" if value is None else str(value) for value in values]
        return values

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
        pixels = _pixels().decode_image(image, max_pixels=None)
        if self.maker.channels is not None:
            pixels = _pixels().with_channels(pixels, self.maker.channels)
        if change is not None:
            pixels = change(pixels)
        # A copy, because Pillow's array is read-only.
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _as_bytes(image: memoryview | None) -> bytes | None:
    return None if image is None else bytes(image)


def _pixels() -> Any:
    try:
        return importlib.import_module("prefect_augment.encoding.pixels")
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f"reading images needs {exc.name}: pip install 'prefect-augment[images]'",
            extra="images",
        ) from exc


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_number(kind: pa.DataType) -> bool:
    t, kind = pa.types, _plain(kind)
    return bool(
        t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind) or t.is_boolean(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column is text or comes as text, such as ISO dates."""
    t, kind = pa.types, _plain(kind)
    return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_temporal(kind))


def _as_floats(column: pa.ChunkedArray) -> Float32:
    """Return the numbers, NaN for null."""
    plain = column.cast(_plain(column.type)) if pa.types.is_dictionary(column.type) else column
    if pa.types.is_boolean(plain.type):
        plain = plain.cast(pa.uint8())
    if pa.types.is_decimal(plain.type):
        plain = plain.cast(pa.float64())
    converted = plain.cast(pa.float32(), safe=False)
    floats: Float32 = pc.fill_null(converted, float("nan")).to_numpy()
    return floats
