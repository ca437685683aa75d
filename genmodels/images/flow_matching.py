"""Class-conditional flow matching in pixel space: noise is carried to images along straight lines.

Between noise ``x0`` and an image ``x1`` lies ``x_t = (1 - t) x0 + t x1``; a network learns the mean
velocity ``E[x1 - x0 | x_t, t, y]``, and records are drawn by following it from t = 0 to 1 (Lipman
et al. 2023, "Flow Matching for Generative Modeling"; Liu et al. 2023, "Flow Straight and Fast").

With Gaussian noise this is EDM's diffusion model (Karras et al. 2022) in other coordinates. The target
has the same scale at every t, which EDM achieves by preconditioning, and the paths are nearly
straight: 12 evaluations make an image here, EDM's sampler takes 35. With the same network, EDM's own
coordinates, weights and sampler learnt more slowly in the one short run of each that was compared.

Choices for few images and little time (research/images.md, sections 4 and 9): one network for all
classes, classes drawn with p ∝ n_k**q, label dropout, and averaged weights with a half-life of 5 %
of the run.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from prefect_augment.array_types import Float, Images, Uint64
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Arrays, Config, FitContext
from prefect_augment.genmodels.counter_rng import normal
from prefect_augment.genmodels.images.network import ImageNetwork, threads_of_step, to_pixels
from prefect_augment.genmodels.images.training import N_AUGMENT, ImagePhase, moved, to_unit
from prefect_augment.nn import loop
from prefect_augment.nn.budget import Checkpoint
from prefect_augment.nn.devices import Device, compiled
from prefect_augment.nn.networks import UNet
from prefect_augment.params import DiffusionModel

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
        parameters, rate = self.network.parameters(), self.params.learning_rate
        return {"velocity": torch.optim.Adam(parameters, rate, betas=(0.9, 0.99), fused=True)}

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Images, labels, noise, times, augmentations and other labels of one step."""
        n, device, records, rows = self.batch_size, self.device, self.records, self.rows(rng)
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
    phase: ImagePhase, device: Device, ctx: FitContext
) -> tuple[UNet, UNet, int]:
    """Train like :func:`.loop.train`; return the network, an early one of the same run, and the steps.

    Checkpoints after the early stretch include the early network, for a resume.
    """
    at = max(1, round(EARLY_SHARE * ctx.steps))
    early = copy.deepcopy(phase.network).requires_grad_(False).eval()
    latest, saved = ctx.restored, time.monotonic()

    def keep(state: Checkpoint) -> None:
        nonlocal latest, saved
        latest = state
        if ctx.checkpoint is not None and time.monotonic() - saved >= ctx.checkpoint_seconds:
            ctx.checkpoint(state)
            saved = time.monotonic()

    def save_both(state: Checkpoint) -> None:
        assert ctx.checkpoint is not None
        config, arrays = state
        ctx.checkpoint((config, {**arrays, **loop.named_arrays("early", early.state_dict())}))

    # Train the early network, unless the checkpoint has it; then the rest.
    if latest is not None and (weights := loop.tensors("early", latest[1])):
        early.load_state_dict(weights)
    else:
        local = replace(ctx, checkpoint=keep)
        first, _ = loop.train(phase, local, device, stop_after=at)
        early.load_state_dict(first.state_dict())
    save = None if ctx.checkpoint is None else save_both
    local = replace(ctx, checkpoint=save, restored=latest)
    network, steps = loop.train(phase, local, device)
    return network, early, steps


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


def integrate(
    velocity: Velocity, x: Tensor, n_steps: int, *, rule: Literal["midpoint", "heun"] = "midpoint"
) -> Tensor:
    """Integrate the velocity from the points ``x`` (n, c, h, w) at t = 0 to 1.

    Every step takes two evaluations, except Heun's last one, which takes one as in EDM (algorithm
    1): there is nothing to learn at t = 1.
    """
    h = 1.0 / n_steps

    def at(t: float) -> Tensor:
        return torch.full((len(x),), t, dtype=x.dtype, device=x.device)

    for step in range(n_steps):
        t = step * h
        first = velocity(x, at(t))
        if rule == "midpoint":
            x = x + h * velocity(x + 0.5 * h * first, at(t + 0.5 * h))
        elif step == n_steps - 1:
            x = x + h * first
        else:
            x = x + 0.5 * h * (first + velocity(x + h * first, at(t + h)))
    return x


