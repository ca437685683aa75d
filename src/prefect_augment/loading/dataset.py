"""A published dataset: one version, as its manifest describes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.loading.probabilities import (
    class_names,
    multipliers_of,
    prior_corrected,
    reweighted,
)
from prefect_augment.schema import Manifest, Origin, Recipe, ShardInfo
from prefect_augment.schema.base import html_table
from prefect_augment.shards.base import check_digest
from prefect_augment.shards.staged import read_shards
from prefect_augment.storage import Store, open_store, read_manifest

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from prefect_augment.loading.torch import TorchDataset


def open_dataset(
    uri: str | os.PathLike[str],
    version: int | None = None,
    options: dict[str, Any] | None = None,
    *,
    verify: bool = False,
) -> Dataset:
    """Return a published dataset for reading; it stays at the version found now, the newest by default.

    ``uri`` is a local path or an fsspec URL, ``options`` are fsspec's. With ``verify`` each read checks the
    sha256 of its shards, which reads them whole; without it, changed values in a shard may stay unnoticed.

    Raises
    ------
    IntegrityError
        If there is no such version, or its manifest is damaged.
    SchemaError
        If a newer release of this package wrote it.
    """
    store = open_store(uri, options=options)
    return Dataset(store, read_manifest(store, version), verify=verify)


class Dataset:
    """One version of a published dataset; made by :func:`open_dataset`.

    Records come in the order of the manifest's shards: real, copy, classic, synthetic, each sorted by id.
    :meth:`to_table`, :meth:`to_pandas` and :meth:`sample_weight` share this order.
    """

    def __init__(self, store: Store, manifest: Manifest, *, verify: bool = False) -> None:
        self.store = store
        self.manifest = manifest
        self.verify = verify

    def __repr__(self) -> str:
        return f"Dataset({self.store.uri!r}, version={self.version})"

    def _repr_html_(self) -> str:
        counts = self.manifest.class_counts
        rows = [
            (name, *(sum(counts[split].get(name, {}).values()) for split in counts))
            for name in self.classes
        ]
        return f"<p>{escape(repr(self))}</p>" + html_table(("class", *counts), rows)

    @property
    def version(self) -> int:
        """The version's number."""
        return self.manifest.version

    @property
    def label(self) -> str:
        """The column of the class."""
        return self.manifest.label

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes of the version, in the order of class indices."""
        return self.manifest.classes

    @property
    def recipe(self) -> Recipe:
        """The strategy that won the comparison, with its settings."""
        return self.manifest.recipe

    @property
    def class_counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Records per split, class and origin."""
        return self.manifest.class_counts

    @property
    def paths(self) -> dict[str, list[str]]:
        """Location of every shard, per split, for other readers of Parquet.

        With ``verify=True`` each access reads and checks every shard, since other readers check no digests.
        """
        locations: dict[str, list[str]] = {}
        for shard in self.manifest.shards:
            if self.verify:
                check_digest(self.store, shard.path, shard.sha256)
            full = self.store.full(shard.path)
            location = full if self.store.is_local else str(self.store.fs.unstrip_protocol(full))
            locations.setdefault(shard.split, []).append(location)
        return locations

    def to_table(
        self,
        split: str = "train",
        origins: Sequence[Origin] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Return records as an Arrow table, the source's columns first and the lineage columns last.

        ``split`` is ``train`` or ``holdout``; ``origins`` restricts to real, copy, classic or synthetic records,
        ``columns`` to these, in this order. Raises ParameterError if the version has no such split, SchemaError
        if it has no such column, IntegrityError if a shard is missing or damaged.
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

    def to_polars(
        self,
        split: str = "train",
        origins: Sequence[Origin] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Return records as a polars DataFrame; needs polars. Arguments as in :meth:`to_table`."""
        import polars as pl

        frame = pl.from_arrow(self.to_table(split, origins, columns))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def sample_weight(
        self, split: str = "train", origins: Sequence[Origin] | None = None
    ) -> NDArray[np.float32]:
        """Return the weight of each record by the recipe, shape (n_records,), mean 1 over the whole of train.

        In the order of :meth:`to_table`, for ``sample_weight`` of estimators.
        """
        return self.to_table(split, origins, ["aug_weight"])["aug_weight"].to_numpy()  # type: ignore[no-any-return]

    def to_torch(
        self,
        split: str = "train",
        origins: Sequence[Origin] | None = None,
        columns: Sequence[str] | None = None,
        *,
        recipe: bool = False,
        transform: Callable[[Any], Any] | None = None,
        shuffle: bool | None = None,
        seed: int = 0,
        epochs: int | None = None,
        channels: Literal[1, 3] | None = None,
        decode: bool = True,
        buffer_groups: int = 8,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> TorchDataset:
        """Return records as a stream ``(x, y)`` for ``torch.utils.data.DataLoader``.

        ``y`` is an index into :attr:`classes`. ``x`` is the image, uint8 of shape (channels, height, width); for
        a table of numbers float32 of shape (n_columns,) with NaN for null; otherwise, or with other
        ``columns``, a dict of such tensors, numbers and text.

        Over all workers and ranks every record comes once per epoch; with ``recipe``, as many records are drawn by
        its weights. Ranks get equal numbers up to one: use ``drop_last=True`` if they synchronise. Order and draws
        depend only on seed, epoch and the number of ranks and workers; call ``set_epoch`` before each epoch.

        Parameters
        ----------
        split, origins
            As for :meth:`to_table`.
        columns : sequence of str, optional
            Content of ``x``; the image by default, or all columns but label and lineage.
        recipe : bool
            Apply the published recipe: draw by ``aug_weight``, change images by its classic policy, and draw
            synthetic records only in the first part of training (give its length by ``epochs`` or
            ``set_progress``). The training loop applies the stream's ``loss``, ``log_prior`` and ``thresholds``;
            the stream's ``collate``, as the loader's ``collate_fn``, mixes records and smooths labels.
        transform : callable, optional
            Applied to ``x``, after the recipe.
        shuffle : bool, optional
            By default for train. Groups of records are read in random order, and shuffled over
            ``buffer_groups`` of them.
        seed : int
            Of order, draws and policy.
        epochs : int, optional
            Length of the training.
        channels : int, optional
            1 or 3, for a mix of gray and colour images; by default as stored.
        decode : bool
            False gives an image's stored bytes (PNG, JPEG …).
        buffer_groups : int
            Groups of about 3 MB that a worker holds.
        rank, world_size : int, optional
            By default those of ``torch.distributed``, if initialised.

        Raises
        ------
        MissingExtraError
            If torch or Pillow is not installed.
        ParameterError
            If arguments contradict one another, or there is no such split or record.
        SchemaError
            If there is no such column.
        """
        try:
            from prefect_augment.loading.torch import TorchDataset
        except ModuleNotFoundError as exc:
            raise MissingExtraError(
                f"to_torch needs {exc.name}: pip install 'prefect-augment[torch,images]'",
                extra="torch,images",
            ) from exc
        if recipe and (split != "train" or shuffle is False):
            what = f"the split {split!r}" if split != "train" else "records in their order"
            raise ParameterError(
                f"a recipe draws the train split at random; leave out recipe=True for {what}."
            )
        return TorchDataset(
            self.store,
            self._shards(split, origins),
            label=self.label,
            classes=self.classes,
            recipe=self.recipe if recipe else None,
            columns=columns,
            transform=transform,
            shuffle=split == "train" if shuffle is None else shuffle,
            seed=seed,
            epochs=epochs,
            channels=channels,
            decode=decode,
            buffer_groups=buffer_groups,
            rank=rank,
            world_size=world_size,
            verify=self.verify,
        )

    def apply_thresholds(
        self, probabilities: ArrayLike, estimator: str = "", *, classes: Sequence[Any] | None = None
    ) -> NDArray[np.float64]:
        """Return class probabilities times the recipe's multipliers, so that the largest is the prediction.

        Rows sum to 1. With two classes that moves the threshold. A recipe without multipliers changes nothing.

        Parameters
        ----------
        probabilities : array-like, shape (n_records, n_classes)
            A classifier's output, e.g. of ``predict_proba``.
        estimator : str
            The estimator of the comparison that yours resembles most (``boosting``, ``logistic`` …); optional
            if there is only one.
        classes : sequence, optional
            The class of each column, e.g. scikit-learn's ``classes_``; by default :attr:`classes`.

        Raises
        ------
        ParameterError
            If the recipe has no such estimator, a class is unknown, or the columns are not one per class.
        """
        names = self._known(classes)
        return reweighted(probabilities, names, multipliers_of(self.recipe, estimator, names))

    def correct_prior(
        self,
        probabilities: ArrayLike,
        *,
        classes: Sequence[Any] | None = None,
        prior: Mapping[Any, float] | None = None,
    ) -> NDArray[np.float64]:
        """Return class probabilities, rows summing to 1, for the class shares of the source, or of ``prior``.

        A classifier trained by the recipe assumes the class shares of the recipe. Use corrected probabilities as
        probabilities; to predict a class as in the comparison, use the uncorrected ones, or :meth:`apply_thresholds`,
        whose arguments and errors these are. ``prior`` holds the class shares where the classifier is used.
        """
        return prior_corrected(probabilities, self.recipe, self._known(classes), prior)

    def _known(self, classes: Sequence[Any] | None) -> tuple[str, ...]:
        names = self.classes if classes is None else class_names(classes)
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise ParameterError(
                f"class {unknown[0]!r} is none of the version's: {', '.join(map(repr, self.classes))}."
            )
        return names

    def _shards(self, split: str, origins: Sequence[Origin] | None) -> list[ShardInfo]:
        if split not in self.manifest.class_counts:
            existing = ", ".join(sorted(self.manifest.class_counts)) or "none"
            hint = (
                f" (the hold-out was given as {self.manifest.holdout_uri} and not copied)"
                if self.manifest.holdout_uri
                else ""
            )
            raise ParameterError(
                f"version {self.version} of {self.store.uri} has no split {split!r}; there is: {existing}{hint}."
            )
        shards = self.manifest.split_shards(split)
        return [s for s in shards if origins is None or s.origin in origins]
