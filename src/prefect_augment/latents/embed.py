"""Embed: a vector per record beside the dataset, and mean vectors by the value of a column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Array, Float
from prefect_augment.figures.latent_charts import Cloud, cloud_chart
from prefect_augment.latents.base import Job, Progress, head
from prefect_augment.latents.image_adapter import open_view
from prefect_augment.loading.latents import VECTOR, vectors_of
from prefect_augment.schema import LatentRef, ShardInfo
from prefect_augment.shards.base import label_names
from prefect_augment.shards.staged import iter_shards

SHOWN_PER_CLASS = 250


def embed(job: Job, params: None, on_progress: Progress | None) -> LatentRef:
    """Write the latent vector of every record, computed without its label.

    The Parquet has ``aug_id``, the label, ``aug_split``, ``aug_origin`` and ``embedding`` (fixed_size_list of
    float32), in the records' order. Raises ParameterError for a model without latents, and DivergedError for
    a vector that is not finite.
    """
    view = open_view(job, "latents")

    def make(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        columns = head(table, job.info.label, shard, (VECTOR,))
        return pa.table({**columns, VECTOR: vector_column(view.vectors(table))}), {}

    shards, _ = job.each_shard(make, on_progress)
    n_latent = int(view.fitted.n_latent)
    cloud = _cloud(job, shards, n_latent)
    return job.finish(
        shards,
        summary={"n_latent": n_latent, "plane_share": round(cloud.share, 6)},
        pictures=job.folder.put_pictures(cloud_chart(cloud), view.codes_picture()),
    )


def vector_column(Z: Array) -> pa.FixedSizeListArray:
    """Return vectors, shape (n, n_latent), as a column; inverse of :func:`.vectors_of`."""
    flat = pa.array(np.ascontiguousarray(Z, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, Z.shape[1])


# --- the picture ------------------------------------------------------------------------------


@dataclass
class _Moments:
    """Number, mean and scatter of vectors that come in batches (Chan et al. 1979)."""

    n: int
    mean: Float
    scatter: Float

    def add(self, Z: Float) -> None:
        n, mean = len(Z), Z.mean(axis=0)
        delta, total = mean - self.mean, self.n + n
        self.scatter += (Z - mean).T @ (Z - mean) + np.outer(delta, delta) * self.n * n / total
        self.mean = self.mean + delta * n / total
        self.n = total


@dataclass
class _Shown:
    """The records of a class with the lowest ids, which are hashes: a sample without a seed."""

    ids: list[str] = field(default_factory=list)
    Z: list[Float] = field(default_factory=list)

    def add(self, ids: Sequence[str], Z: Float) -> None:
        both = sorted(zip([*self.ids, *ids], [*self.Z, *Z], strict=True), key=lambda pair: pair[0])
        self.ids, self.Z = (list(x) for x in zip(*both[:SHOWN_PER_CLASS], strict=True))


def _cloud(job: Job, shards: Sequence[ShardInfo], n_latent: int) -> Cloud:
    """Return a sample of the vectors in the plane of their first two principal axes."""
    moments = _Moments(0, np.zeros(n_latent), np.zeros((n_latent, n_latent)))
    shown: dict[str, _Shown] = {}
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
