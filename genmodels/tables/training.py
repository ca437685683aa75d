"""Training of networks of tables: records as tensors, batches, and validation on held-out records.

A tenth of the records is held out. :class:`TableValidation` measures the loss on them, and whether
draws lie nearer to training records than the held-out ones do.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from prefect_augment.array_types import Float, Int
from prefect_augment.genmodels.base import TableData
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.genmodels.network import NetworkPhase
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace, normal_scores
from prefect_augment.nn import loop
from prefect_augment.nn.devices import Device
from prefect_augment.nn.early_stopping import Validation

if TYPE_CHECKING:
    from prefect_augment.genmodels.tables.network import TableNetwork

HELD_OUT = 0.1
MIN_TO_SPARE = 20  # records of a class to hold any out
MIN_HELD_OUT, MAX_HELD_OUT = 10, 2000
MIN_COMPARED = 1024  # records in the validation loss; held-out ones are repeated
MAX_COMPARED, MAX_DRAWN = 4096, 256  # records in the validation distances
# At most 8 % of the draws may be nearer than the nearest 5 % of the held-out records.
NEAR_QUANTILE, NEAR_MARGIN = 0.05, 0.03


@dataclass(frozen=True)
class Encoded:
    """Records as tensors, on the training device."""

    codes: Tensor  # (n, n_choices) int64
    low: Tensor  # (n, n_scores) float64: the ranks that each record may have
    high: Tensor
    has_score: Tensor  # (n, n_scores) bool
    y: Tensor  # (n,) int64
    space: MixedSpace

    @classmethod
    def of(cls, X: Float, y: Int, space: MixedSpace, at: Device) -> Self:
        """Encode records of the matrix form."""
        codes, low, high, has_score, labels = (
            torch.from_numpy(part).to(at.torch) for part in (space.codes(X), *space.ranks(X), y)
        )
        return cls(codes, low, high, has_score, labels, space)

    def __len__(self) -> int:
        return len(self.y)

    def drawn_scores(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Normal scores of some records, each drawn from its interval of ranks."""
        low, high = self.low[rows], self.high[rows]
        place = torch.rand(low.shape, generator=rng, device=low.device, dtype=torch.float64)
        return normal_scores(low + place * (high - low))

    @property
    def middle_scores(self) -> Tensor:
        """Normal scores of the middle of each interval, 0 where missing, (n, n_scores)."""
        return normal_scores((self.low + self.high) / 2) * self.has_score


