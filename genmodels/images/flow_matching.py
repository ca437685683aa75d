"""Class-conditional flow matching in pixel space: noise is carried to images along straight lines.

Between noise ``x0`` and an image ``x1`` lies ``x_t = (1 - t) x0 + t x1``; a network learns the mean
velocity ``E[x1 - x0 | x_t, t, y]``, and records are drawn by following it from t = 0 to 1 (Lipman
et al. 2023, "Flow Matching for Generative Modeling"; Liu et al. 2023, "Flow Straight and Fast").

With Gaussian noise this is EDM's diffusion model (Karras et al. 2022) in other coordinates (see
:mod:`.flow_training`). The target has the same scale at every t, which EDM achieves by
preconditioning, and the paths are nearly straight: 12 evaluations make an image here, EDM's sampler
takes 35. With the same network, EDM's own coordinates, weights and sampler learnt more slowly in
the one short run of each that was compared.

Choices for few images and little time (research/images.md, sections 4 and 9): one network for all
classes, classes drawn with p ∝ n_k**q, label dropout, and averaged weights with a half-life of 5 %
of the run.
"""

from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Arrays, FitContext
from prefect_augment.genmodels.counter_rng import normal
from prefect_augment.genmodels.images import flow_training as uses
from prefect_augment.genmodels.images.flow_training import FlowPhase, Velocity, train_keeping_early
from prefect_augment.genmodels.images.network import ImageNetwork, threads_of_step, to_pixels
from prefect_augment.genmodels.images.training import (
    N_AUGMENT,
    ImagePhase,
    ImageRecords,
    channels_first,
    to_unit,
)
from prefect_augment.nn import loop
from prefect_augment.nn.devices import Device, compiled
from prefect_augment.nn.networks import UNet
from prefect_augment.params import DiffusionModel

__all__ = ["Diffusion", "integrate"]


def integrate(
    velocity: Velocity,
    x: Tensor,
    n_steps: int,
    *,
    rule: Literal["midpoint", "heun"] = "midpoint",
    start: float = 0.0,
) -> Tensor:
    """Integrate the velocity from the points ``x`` (n, c, h, w) at t = start to 1.

    Every step takes two evaluations, except Heun's last one, which takes one as in EDM (algorithm
    1): there is nothing to learn at t = 1.
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
    """One network for all classes; see the module."""

    params_class: ClassVar[type[Any]] = DiffusionModel
    # On a CPU 64 take 7 % more time per image than 128 and learn faster: after 90 CPU seconds on
    # fashion_lt the held-out loss is 0.259 with 64 and 0.281 with 128.
    batch_sizes: ClassVar[dict[str, int]] = {"cpu": 64, "cuda": 256}
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

    def new_phase(self, network: UNet, records: ImageRecords, batch_size: int) -> FlowPhase:
        """The training of the velocity."""
        return FlowPhase(network, records, self.params, batch_size)

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
        network, self._early, steps = train_keeping_early(
            phase, device, ctx, ema_fraction=self.params.ema_fraction
        )
        return network, steps

    @property
    def _needs_early(self) -> bool:
        return self.params.guidance != 1.0 and self.params.guide == "early"

    def draw(self, network: UNet, y: Tensor, keys: NDArray[np.uint64]) -> Tensor:
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

    def denoise(self, X: NDArray[np.uint8], noise: float) -> NDArray[np.uint8]:
        """Return images without their noise, ignoring classes; see :class:`.Denoises`.

        Raises ParameterError for images of another shape, noise outside (0, 1], or a network
        trained without label dropout.
        """
        if not 0.0 < noise <= 1.0:
            raise ParameterError(
                f"noise is {noise}; give the standard deviation of the images' noise, white being 1, "
                "above 0 and at most 1."
            )
        if not self.params.label_dropout:
            raise ParameterError(
                "this model was trained with label_dropout=0 and cannot use images without a label; "
                "train one with label_dropout above 0 to denoise."
            )
        self.check_images(X, len(X))
        network, clean = self.network, np.empty_like(X)

        def each(rows: slice) -> None:
            # Inference mode is local to a thread.
            with torch.inference_mode():
                x = to_unit(channels_first(X[rows]).to(self.device.torch))
                unlabelled = torch.full((len(x),), self.spec.n_classes, device=x.device)
                velocity = self._velocity(network, unlabelled)
                clean[rows] = to_pixels(uses.denoised(velocity, x, 2.0 * noise))

        self.in_micro_batches(len(X), each)
        return clean

    def class_log_likelihoods(self, X: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return a bound on log p(image | class) in nats, up to a constant that all classes share.

        Shape (n, n_classes); see :func:`.flow_training.log_likelihoods`.
        """
        self.check_images(X, len(X))
        network = self.network
        bounds = np.empty((len(X), self.spec.n_classes))

        def each(rows: slice) -> None:
            with torch.inference_mode():
                x = to_unit(channels_first(X[rows]).to(self.device.torch))
                for k in range(self.spec.n_classes):
                    y = torch.full((len(x),), k, device=x.device)
                    batch_bounds = uses.log_likelihoods(self._velocity(network, y), x)
                    bounds[rows, k] = batch_bounds.cpu().numpy()

        self.in_micro_batches(len(X), each)
        return bounds

    def extra_state(self) -> Arrays:
        """The early network."""
        return loop.named_arrays("early", self._early.state_dict()) if self._early else {}

    def load_extra_state(self, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""
        weights = loop.tensors("early", arrays)
        if weights:
            early = self._new_network(0)
            early.load_state_dict(weights)
            early.requires_grad_(False).eval()
            self._early = early.to(self.device.torch, memory_format=torch.channels_last)
