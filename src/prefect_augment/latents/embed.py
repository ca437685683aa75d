"""Embed: a vector per record beside the dataset, and mean vectors by the value of a column."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.labels import label_text
from prefect_augment.errors import DivergedError
from prefect_augment.figures.latent_charts import Cloud, cloud_chart
from prefect_augment.latents.adapter import open_view
from prefect_augment.latents.base import Job, Progress, head
from prefect_augment.latents.output import Piece
from prefect_augment.loading.latents import VECTOR, vectors_of
from prefect_augment.schema import LatentRef, ModelRef, ShardInfo
from prefect_augment.shards.base import label_names
from prefect_augment.shards.staged import iter_shards
from prefect_augment.synthesis.model_store import Encoder

__all__ = [
    "column_values",
    "embed",
    "finite",
    "vector_column",
    "vector_means",
    "vectors",
    "vectors_by",
]

SHOWN_PER_CLASS = 250


def embed(job: Job, params: None, on_progress: Progress | None) -> LatentRef:
    """Write the latent vector of every record, computed without its label.

    The Parquet has ``aug_id``, the label, ``aug_split``, ``aug_origin`` and ``embedding`` (fixed_size_list of
    float32), in the records' order. Raises ParameterError for a model without latents, and DivergedError for
    a vector that is not finite.
    """
    fitted, encoder = job.load("latents")

    def make(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        Z = finite(fitted.embed(encoder.encode(table)), "vectors", job.model)
        columns = head(table, job.info.label, shard, (VECTOR,))
        return pa.table({**columns, VECTOR: vector_column(Z)}), {}

    pieces = job.each_shard(make, on_progress)
    shards = [shard for piece in pieces for shard in piece.shards]
    cloud = _cloud(job, pieces, int(fitted.n_latent))
    pictures = cloud_chart(cloud), open_view(job, fitted, encoder).codes_picture()
    return job.finish(
        shards,
        summary={"n_latent": int(fitted.n_latent), "plane_share": round(cloud.share, 6)},
        pictures=job.folder.put_pictures(*pictures),
    )


def finite(values: NDArray[Any], what: str, model: ModelRef) -> NDArray[Any]:
    """Return the values; DivergedError if some are not finite."""
    if not np.isfinite(values).all():
        n = int((~np.isfinite(values)).reshape(len(values), -1).any(axis=1).sum())
        raise DivergedError(
            f"model {model.kind!r} gives {what} that are not finite for {n} of {len(values)} records; "
            "train it with another seed or a lower learning rate."
        )
    return values


def vector_column(Z: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Return vectors, shape (n, n_latent), as a column; inverse of :func:`.vectors_of`."""
    flat = pa.array(np.ascontiguousarray(Z, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, Z.shape[1])


# --- the picture ------------------------------------------------------------------------------


@dataclass
class _Moments:
    """Number, mean and scatter of vectors that come in batches (Chan et al. 1979)."""

    n: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    def add(self, Z: NDArray[np.float64]) -> None:
        n, mean = len(Z), Z.mean(axis=0)
        delta, total = mean - self.mean, self.n + n
        self.scatter += (Z - mean).T @ (Z - mean) + np.outer(delta, delta) * self.n * n / total
        self.mean = self.mean + delta * n / total
        self.n = total


@dataclass
class _Shown:
    """The records of a class with the lowest ids, which are hashes: a sample without a seed."""

    ids: list[str] = field(default_factory=list)
    Z: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, ids: Sequence[str], Z: NDArray[np.float64]) -> None:
        both = sorted(zip([*self.ids, *ids], [*self.Z, *Z], strict=True), key=lambda pair: pair[0])
        self.ids, self.Z = (list(x) for x in zip(*both[:SHOWN_PER_CLASS], strict=True))


def _cloud(job: Job, pieces: Sequence[Piece], n_latent: int) -> Cloud:
    """Return a sample of the vectors in the plane of their first two principal axes."""
    moments = _Moments(0, np.zeros(n_latent), np.zeros((n_latent, n_latent)))
    shown: dict[str, _Shown] = {}
    shards = [shard for piece in pieces for shard in piece.shards]
    for table in iter_shards(job.folder.store, shards):
        Z = vectors_of(table).astype(np.float64)
        moments.add(Z)
        names, ids = np.array(label_names(table[job.info.label]), dtype=object), table["aug_id"]
        for name in dict.fromkeys(names.tolist()):
            rows = np.flatnonzero(names == name)
            first = rows[np.argsort(ids.take(pa.array(rows)).to_numpy())[:SHOWN_PER_CLASS]]
            shown.setdefault(name, _Shown()).add(ids.take(pa.array(first)).to_pylist(), Z[first])
    values, axes = np.linalg.eigh(moments.scatter)
    plane = axes[:, ::-1][:, :2]
    # The sign of an axis is arbitrary; make its largest component positive.
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), range(plane.shape[1])])
    if n_latent == 1:
        plane = np.column_stack([plane, np.zeros(1)])
    total = float(values.sum())
    share = float(values[::-1][:2].sum() / total) if total > 0 else 1.0
    points = {name: (np.array(s.Z) - moments.mean) @ plane for name, s in sorted(shown.items())}
    return Cloud(points, share)


def column_values(table: pa.Table, column: str) -> NDArray[np.object_]:
    """Return each record's value of a column as text; None if missing."""
    values: NDArray[np.object_] = np.array(label_text(table[column]).to_pylist(), dtype=object)
    return values


def vectors(job: Job, fitted: Any, encoder: Encoder, table: pa.Table) -> NDArray[np.float64]:
    """Return the latent vectors of records, shape (n, n_latent); DivergedError if one is not finite."""
    Z: NDArray[Any] = fitted.embed(encoder.encode(table))
    return finite(Z, "vectors", job.model).astype(np.float64)


def vectors_by(
    job: Job,
    fitted: Any,
    encoder: Encoder,
    *,
    column: str,
    values: Sequence[str],
    shards: Sequence[ShardInfo],
) -> Iterator[tuple[str, pa.Table, NDArray[np.float64]]]:
    """Yield each value with some of its records and their vectors."""
    for table in job.tables(shards):
        own = column_values(table, column)
        for value in values:
            rows = np.flatnonzero(own == value)
            if len(rows):
                records = table.take(pa.array(rows))
                yield value, records, vectors(job, fitted, encoder, records)


def vector_means(
    job: Job, fitted: Any, encoder: Encoder, *, column: str, values: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return the mean vector, shape (n_latent,), of the learnt records of each value that has some."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts = dict.fromkeys(values, 0)
    batches = vectors_by(
        job, fitted, encoder, column=column, values=values, shards=job.learnt_shards
    )
    for value, _, Z in batches:
        sums[value] = sums.get(value, np.zeros(Z.shape[1])) + Z.sum(axis=0)
        counts[value] += len(Z)
    return {value: total / counts[value] for value, total in sums.items()}
