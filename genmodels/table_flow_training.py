"""What :class:`.table_flow.TableFlow` is trained on: batches, losses, and the judge of records held back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefect_augment.genmodels.base import TableData
from prefect_augment.genmodels.counter_random import seeds_from
from prefect_augment.genmodels.table_flow_network import FlowNetwork
from prefect_augment.genmodels.table_mixed import MixedSpace
from prefect_augment.params import FlowModel
from prefect_augment.training import loop
from prefect_augment.training.devices import Device
from prefect_augment.training.stopping import Judgement

if TYPE_CHECKING:
    from prefect_augment.genmodels.table_flow import TableFlow

__all__ = ["Encoded", "FlowJudge", "FlowPhase", "held_back_rows", "noisy", "part_losses"]

HELD_BACK = 0.1
MIN_TO_SPARE = 20  # records of a class
MIN_HELD_BACK, MAX_HELD_BACK = 10, 2000
MIN_JUDGED = 1024  # records in a judgement's loss; those held back are taken several times
MAX_COMPARED, MAX_DRAWN = 4096, 256  # records in a judgement's distances
NEAR_QUANTILE, NEAR_MARGIN = (
    0.05,
    0.03,
)  # at most 8 % nearer than the nearest 5 % of those held back


@dataclass(frozen=True)
class Encoded:
    """Records as tensors, on the device that trains."""

    codes: Tensor  # (n, n_choices) int64
    low: Tensor  # (n, n_scores) float64: the ranks that each record may have
    high: Tensor
    has_score: Tensor  # (n, n_scores) bool
    y: Tensor  # (n,) int64

    @classmethod
    def of(cls, data: TableData, rows: NDArray[np.int64], space: MixedSpace, at: Device) -> Self:
        """Return some rows of the records."""
        X = data.X[rows]
        parts = (space.codes(X), *space.ranks(X), data.y[rows])
        return cls(*(torch.from_numpy(part).to(at.torch) for part in parts))


class FlowPhase:
    """What :func:`.loop.train` trains: both networks, on tempered classes."""

    name = "table-flow"

    def __init__(
        self, network: FlowNetwork, data: Encoded, params: FlowModel, batch_size: int
    ) -> None:
        self.network: nn.Module = network
        self.data = data
        self.params = params
        self.batch_size = batch_size
        self.resting: frozenset[str] = frozenset()
        # p(class) ∝ n**q, p(record | class) = 1/n.
        counts = torch.bincount(data.y, minlength=network.n_classes)
        weights = counts[data.y].double() ** (params.class_power - 1.0)
        self.cumulative = torch.cumsum(weights / weights.sum(), 0)

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """AdamW with a short memory, as befits a few thousand steps."""
        return {
            "flow": torch.optim.AdamW(
                self.network.parameters(),
                lr=self.params.learning_rate,
                betas=(0.9, 0.99),
                weight_decay=self.params.weight_decay,
                fused=True,
            )
        }

    def lr_factor(self, step: int, n_steps: int) -> float:
        """Warm-up and half a cosine."""
        return loop.warmup_cosine(step, n_steps)

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return the records of one step with everything random about them."""
        drawn = torch.rand(
            self.batch_size, generator=rng, device=self.data.y.device, dtype=torch.float64
        )
        rows = torch.searchsorted(self.cumulative, drawn).clamp_(max=len(self.data.y) - 1)
        return noisy(self.data, rows, rng)

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the sum of both networks' losses, which share no weight."""
        assert isinstance(self.network, FlowNetwork)
        return torch.stack(list(part_losses(self.network, batch, self.resting).values())).sum()


