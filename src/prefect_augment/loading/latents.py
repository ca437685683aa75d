"""Results of a model's latents, read back: embeddings, scores, reconstructions, predictions."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.errors import IntegrityError, SchemaError
from prefect_augment.schema import INDEX, LatentInfo
from prefect_augment.shards.staged import read_shards
from prefect_augment.storage import Store, open_store, read_result

if TYPE_CHECKING:
    import pandas as pd

VECTOR = "embedding"
ERROR_MAP = "error_map"


def open_latents(uri: str | os.PathLike[str], options: dict[str, Any] | None = None) -> Latents:
    """Return one result of ``embed``, ``anomalies``, ``reconstruct``, ``denoise``, ``interpolate`` or ``classify``.

    ``uri`` is its folder, which holds ``index.json``; ``options`` are fsspec's. Raises IntegrityError if there is no
    index, so that the result is incomplete.
    """
    store = open_store(uri, options=options)
    info = read_result(store, INDEX, LatentInfo)
    if info is None:
        raise IntegrityError(
            f"{uri} has no {INDEX}, so the result is incomplete; run the command again, which continues "
            "where it was interrupted."
        )
    return Latents(store, info)


class Latents:
    """One result; made by :func:`open_latents`. ``info`` is its ``index.json``: model, dataset, parameters, summary."""

    def __init__(self, store: Store, info: LatentInfo) -> None:
        self.store = store
        self.info = info

    def __repr__(self) -> str:
        return f"Latents({self.store.uri!r}, {self.info.use})"

    def to_table(self, *splits: str) -> pa.Table:
        """Return all records, or those of some parts (``training``, ``validation``, ``holdout`` …), as an Arrow table.

        Raises IntegrityError if a shard is missing or damaged.
        """
        chosen = [s for s in self.info.shards if not splits or s.split in splits]
        return read_shards(self.store, chosen, like=self.info.shards)

    def to_pandas(self, *splits: str) -> pd.DataFrame:
        """Return the same as a DataFrame."""
        return self.to_table(*splits).to_pandas()  # type: ignore[no-any-return]

    def vectors(self, *splits: str) -> NDArray[np.float32]:
        """Return embeddings as an array of shape (n_records, n_latent), in the order of the records.

        Raises SchemaError if the result is not of ``embed``.
        """
        if self.info.use != "embeddings":
            raise SchemaError(f"{self!r} has no vectors; those are what `embed` writes.")
        return vectors_of(self.to_table(*splits))

    def error_maps(self, *splits: str) -> NDArray[np.float32]:
        """Return where the flagged images are anomalous, shape (n_flagged, size, size).

        In the order of the flagged records, ``to_pandas()`` where ``anomaly``, at the model's resolution; other
        images are fitted into its squares as by the encoder. Raises SchemaError if the result is not of
        ``anomalies`` on images.
        """
        table = self.to_table(*splits)
        if ERROR_MAP not in table.column_names:
            raise SchemaError(f"{self!r} has no maps; those are what `anomalies` writes of images.")
        maps = _rows_of(table.select([ERROR_MAP]).drop_null(), ERROR_MAP)
        size = math.isqrt(maps.shape[1])
        return maps.reshape(-1, size, size)


def vectors_of(table: pa.Table) -> NDArray[np.float32]:
    """Return the column ``embedding`` as an array of shape (n_records, n_latent)."""
    return _rows_of(table, VECTOR)


def _rows_of(table: pa.Table, name: str) -> NDArray[np.float32]:
    """Return a column of equally long lists, none of them null, as the rows of an array."""
    size = table.schema.field(name).type.list_size
    parts = [chunk.flatten().to_numpy().reshape(-1, size) for chunk in table[name].chunks]
    return np.concatenate(parts) if parts else np.empty((0, size), dtype=np.float32)
