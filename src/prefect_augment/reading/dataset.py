"""A published dataset, as one version of it stands in its manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.datatypes import Origin, Recipe, ShardFact
from prefect_augment.errors import ParameterError
from prefect_augment.manifest import Manifest, read_manifest
from prefect_augment.reading.staged import read_shards
from prefect_augment.storage import Store, open_store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Dataset", "open_dataset"]


def open_dataset(
    uri: str | os.PathLike[str],
    version: int | None = None,
    options: dict[str, Any] | None = None,
    *,
    verify: bool = False,
) -> Dataset:
    """Return a published dataset for reading.

    What is read later belongs to the version found now, also while another run publishes the next.

    Parameters
    ----------
    uri : str or path
        Its folder: a local path or an fsspec URL.
    version : int, optional
        The newest by default.
    options : dict, optional
        fsspec storage options.
    verify : bool
        Check the sha256 of every shard that is read.

    Raises
    ------
    IntegrityError
        If there is no such version, or its manifest is damaged.
    SchemaError
        If a newer release of this package wrote it.

    Examples
    --------
    >>> dataset = open_dataset("s3://lake/defects-balanced/")  # doctest: +SKIP
    >>> table = dataset.to_pandas()  # doctest: +SKIP
    >>> learner.fit(table[features], table["label"], sample_weight=dataset.sample_weight())  # doctest: +SKIP
    """
    store = open_store(uri, options=options)
    return Dataset(store, read_manifest(store, version), verify=verify)


class Dataset:
    """One version of a published dataset; made by :func:`open_dataset`.

    Records come in the order of the manifest's shards: real, copy, classic, synthetic, each sorted by
    its ids. :meth:`to_table`, :meth:`to_pandas` and :meth:`sample_weight` agree on it.

    Parameters
    ----------
    store : Store
        The dataset's folder.
    manifest : Manifest
        The version.
    verify : bool
        Check the sha256 of every shard that is read.
    """

    def __init__(self, store: Store, manifest: Manifest, *, verify: bool = False) -> None:
        self.store = store
        self.manifest = manifest
        self.verify = verify

    def __repr__(self) -> str:
        return f"Dataset({self.store.uri!r}, version={self.version})"

    @property
    def version(self) -> int:
        """The version's number."""
        return self.manifest.version

    @property
    def label(self) -> str:
        """The column that holds the class."""
        return self.manifest.label

    @property
    def recipe(self) -> Recipe:
        """How to train on the records: what won the comparison."""
        return self.manifest.recipe

    @property
    def class_counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Records per split, class and origin."""
        return self.manifest.class_counts

    @property
    def paths(self) -> dict[str, list[str]]:
        """Location of every shard, per split; for readers of Parquet other than this one."""
        found: dict[str, list[str]] = {}
        for shard in self.manifest.shards:
            full = self.store.full(shard.path)
            location = full if self.store.is_local else str(self.store.fs.unstrip_protocol(full))
            found.setdefault(shard.split, []).append(location)
        return found

    def to_table(
        self,
        split: str = "train",
        origins: Sequence[Origin] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Return records as an Arrow table, the user's columns first and the lineage columns last.

        Parameters
        ----------
        split : str
            ``train`` or ``holdout``.
        origins : sequence of str, optional
            Only these: real, copy, classic, synthetic.
        columns : sequence of str, optional
            Only these, in this order.

        Raises
        ------
        ParameterError
            If the version has no such split.
        SchemaError
            If it has no such column.
        IntegrityError
            If a shard is missing or damaged.
        """
        return read_shards(
            self.store,
            self._shards(split, origins),
            columns,
            like=self.manifest.shards,
            verify=self.verify,
        )

    def to_pandas(
        self,
        split: str = "train",
        origins: Sequence[Origin] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Return records as a DataFrame with the source's dtypes; arguments as in :meth:`to_table`."""
        return self.to_table(split, origins, columns).to_pandas()  # type: ignore[no-any-return]

    def sample_weight(
        self, split: str = "train", origins: Sequence[Origin] | None = None
    ) -> NDArray[np.float32]:
        """Return how often the recipe draws each record, mean 1 over the whole of train.

        Returns
        -------
        ndarray of float32, shape (n_records,)
            In the order of :meth:`to_table`; what learners take as ``sample_weight``.
        """
        return self.to_table(split, origins, ["aug_weight"])["aug_weight"].to_numpy()  # type: ignore[no-any-return]

    def _shards(self, split: str, origins: Sequence[Origin] | None) -> list[ShardFact]:
        if split not in self.manifest.class_counts:
            there = ", ".join(sorted(self.manifest.class_counts)) or "none"
            hint = (
                f" (the hold-out was given as {self.manifest.holdout_uri} and not copied)"
                if self.manifest.holdout_uri
                else ""
            )
            raise ParameterError(
                f"version {self.version} of {self.store.uri} has no split {split!r}; there is: {there}{hint}."
            )
        shards = self.manifest.split_shards(split)
        return [s for s in shards if origins is None or s.origin in origins]
