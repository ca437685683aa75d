"""Latent vectors by the value of a column: whose they are, and the mean of each value's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.datatypes import ShardFact
from prefect_augment.encoding.labels import label_text
from prefect_augment.stages.embed import finite
from prefect_augment.stages.latents import Job
from prefect_augment.stages.models import Encoder

__all__ = ["column_values", "vector_means", "vectors", "vectors_by"]


def column_values(table: pa.Table, column: str) -> NDArray[np.object_]:
    """Return each record's value of a column as text; None where it is missing."""
    found: NDArray[np.object_] = np.array(label_text(table[column]).to_pylist(), dtype=object)
    return found


def vectors(job: Job, fitted: Any, encoder: Encoder, table: pa.Table) -> NDArray[np.float64]:
    """Return the latent vectors of records, shape (n, n_latent).

    Raises
    ------
    DivergedError
        If one is not finite.
    """
    Z = fitted.embed(encoder.encode(table))
    found: NDArray[np.float64] = finite(Z, "vectors", job.model).astype(np.float64)
    return found


def vectors_by(
    job: Job,
    fitted: Any,
    encoder: Encoder,
    *,
    column: str,
    values: Sequence[str],
    shards: Sequence[ShardFact],
) -> Iterator[tuple[str, pa.Table, NDArray[np.float64]]]:
    """Yield value, its records and their vectors, some megabytes of records at a time."""
    for table in job.tables(shards):
        found = column_values(table, column)
        for value in values:
            rows = np.flatnonzero(found == value)
            if len(rows):
                taken = table.take(pa.array(rows))
                yield value, taken, vectors(job, fitted, encoder, taken)


def vector_means(
    job: Job, fitted: Any, encoder: Encoder, *, column: str, values: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return the mean vector of the learnt records of each value, shape (n_latent,).

    Values without such a record are left out.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    counts = dict.fromkeys(values, 0)
    given = vectors_by(job, fitted, encoder, column=column, values=values, shards=job.learnt_shards)
    for value, _, Z in given:
        sums[value] = sums.get(value, np.zeros(Z.shape[1])) + Z.sum(axis=0)
        counts[value] += len(Z)
    return {value: total / counts[value] for value, total in sums.items()}
