"""Reconstruct and denoise: records as a model decodes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Images, Int
from prefect_augment.errors import ParameterError
from prefect_augment.figures.image_grid import rows_sheet
from prefect_augment.latents.adapter import ImageView, View, some_records
from prefect_augment.latents.base import NOT_SUMMED, Strata, head
from prefect_augment.params import Denoising, Reconstruction
from prefect_augment.schema import LatentRef, ShardInfo

N_CHECKED = 64  # records that noise is added to, to measure its removal


def reconstruct(view: View, params: Reconstruction) -> LatentRef:
    """Write every record beside the reconstruction from its latent vector.

    The Parquet has ``aug_id``, the label, ``aug_split``, ``aug_origin`` and, for each learnt column ``x``, ``x``,
    ``x_reconstructed`` in the same type, and ``x_error``: of numbers the difference (dates in days,
    timestamps in ticks; null if one is missing), of categories 1 if they differ, of images the mean squared
    error, white being 1. ``summary`` has, per part (without the hold-out) and column, the explained variance of
    numbers and the share of right categories.

    Raises ParameterError for a stratum that the model does not know.
    """
    job = view.job

    def make(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        codes = decoding_strata(table, view.strata, params.as_class)
        X: Any = view.encoder.encode(table)
        Z = view.finite(view.fitted.embed(X), "vectors")
        ids = table["aug_id"].to_pylist()
        decoded = view.decode(view.fitted.decode_latents(Z, codes), codes, ids, like=table)
        records, sums = view.compare(X, table, decoded, head(table, job.info.label, shard))
        return records, {} if shard.split == NOT_SUMMED else {shard.split: sums}

    shards, sums = job.each_shard(make)
    parts = {
        part: {name: view.summary(own) for name, own in columns.items()}
        for part, columns in sums.items()
    }
    return job.finish(
        shards,
        summary={"as_class": params.as_class, "parts": parts},
        pictures=(view.codes_picture(),),
    )


def decoding_strata(
    table: pa.Table,
    strata: Strata,
    as_class: str,
    *,
    advice: str = "choose their class with as_class",
) -> Int:
    """Return the stratum that each record's vector is decoded as.

    Raises ParameterError for a class that the model does not know, with ``advice``.
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
            f"records as that class; {advice}, one of {', '.join(map(repr, strata.names))}."
        )
    return codes


def denoise(view: View, params: Denoising) -> LatentRef:
    """Write every image without its noise, beside the other columns of the source.

    The Parquet has ``aug_id``, the label, ``aug_split``, ``aug_origin``, the source's other columns, and the
    image: a PNG in the record's shape and colours, its longer edge that of the dataset's common size.
    ``summary`` has in ``check`` the peak signal-to-noise ratios, in dB, of a few records with seeded noise of
    this size added, before and after; noise in the records themselves counts as signal.

    Raises ParameterError if the records are no images.
    """
    if not isinstance(view, ImageView):
        raise ParameterError("denoising is of images, and these records are rows of a table.")
    job, encoder = view.job, view.encoder

    def make(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        ids = table["aug_id"].to_pylist()
        clean = view.fitted.denoise(encoder.encode(table), params.noise)
        # Any stratum: it only fills the label's column, which is taken from the record.
        strata = [encoder.strata[0]] * len(ids)
        image = encoder.decode(clean, strata=strata, aug_ids=ids, like=table)[encoder.column]
        columns = head(table, job.info.label, shard)
        rest = {f.name: table[f.name] for f in encoder.schema if f.name not in columns}
        return pa.table({**columns, **rest, encoder.column: image}), {}

    shards, _ = job.each_shard(make)
    check, picture = _check(view, params.noise)
    return job.finish(shards, summary={"noise": params.noise, "check": check}, pictures=(picture,))


def _check(view: ImageView, noise: float) -> tuple[dict[str, Any], bytes]:
    """Return measurements and a picture of a few records with noise added and removed."""
    records, part = some_records(view.job, [view.encoder.column], n=N_CHECKED)
    X, denoise = view.encoder.encode(records), view.fitted.denoise
    rng = np.random.default_rng(0)
    noisy = np.rint(X + 255 * noise * rng.standard_normal(X.shape)).clip(0, 255).astype(np.uint8)
    clean = denoise(noisy, noise)
    rows = [("as they are", X), ("denoised", denoise(X, noise)),
            (f"with noise of {noise:g} added", noisy), ("that, denoised", clean)]  # fmt: skip
    check = {"part": part, "n": len(X), "psnr_noisy": _psnr(X, noisy), "psnr": _psnr(X, clean)}
    return check, rows_sheet("Before and after", rows)


def _psnr(X: Images, other: Images) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels; 99 for equal images."""
    mse = float((((X.astype(np.float64) - other) / 255) ** 2).mean())
    return -10 * float(np.log10(max(mse, 10**-9.9)))
