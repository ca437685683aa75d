"""Reconstruct: records as a model gives them back, beside the originals, with the error per column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.errors import ParameterError
from prefect_augment.latents.adapter import open_view
from prefect_augment.latents.base import NOT_SUMMED, Job, Progress, Strata, head
from prefect_augment.latents.embed import finite
from prefect_augment.latents.output import add_up
from prefect_augment.params import Output, Reconstruction
from prefect_augment.schema.base import DatasetRef, LatentRef, ModelRef, ShardInfo
from prefect_augment.storage.store import Store

__all__ = ["decoding_strata", "reconstruct"]


def reconstruct(
    dataset: DatasetRef,
    *,
    model: ModelRef,
    store: Store,
    as_class: str = "",
    output: Output | None = None,
    out: Store | None = None,
    on_progress: Progress | None = None,
) -> LatentRef:
    """Write every record beside what the model makes of its latent vector.

    Parameters
    ----------
    dataset : DatasetRef
        Staged records.
    model : ModelRef
        A model with a latent space.
    store : Store
        The root that dataset and model lie under.
    as_class : str
        Stratum that all vectors are decoded as; each record's own where empty. A model of a single
        stratum decodes all as that.
    output : Output, optional
        Which parts.
    out : Store, optional
        Where to; the dataset's folder ``_reconstructions`` where not given.
    on_progress : callable, optional
        Called with the fraction done and what is being done.

    Returns
    -------
    LatentRef
        Parquet with ``aug_id``, the label, ``aug_split``, ``aug_origin`` and, for each learnt column
        ``x``, ``x`` as it was, ``x_reconstructed`` in the same type, and ``x_error``: of numbers the
        difference (dates in days, timestamps in ticks; null where one of the two is missing), of
        categories 1 where they differ, of images the mean squared error, white being 1. ``found`` has
        per part (but the hold-out) and column what a number's reconstruction explains of its variance, and the share of
        categories that come back.

    Raises
    ------
    ParameterError
        If the model has no latent space, or a record's stratum is unknown to it.
    """
    job = Job.of(
        "reconstructions",
        dataset=dataset,
        model=model,
        store=store,
        output=output,
        out=out,
        params={"reconstruction": Reconstruction(as_class=as_class)},
    )
    if (known := job.folder.found()) is not None:
        return known
    fitted, encoder = job.load("latents")
    strata, view = Strata(encoder), open_view(job, fitted, encoder)

    def make(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        codes = decoding_strata(table, strata, as_class)
        X: Any = encoder.encode(table)
        Z = finite(fitted.embed(X), "vectors", model)
        ids = table["aug_id"].to_pylist()
        made = view.made(fitted.decode_latents(Z, codes), codes, ids, like=table)
        found, sums = view.compared(X, table, made, head(table, job.info.label, shard))
        return found, {} if shard.split == NOT_SUMMED else {shard.split: sums}

    pieces = job.each_shard(make, on_progress)
    found = {
        part: {name: view.summary(sums) for name, sums in columns.items()}
        for part, columns in add_up(pieces).items()
    }
    return job.finish(
        [shard for piece in pieces for shard in piece.shards],
        found={"as_class": as_class, "parts": found},
        pictures=job.folder.put_pictures(view.codes_picture()),
    )


def decoding_strata(
    table: pa.Table,
    strata: Strata,
    as_class: str,
    *,
    advice: str = "say with as_class what to decode them as",
) -> NDArray[np.int64]:
    """Return the stratum that each record's vector is decoded as.

    ``advice`` says what to do about records of a class that the model does not know.

    Raises
    ------
    ParameterError
        If one is unknown to the model; names it.
    """
    if as_class and as_class not in strata.names:
        raise ParameterError(
            f"as_class is {as_class!r}, which the model does not know; it knows "
            f"{', '.join(map(repr, strata.names))}."
        )
    if as_class or len(strata.names) == 1:
        k = strata.names.index(as_class) if as_class else 0
        return np.full(table.num_rows, k, dtype=np.int64)
    codes = strata.codes(table)
    if (codes < 0).any():
        row = table.slice(int(np.argmax(codes < 0)), 1)
        raise ParameterError(
            f"the model was not trained on {row[strata.encoder.label][0].as_py()!r}, so it cannot decode "
            f"records of that class as what they are; {advice}, one of "
            f"{', '.join(map(repr, strata.names))}."
        )
    return codes
