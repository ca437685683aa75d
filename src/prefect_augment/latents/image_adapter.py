"""Images, as uses of a model's latents read, write and show them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Bool, Float, Float32, Images, Int
from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.pixels import decode_image, image_bytes
from prefect_augment.figures.image_grid import (
    N_COLUMNS,
    code_images,
    heat_images,
    rows_sheet,
    strip_sheet,
)
from prefect_augment.genmodels.base import MapsAnomalies
from prefect_augment.latents.adapter import TableView, View
from prefect_augment.latents.base import Job, suffixes
from prefect_augment.latents.capabilities import Ability
from prefect_augment.loading.latents import ERROR_MAP
from prefect_augment.schema import ShardInfo
from prefect_augment.shards.base import label_names

BATCH = 256  # images whose maps are in memory
MAX_SHOWN = 8  # strengths of a shift


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

    # --- where an image is anomalous ---

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
        errors: Float32 = _squares(X, self._best(X)).mean(axis=3).astype(np.float32)
        return errors

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

    # --- pictures ---

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
    fitted, encoder = job.load(ability)
    if isinstance(encoder, ImageEncoder):
        return ImageView(job, fitted, encoder)
    return TableView(job, fitted, encoder)


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
    difference: Float = (X.astype(np.float64) - decoded) / 255
    return difference**2
