"""Latent spaces of tables: the methods of :class:`.base.Encodes`, and draws from class densities."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.array_types import Array, Float, Float32, Int
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Arrays, Config, FitContext, TableData
from prefect_augment.genmodels.checks import check_latents
from prefect_augment.genmodels.counter_rng import record_keys, seeds_from
from prefect_augment.genmodels.latents import PER_COMPONENT, ClassDensities
from prefect_augment.genmodels.network import N, P
from prefect_augment.genmodels.tables.mixed_encoding import CodeLayout, MixedSpace, bounded
from prefect_augment.genmodels.tables.network import TableNetwork
from prefect_augment.genmodels.tables.reranking import (
    MAX_RERANKER_RECORDS,
    MIN_RERANKER_RECORDS,
    Reranker,
)
from prefect_augment.genmodels.tables.training import Encoded

AT_ONCE = 4096  # records encoded at once
MIN_BATCH = 64  # records of a step
MAX_LATENT = 16  # default bound of n_latent


class LatentNetwork(nn.Module):
    """What networks with a latent space share."""

    def __init__(self, space: MixedSpace, n_classes: int, n_latent: int) -> None:
        super().__init__()
        self.layout = CodeLayout(space.n_codes)
        self.n_scores, self.n_classes, self.n_latent = space.n_scores, n_classes, n_latent
        self.n_record = self.layout.total + self.n_scores

    def inputs(self, codes: Tensor, scores: Tensor) -> Tensor:
        """Records as networks read them, (n, n_record); missing scores are 0."""
        return torch.cat([self.layout.one_hot(codes), scores], dim=1)

    def with_class(self, z: Tensor, y: Tensor) -> Tensor:
        """Vectors with their class, (n, n_latent + n_classes); class n_classes hides the class."""
        classes = F.one_hot(y, self.n_classes + 1)[:, : self.n_classes].float()
        return torch.cat([z, classes], dim=1)

    def encode(self, inputs: Tensor) -> Tensor:
        """Latent vectors before any activation, (n, n_latent)."""
        raise NotImplementedError

    def activated(self, z: Tensor) -> Tensor:
        """What the decoder reads of latent vectors."""
        return z

    def decode(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Bounded logits (n, total) and mean scores (n, n_scores)."""
        raise NotImplementedError

    def parts(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """A decoder's output (n, n_record) as bounded logits and scores."""
        total = self.layout.total
        return bounded(out[:, :total]), out[:, total:]

    def error(
        self, z: Tensor, codes: Tensor, scores: Tensor, has_score: Tensor, y: Tensor
    ) -> Tensor:
        """Reconstruction error of each record: nats plus squared error, (n,)."""
        logits, means = self.decode(self.activated(z), y)
        entropy = self.layout.cross_entropy(logits, codes).sum(dim=1)
        return entropy + ((means - scores) ** 2 * has_score).sum(dim=1)


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

    @property
    def latent_size(self) -> int:
        """Size of a new network's latent vectors: as requested, or as many as columns vary."""
        return self.params.n_latent or min(MAX_LATENT, max(2, self.space.n_varying))

    def encode(self, network: N, codes: Tensor, scores: Tensor) -> Tensor:
        """Latent vectors, (n, n_latent), of codes and scores (0 where missing)."""
        return network.activated(network.encode(network.inputs(codes, scores)))

    def likeliest(self, network: N, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely codes and scores of latent vectors and classes."""
        logits, scores = network.decode(z, y)
        return network.layout.likeliest(logits), scores

    def anomaly(self, network: N, records: Encoded) -> Tensor:
        """Anomaly score of each record, (n,): the reconstruction error with the class hidden."""
        scores, unknown = records.middle_scores, torch.full_like(records.y, self.spec.n_classes)
        z = network.encode(network.inputs(records.codes, scores))
        return network.error(z, records.codes, scores, records.has_score, unknown)

    def fit(self, data: TableData, ctx: FitContext) -> None:
        """Train, and fit the reranker on draws and records."""
        super().fit(data, ctx)
        self._reranker = None
        if not self.trains or self.params.n_draws < 2 or len(data.y) < MIN_RERANKER_RECORDS:
            return
        rng = np.random.default_rng([ctx.seed & 0xFFFFFFFF, 3])
        rows = np.sort(rng.permutation(len(data.y))[:MAX_RERANKER_RECORDS])
        y, seeds = data.y[rows], seeds_from(ctx.seed, 1 << 21, len(rows))
        drawn = self.sampled(y, seeds, self.draw)
        self._reranker = Reranker.fit(data.X[rows], drawn, y, space=self.space, seed=ctx.seed)

    def fit_densities(
        self, Z: Float32, records: Encoded, seed: int, *, per_component: int = PER_COMPONENT
    ) -> None:
        """Fit a density per class to the records' latent vectors."""
        y, n_classes = records.y.cpu().numpy(), self.spec.n_classes
        self._densities = ClassDensities.fit(
            Z, y, n_classes, seed=seed, per_component=per_component
        )

    def sample(self, conditions: Int, *, seeds: Int) -> Float:
        """Draw one record per condition, as :class:`.base.GenerativeModel` has it."""
        if self._reranker is None:
            return super().sample(conditions, seeds=seeds)
        keys, n_draws = record_keys(seeds), self.params.n_draws
        drawn = [
            self.sampled(conditions, (keys + np.uint64(i)).view(np.int64), self.draw)
            for i in range(n_draws)
        ]
        own = record_keys((keys + np.uint64(n_draws)).view(np.int64))
        return self._reranker.choose(drawn, np.asarray(conditions, np.int64), own, self.space)

    def extra_state(self) -> tuple[Config, Arrays]:
        """The space, densities and reranker."""
        config, arrays = super().extra_state()
        if self.trains:
            arrays |= self._densities.arrays()
            arrays |= self._reranker.arrays() if self._reranker else {}
        return config, arrays

    def load_extra_state(self, config: Config, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""
        super().load_extra_state(config, arrays)
        if self.trains:
            self._densities = ClassDensities.from_arrays(arrays)
            has_reranker = f"{Reranker.prefix}.roots" in arrays
            self._reranker = Reranker.from_arrays(arrays) if has_reranker else None

    def batch_size(self, n_records: int) -> int:
        """At most a quarter of a small table, so that epochs are cheap and equally many."""
        most = super().batch_size(n_records)
        return min(most, max(MIN_BATCH, 1 << max(0, (n_records // 4).bit_length() - 1)))

    def in_parts(self, n: int, of: Callable[[slice], Array]) -> Array:
        """Apply a function to the rows of each part of n records, without gradients."""
        at = replace(self.device, threads=1)
        with at.settings(), torch.inference_mode(), at.autocast():
            # Without records there is a part of none, which has the right shape.
            parts = [of(slice(start, start + AT_ONCE)) for start in range(0, max(1, n), AT_ONCE)]
        return np.concatenate(parts)

    def latents_of(self, network: N, records: Encoded) -> Float32:
        """Latent vectors of records as tensors, (n, n_latent)."""

        def encode(rows: slice) -> Float32:
            z = self.encode(network, records.codes[rows], records.middle_scores[rows])
            return z.float().cpu().numpy()

        return self.in_parts(len(records), encode)

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

        return self.in_parts(len(y), decode)

    def anomaly_scores(self, X: Float) -> Float:
        """Return each record's anomaly score; see :class:`.base.Encodes`."""
        return self.scored(X, self.anomaly)

    def scored(self, X: Float, score: Callable[[N, Encoded], Tensor]) -> Float:
        """A function of the network and of records as tensors, in parts."""
        network = self.network
        return self.in_parts(
            len(X), lambda rows: score(network, self.encoded(X[rows])).double().cpu().numpy()
        )

    def encoded(self, X: Float) -> Encoded:
        """Records of unknown class as tensors; raises ParameterError for other columns than the spec's."""
        X = np.asarray(X, np.float64)
        if X.ndim != 2 or X.shape[1] != self.spec.n_columns:
            raise ParameterError(
                f"expected a matrix of {self.spec.n_columns} columns, found one of shape {X.shape}; "
                "encode the records with the model's TableEncoder."
            )
        return Encoded.of(X, np.zeros(len(X), dtype=np.int64), self.space, self.device)
