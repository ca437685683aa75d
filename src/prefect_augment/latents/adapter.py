"""A trained model and the records that it is applied to, as the uses of latents read, write and show them.

The uses are written once, over :class:`View`. Its two kinds are :class:`TableView` and :class:`ImageView`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.array_types import Array, Bool, Float, Float32, Images, Int
from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.labels import label_text
from prefect_augment.encoding.pixels import decode_image, image_bytes
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import DivergedError
from prefect_augment.figures.image_grid import (
    N_COLUMNS,
    code_images,
    heat_images,
    rows_sheet,
    strip_sheet,
)
from prefect_augment.genmodels.base import MapsAnomalies
from prefect_augment.latents.base import Job, Strata, suffixes
from prefect_augment.latents.capabilities import Ability, check_able
from prefect_augment.loading.latents import ERROR_MAP
from prefect_augment.schema import ShardInfo
from prefect_augment.shards.base import label_names
from prefect_augment.synthesis.model_store import Encoder, load_model

BATCH = 256  # images whose maps are in memory
MAX_SHOWN = 8  # strengths of a shift


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
    return np.array(label_text(table[column]).to_pylist(), dtype=object)


@dataclass(frozen=True)
class TableView(View):
    """A table's records are shown as rows, so there are no pictures."""

    encoder: TableEncoder

    def decode(
        self, X: Float, codes: Int, ids: Sequence[str], like: pa.Table | None = None
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
        rmse = explained = None
        if both := sums["n_both"]:
            mse = sums["sum_squared_errors"] / both
            variance = sums["sum_squares"] / both - (sums["sum"] / both) ** 2
            rmse = mse**0.5
            explained = 1 - mse / variance if variance > 0 else None
        return {"rmse": rmse, "explained": explained, "one_missing": sums["n_one_missing"] / n}


def _difference(x: Float, decoded: Float, *, category: bool) -> tuple[Float, dict[str, float]]:
    missing, lacks = np.isnan(x), np.isnan(decoded)
    if category:
        wrong = (x != decoded) & ~(missing & lacks)
        return wrong.astype(np.float64), {"n": len(x), "n_right": int((~wrong).sum())}
    error = np.where(missing & lacks, 0.0, np.abs(x - decoded))
    both = ~missing & ~lacks
    return error, {
        "n": len(x),
        "n_both": int(both.sum()),
        "n_one_missing": int((missing != lacks).sum()),
        "sum": float(x[both].sum()),
        "sum_squares": float((x[both] ** 2).sum()),
        "sum_squared_errors": float((error[both] ** 2).sum()),
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


@dataclass(frozen=True)
class ImageView(View):
    """Images are compared at the model's resolution, and shown."""

    encoder: ImageEncoder

    @property
    def where_columns(self) -> tuple[str, ...]:
        """The image."""
        return (self.encoder.column,)

    def decode(
        self, X: Images, codes: Int, ids: Sequence[str], like: pa.Table | None = None
    ) -> pa.Table:
        """Return decoded records as PNG."""
        names = [self.encoder.strata[k] for k in codes.tolist()]
        table = self.encoder.decode(X, strata=names, aug_ids=ids, like=like)
        return table.select([self.encoder.column, self.encoder.label, *self.encoder.by])

    def compare(
        self, X: Images, table: pa.Table, decoded: pa.Table, head: Mapping[str, Any]
    ) -> tuple[pa.Table, dict[str, Any]]:
        """Return mean squared errors at the model's resolution, white being 1."""
        name = self.encoder.column
        second, third = suffixes([name, *head])
        error = _squares(X, self.encoder.encode(decoded)).reshape(len(X), -1).mean(axis=1)
        columns = {name: table[name], name + second: decoded[name], name + third: error}
        sums = {name: {"n": len(X), "mse": float(error.sum())}}
        return pa.table({**head, **columns}), sums

    def summary(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return the mean squared error."""
        return {"mse": sums["mse"] / sums["n"]}

    def where(self, table: pa.Table, flagged: Bool) -> dict[str, pa.Array]:
        """Return the map of every flagged record, row by row at the model's resolution, else null."""
        size = self.encoder.size**2
        rows = np.flatnonzero(flagged)
        parts = [np.empty(0, dtype=np.float32)]
        for start in range(0, len(rows), BATCH):
            some = table.take(pa.array(rows[start : start + BATCH]))
            parts.append(self.maps(self.encoder.encode(some)).ravel())
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(parts)), size)
        places = np.cumsum(flagged) - 1
        return {ERROR_MAP: values.take(pa.array(places, mask=~flagged))}

    def maps(self, X: Images) -> Float32:
        """Return anomaly maps, shape (n, size, size): the model's own, else its squared errors."""
        if isinstance(self.fitted, MapsAnomalies):
            return np.asarray(self.fitted.anomaly_maps(X), dtype=np.float32)
        return np.asarray(_squares(X, self._best(X)).mean(axis=3), dtype=np.float32)

    def _best(self, X: Images) -> Images:
        """Return reconstructions, each as the stratum with the smallest error."""
        Z, best = self.fitted.embed(X), np.empty_like(X)
        least = np.full(len(X), np.inf)
        for k in range(len(self.encoder.strata)):
            decoded = self.fitted.decode_latents(Z, np.full(len(X), k, dtype=np.int64))
            error = _squares(X, decoded).reshape(len(X), -1).mean(axis=1)
            better = error < least
            best[better], least[better] = decoded[better], error[better]
        return best

    def codes_picture(self) -> bytes:
        """Draw some records, their vectors and their reconstructions."""
        records, _ = some_records(self.job, [*self.where_columns, *self.encoder.by])
        X = self.encoder.encode(records)
        codes = self.strata.codes(records)
        Z = self.fitted.embed(X)
        decoded = self._best(X)  # for classes that the model does not know
        if (codes >= 0).any():
            decoded[codes >= 0] = self.fitted.decode_latents(Z[codes >= 0], codes[codes >= 0])
        rows = [("original", X), (f"code: {Z.shape[1]} numbers", code_images(Z)),
                ("reconstruction", decoded)]  # fmt: skip
        return rows_sheet("Original, code, reconstruction", rows)

    def strange_picture(self, ids: Sequence[str]) -> bytes:
        """Draw the validation records with these ids, in their order."""
        shards = [shard for shard in self.job.shards if shard.split == "validation"]
        X = self.encoder.encode(_records_named(self.job, ids, shards, self.where_columns))
        rows = [("as they are, the strangest first", X),
                ("as the model would have them", self._best(X)),
                ("where they are strange", heat_images(self.maps(X)))]  # fmt: skip
        return rows_sheet("The strangest of validation records", rows)

    def strip_picture(self, strip: pa.Table) -> bytes:
        """Draw the steps, with the two records first and last."""
        column = strip[self.encoder.column]
        longest = 2 * self.encoder.size
        images = [decode_image(data, at_least=longest) for data in image_bytes(column)]
        return strip_sheet("From one to the other", images)

    def shift_picture(
        self,
        title: str,
        ids: Sequence[str],
        shifted: Callable[[pa.Table], Sequence[tuple[str, Images]]],
    ) -> bytes:
        """Draw a row per strength below the records as they are."""
        shards = [shard for shard in self.job.shards if shard.split == self.job.shown_part]
        columns = [*self.where_columns, self.encoder.label, *self.encoder.by]
        records = _records_named(self.job, ids, shards, columns)
        all_rows = shifted(records)
        shown = np.unique(np.rint(np.linspace(0, len(all_rows) - 1, MAX_SHOWN)).astype(int))
        rows = [("as they are", self.encoder.encode(records))]
        rows += [all_rows[i] for i in shown.tolist()]
        return rows_sheet(title, rows)


def open_view(job: Job, ability: Ability) -> View:
    """Return the view of a job's records by its model; ParameterError if the model lacks the ability."""
    fitted, encoder = load_model(job.store, job.model)
    check_able(fitted, job.model.kind, ability, modality=job.info.modality)
    if isinstance(encoder, ImageEncoder):
        return ImageView(job, fitted, encoder)
    # Of real records, whose values it may write.
    return TableView(job, fitted, encoder.guarding(None))


def some_records(job: Job, columns: Sequence[str], *, n: int = N_COLUMNS) -> tuple[pa.Table, str]:
    """Return a few records of the shown part, and that part.

    Classes take turns; of each, those with the lowest ids, which are hashes: a sample without a seed.
    """
    part = job.shown_part
    shards = [shard for shard in job.shards if shard.split == part]
    label = job.info.label
    kept: dict[str, list[str]] = {}
    for table in job.tables(shards, ["aug_id", label]):  # images are read later
        names = np.array(label_names(table[label]), dtype=object)
        ids = np.array(table["aug_id"].to_pylist(), dtype=object)
        for name in dict.fromkeys(names.tolist()):
            kept[name] = sorted([*kept.get(name, []), *ids[names == name]])[:n]
    turns = sorted((place, name) for name, own in kept.items() for place in range(len(own)))
    shown = [kept[name][place] for name, place in sorted((n, p) for p, n in turns[:n])]
    return _records_named(job, shown, shards, [label, *columns]), part


def _records_named(
    job: Job, ids: Sequence[str], shards: Sequence[ShardInfo], columns: Sequence[str]
) -> pa.Table:
    """Return the records with these ids, in their order; stops reading when all are there."""
    requested, by_id = pa.array(ids, pa.string()), dict[str, pa.Table]()
    for table in job.tables(shards, [*dict.fromkeys(["aug_id", *columns])]):
        matches = table.filter(pc.is_in(table["aug_id"], requested))
        # Copies, so that the tables are freed.
        by_id |= {matches["aug_id"][i].as_py(): matches.take([i]) for i in range(matches.num_rows)}
        if len(by_id) == len(ids):
            break
    return pa.concat_tables([by_id[i] for i in ids]).unify_dictionaries()


def _squares(X: Images, decoded: Images) -> Float:
    """Return squared differences of images, white being 1."""
    return ((X.astype(np.float64) - decoded) / 255) ** 2
