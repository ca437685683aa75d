"""Class-conditional flow matching in pixel space: noise is carried to images along straight lines.

Between noise ``x0`` and an image ``x1`` lies ``x_t = (1 - t) x0 + t x1``; a network learns the mean
velocity ``E[x1 - x0 | x_t, t, y]``, and records are drawn by following it from t = 0 to 1 (Lipman
et al. 2023, "Flow Matching for Generative Modeling"; Liu et al. 2023, "Flow Straight and Fast").
With Gaussian noise this is EDM's diffusion model (Karras et al. 2022) in other coordinates
(:mod:`.diffusion_uses` has the formula). The target has the same scale at every t, which is what EDM's
preconditioning is for, and the paths are nearly straight: 12 evaluations make an image here, where EDM's
sampler takes 35. With the same network, EDM's own coordinates, weights and sampler learnt more slowly in
the one short run of each that was compared.

For few images and little time (../shared/research/images.md, sections 4 and 9): one network for all
classes, classes drawn with p ∝ n_k**q, labels dropped now and then, averaged weights with a memory
of 5 % of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefect_augment.genmodels.base import Arrays, FitContext
from prefect_augment.genmodels.counter_rng import normal
from prefect_augment.genmodels.images import flow_training as uses
from prefect_augment.genmodels.images.flow_training import FlowPhase, Velocity, train_keeping_early
from prefect_augment.genmodels.images.network import ImageNetwork, to_pixels
from prefect_augment.genmodels.images.training import N_TOLD, ImagePhase, ImageRecords
from prefect_augment.nn import loop
from prefect_augment.nn.devices import Device, compiled
from prefect_augment.nn.networks import UNet, patch_size
from prefect_augment.params import DiffusionModel

__all__ = ["Diffusion", "integrate"]


# Batch times squares of pixels times width²: below it, an operation takes a fraction of a millisecond,
# and threads gain little or, where others use the cores too, wait for one another (8 px, width 16, two
# cores with eleven processes: 3.4 s a step with two threads, 0.7 s with one). One thread also has the
# same bits on every number of cores.
SMALL_STEP = 8_000_000


def integrate(
    velocity: Velocity,
    x: Tensor,
    n_steps: int,
    *,
    rule: Literal["midpoint", "heun"] = "midpoint",
    start: float = 0.0,
) -> Tensor:
    """Return where the velocity carries points from t = start to 1.

    Parameters
    ----------
    velocity : callable
        Takes points (n, c, h, w) and times (n,), returns velocities.
    x : Tensor of float32, shape (n, c, h, w)
        Where the paths start: noise, for t = 0.
    n_steps : int
        Equal steps; two evaluations each, but one for Heun's last, as EDM has it (algorithm 1): there
        is nothing to learn at t = 1.
    rule : {"midpoint", "heun"}
    start : float in [0, 1)
        Time of the points.
    """
    h = (1.0 - start) / n_steps

    def at(t: float) -> Tensor:
        return torch.full((len(x),), t, dtype=x.dtype, device=x.device)

    for step in range(n_steps):
        t = start + step * h
        first = velocity(x, at(t))
        if rule == "midpoint":
            x = x + h * velocity(x + 0.5 * h * first, at(t + 0.5 * h))
        elif step == n_steps - 1:
            x = x + h * first
        else:
            x = x + 0.5 * h * (first + velocity(x + h * first, at(t + h)))
    return x


class Diffusion(ImageNetwork[DiffusionModel, UNet]):
    """One network for all classes; see the module.

    Parameters
    ----------
    params : DiffusionModel
        The wish.
    spec : ImageSpec
        Shape and classes.
    """

    params_class: ClassVar[type[Any]] = DiffusionModel
    # On a CPU half the batch takes 7 % more time per image and learns much faster: after 90 CPU seconds
    # on fashion_lt the held-out loss is 0.259 with 64 and 0.281 with 128.
    batch_sizes: ClassVar[dict[str, int]] = {"cpu": 64, "cuda": 256}
    _early: UNet | None = None

    def new_network(self) -> UNet:
        """Return an untrained U-Net."""
        return UNet(
            size=self.spec.size,
            channels=self.spec.channels,
            n_classes=self.spec.n_classes,
            width=self.params.width,
            n_augment=N_TOLD,
        )

    def new_phase(self, network: UNet, records: ImageRecords, batch_size: int) -> FlowPhase:
        """Return the training of the velocity."""
        return FlowPhase(network, records, self.params, batch_size)

    def useful_threads(self, batch_size: int) -> int:
        """Return 1 where a step is too small to be shared, else 0: as many as there are cores."""
        squares = (self.spec.size / patch_size(self.spec.size)) ** 2
        return int(batch_size * squares * self.params.width**2 < SMALL_STEP)

    def train(self, phase: ImagePhase, device: Device, ctx: FitContext) -> tuple[nn.Module, int]:
        """Train, and keep an early network where guidance is to move away from one."""
        if self.params.compile:
            compiled(phase.network, self._example(phase, ctx.seed), device)
        if not self._needs_early:
            return super().train(phase, device, ctx)
        network, self._early, steps = train_keeping_early(
            phase, device, ctx, ema_fraction=self.params.ema_fraction
        )
        return network, steps

    @property
    def _needs_early(self) -> bool:
        return self.params.guidance != 1.0 and self.params.guide == "early"

    def _example(self, phase: ImagePhase, seed: int) -> Callable[[], Tensor]:
        rng = loop.step_generator(seed, "compile", 0, phase.device)
        return lambda: phase.loss("velocity", phase.batch("velocity", rng))

    def draw(self, network: UNet, y: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        """Return where the velocity carries each record's noise."""
        size, _, channels = self.spec.shape
        noise = normal(keys, channels * size * size).reshape(-1, channels, size, size)
        x0 = torch.from_numpy(noise).to(self.device.torch, memory_format=torch.channels_last)
        velocity = self._velocity(network, y)
        return integrate(velocity, x0, self.params.sampler_steps, rule=self.params.sampler)

    def _velocity(self, network: UNet, y: Tensor) -> Velocity:
        """Return the velocity for classes ``y``, guided where the params say so.

        Guidance moves away from what the network says without a label (Ho & Salimans 2022), or from
        what it said early in training (Karras et al. 2024, "Guiding a Diffusion Model with a Bad
        Version of Itself"), which costs less of the variety.
        """
        guidance = self.params.guidance
        nothing = torch.full_like(y, self.spec.n_classes)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            with self.device.autocast():
                conditional: Tensor = network(x, t, y)
                if guidance == 1.0:
                    return conditional
                early = self._early if self._needs_early else None
                worse: Tensor = early(x, t, y) if early is not None else network(x, t, nothing)
            return torch.lerp(worse, conditional, guidance)

        return velocity

    def denoise(self, X: NDArray[np.uint8], noise: float) -> NDArray[np.uint8]:
        """Return images without their noise, as :class:`.Denoises` has it; classes are not told.

        Raises
        ------
        ParameterError
            If images do not have the spec's shape, the noise is not in (0, 1], or the network has
            never learnt without labels.
        """
        uses.check_noise(noise)
        uses.check_unlabelled(self.params.label_dropout)
        self.check_images(X, len(X))
        network, clean = self.network, np.empty_like(X)

        def each(rows: slice) -> None:
            # Inference mode is a thread's own.
            with torch.inference_mode():
                x = uses.as_images(X[rows], self.device.torch)
                nothing = torch.full((len(x),), self.spec.n_classes, device=x.device)
                velocity = self._unguided(network, nothing)
                clean[rows] = to_pixels(uses.denoised(velocity, x, 2.0 * noise))

        self.in_micro_batches(len(X), each)
        return clean

    def class_log_likelihoods(self, X: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return a bound on log p(image | class) in nats, up to a number that all classes share.

        Shape (n, n_classes); see :func:`.diffusion_uses.log_likelihoods`.
        """
        self.check_images(X, len(X))
        network = self.network
        likely = np.empty((len(X), self.spec.n_classes))

        def each(rows: slice) -> None:
            with torch.inference_mode():
                x = uses.as_images(X[rows], self.device.torch)
                for k in range(self.spec.n_classes):
                    y = torch.full((len(x),), k, device=x.device)
                    found = uses.log_likelihoods(self._unguided(network, y), x)
                    likely[rows, k] = found.cpu().numpy()

        self.in_micro_batches(len(X), each)
        return likely

    def _unguided(self, network: UNet, y: Tensor) -> Velocity:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            with self.device.autocast():
                found: Tensor = network(x, t, y)
            return found

        return velocity

    def extra_state(self) -> Arrays:
        """Return the early network."""
        return loop.named_arrays("early", self._early.state_dict()) if self._early else {}

    def load_extra_state(self, arrays: Arrays) -> None:
        """Take it back."""
        weights = loop.tensors("early", arrays)
        if weights:
            early = self._new_network(0)
            early.load_state_dict(weights)
            early.requires_grad_(False).eval()
            self._early = early.to(self.device.torch, memory_format=torch.channels_last)
