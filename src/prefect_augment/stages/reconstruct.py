"""Reconstruct: records as a model gives them back, beside the originals, with the error per column."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.datatypes import DatasetRef, LatentRef, ModelRef, ShardFact
from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import ParameterError
from prefect_augment.params import Output
from prefect_augment.stages.embed import finite
from prefect_augment.stages.latents import NOT_SUMMED, Job, Progress, Strata, add_up, head
from prefect_augment.stages.models import Encoder
from prefect_augment.storage import Store

__all__ = ["decoding_strata", "reconstruct"]

ALGORITHM_VERSION = 1


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
    job = Job.of("reconstructions", algorithm_version=ALGORITHM_VERSION, dataset=dataset,
                 model=model, store=store, output=output, out=out, params={"as_class": as_class})  # fmt: skip
    if (known := job.found()) is not None:
        return known
    fitted, encoder = job.load("latents")
    strata = Strata(encoder)

    def make(table: pa.Table, shard: ShardFact) -> tuple[pa.Table, Mapping[str, Any]]:
        codes = decoding_strata(table, strata, as_class)
        X: Any = encoder.encode(table)
        Z = finite(fitted.embed(X), "vectors", model)
        made = _decoded(encoder, fitted.decode_latents(Z, codes), codes, table)
        columns = head(table, job.facts.label, shard)
        if isinstance(encoder, ImageEncoder):
            found, sums = _images(encoder, X, table, made, columns)
        else:
            found, sums = _columns(encoder, X, table, made, columns)
        return found, {} if shard.split == NOT_SUMMED else {shard.split: sums}

    pieces = job.each_shard(make, on_progress)
    found = {
        part: {name: _summary(sums) for name, sums in columns.items()}
        for part, columns in add_up(pieces).items()
    }
    return job.finish(
        [shard for piece in pieces for shard in piece.shards],
        found={"as_class": as_class, "parts": found},
    )


def decoding_strata(table: pa.Table, strata: Strata, as_class: str) -> NDArray[np.int64]:
    """Return the stratum that each record's vector is decoded as.

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
            "records of that class as what they are; say with as_class what to decode them as, one of "
            f"{', '.join(map(repr, strata.names))}."
        )
    return codes


def _decoded(
    encoder: Encoder, X: NDArray[Any], codes: NDArray[np.int64], table: pa.Table
) -> pa.Table:
    """Return made records, the columns that the model learnt only."""
    names = [encoder.strata[k] for k in codes.tolist()]
    if isinstance(encoder, ImageEncoder):
        ids = table["aug_id"].to_pylist()
        return encoder.decode(X, strata=names, aug_ids=ids).select([encoder.column])
    return encoder.decode(X, strata=names, columns=encoder.names)


# --- tables -----------------------------------------------------------------------------------


def _columns(
    encoder: TableEncoder,
    X: NDArray[np.float64],
    table: pa.Table,
    made: pa.Table,
    head: dict[str, Any],
) -> tuple[pa.Table, dict[str, Any]]:
    """Return originals, reconstructions and errors, and per column numbers that add up."""
    X_made = encoder.encode(made)  # as it is shown: snapped to the columns' domains
    columns, entries, sums = dict(head), {}, {}
    second, third = suffixes([*encoder.names, *head])
    fields = [pa.field(name, column.type) for name, column in head.items()]
    for j, name in enumerate(encoder.names):
        error, sums[name] = _difference(
            X[:, j], X_made[:, j], category=bool(encoder.is_category[j])
        )
        for suffix, column in (("", table[name]), (second, made[name])):
            columns[name + suffix] = column
            entries[name + suffix] = name
            fields.append(pa.field(name + suffix, column.type))
        columns[name + third] = pa.array(error, pa.float64(), from_pandas=True)
        fields.append(pa.field(name + third, pa.float64()))
    found = pa.table(list(columns.values()), schema=pa.schema(fields))
    return _as_pandas_had_it(found, encoder, entries), sums


def _difference(
    x: NDArray[np.float64], made: NDArray[np.float64], *, category: bool
) -> tuple[NDArray[np.float64], dict[str, float]]:
    one_missing = np.isnan(x) != np.isnan(made)
    both_missing = np.isnan(x) & np.isnan(made)
    if category:
        wrong = (x != made) & ~both_missing
        return wrong.astype(np.float64), {"n": len(x), "n_right": int((~wrong).sum())}
    error = np.where(both_missing, 0.0, np.abs(x - made))
    both = ~np.isnan(x) & ~np.isnan(made)
    values, squares = x[both], error[both] ** 2
    return error, {
        "n": len(x),
        "n_both": int(both.sum()),
        "n_one_missing": int(one_missing.sum()),
        "sum": float(values.sum()),
        "sum_squares": float((values**2).sum()),
        "sum_squared_errors": float(squares.sum()),
    }


def _summary(sums: Mapping[str, float]) -> dict[str, Any]:
    """Return how well a column comes back."""
    n = sums["n"]
    if "n_right" in sums:
        return {"right": sums["n_right"] / n}
    if "mse" in sums:
        return {"mse": sums["mse"] / n}
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


def suffixes(names: Sequence[str]) -> tuple[str, str]:
    """Return what the names of reconstructions and errors end in, so that no two columns share one."""
    second, third = "_reconstructed", "_error"
    while any(name + suffix in names for name in names for suffix in (second, third)):
        second, third = f"_{second}", f"_{third}"
    return second, third


def _as_pandas_had_it(
    table: pa.Table, encoder: TableEncoder, entries: Mapping[str, str]
) -> pa.Table:
    """Give columns the dtypes in pandas that the source's had, where the source says them."""
    try:
        found = json.loads((encoder.schema.metadata or {})[b"pandas"])
        known = {c.get("field_name", c["name"]): c for c in found["columns"]}
    except (KeyError, ValueError, TypeError):
        return table
    columns = [
        {**known[source], "name": name, "field_name": name}
        for name, source in {**entries, encoder.label: encoder.label}.items()
        if source in known
    ]
    kept = {**found, "index_columns": [], "column_indexes": [], "columns": columns}
    return table.replace_schema_metadata({b"pandas": json.dumps(kept).encode()})


# --- images -----------------------------------------------------------------------------------


def _images(
    encoder: ImageEncoder,
    X: NDArray[np.uint8],
    table: pa.Table,
    made: pa.Table,
    head: dict[str, Any],
) -> tuple[pa.Table, dict[str, Any]]:
    """Return originals, reconstructions and mean squared errors at the model's resolution."""
    name = encoder.column
    second, third = suffixes([name, *head])
    difference = (X.astype(np.float64) - encoder.encode(made)) / 255
    error = (difference**2).reshape(len(X), -1).mean(axis=1)
    found = pa.table({**head, name: table[name], name + second: made[name], name + third: error})
    return found, {name: {"n": len(X), "mse": float(error.sum())}}
