"""Latent spaces of tables: the methods of :class:`.base.Encodes`, and draws from class densities."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from prefect_augment.array_types import Array, Float, Float32, Int
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Arrays, FitContext, TableData
from prefect_augment.genmodels.checks import check_latents
from prefect_augment.genmodels.counter_rng import record_keys, seeds_from
from prefect_augment.genmodels.latent_density import ClassDensities
from prefect_augment.genmodels.tables.network import N, P, TableNetwork
from prefect_augment.genmodels.tables.reranking import (
    MAX_RERANKER_RECORDS,
    MIN_RERANKER_RECORDS,
    Reranker,
)
from prefect_augment.genmodels.tables.training import Encoded
from prefect_augment.nn.devices import Device

AT_ONCE = 4096  # records encoded at once
MIN_BATCH = 64  # records of a step


class LatentTable(TableNetwork[P, N]):
    """A network with an encoder and a decoder; see :class:`.base.Encodes`.

    Records are drawn from each class's density. With ``params.n_draws`` above 1 one of several
    draws is selected (:class:`.Reranker`).
    """

    _densities: ClassDensities
    _reranker: Reranker | None = None

    @property
    def n_latent(self) -> int:
        """Size of a latent vector."""
        return int(self.network.n_latent)

    @abstractmethod
    def encode(self, network: N, codes: Tensor, scores: Tensor) -> Tensor:
        """Latent vectors, (n, n_latent), of codes and scores (0 where missing)."""

    @abstractmethod
    def likeliest(self, network: N, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely codes and scores of latent vectors and classes."""

    @abstractmethod
    def anomaly(self, network: N, records: Encoded) -> Tensor:
        """Anomaly score of each record, (n,)."""

    def fit(self, data: TableData, ctx: FitContext) -> None:
        """Train, and fit the reranker on draws and records."""
        super().fit(data, ctx)
        self._reranker = None
        if self._network is None or self._n_draws < 2 or len(data.y) < MIN_RERANKER_RECORDS:
            return
        rng = np.random.default_rng([ctx.seed & 0xFFFFFFFF, 3])
        rows = np.sort(rng.permutation(len(data.y))[:MAX_RERANKER_RECORDS])
        y = data.y[rows]
        drawn = self.sampled(
            y, seeds_from(ctx.seed & 0xFFFFFFFFFFFFFFFF, 1 << 21, len(y)), self.draw
        )
        self._reranker = Reranker.fit(data.X[rows], drawn, y, space=self.space, seed=ctx.seed)

    def sample(self, conditions: Int, *, seeds: Int) -> Float:
        """Draw one record per condition, as :class:`.base.GenerativeModel` has it."""
        if self._reranker is None:
            return super().sample(conditions, seeds=seeds)
        keys = record_keys(seeds)
        drawn = [
            self.sampled(conditions, (keys + np.uint64(i)).view(np.int64), self.draw)
            for i in range(self._n_draws)
        ]
        own = record_keys((keys + np.uint64(self._n_draws)).view(np.int64))
        return self._reranker.choose(drawn, np.asarray(conditions, np.int64), own, self.space)

    @property
    def _n_draws(self) -> int:
        """Draws of which one becomes the record."""
        n_draws: int = getattr(self.params, "n_draws", 1)
        return n_draws

    def extra_state(self) -> Arrays:
        """Densities and reranker."""
        if self._network is None:
            return {}
        return self._densities.arrays() | (self._reranker.arrays() if self._reranker else {})

    def load_extra_state(self, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""
        if self._network is not None:
            self._densities = ClassDensities.from_arrays(arrays)
            self._reranker = Reranker.from_arrays(arrays)

    def batch_size(self, n_records: int, device: Device) -> int:
        """At most a quarter of a small table, so that epochs are cheap and equally many."""
        most = super().batch_size(n_records, device)
        return min(most, max(MIN_BATCH, 1 << max(0, (n_records // 4).bit_length() - 1)))

    def in_parts(self, n: int, of: Callable[[slice], Array], at_once: int = AT_ONCE) -> list[Array]:
        """Apply a function to the rows of each part of n records, without gradients."""
        at = replace(self.device, threads=1)
        with at.settings(), torch.inference_mode(), at.autocast():
            return [of(slice(start, start + at_once)) for start in range(0, n, at_once)]

    def latents_of(self, network: N, records: Encoded) -> Float32:
        """Latent vectors of records as tensors, (n, n_latent)."""

        def encode(rows: slice) -> Float32:
            z = self.encode(network, records.codes[rows], records.middle_scores[rows])
            return z.float().cpu().numpy()

        parts = self.in_parts(len(records), encode)
        # Without records there are no parts; in training self.n_latent is not known yet.
        return np.concatenate(parts) if parts else np.empty((0, self.n_latent), np.float32)

    def embed(self, X: Float) -> Float32:
        """Return each record's latent vector; see :class:`.base.Encodes`."""
        return self.latents_of(self.network, self.encoded(X))

    def decode_latents(self, Z: Float32, y: Int) -> Float:
        """Return the most likely record of each latent vector and class.

        Raises ParameterError if the vectors have another size or number, EmptyClassError for an
        unknown class.
        """
        Z, y = np.asarray(Z, np.float32), np.asarray(y, np.int64)
        check_latents(Z, y, self.n_latent, self.spec.classes)

        def decode(rows: slice) -> Float:
            z, labels = (torch.from_numpy(a[rows]).to(self.device.torch) for a in (Z, y))
            codes, scores = self.likeliest(self.network, z, labels)
            return self.space.decode(
                codes.cpu().numpy(),
                scores.float().cpu().numpy(),
                y=y[rows],
                keys=record_keys(np.zeros(len(labels), dtype=np.int64)),
                counter=0,
            )

        parts = self.in_parts(len(y), decode)
        return np.concatenate([np.empty((0, self.spec.n_columns)), *parts])

    def anomaly_scores(self, X: Float) -> Float:
        """Return each record's anomaly score; see :class:`.base.Encodes`."""
        network = self.network

        def score(rows: slice) -> Float:
            scores: Tensor = self.anomaly(network, self.encoded(X[rows]))
            return scores.double().cpu().numpy()

        return np.concatenate([np.empty(0), *self.in_parts(len(X), score)])

    def encoded(self, X: Float) -> Encoded:
        """Records of unknown class as tensors; raises ParameterError for other columns than the spec's."""
        X = np.asarray(X, np.float64)
        if X.ndim != 2 or X.shape[1] != self.spec.n_columns:
            raise ParameterError(
                f"expected a matrix of {self.spec.n_columns} columns, found one of shape {X.shape}; "
                "encode the records with the model's TableEncoder."
            )
        return Encoded.of(X, np.zeros(len(X), dtype=np.int64), self.space, self.device)