class Diffusion(ImageNetwork[DiffusionModel, UNet]):
    """One network for all classes; see the module."""

    # On a CPU batches of 64 take 7 % more time per image than 128 and learn faster: after 90 CPU seconds on
    # fashion_lt the held-out loss is 0.259 with 64 and 0.281 with 128.
    params_class = DiffusionModel
    phase_class = FlowPhase
    _early: UNet | None = None

    def new_network(self) -> UNet:
        """An untrained U-Net."""
        return UNet(
            size=self.spec.size,
            channels=self.spec.channels,
            n_classes=self.spec.n_classes,
            width=self.params.width,
            n_augment=N_AUGMENT,
        )

    def useful_threads(self, batch_size: int) -> int:
        """1 if a step is too small for several threads, else 0: as many as there are cores."""
        return threads_of_step(self.spec.size, self.params.width, batch_size)

    def train(self, phase: ImagePhase, device: Device, ctx: FitContext) -> tuple[nn.Module, int]:
        """Train, and keep an early network if guidance needs one."""
        if self.params.compile:
            rng = loop.step_generator(ctx.seed, "compile", 0, phase.device)
            loss = partial(phase.loss, "velocity", phase.batch("velocity", rng))
            compiled(phase.network, loss, device)
        if not self._needs_early:
            return super().train(phase, device, ctx)
        network, self._early, steps = train_keeping_early(phase, device, ctx)
        return network, steps

    @property
    def _needs_early(self) -> bool:
        return self.params.guidance != 1.0 and self.params.guide == "early"

    def draw(self, network: UNet, y: Tensor, keys: Uint64) -> Tensor:
        """Carry each record's noise along the velocity."""
        size, _, channels = self.spec.shape
        noise = normal(keys, channels * size * size).reshape(-1, channels, size, size)
        x0 = torch.from_numpy(noise).to(self.device.torch, memory_format=torch.channels_last)
        velocity = self._velocity(network, y, self.params.guidance)
        return integrate(velocity, x0, self.params.sampler_steps, rule=self.params.sampler)

    def _velocity(self, network: UNet, y: Tensor, guidance: float = 1.0) -> Velocity:
        """Velocity for classes ``y``; 1 is without guidance.

        Guidance moves away from the prediction without a label (Ho & Salimans 2022), or from that
        of an early network (Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of
        Itself"), which costs less diversity.
        """
        unlabelled = torch.full_like(y, self.spec.n_classes)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            with self.device.autocast():
                conditional: Tensor = network(x, t, y)
                if guidance == 1.0:
                    return conditional
                early = self._early if self._needs_early else None
                worse: Tensor = early(x, t, y) if early is not None else network(x, t, unlabelled)
            return torch.lerp(worse, conditional, guidance)

        return velocity

    def denoise(self, X: Images, noise: float) -> Images:
        """Return images without their noise (deviation, white being 1), ignoring classes.

        Raises ParameterError for images of another shape, or a network trained without label
        dropout.
        """
        if not self.params.label_dropout:
            raise ParameterError(
                "this model was trained with label_dropout=0 and cannot use images without a label; "
                "train one with label_dropout above 0 to denoise."
            )

        def clean(images: Tensor) -> Tensor:
            unlabelled = torch.full((len(images),), self.spec.n_classes, device=images.device)
            velocity = self._velocity(self.network, unlabelled)
            return to_pixels(denoised(velocity, to_unit(images), 2.0 * noise))

        return self.of_images(X, clean, self.spec.shape, np.uint8)

    def class_log_likelihoods(self, X: Images) -> Float:
        """Return a bound on log p(image | class) in nats, up to a constant that all classes share.

        Shape (n, n_classes); see :func:`log_likelihoods`.
        """
        network, n_classes = self.network, self.spec.n_classes

        def bounds(images: Tensor) -> Tensor:
            x = to_unit(images)
            labels = torch.arange(n_classes, device=x.device)[:, None].expand(n_classes, len(x))
            return torch.stack([log_likelihoods(self._velocity(network, y), x) for y in labels], 1)

        return self.of_images(X, bounds, (n_classes,), np.float64)

    def extra_state(self) -> tuple[Config, Arrays]:
        """The early network."""
        early = loop.named_arrays("early", self._early.state_dict()) if self._early else {}
        return {}, early

    def load_extra_state(self, config: Config, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""
        self._early = self.stored_network("early", arrays)
