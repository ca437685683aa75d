"""A trained model and the records that it is applied to, as the uses of latents read, write and show them.

The uses are written once, over :class:`View`. Its two kinds are :class:`TableView` and
:class:`~prefect_augment.latents.image_adapter.ImageView`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.array_types import Array, Bool, Float, Int
from prefect_augment.encoding.labels import label_text
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import DivergedError
from prefect_augment.latents.base import Job, Strata, suffixes
from prefect_augment.schema import ShardInfo
from prefect_augment.synthesis.model_store import Encoder


@dataclass(frozen=True)
class View(ABC):
    """A fitted model, its encoder and the job; what differs between tables and images. A picture may be empty."""

    job: Job
    fitted: Any
    encoder: Encoder

    @cached_property
    def strata(self) -> Strata:
        """The model's strata and their classes."""
        return Strata(self.encoder)

    # --- vectors ---

    def finite(self, values: Array, what: str) -> Array:
        """Return the values; DivergedError if some are not finite."""
        if not np.isfinite(values).all():
            n = int((~np.isfinite(values)).reshape(len(values), -1).any(axis=1).sum())
            raise DivergedError(
                f"model {self.job.model.kind!r} gives {what} that are not finite for {n} of {len(values)} records; "
                "train it with another seed or a lower learning rate."
            )
        return values

    def vectors(self, table: pa.Table) -> Float:
        """Return the latent vectors of records, shape (n, n_latent); DivergedError if one is not finite."""
        Z: Array = self.fitted.embed(self.encoder.encode(table))
        return self.finite(Z, "vectors").astype(np.float64)

    def vectors_by(
        self, column: str, values: Sequence[str], shards: Sequence[ShardInfo]
    ) -> Iterator[tuple[str, pa.Table, Float]]:
        """Yield each value with some of its records and their vectors."""
        for table in self.job.tables(shards):
            own = column_values(table, column)
            for value in values:
                rows = np.flatnonzero(own == value)
                if len(rows):
                    records = table.take(pa.array(rows))
                    yield value, records, self.vectors(records)

    def vector_means(self, column: str, values: Sequence[str]) -> dict[str, Float]:
        """Return the mean vector, shape (n_latent,), of the learnt records of each value that has some."""
        sums: dict[str, Float] = {}
        counts = dict.fromkeys(values, 0)
        for value, _, Z in self.vectors_by(column, values, self.job.learnt_shards):
            sums[value] = sums.get(value, np.zeros(Z.shape[1])) + Z.sum(axis=0)
            counts[value] += len(Z)
        return {value: total / counts[value] for value, total in sums.items()}

    # --- records ---

    @abstractmethod
    def decode(
        self, X: Array, codes: Int, ids: Sequence[str], like: pa.Table | None = None
    ) -> pa.Table:
        """Return decoded records of these strata: the model's columns, then label and ``by``.

        ``like`` are the records that they were decoded from, in turn, one or several times each.
        """

    @abstractmethod
    def compare(
        self, X: Array, table: pa.Table, decoded: pa.Table, head: Mapping[str, Any]
    ) -> tuple[pa.Table, dict[str, Any]]:
        """Return originals beside their reconstructions and errors, and additive numbers per column."""

    @abstractmethod
    def summary(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return how well a column is reconstructed, from its added numbers."""

    @property
    def where_columns(self) -> tuple[str, ...]:
        """Columns of the source that :meth:`where` reads."""
        return ()

    def where(self, table: pa.Table, flagged: Bool) -> dict[str, pa.Array]:
        """Return further columns of anomalies: where in a flagged record the anomaly is."""
        return {}

    # --- pictures ---

    def codes_picture(self) -> bytes:
        """Draw some records, their vectors and their reconstructions."""
        return b""

    def strange_picture(self, ids: Sequence[str]) -> bytes:
        """Draw these records, their reconstructions, and where the anomalies are."""
        return b""

    def strip_picture(self, strip: pa.Table) -> bytes:
        """Draw the records of an interpolation."""
        return b""

    def shift_picture(
        self,
        title: str,
        ids: Sequence[str],
        shifted: Callable[[pa.Table], Sequence[tuple[str, Array]]],
    ) -> bytes:
        """Draw some records, and below them the titled rows that ``shifted`` returns."""
        return b""


def column_values(table: pa.Table, column: str) -> NDArray[np.object_]:
    """Return each record's value of a column as text; None if missing."""
    values: NDArray[np.object_] = np.array(label_text(table[column]).to_pylist(), dtype=object)
    return values


@dataclass(frozen=True)
class TableView(View):
    """A table's records are shown as rows, so there are no pictures."""

    encoder: TableEncoder

    def decode(
        self,
        X: Float,
        codes: Int,
        ids: Sequence[str],
        like: pa.Table | None = None,
    ) -> pa.Table:
        """Return decoded records; ``like`` has no influence on a table's values."""
        names = [self.encoder.strata[k] for k in codes.tolist()]
        shown = {*self.encoder.names, self.encoder.label, *self.encoder.by}
        return self.encoder.decode(X.astype(np.float64), strata=names, columns=[*shown])

    def compare(
        self, X: Float, table: pa.Table, decoded: pa.Table, head: Mapping[str, Any]
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


def _difference(x: Float, decoded: Float, *, category: bool) -> tuple[Float, dict[str, float]]:
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
