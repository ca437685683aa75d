"""Records of numpy, pandas, polars, Arrow or lists as Arrow tables, and back in the same form.

pandas and polars are imported only when one of their objects comes in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Array, Int
from prefect_augment.encoding.values import plain
from prefect_augment.errors import SchemaError

Kind = Literal["numpy", "list", "pandas", "polars", "arrow"]


@dataclass(frozen=True)
class Layout:
    """The container of some records, to return others in the same one."""

    kind: Kind
    names: tuple[str, ...]  # of the Arrow columns; x0, x1 … for arrays
    columns: Any  # pandas' index of columns, else names
    dtypes: tuple[Any, ...]  # per column, as the container writes them
    missing: tuple[Any, ...]  # per column of Python objects: how it writes a missing value

    @classmethod
    def of(cls, X: Any) -> "Layout":
        """Return the layout of ``X``: a list of lists, a 2-D array, or a pandas, polars or Arrow frame.

        Raises SchemaError for duplicate column names or a lazy frame.
        """
        kind = kind_of(X)
        if kind in ("numpy", "list"):
            X = _as_matrix(X)
            names = tuple(f"x{j}" for j in range(X.shape[1]))
            missing = tuple(_missing(X[:, j]) for j in range(X.shape[1]))
            return cls(kind, names, names, (X.dtype,) * X.shape[1], missing)
        names = tuple(map(str, X.column_names if kind == "arrow" else X.columns))
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise SchemaError(
                f"columns {twice} occur more than once; give each its own name.", columns=twice
            )
        if kind in ("arrow", "polars"):
            types = tuple(X.schema if kind == "arrow" else X.schema.values())
            return cls(kind, names, names, types, (None,) * len(names))
        dtypes = tuple(X.dtypes)
        missing = tuple(
            _missing(X.iloc[:, j].to_numpy()) if _is_object(dtype) else None
            for j, dtype in enumerate(dtypes)
        )
        return cls(kind, names, X.columns, dtypes, missing)

    def with_classes(self, X: Any, names: Sequence[str], codes: Int) -> tuple[pa.Table, str]:
        """Return records as an Arrow table with their classes as the last column, and its name."""
        table, label = self.to_arrow(X), "class"
        while label in table.column_names:
            label += "_"
        labels = pa.array(names, pa.string()).take(pa.array(codes))
        return table.append_column(pa.field(label, labels.type, nullable=False), labels), label

    def to_arrow(self, X: Any) -> pa.Table:
        """Return records of this layout as an Arrow table; raises SchemaError for a column of mixed types."""
        if self.kind == "arrow":
            return X
        if self.kind == "polars":
            return X.to_arrow().rename_columns(list(self.names))
        if self.kind == "list":
            X = _as_matrix(X)
        fields, columns = [], []
        for j, name in enumerate(self.names):
            column = X.iloc[:, j] if self.kind == "pandas" else X[:, j]
            values = (
                _from_pandas(column, name) if self.kind == "pandas" else _from_numpy(column, name)
            )
            # A whole number, a truth value or a text of fixed width has no way to be missing.
            nullable = self.kind == "pandas" or self.dtypes[j].kind in "fO"
            fields.append(pa.field(name, values.type, nullable=nullable))
            columns.append(values)
        return pa.table(columns, schema=pa.schema(fields))

    def from_arrow(self, table: pa.Table) -> Any:
        """Return an Arrow table with the types of :meth:`to_arrow` in this layout; pandas' index counts from 0."""
        table = table.select(list(self.names))
        if self.kind == "arrow":
            return table.cast(pa.schema(list(self.dtypes)))
        if self.kind == "polars":
            import polars as pl

            frame: Any = pl.from_arrow(table)
            return frame.cast(dict(zip(self.names, self.dtypes, strict=True)))
        if self.kind == "pandas":
            import pandas as pd

            series = {
                j: _as_series(column, dtype, missing)
                for j, (column, dtype, missing) in enumerate(
                    zip(table.columns, self.dtypes, self.missing, strict=True)
                )
            }
            frame = pd.DataFrame(series, index=pd.RangeIndex(table.num_rows))
            frame.columns = self.columns
            return frame
        has_width = self.dtypes[0].kind in "US"  # new texts may be longer than those there are
        X = np.empty(
            (table.num_rows, len(self.names)), dtype=object if has_width else self.dtypes[0]
        )
        for j, (column, missing) in enumerate(zip(table.columns, self.missing, strict=True)):
            X[:, j] = (
                _as_objects(column, missing) if X.dtype == object else np.asarray(column.to_numpy())
            )
        if self.kind == "list":
            return X.tolist()
        return X.astype(self.dtypes[0].kind) if has_width else X

    def join(self, X: Any, copies: Int, new: pa.Table) -> Any:
        """Return ``X``, then its rows ``copies`` (indices) again, then the ``new`` ones."""
        rest = self.from_arrow(new)
        if self.kind == "list":
            return [*X, *(X[i] for i in copies), *rest]
        if self.kind == "numpy":
            X = np.asarray(X)
            return np.concatenate([X, X[copies], rest])
        if self.kind == "arrow":
            return pa.concat_tables([X, _taken(X, copies), rest])
        if self.kind == "polars":
            import polars as pl

            return pl.concat([X, X[copies.tolist()], rest])
        import pandas as pd

        return pd.concat([X, X.iloc[copies], rest], ignore_index=True)