def noisy(data: Encoded, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Return codes, which of them are shown, classes, scores, whether there are any, noise and times.

    How many codes are hidden, 1 to all, and the times lie evenly over the batch: less noise in the
    loss than with independent ones.
    """
    n, device = len(rows), rows.device
    codes, n_choices = data.codes[rows], data.codes.shape[1]
    even = (torch.arange(n, device=device) + torch.rand(n, generator=rng, device=device)) / n
    n_hidden = 1 + (even * n_choices).long().clamp_(max=n_choices - 1)
    order = torch.rand(codes.shape, generator=rng, device=device).argsort(dim=1).argsort(dim=1)
    shown = order >= n_hidden[:, None]
    low, high = data.low[rows], data.high[rows]
    place = torch.rand(low.shape, generator=rng, device=device, dtype=torch.float64)
    ranks = (low + place * (high - low)).clamp_(1e-6, 1 - 1e-6)
    scores = torch.special.ndtri(ranks).float()
    noise = torch.randn(low.shape, generator=rng, device=device)
    t = (torch.arange(n, device=device) + torch.rand(n, generator=rng, device=device)) / n
    return codes, shown, data.y[rows], scores, data.has_score[rows], noise, t


def part_losses(
    network: FlowNetwork, batch: tuple[Tensor, ...], resting: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """Return the mean loss over the records of each part of the network that is not resting.

    ``choices``: cross-entropy of the hidden codes, averaged over those of a record (Hoogeboom et al.
    2022, equation 5, over the number of choices). ``scores``: squared error of the velocity.
    """
    codes, shown, y, scores, has_score, noise, t = batch
    found: dict[str, Tensor] = {}
    if network.n_codes and "choices" not in resting:
        logits = network.logits(network.seen(codes, y, shown)).float()
        total = logits.exp() @ network.owner  # (n, n_choices)
        loss = total.log() - logits.gather(1, codes + network.offsets)
        hidden = ~shown
        found["choices"] = ((loss * hidden).sum(1) / hidden.sum(1)).mean()
    if network.n_scores and "scores" not in resting:
        x = torch.lerp(noise, scores, t[:, None])
        error = network.velocity(network.seen(codes, y), x, t, has_score) - (scores - noise)
        found["scores"] = (error**2 * has_score).mean()
    if not found:  # nothing varies: nothing is learnt, and the loop still wants a loss
        found["nothing"] = network.nothing * 0.0
    return found


class FlowJudge:
    """What the records held back say: the loss on them, and whether records are given back.

    Parameters
    ----------
    model : TableFlow
        Draws records.
    data : TableData
        All fit records.
    trained, held_back : ndarray of int64
        Rows of ``data``.
    seed : int
        Of what is drawn, the same at every judgement.
    """

    def __init__(
        self,
        model: TableFlow,
        data: TableData,
        trained: NDArray[np.int64],
        held_back: NDArray[np.int64],
        seed: int,
    ) -> None:
        self.model = model
        self.seed = seed
        space, device = model.space, model.device
        rng = np.random.default_rng([seed & 0xFFFFFFFF, 1])
        encoded = Encoded.of(data, held_back, space, device)
        # Often enough that the chance in the loss is small beside what a stretch gains.
        often = -(-MIN_JUDGED // len(held_back))
        rows = torch.arange(len(held_back), device=device.torch).repeat(often)
        generator = loop.step_generator(seed, "judge", 0, device.torch)
        self.batch = noisy(encoded, rows[torch.randperm(len(rows), generator=generator)], generator)
        near = rng.permutation(trained)[:MAX_COMPARED]
        self.trained = self._placed(data.X[near])
        self.y = rng.permutation(data.y[held_back])[:MAX_DRAWN]
        own = self._distances(self._placed(data.X[rng.permutation(held_back)[:MAX_COMPARED]]))
        self.limit = torch.quantile(own, NEAR_QUANTILE)
        # Where records repeat, more than a twentieth are at the quantile.
        share = float((own <= self.limit).float().mean())
        chance = (share * (1 - share) * (1 / len(own) + 1 / len(self.y))) ** 0.5
        self.most = min(1.0, share + NEAR_MARGIN + 2.0 * chance)

    def __call__(self, network: nn.Module) -> Judgement:
        """Judge a network."""
        assert isinstance(network, FlowNetwork)
        with torch.inference_mode(), self.model.device.autocast():
            losses = {name: float(loss) for name, loss in part_losses(network, self.batch).items()}
        seeds = seeds_from(self.seed & 0xFFFFFFFFFFFFFFFF, 0, len(self.y))
        drawn = self._placed(self.model.drawn(network, self.y, seeds))
        share = float((self._distances(drawn) <= self.limit).float().mean())
        return Judgement(losses, memorised=share > self.most)

    def _placed(self, X: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Return codes and ranks, by which records are compared."""
        low, high, has_score = self.model.space.ranks(X)
        codes = torch.from_numpy(self.model.space.codes(X)).float()
        return codes, torch.from_numpy((low + high) / 2 * has_score).float()

    def _distances(self, placed: tuple[Tensor, Tensor]) -> Tensor:
        """Return each record's distance to the nearest trained one: codes that differ, and ranks."""
        found = [
            torch.cdist(codes, self.trained[0], p=0.0) + torch.cdist(ranks, self.trained[1], p=1.0)
            for codes, ranks in zip(placed[0].split(128), placed[1].split(128), strict=True)
        ]
        return torch.cat([part.min(dim=1).values for part in found])


def held_back_rows(y: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the rows that training is judged on: a tenth of every class that can spare it."""
    rng = np.random.default_rng([seed & 0xFFFFFFFF, 0])
    found = []
    for k in np.unique(y):
        rows = np.flatnonzero(y == k)
        n = int(len(rows) * HELD_BACK) if len(rows) >= MIN_TO_SPARE else 0
        found.append(rng.permutation(rows)[:n])
    rows = rng.permutation(np.concatenate(found))[:MAX_HELD_BACK]
    # Fewer say too little, and cost as much.
    return np.sort(rows) if len(rows) >= MIN_HELD_BACK else rows[:0]
