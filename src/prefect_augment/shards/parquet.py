"""Parquet shards, with the source's schema kept to the letter.

:func:`select_columns` and :func:`with_lineage` change columns and keep the schema metadata true; shards of
every format are put and read by :mod:`prefect_augment.shards.base`.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_augment.array_types import Float32
from prefect_augment.errors import SchemaError
from prefect_augment.schema import Origin
from prefect_augment.shards.image_columns import image_columns, image_slices
from prefect_augment.shards.parquet_footer import ImagePages

LINEAGE = pa.schema(
    [
        ("aug_id", pa.string()),
        ("aug_origin", pa.string()),
        ("aug_weight", pa.float32()),
        ("aug_parent", pa.string()),
        ("aug_model", pa.string()),
        ("aug_seed", pa.int64()),
    ]
)

# Types of the lineage columns in pandas, in numpy and in `datasets`. Without Int64, pandas reads a seed column
# with nulls as float64, and a seed above 2**53 would no longer make its record again.
_TYPES = {
    "string": ("unicode", "object", "string"),
    "float": ("float32", "float32", "float32"),
    "int64": ("int64", "Int64", "int64"),
}
_PANDAS_COLUMNS = [
    {
        "name": field.name,
        "field_name": field.name,
        "pandas_type": _TYPES[str(field.type)][0],
        "numpy_type": _TYPES[str(field.type)][1],
        "metadata": None,
    }
    for field in LINEAGE
]
_FEATURES = {f.name: {"dtype": _TYPES[str(f.type)][2], "_type": "Value"} for f in LINEAGE}
# The pandas key of a table without one; pandas infers the other columns.
_NEW_PANDAS = {
    "index_columns": [],
    "column_indexes": [],
    "columns": _PANDAS_COLUMNS,
    "pandas_version": "2.2.0",
}

IMAGE_PAGE_BYTES, IMAGE_BATCH_ROWS = 1 << 20, 64
WRITTEN_AT_ONCE = 1 << 20


def select_columns(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return the table with these columns only; the schema metadata lose the others, or stay byte for byte."""
    gone = set(table.column_names) - set(names)
    selected = table.select(list(names))
    if not gone:
        return selected
    return selected.replace_schema_metadata(
        _edit_metadata(
            selected.schema.metadata,
            pandas=lambda content: _trim_pandas(content, gone),
            features=lambda key: {k: v for k, v in key.items() if k not in gone},
        )
    )


def with_lineage(
    table: pa.Table,
    *,
    origin: Origin,
    aug_id: Any,
    weight: Float32 | None = None,
    parent: Any = None,
    model: Any = None,
    seed: Any = None,
) -> pa.Table:
    """Return the table with the :data:`LINEAGE` columns, and the schema metadata extended by these.

    ``aug_id``, ``parent``, ``model`` and ``seed`` have one entry per record, None for null throughout; weights
    default to 1. The source's ``pandas`` key keeps its content and gets an entry per lineage column (without
    one, a key for these alone); a ``huggingface`` key with features gets their types, which `datasets` would
    else guess per file. Raises SchemaError if the table has a lineage column.
    """
    taken = sorted(set(table.column_names) & set(LINEAGE.names))
    if taken:
        raise SchemaError(
            f"columns {', '.join(map(repr, taken))} are named like lineage columns; rename them in the source.",
            columns=taken,
        )
    n = table.num_rows
    values = {
        "aug_id": aug_id,
        "aug_origin": [origin] * n,
        "aug_weight": np.ones(n, dtype=np.float32) if weight is None else weight,
        "aug_parent": parent,
        "aug_model": model,
        "aug_seed": seed,
    }
    for field in LINEAGE:
        table = table.append_column(field, _as_array(values[field.name], field.type, n))
    metadata = _edit_metadata(
        table.schema.metadata,
        pandas=lambda key: {**key, "columns": [*key["columns"], *_PANDAS_COLUMNS]},
        features=lambda features: {**features, **_FEATURES},
    )
    metadata.setdefault(b"pandas", json.dumps(_NEW_PANDAS).encode())
    return table.replace_schema_metadata(metadata)