def _as_matrix(X: Any) -> Array:
    """Return an array; lists that hold more than numbers become an array of Python objects.

    numpy would make one type of all columns, and turn numbers beside texts into texts.
    """
    matrix = np.asarray(X)
    if not isinstance(X, list | tuple) or matrix.dtype.kind in "biufc" or matrix.ndim != 2:
        return matrix
    cells = np.empty(matrix.shape, dtype=object)
    for i, row in enumerate(X):
        cells[i, :] = row
    return cells


def take_rows(values: Any, rows: Int) -> Any:
    """Return some rows of labels, held as they are: list, array, series or frame."""
    if isinstance(values, list):
        return [values[i] for i in rows]
    if hasattr(values, "iloc"):
        return values.iloc[rows].reset_index(drop=True)
    if isinstance(values, pa.Array | pa.ChunkedArray | pa.Table):
        return _taken(values, rows)
    if kind_of(values) == "polars":
        return values[rows.tolist()]
    return np.asarray(values)[rows]


def _taken(values: Any, rows: Int) -> Any:
    """Return some rows of Arrow records or labels; Arrow takes none of views and run ends."""
    if isinstance(values, pa.Table):
        columns = [_taken(column, rows) for column in values.columns]
        return pa.table(columns, schema=values.schema)
    if pa.types.is_run_end_encoded(values.type):
        taken = plain(values).take(pa.array(rows))
        return pc.run_end_encode(taken, run_end_type=values.type.run_end_type)
    if pa.types.is_string_view(values.type) or pa.types.is_binary_view(values.type):
        return plain(values).take(pa.array(rows)).cast(values.type)
    return values.take(pa.array(rows))


def kind_of(X: Any) -> Kind:
    """Return the kind of container that holds the records; raises SchemaError for a lazy frame."""
    package = type(X).__module__.partition(".")[0]
    if package == "polars":
        if not hasattr(X, "to_arrow"):
            raise SchemaError(
                "X is a lazy frame of polars, whose rows are not there; collect() it."
            )
        return "polars"
    if isinstance(X, pa.Table):
        return "arrow"
    if hasattr(X, "iloc"):
        return "pandas"
    return "list" if isinstance(X, list | tuple) else "numpy"


def _is_object(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind == "O"


def _missing(values: Any) -> Any:
    """Return how Python objects write a missing value: the first one's way, else NaN."""
    if not _is_object(getattr(values, "dtype", None)):
        return None
    for value in values:
        if value is None or (value != value and isinstance(value, float)):
            return value
    return float("nan")


def _from_numpy(column: Array, name: str) -> pa.Array:
    if column.dtype.kind == "f" and column.dtype.itemsize not in (4, 8):
        column = column.astype(np.float32 if column.dtype.itemsize == 2 else np.float64)
    if column.dtype.kind in "OU":
        return _inferred(column.tolist(), name)
    return pa.array(np.ascontiguousarray(column))


def _from_pandas(column: Any, name: str) -> pa.Array:
    dtype = column.dtype
    if hasattr(dtype, "subtype") and hasattr(column, "sparse"):
        column = column.sparse.to_dense()
    if _is_object(dtype):
        return _inferred(column.tolist(), name)
    if _has_ranges(dtype):
        column = column.cat.rename_categories(list(map(str, dtype.categories)))
    values = pa.array(column, from_pandas=True)
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _has_ranges(dtype: Any) -> bool:
    """Tell whether these are categories that Arrow has no values for: intervals (pandas.cut), periods."""
    of = getattr(getattr(dtype, "categories", None), "dtype", None)
    return type(of).__name__ in ("IntervalDtype", "PeriodDtype")


def _inferred(values: Sequence[Any], name: str) -> pa.Array:
    """Return Python objects as one Arrow array, None and NaN as null."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as exc:
        raise SchemaError(
            f"column {name!r} holds values of several types: {exc}; make them one type, e.g. all text.",
            column=name,
        ) from exc


def _as_series(column: pa.ChunkedArray, dtype: Any, missing: Any) -> Any:
    """Return an Arrow column as a pandas series of that dtype."""
    import pandas as pd

    if _is_object(dtype):
        return pd.Series(_as_objects(column, missing), dtype=object)
    if _has_ranges(dtype):
        code = {str(category): k for k, category in enumerate(dtype.categories)}
        codes = [code.get(text, -1) for text in column.to_pylist()]
        return pd.Series(pd.Categorical.from_codes(codes, dtype=dtype))
    if hasattr(dtype, "__from_arrow__"):  # Int64, string, timestamps with a zone, ArrowDtype …
        return pd.Series(dtype.__from_arrow__(column))
    return column.to_pandas().astype(dtype)


def _as_objects(column: pa.ChunkedArray, missing: Any) -> Array:
    objects = np.empty(len(column), dtype=object)
    objects[:] = [missing if value is None else value for value in column.to_pylist()]
    return objects
