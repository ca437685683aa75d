"""Tables, as uses of a model's latents read, write and show them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.latents.base import suffixes

__all__ = ["TableView"]


@dataclass(frozen=True)
class TableView:
    """See :class:`.adapter.View`. A table's records are shown as rows, so there are no pictures."""

    encoder: TableEncoder

    @property
    def where_columns(self) -> tuple[str, ...]:
        """No column: the errors of the reconstruction show which column is anomalous."""
        return ()

    def decode(
        self,
        X: NDArray[np.float64],
        codes: NDArray[np.int64],
        ids: Sequence[str],
        like: pa.Table | None = None,
    ) -> pa.Table:
        """Return decoded records; ``like`` has no influence on a table's values."""
        names = [self.encoder.strata[k] for k in codes.tolist()]
        shown = {*self.encoder.names, self.encoder.label, *self.encoder.by}
        return self.encoder.decode(X.astype(np.float64), strata=names, columns=[*shown])

    def compare(
        self, X: NDArray[np.float64], table: pa.Table, decoded: pa.Table, head: Mapping[str, Any]
    ) -> tuple[pa.Table, dict[str, Any]]:
        """Return the columns ``x``, ``x_reconstructed`` and ``x_error`` of each learnt column ``x``."""
        X_decoded = self.encoder.encode(decoded)  # snapped to the columns' domains
        columns: dict[str, Any] = dict(head)
        entries, sums = {}, {}
        second, third = suffixes([*self.encoder.names, *head])
        fields = [pa.field(name, column.type) for name, column in head.items()]
        for j, name in enumerate(self.encoder.names):
            is_category = bool(self.encoder.is_category[j])
            error, sums[name] = _difference(X[:, j], X_decoded[:, j], category=is_category)
            for suffix, column in (("", table[name]), (second, decoded[name])):
                columns[name + suffix] = column
                entries[name + suffix] = name
                fields.append(pa.field(name + suffix, column.type))
            columns[name + third] = pa.array(error, pa.float64(), from_pandas=True)
            fields.append(pa.field(name + third, pa.float64()))
        compared = pa.table(list(columns.values()), schema=pa.schema(fields))
        return _with_pandas_dtypes(compared, self.encoder, entries), sums

    def summary(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return the share of right categories, or the explained variance of numbers."""
        n = sums["n"]
        if "n_right" in sums:
            return {"right": sums["n_right"] / n}
        both = sums["n_both"]
        if not both:
            return {"rmse": None, "explained": None, "one_missing": sums["n_one_missing"] / n}
        mse = sums["sum_squared_errors"] / both
        variance = sums["sum_squares"] / both - (sums["sum"] / both) ** 2
        return {
            "rmse": mse**0.5,
            "explained": 1 - mse / variance if variance > 0 else None,
            "one_missing": sums["n_one_missing"] / n,
        }

    def where(self, table: pa.Table, flagged: NDArray[np.bool_]) -> dict[str, pa.Array]:
        """Return no further columns."""
        return {}

    def codes_picture(self) -> bytes:
        """Return no picture."""
        return b""

    def strange_picture(self, ids: Sequence[str]) -> bytes:
        """Return no picture."""
        return b""

    def strip_picture(self, strip: pa.Table) -> bytes:
        """Return no picture."""
        return b""

    def shift_picture(
        self,
        title: str,
        ids: Sequence[str],
        shifted: Callable[[pa.Table], Sequence[tuple[str, NDArray[Any]]]],
    ) -> bytes:
        """Return no picture."""
        return b""


def _difference(
    x: NDArray[np.float64], decoded: NDArray[np.float64], *, category: bool
) -> tuple[NDArray[np.float64], dict[str, float]]:
    one_missing = np.isnan(x) != np.isnan(decoded)
    both_missing = np.isnan(x) & np.isnan(decoded)
    if category:
        wrong = (x != decoded) & ~both_missing
        return wrong.astype(np.float64), {"n": len(x), "n_right": int((~wrong).sum())}
    error = np.where(both_missing, 0.0, np.abs(x - decoded))
    both = ~np.isnan(x) & ~np.isnan(decoded)
    values, squares = x[both], error[both] ** 2
    return error, {
        "n": len(x),
        "n_both": int(both.sum()),
        "n_one_missing": int(one_missing.sum()),
        "sum": float(values.sum()),
        "sum_squares": float((values**2).sum()),
        "sum_squared_errors": float(squares.sum()),
    }


def _with_pandas_dtypes(
    table: pa.Table, encoder: TableEncoder, entries: Mapping[str, str]
) -> pa.Table:
    """Give columns the pandas dtypes of the source, if its schema has them."""
    try:
        metadata = json.loads((encoder.schema.metadata or {})[b"pandas"])
        known = {c.get("field_name", c["name"]): c for c in metadata["columns"]}
    except (KeyError, ValueError, TypeError):
        return table
    columns = [
        {**known[source], "name": name, "field_name": name}
        for name, source in {**entries, encoder.label: encoder.label}.items()
        if source in known
    ]
    kept = {**metadata, "index_columns": [], "column_indexes": [], "columns": columns}
    return table.replace_schema_metadata({b"pandas": json.dumps(kept).encode()})
