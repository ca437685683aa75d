"""Tables, as uses of a model's latents read, write and show them."""

from __future__ import annotations

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
    """See :class:`.latent_view.View`. A table's records are shown as rows, so there is no picture."""

    encoder: TableEncoder

    @property
    def where_columns(self) -> tuple[str, ...]:
        """None: in which column a record is strange, its reconstruction's errors say."""
        return ()

    def made(
        self,
        X: NDArray[np.float64],
        codes: NDArray[np.int64],
        ids: Sequence[str],
        like: pa.Table | None = None,
    ) -> pa.Table:
        """Return made records; what they were made from is nothing to a table's values."""
        names = [self.encoder.strata[k] for k in codes.tolist()]
        shown = {*self.encoder.names, self.encoder.label, *self.encoder.by}
        return self.encoder.decode(X.astype(np.float64), strata=names, columns=[*shown])

    def compared(
        self,
        X: NDArray[np.float64],
        table: pa.Table,
        made: pa.Table,
        head: Mapping[str, Any],
    ) -> tuple[pa.Table, dict[str, Any]]:
        """Return the columns ``x``, ``x_reconstructed`` and ``x_error`` of each learnt column ``x``."""
        X_made = self.encoder.encode(made)  # as it is shown: snapped to the columns' domains
        columns: dict[str, Any] = dict(head)
        entries, sums = {}, {}
        second, third = suffixes([*self.encoder.names, *head])
        fields = [pa.field(name, column.type) for name, column in head.items()]
        for j, name in enumerate(self.encoder.names):
            error, sums[name] = _difference(
                X[:, j], X_made[:, j], category=bool(self.encoder.is_category[j])
            )
            for suffix, column in (("", table[name]), (second, made[name])):
                columns[name + suffix] = column
                entries[name + suffix] = name
                fields.append(pa.field(name + suffix, column.type))
            columns[name + third] = pa.array(error, pa.float64(), from_pandas=True)
            fields.append(pa.field(name + third, pa.float64()))
        found = pa.table(list(columns.values()), schema=pa.schema(fields))
        return _as_pandas_had_it(found, self.encoder, entries), sums

    def summary(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return the share that is right of categories, the explained variance of numbers."""
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
        """Return no further column."""
        return {}

    def codes_picture(self) -> bytes:
        """Return none."""
        return b""

    def strange_picture(self, ids: Sequence[str]) -> bytes:
        """Return none."""
        return b""

    def strip_picture(self, strip: pa.Table) -> bytes:
        """Return none."""
        return b""

    def shift_picture(
        self,
        title: str,
        ids: Sequence[str],
        shifted: Callable[[pa.Table], Sequence[tuple[str, NDArray[Any]]]],
    ) -> bytes:
        """Return none."""
        return b""


def _difference(
    x: NDArray[np.float64], made: NDArray[np.float64], *, category: bool
) -> tuple[NDArray[np.float64], dict[str, float]]:
    one_missing = np.isnan(x) != np.isnan(made)
    both_missing = np.isnan(x) & np.isnan(made)
    if category:
        wrong = (x != made) & ~both_missing
        return wrong.astype(np.float64), {"n": len(x), "n_right": int((~wrong).sum())}
    error = np.where(both_missing, 0.0, np.abs(x - made))
    both = ~np.isnan(x) & ~np.isnan(made)
    values, squares = x[both], error[both] ** 2
    return error, {
        "n": len(x),
        "n_both": int(both.sum()),
        "n_one_missing": int(one_missing.sum()),
        "sum": float(values.sum()),
        "sum_squares": float((values**2).sum()),
        "sum_squared_errors": float(squares.sum()),
    }


def _as_pandas_had_it(
    table: pa.Table, encoder: TableEncoder, entries: Mapping[str, str]
) -> pa.Table:
    """Give columns the dtypes in pandas that the source's had, where the source says them."""
    try:
        found = json.loads((encoder.schema.metadata or {})[b"pandas"])
        known = {c.get("field_name", c["name"]): c for c in found["columns"]}
    except (KeyError, ValueError, TypeError):
        return table
    columns = [
        {**known[source], "name": name, "field_name": name}
        for name, source in {**entries, encoder.label: encoder.label}.items()
        if source in known
    ]
    kept = {**found, "index_columns": [], "column_indexes": [], "columns": columns}
    return table.replace_schema_metadata({b"pandas": json.dumps(kept).encode()})