class TablePhase(NetworkPhase):
    """A phase of :func:`.train_with_early_stopping`: a model's network, on tempered classes.

    Reads ``class_power`` and ``learning_rate`` of ``params``.
    """

    records: Encoded

    def __init__(self, network: Any, records: Encoded, params: Any, batch_size: int) -> None:
        super().__init__(network, records, params, batch_size)
        weights = torch.bincount(records.y)[records.y].double() ** (params.class_power - 1.0)
        self.cumulative = torch.cumsum(weights / weights.sum(), 0)

    @abstractmethod
    def noisy(self, records: Encoded, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return some records with everything random about them; first axis: records."""

    @abstractmethod
    def part_losses(
        self, network: Any, batch: tuple[Tensor, ...], frozen: frozenset[str] = frozenset()
    ) -> dict[str, Tensor]:
        """Return the mean loss of each part (child) of the network that is not frozen."""

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """AdamW on all of it."""
        rate = self.params.learning_rate
        return {self.name.removeprefix("table-"): self.adamw(self.network.parameters(), rate)}

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return the records of one step with everything random about them."""
        return self.noisy(self.records, self.rows(rng), rng)

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the sum of the parts' losses; parts share no weight."""
        losses = self.part_losses(self.network, batch, self.frozen)
        return torch.stack(list(losses.values())).sum()


@dataclass(frozen=True)
class Split:
    """Training records, divided into rows to train on and held-out rows."""

    data: TableData
    trained: Int
    held_out: Int
    seed: int  # every validation draws the same records


class TableValidation:
    """Loss on the held-out records, and whether draws reproduce the others."""

    def __init__(self, model: TableNetwork[Any, Any], phase: TablePhase, split: Split) -> None:
        data, held_out, seed = split.data, split.held_out, split.seed
        self.model = model
        self.phase = phase
        self.seed = seed
        space, device = model.space, model.device
        rng = np.random.default_rng([seed & 0xFFFFFFFF, 1])
        encoded = Encoded.of(data.X[held_out], data.y[held_out], space, device)
        # Often enough that the noise in the loss is small beside the gain of a stretch.
        often = -(-MIN_COMPARED // len(held_out))
        rows = torch.arange(len(held_out), device=device.torch).repeat(often)
        generator = loop.step_generator(seed, "judge", 0, device.torch)
        order = torch.randperm(len(rows), generator=generator, device=device.torch)
        self.batch = phase.noisy(encoded, rows[order], generator)
        # Distances of held-out records to training records set the limit of near draws.
        near = rng.permutation(split.trained)[:MAX_COMPARED]
        self.trained = self._features(data.X[near])
        self.y = rng.permutation(data.y[held_out])[:MAX_DRAWN]
        own = self._distances(self._features(data.X[rng.permutation(held_out)[:MAX_COMPARED]]))
        self.limit = torch.quantile(own, NEAR_QUANTILE)
        # Where records repeat, more than 5 % are at the quantile.
        share = float((own <= self.limit).float().mean())
        chance = (share * (1 - share) * (1 / len(own) + 1 / len(self.y))) ** 0.5
        self.most = min(1.0, share + NEAR_MARGIN + 2.0 * chance)

    def __call__(self, network: nn.Module) -> Validation:
        """Validate a network."""
        self.model.after_training(network, self.phase.records, self.seed)
        losses = self.losses(network)
        seeds = seeds_from(self.seed, 0, len(self.y))
        drawn = self._features(self.model.drawn(network, self.y, seeds))
        share = float((self._distances(drawn) <= self.limit).float().mean())
        return Validation(losses, memorised=share > self.most)

    def losses(self, network: nn.Module) -> dict[str, float]:
        """Loss of each part on the held-out records."""
        with torch.inference_mode(), self.model.device.autocast():
            losses = self.phase.part_losses(network, self.batch)
        return {name: float(loss) for name, loss in losses.items()}

    def _features(self, X: Float) -> tuple[Tensor, Tensor]:
        """Codes and ranks, by which records are compared."""
        low, high, has_score = self.model.space.ranks(X)
        codes = torch.from_numpy(self.model.space.codes(X)).float()
        return codes, torch.from_numpy((low + high) / 2 * has_score).float()

    def _distances(self, features: tuple[Tensor, Tensor]) -> Tensor:
        """Each record's distance to the nearest training record: codes that differ, plus ranks."""
        distances = [
            torch.cdist(codes, self.trained[0], p=0.0) + torch.cdist(ranks, self.trained[1], p=1.0)
            for codes, ranks in zip(features[0].split(128), features[1].split(128), strict=True)
        ]
        return torch.cat([part.min(dim=1).values for part in distances])


def held_out_rows(y: Int, seed: int) -> Int:
    """Rows held out from training: a tenth of every class that has enough records."""
    rng = np.random.default_rng([seed & 0xFFFFFFFF, 0])
    parts = []
    for k in np.unique(y):
        rows = np.flatnonzero(y == k)
        n = int(len(rows) * HELD_OUT) if len(rows) >= MIN_TO_SPARE else 0
        parts.append(rng.permutation(rows)[:n])
    rows = rng.permutation(np.concatenate(parts))[:MAX_HELD_OUT]
    # Fewer would be too noisy.
    return np.sort(rows) if len(rows) >= MIN_HELD_OUT else rows[:0]