def _as_array(values: Any, kind: pa.DataType, n: int) -> Any:
    if values is None:
        return pa.nulls(n, kind)
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(kind)
    return pa.array(values, kind)


def _edit_metadata(
    metadata: Mapping[bytes, bytes] | None,
    *,
    pandas: Callable[[dict[str, Any]], dict[str, Any]],
    features: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[bytes, bytes]:
    """Apply the edits to the two keys that list columns; drop one that does not parse, keep all others."""
    edited = dict(metadata or {})
    for key, edit in (
        (b"pandas", pandas),
        (b"huggingface", lambda content: _edit_features(content, features)),
    ):
        if key in edited:
            try:
                # json.dumps with its defaults is how pandas and datasets write: the rest stays byte for byte.
                edited[key] = json.dumps(edit(json.loads(edited[key]))).encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                del edited[key]
    return edited


def _edit_features(
    content: dict[str, Any], edit: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    info = content["info"]
    if info.get("features") is None:
        return content
    return {**content, "info": {**info, "features": edit(info["features"])}}


def _trim_pandas(content: dict[str, Any], gone: set[str]) -> dict[str, Any]:
    """Remove dropped columns, also from the index."""
    index = [i for i in content["index_columns"] if isinstance(i, dict) or i not in gone]
    columns = [c for c in content["columns"] if c.get("field_name", c["name"]) not in gone]
    return {**content, "index_columns": index, "columns": columns}


def conform(
    table: pa.Table, like: pa.Table, *, where: str, own_categories: bool = False
) -> pa.Table:
    """Return the columns of ``like`` from ``table``, with that schema, its metadata and its categories.

    With ``own_categories`` dictionaries list what they list in ``table``: those of ``like`` name every level.
    A cast could change values, so another type raises SchemaError, as does a missing column.
    """
    missing = [name for name in like.column_names if name not in table.column_names]
    if missing:
        raise SchemaError(
            f"{where} lacks the columns {', '.join(map(repr, missing))} of the source."
        )
    for field in like.schema:
        actual = table.schema.field(field.name).type
        if _plain(actual) != _plain(field.type):
            raise SchemaError(
                f"column {field.name!r} is {actual} in {where} and {field.type} in the source; "
                "it has to come back as it was."
            )
    columns = [
        table[name].cast(like[name].type)
        if own_categories
        else _same_categories(table[name], like[name])
        for name in like.column_names
    ]
    return pa.table(columns, schema=like.schema)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values, as dictionaries may differ in the width of their codes."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _same_categories(column: pa.ChunkedArray, like: pa.ChunkedArray) -> pa.ChunkedArray:
    """Encode with the dictionary of ``like``: pandas sees the same categories in the same order."""
    if not pa.types.is_dictionary(like.type) or not like.num_chunks:
        return column.cast(like.type)
    values = column.cast(_plain(column.type)).combine_chunks()
    dictionary = like.unify_dictionaries().chunk(0).dictionary
    codes = pc.index_in(values, value_set=dictionary)
    if codes.null_count != values.null_count:
        return column.cast(like.type)  # a value that is no category yet; the writer merges them
    indices = codes.cast(like.type.index_type)
    encoded = pa.DictionaryArray.from_arrays(indices, dictionary, ordered=like.type.ordered)
    return pa.chunked_array([encoded], like.type)


class ParquetShards:
    """Shards as Parquet; see :class:`~prefect_augment.shards.base.ShardFormat`."""

    ending = ".parquet"

    def write(
        self, groups: Iterable[pa.Table], sink: Any, *, label: str, classes: Sequence[str]
    ) -> None:
        """Write a Parquet object; label and classes stand in the schema."""
        write_parquet(groups, sink)

    def open(self, file: Any) -> "_ParquetReader":
        """Read the footer, and no record."""
        return _ParquetReader(file)


class _ParquetReader:
    """See :class:`~prefect_augment.shards.base.ShardReader`."""

    def __init__(self, file: Any) -> None:
        is_mapped = isinstance(file, pa.MemoryMappedFile | pa.BufferReader)
        # A thread that reads ahead would be waited for, and has nothing to fetch.
        self._file = pq.ParquetFile(file, pre_buffer=not is_mapped)
        self._pages = ImagePages(file, self._file.schema) if is_mapped else None
        self.schema: pa.Schema = self._file.schema_arrow
        metadata = self._file.metadata
        self.group_rows = tuple(
            metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)
        )

    def read(
        self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None
    ) -> pa.Table:
        """Return records; a part of the groups is read in this thread alone."""
        names = None if columns is None else list(columns)
        if groups is None:
            table = self._file.read(columns=names)
        else:
            # Workers of a loader are forks, and read beside one another already.
            table = self._file.read_row_groups(list(groups), columns=names, use_threads=False)
        # Parquet also returns the columns below a dotted prefix, and in the file's order.
        return table if names is None else table.select(names)

    def read_apart(
        self, columns: Sequence[str], images: Sequence[str], *, group: int
    ) -> tuple[pa.Table, dict[str, list[memoryview | None]]]:
        views: dict[str, list[memoryview | None]] = {}
        for name in images:
            n_rows = self.group_rows[group]
            images_of = self._pages.views(name, group, n_rows) if self._pages else None
            if images_of is not None:
                views[name] = images_of
        others = [name for name in images if name not in views]
        table = self.read([*columns, *others], groups=[group])
        views |= {name: image_slices(table[name]) for name in others}
        return table.select(list(columns)), views


def write_parquet(groups: Iterable[pa.Table], sink: Any) -> None:
    """Write one row group per table, which share one dictionary per column; SchemaError for types it cannot hold."""
    # Arrow's buffer makes pages into few large pieces, each copied while no other thread has to wait.
    stream = pa.BufferedOutputStream(pa.PythonFile(sink, mode="w"), WRITTEN_AT_ONCE)
    rest = iter(groups)
    first = next(rest)
    try:
        with pq.ParquetWriter(
            stream, first.schema, version="2.6", **_options(first.schema)
        ) as file:
            for group in itertools.chain([first], rest):
                # One chunk per column, so that how the records came does not change the bytes.
                file.write_table(group.combine_chunks(), row_group_size=max(1, group.num_rows))
        stream.detach()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as exc:
        types = ", ".join(f"{f.name!r} ({f.type})" for f in first.schema if not is_writable(f.type))
        raise SchemaError(
            f"Parquet cannot hold {types or 'these columns'}: {exc}; cast them in the source, or leave them out "
            "with a columns entry of kind drop."
        ) from exc
    finally:
        # After an error, not when Arrow's memory is cleaned up: the sink would be gone by then.
        with contextlib.suppress(pa.ArrowException, OSError, ValueError):
            stream.close()


def _options(schema: pa.Schema) -> dict[str, Any]:
    """Return the writer's options: images are stored as they are, as compression gains nothing."""
    images = image_columns(schema)
    if not images:
        return {"compression": "zstd"}
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    leaves = [columns.column(i).path for i in range(len(columns))]
    pictures = {f"{name}.bytes" for name in images}
    unique = {"aug_id", *(f"{name}.path" for name in images)}  # a dictionary would hold them all
    rest = [leaf for leaf in leaves if leaf not in pictures]
    return {
        "compression": {leaf: "NONE" if leaf in pictures else "zstd" for leaf in leaves},
        "use_dictionary": [leaf for leaf in rest if leaf not in unique],
        "write_statistics": rest,
        # Small pages stay in the processor's cache while they are built, hashed and written.
        "data_page_size": IMAGE_PAGE_BYTES,
        "write_batch_size": IMAGE_BATCH_ROWS,
    }


def is_writable(kind: pa.DataType) -> bool:
    """Tell whether Parquet holds values of a type."""
    try:
        pq.write_table(pa.table({"x": pa.nulls(0, kind)}), pa.BufferOutputStream())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return False
    return True
