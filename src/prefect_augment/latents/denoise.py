"""Denoise: images without their noise, as a dataset of the source's own columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.errors import ParameterError
from prefect_augment.figures.image_grid import rows_sheet
from prefect_augment.latents.base import Job, Progress, head
from prefect_augment.latents.image_adapter import some_records
from prefect_augment.params import Denoising, Output
from prefect_augment.schema.base import DatasetRef, LatentRef, ModelRef, ShardInfo
from prefect_augment.storage.store import Store

__all__ = ["denoise"]

N_CHECKED = 64  # records that noise is added to, to see what becomes of it


def denoise(
    dataset: DatasetRef,
    *,
    model: ModelRef,
    store: Store,
    noise: float = 0.1,
    output: Output | None = None,
    out: Store | None = None,
    on_progress: Progress | None = None,
) -> LatentRef:
    """Write every image without its noise, beside the other columns of the source.

    Parameters
    ----------
    dataset : DatasetRef
        Staged images.
    model : ModelRef
        A model of images that takes noise out.
    store : Store
        The root that dataset and model lie under.
    noise : float in (0, 1]
        Standard deviation of the Gaussian noise that the images hold, white being 1.
    output : Output, optional
        Which parts.
    out : Store, optional
        Where to; the dataset's folder ``_denoised`` where not given.
    on_progress : callable, optional
        Called with the fraction done and what is being done.

    Returns
    -------
    LatentRef
        Parquet with ``aug_id``, the label, ``aug_split``, ``aug_origin`` and the source's other columns as
        they are, but for the image: a PNG in the shape and colours of the record's own, its longer edge
        that of the dataset's common size. ``found``: in ``check``, what
        becomes of a few records (of validation records where it is read) that seeded noise of this size was
        added to, as peak signal-to-noise ratios against them, in dB. If they hold noise themselves, it counts.

    Raises
    ------
    ParameterError
        If the records are no images, the model cannot, or the noise is no share of white.
    """
    if not 0 < noise <= 1:
        raise ParameterError(
            f"noise is {noise:g}; give its standard deviation as a share of white, such as 0.1."
        )
    job = Job.of(
        "denoised",
        dataset=dataset,
        model=model,
        store=store,
        output=output,
        out=out,
        params={"denoising": Denoising(noise=noise)},
    )
    if (known := job.folder.found()) is not None:
        return known
    fitted, encoder = job.load("denoising")
    if not isinstance(encoder, ImageEncoder):
        raise ParameterError("denoising is of images, and these records are rows of a table.")

    def make(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        ids = table["aug_id"].to_pylist()
        clean = fitted.denoise(encoder.encode(table), noise)
        # The stratum fills in the label's column, which is taken from the record instead.
        strata = [encoder.strata[0]] * len(ids)
        image = encoder.decode(clean, strata=strata, aug_ids=ids, like=table)[encoder.column]
        columns = head(table, job.info.label, shard)
        rest = {f.name: table[f.name] for f in encoder.schema if f.name not in columns}
        return pa.table({**columns, **rest, encoder.column: image}), {}

    pieces = job.each_shard(make, on_progress)
    check, picture = _check(job, fitted, encoder, noise)
    return job.finish(
        [shard for piece in pieces for shard in piece.shards],
        found={"noise": noise, "check": check},
        pictures=job.folder.put_pictures(picture),
    )


def _check(
    job: Job, fitted: Any, encoder: ImageEncoder, noise: float
) -> tuple[dict[str, Any], bytes]:
    """Return what becomes of a few records with noise added, in figures and as a picture."""
    records, part = some_records(job, [encoder.column], n=N_CHECKED)
    X = encoder.encode(records)
    rng = np.random.default_rng(0)
    noisy = np.rint(X + 255 * noise * rng.standard_normal(X.shape)).clip(0, 255).astype(np.uint8)
    clean = fitted.denoise(noisy, noise)
    rows = [("as they are", X), ("denoised", fitted.denoise(X, noise)),
            (f"with noise of {noise:g} added", noisy), ("that, denoised", clean)]  # fmt: skip
    found = {"part": part, "n": len(X), "psnr_noisy": _psnr(X, noisy), "psnr": _psnr(X, clean)}
    return found, rows_sheet("Before and after", rows)


def _psnr(X: NDArray[np.uint8], made: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels; 99 where nothing differs."""
    mse = float((((X.astype(np.float64) - made) / 255) ** 2).mean())
    return -10 * float(np.log10(max(mse, 10**-9.9)))
