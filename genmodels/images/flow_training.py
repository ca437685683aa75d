"""Training of the velocity of :mod:`.flow_matching`, and its use as EDM's denoiser.

With noise of deviation sigma on an image, x = x1 + sigma n, the time on the line is t = 1 / (1 +
sigma) and the point t x, so that

    D(x, sigma) = E[x1 | x] = t x + (1 - t) v(t x, t)

which is EDM's preconditioning (Karras et al. 2022, equation 7) with c_skip = c_in = 1 / (1 + sigma)
and c_out = sigma / (1 + sigma), the velocity being the network. The loss of the velocity is EDM's
with the weight 1 / c_out².
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prefect_augment.genmodels.base import FitContext
from prefect_augment.genmodels.images.training import ImagePhase, moved, to_unit
from prefect_augment.nn import loop
from prefect_augment.nn.devices import Device
from prefect_augment.params import DiffusionModel

if TYPE_CHECKING:
    from prefect_augment.nn.networks import UNet

__all__ = [
    "EARLY_SHARE",
    "FlowPhase",
    "Velocity",
    "class_balance_loss",
    "denoised",
    "log_likelihoods",
    "train_keeping_early",
    "velocity_loss",
]

EARLY_SHARE = 0.25  # of the steps, after which the early network is copied
COMMITMENT = 0.25  # CBDM's gamma

Velocity = Callable[[Tensor, Tensor], Tensor]
# Integration points of the bound, evenly spaced in log(t / (1 - t)): from much noise to less than a gray
# level.
FIRST_PLACE, LAST_PLACE, N_PLACES = -3.0, 3.0, 8


def velocity_loss(velocity: Velocity, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of the velocity on the lines between noise and images at times t (n,).

    Lipman et al. 2023, equation 23 with sigma_min = 0. ``velocity`` maps points (n, c, h, w) and
    times to velocities.
    """
    position = t[:, None, None, None]
    x = torch.lerp(noise, images, position)
    return torch.mean((velocity(x, t) - (images - noise)) ** 2)


def class_balance_loss(own: Tensor, other: Tensor, t: Tensor) -> Tensor:
    """Distance of velocities under the records' classes from those under uniformly drawn classes.

    It pulls a class towards all classes, the more the noise covers: CBDM's weight is the noise
    level, here 1 - t. One side is detached for the other. Qin et al. 2023, "Class-Balancing
    Diffusion Models", equation 9, with its commitment term.
    """
    noise = (1.0 - t)[:, None, None, None]
    follow = noise * (own - other.detach()) ** 2
    lead = noise * (own.detach() - other) ** 2
    return torch.mean(follow + COMMITMENT * lead)


class FlowPhase(ImagePhase):
    """The velocity on tempered classes, with label dropout."""

    name = "flow"
    params: DiffusionModel

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam with a short memory, as suits a few thousand steps."""
        return {
            "velocity": torch.optim.Adam(
                self.network.parameters(),
                lr=self.params.learning_rate,
                betas=(0.9, 0.99),
                fused=True,
            )
        }

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Images, labels, noise, times, augmentations and other labels of one step."""
        n, device, records = self.batch_size, self.device, self.records
        rows = records.rows(n, rng)
        dropped = torch.rand(n, generator=rng, device=device) < self.params.label_dropout
        y = torch.where(dropped, self.network.n_classes, records.y[rows])
        # Logit-normal times (Esser et al. 2024): the middle is where there is most to learn.
        t = torch.sigmoid(torch.randn(n, generator=rng, device=device))
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

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Error of the velocity, plus the regulariser."""
        images, y, noise, t, moves, other = batch
        weight = self.params.class_balance
        if not weight:
            return velocity_loss(
                lambda x, at: self.network(x, at, y, moves), to_unit(images), noise, t
            )
        x1, place = to_unit(images), t[:, None, None, None]
        x = torch.lerp(noise, x1, place)
        own, drawn = (self.network(x, t, labels, moves) for labels in (y, other))
        error = torch.mean((own - (x1 - noise)) ** 2)
        return error + weight * class_balance_loss(own, drawn, t)


def train_keeping_early(
    phase: ImagePhase, device: Device, ctx: FitContext, *, ema_fraction: float
) -> tuple[UNet, UNet, int]:
    """Train like :func:`.loop.train`; return the network, an early one of the same run, and the steps.

    Checkpoints after the early stretch include the early network, for a resume.
    """
    at = max(1, round(EARLY_SHARE * ctx.steps))
    restored = ctx.restored
    early = copy.deepcopy(phase.network).requires_grad_(False).eval()
    latest: list[loop.Checkpoint] = []
    saved = time.monotonic()

    def keep(state: loop.Checkpoint) -> None:
        nonlocal saved
        latest[:] = [state]
        if ctx.checkpoint is not None and time.monotonic() - saved >= ctx.checkpoint_seconds:
            ctx.checkpoint(state)
            saved = time.monotonic()

    def save_both(state: loop.Checkpoint) -> None:
        assert ctx.checkpoint is not None
        config, arrays = state
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

    # Train the early network, unless the checkpoint has it; then the rest.
    if restored is not None and (weights := loop.tensors("early", restored[1])):
        early.load_state_dict(weights)
    else:
        first = stretch(restored, keep, at)
        early.load_state_dict(first.network.state_dict())
        restored = latest[0] if latest else restored
    result = stretch(restored, None if ctx.checkpoint is None else save_both, 0)
    network: UNet = result.network
    return network, early, result.steps


def denoised(velocity: Velocity, x: Tensor, sigma: float) -> Tensor:
    """Expected clean image of ``x`` in [-1, 1] with noise sigma: EDM's denoiser, one Euler step to t = 1."""
    t = torch.full((len(x),), 1.0 / (1.0 + sigma), dtype=x.dtype, device=x.device)
    point = x * t[:, None, None, None]
    return point + (1.0 - t)[:, None, None, None] * velocity(point, t)


def log_likelihoods(velocity: Velocity, x: Tensor) -> Tensor:
    """Bound on the log density of images ``x`` in [-1, 1], up to a constant for all classes, (n,).

    Minus the integral of t² E|v - (x1 - n)|² over log(t / (1 - t)), which is the denoiser's
    remaining error in nats. The noise is the same for every image and class, so differences are due
    to the classes. Kingma & Gao 2023, "Understanding Diffusion Objectives as the ELBO", equation
    13; Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier", equation 6, for
    shared noise.
    """
    rng = torch.Generator().manual_seed(0)
    step = (LAST_PLACE - FIRST_PLACE) / N_PLACES
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i in range(N_PLACES):
        noise = torch.randn(x.shape[1:], generator=rng).to(x.device)
        log_odds = torch.tensor(FIRST_PLACE + (i + 0.5) * step)
        t = torch.sigmoid(log_odds).to(x).expand(len(x))
        point = torch.lerp(noise.expand_as(x), x, t[:, None, None, None])
        error = (velocity(point, t) - (x - noise)).double().square().sum(dim=(1, 2, 3))
        # |v - (x1 - n)|² (1 - t)² is the denoiser's error, over sigma² in log(1 / sigma): t² is left.
        total -= t.double() ** 2 * error * step
    return total
