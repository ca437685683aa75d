"""Embed: a vector per record beside the dataset, and mean vectors by the value of a column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Array, Float
from prefect_augment.figures.latent_charts import Cloud, cloud_chart
from prefect_augment.latents.adapter import View
from prefect_augment.latents.base import Job, head
from prefect_augment.loading.latents import VECTOR, vectors_of
from prefect_augment.schema import LatentRef, ShardInfo
from prefect_augment.shards.base import label_names
from prefect_augment.shards.staged import iter_shards

SHOWN_PER_CLASS = 250


def embed(view: View, params: None) -> LatentRef:
    """Write the latent vector of every record, computed without its label.

    The Parquet has ``aug_id``, the label, ``aug_split``, ``aug_origin`` and ``embedding`` (fixed_size_list of
    float32), in the records' order. Raises DivergedError for a vector that is not finite.
    """
    job, n_latent = view.job, int(view.fitted.n_latent)

    def make(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        columns = head(table, job.info.label, shard, (VECTOR,))
        return pa.table({**columns, VECTOR: vector_column(view.vectors(table))}), {}

    shards, _ = job.each_shard(make)
    cloud = _cloud(job, shards, n_latent)
    return job.finish(
        shards,
        summary={"n_latent": n_latent, "plane_share": round(cloud.share, 6)},
        pictures=(cloud_chart(cloud), view.codes_picture()),
    )


def vector_column(Z: Array) -> pa.FixedSizeListArray:
    """Return vectors, shape (n, n_latent), as a column; inverse of :func:`.vectors_of`."""
    flat = pa.array(np.ascontiguousarray(Z, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, Z.shape[1])


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


def _cloud(job: Job, shards: Sequence[ShardInfo], n_latent: int) -> Cloud:
    """Return a sample of the vectors in the plane of their first two principal axes."""
    moments = _Moments(0, np.zeros(n_latent), np.zeros((n_latent, n_latent)))
    # Of each class the records with the lowest ids, which are hashes: a sample without a seed.
    shown: dict[str, dict[str, Float]] = {}
    for table in iter_shards(job.folder.store, shards):
        Z = vectors_of(table).astype(np.float64)
        moments.add(Z)
        names, ids = label_names(table[job.info.label]), table["aug_id"].to_pylist()
        for name, aug_id, z in zip(names, ids, Z, strict=True):
            shown.setdefault(name, {})[aug_id] = z
        for name, own in shown.items():  # copies, so that the batch is freed
            shown[name] = {i: own[i].copy() for i in sorted(own)[:SHOWN_PER_CLASS]}
    values, axes = np.linalg.eigh(moments.scatter)
    plane = axes[:, ::-1][:, :2]
    # The sign of an axis is arbitrary; make its largest component positive.
    plane = plane * np.sign(plane[np.abs(plane).argmax(axis=0), range(plane.shape[1])])
    if n_latent == 1:
        plane = np.column_stack([plane, np.zeros(1)])
    total = float(values.sum())
    share = float(values[::-1][:2].sum() / total) if total > 0 else 1.0
    points = {
        name: (np.array([*own.values()]) - moments.mean) @ plane
        for name, own in sorted(shown.items())
    }
    return Cloud(points, share)
