"""How the velocity of :mod:`.diffusion` is learnt: its losses, its batches, and an early network kept."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prefect_augment.genmodels.base import FitContext
from prefect_augment.genmodels.diffusion_uses import Velocity
from prefect_augment.genmodels.image_augmentation import moved
from prefect_augment.genmodels.image_training import ImagePhase, to_unit
from prefect_augment.params import DiffusionModel
from prefect_augment.training import loop
from prefect_augment.training.devices import Device

if TYPE_CHECKING:
    from prefect_augment.training.networks import UNet

__all__ = ["EARLY_SHARE", "FlowPhase", "class_balance_loss", "train_keeping_early", "velocity_loss"]

EARLY_SHARE = 0.25  # of the steps, after which the network is kept that guidance moves away from
COMMITMENT = 0.25  # of the regulariser's two sides: CBDM's gamma


def velocity_loss(velocity: Velocity, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the mean squared error of the velocity on the lines between noise and images.

    Parameters
    ----------
    velocity : callable
        Takes points (n, c, h, w) and times (n,), returns velocities.
    images, noise : Tensor of float32, shape (n, c, h, w)
        The two ends.
    t : Tensor of float32, shape (n,)
        Where on the line, in [0, 1].

    References
    ----------
    Lipman et al. 2023, equation 23 with sigma_min = 0.
    """
    place = t[:, None, None, None]
    x = torch.lerp(noise, images, place)
    return torch.mean((velocity(x, t) - (images - noise)) ** 2)


def class_balance_loss(ours: Tensor, theirs: Tensor, t: Tensor) -> Tensor:
    """Return how far velocities under the records' classes are from those under drawn ones.

    What is learnt of one class is drawn towards what is learnt of all, the more the noise covers: in
    CBDM the weight is the noise's step, here 1 - t. One side holds still for the other.

    Parameters
    ----------
    ours, theirs : Tensor, shape (n, c, h, w)
        Under the record's class, and under one drawn evenly.
    t : Tensor, shape (n,)

    References
    ----------
    Qin et al. 2023, "Class-Balancing Diffusion Models", equation 9, with its commitment term.
    """
    noise = (1.0 - t)[:, None, None, None]
    follow = noise * (ours - theirs.detach()) ** 2
    lead = noise * (ours.detach() - theirs) ** 2
    return torch.mean(follow + COMMITMENT * lead)


class FlowPhase(ImagePhase):
    """The velocity on tempered classes, labels dropped at times."""

    name = "flow"
    params: DiffusionModel

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam with a short memory, as befits a few thousand steps."""
        return {
            "velocity": torch.optim.Adam(
                self.network.parameters(),
                lr=self.params.learning_rate,
                betas=(0.9, 0.99),
                fused=True,
            )
        }

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return images, labels, noise, times, moves and other labels of one step."""
        n, device, records = self.batch_size, self.device, self.records
        rows = records.rows(n, rng)
        dropped = torch.rand(n, generator=rng, device=device) < self.params.label_dropout
        y = torch.where(dropped, self.network.n_classes, records.y[rows])
        t = self._times(rng)
        noise = torch.randn((n, *records.images.shape[1:]), generator=rng, device=device)
        images, moves = moved(
            records.take(rows),
            shift=self.params.shift_prob,
            flip=self.params.flip_prob,
            turn=self.params.turn_prob,
            rng=rng,
        )
        other = torch.randint(0, self.network.n_classes, (n,), generator=rng, device=device)
        return images, y, noise, t, moves, other

    def _times(self, rng: torch.Generator) -> Tensor:
        """Return logit-normal times (Esser et al. 2024): the middle is where there is most to learn."""
        return torch.sigmoid(torch.randn(self.batch_size, generator=rng, device=self.device))

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the error of the velocity, and what the regulariser adds."""
        images, y, noise, t, moves, other = batch
        weight = self.params.class_balance
        if not weight:
            return velocity_loss(
                lambda x, at: self.network(x, at, y, moves), to_unit(images), noise, t
            )
        x1, place = to_unit(images), t[:, None, None, None]
        x = torch.lerp(noise, x1, place)
        ours, theirs = (self.network(x, t, labels, moves) for labels in (y, other))
        error = torch.mean((ours - (x1 - noise)) ** 2)
        return error + weight * class_balance_loss(ours, theirs, t)


def train_keeping_early(
    phase: ImagePhase, device: Device, ctx: FitContext, *, ema_fraction: float
) -> tuple[UNet, UNet, int]:
    """Train as :func:`.loop.train`, and return the network, an early one of the same run, and the steps.

    Checkpoints after the early stretch hold the early network too, so that a resume has it.
    """
    at = max(1, round(EARLY_SHARE * ctx.steps))
    restored = ctx.restored
    early = copy.deepcopy(phase.network).requires_grad_(False).eval()
    latest: list[loop.Checkpoint] = []
    saved = time.monotonic()

    def keep(found: loop.Checkpoint) -> None:
        nonlocal saved
        latest[:] = [found]
        if ctx.checkpoint is not None and time.monotonic() - saved >= ctx.checkpoint_seconds:
            ctx.checkpoint(found)
            saved = time.monotonic()

    def save_both(found: loop.Checkpoint) -> None:
        assert ctx.checkpoint is not None
        config, arrays = found
        ctx.checkpoint((config, {**arrays, **loop.named_arrays("early", early.state_dict())}))

    def stretch(
        restored: loop.Checkpoint | None, checkpoint: object, stop_after: int
    ) -> loop.TrainResult:
        return loop.train(
            phase,
            steps=ctx.steps,
            seed=ctx.seed,
            device=device,
            ema_fraction=ema_fraction,
            on_progress=ctx.report,
            checkpoint=checkpoint,  # type: ignore[arg-type]
            checkpoint_seconds=ctx.checkpoint_seconds,
            restored=restored,
            stop_after=stop_after,
        )

    if restored is not None and (weights := loop.tensors("early", restored[1])):
        early.load_state_dict(weights)
    else:
        first = stretch(restored, keep, at)
        early.load_state_dict(first.network.state_dict())
        restored = latest[0] if latest else restored
    result = stretch(restored, None if ctx.checkpoint is None else save_both, 0)
    network: UNet = result.network
    return network, early, result.steps
