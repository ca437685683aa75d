"""Class-conditional flow matching in pixel space: noise is carried to images along straight lines.

Between noise ``x0`` and an image ``x1`` lies ``x_t = (1 - t) x0 + t x1``; a network learns the mean
velocity ``E[x1 - x0 | x_t, t, y]``, and records are drawn by following it from t = 0 to 1 (Lipman
et al. 2023, "Flow Matching for Generative Modeling"; Liu et al. 2023, "Flow Straight and Fast").
With Gaussian noise this is a diffusion model in other coordinates. The target has the same scale at
every t, which is what EDM's preconditioning (Karras et al. 2022) is for, and the paths are nearly
straight: 12 evaluations make an image here, where EDM's sampler takes 35.

For few images and little time (../shared/research/images.md, sections 4 and 9): one network for all
classes, classes drawn with p ∝ n_k**q, labels dropped now and then, averaged weights with a memory
of 5 % of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.genmodels.base import Arrays, Config, FitContext, ImageData, ImageSpec
from prefect_augment.genmodels.counter_random import normal, record_keys
from prefect_augment.params import DiffusionModel
from prefect_augment.training import loop
from prefect_augment.training.budget import Calibration
from prefect_augment.training.devices import Device, choose_device, usable_cores
from prefect_augment.training.networks import UNet, patch_size

__all__ = ["Diffusion", "integrate", "velocity_loss"]

# On a CPU half the batch takes 7 % more time per image and learns much faster: after 90 CPU seconds on
# fashion_lt the held-out loss is 0.259 with 64 and 0.281 with 128.
BATCH_SIZE = {"cpu": 64, "cuda": 256}
MICRO_BATCH = {"cpu": 64, "cuda": 512}  # records drawn at once; the place in it is part of the bits
MIN_SIZE, MAX_SIZE = 8, 256
# Batch times squares of pixels times width²: below it, an operation takes a fraction of a millisecond,
# and threads gain little or, where others use the cores too, wait for one another (8 px, width 16, two
# cores with eleven processes: 3.4 s a step with two threads, 0.7 s with one). One thread also has the
# same bits on every number of cores.
SMALL_STEP = 8_000_000
MAX_SHIFT = 0.1  # of the size, for the augmentation whose label the network is told

Velocity = Callable[[Tensor, Tensor], Tensor]


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


def integrate(velocity: Velocity, noise: Tensor, n_steps: int) -> Tensor:
    """Return where the velocity carries the noise from t = 0 to 1, by the midpoint rule.

    Parameters
    ----------
    velocity : callable
        Takes points (n, c, h, w) and times (n,), returns velocities.
    noise : Tensor of float32, shape (n, c, h, w)
        Where the paths start.
    n_steps : int
        Equal steps; two evaluations each.
    """
    x, h = noise, 1.0 / n_steps
    for step in range(n_steps):
        start = torch.full((len(x),), step * h, dtype=x.dtype, device=x.device)
        middle = x + 0.5 * h * velocity(x, start)
        x = x + h * velocity(middle, start + 0.5 * h)
    return x


class Diffusion:
    """One network for all classes; see the module.

    Parameters
    ----------
    params : DiffusionModel
        The wish.
    spec : ImageSpec
        Shape and classes.
    """

    trained_in_steps: ClassVar[bool] = True

    def __init__(self, params: DiffusionModel, spec: ImageSpec) -> None:
        self.params = params
        self.spec = spec
        self.device = Device()
        self.micro_batch = MICRO_BATCH["cpu"]
        self._network: UNet | None = None
        self._n_steps = 0

    @classmethod
    def build(cls, params: Any, spec: ImageSpec) -> Self:
        """Return an untrained model.

        Raises
        ------
        ParameterError
            If the params are another model's, or images are too small or too large for it.
        """
        if not isinstance(params, DiffusionModel):
            raise ParameterError(
                f"Diffusion takes DiffusionModel params, not {type(params).__name__}."
            )
        if not MIN_SIZE <= spec.size <= MAX_SIZE or spec.channels not in (1, 3):
            raise ParameterError(
                f"Diffusion takes images of {MIN_SIZE} to {MAX_SIZE} px with 1 or 3 channels, not "
                f"{spec.size} px with {spec.channels}; choose another resolution with model.size."
            )
        return cls(params, spec)

    @property
    def n_steps(self) -> int:
        """Training steps taken."""
        return self._n_steps

    # --- training ---

    def fit(self, data: ImageData, ctx: FitContext) -> None:
        """Train on fit records for ``ctx.steps`` steps.

        Raises
        ------
        EmptyClassError
            If there is no record.
        ParameterError
            If images do not have the spec's shape, or there is no step to take.
        DivergedError
            If the loss is no longer a number.
        """
        phase, device = self._phase(data, ctx)
        result = loop.train(
            phase,
            steps=ctx.steps,
            seed=ctx.seed,
            device=device,
            ema_fraction=self.params.ema_fraction,
            on_progress=ctx.report,
            checkpoint=ctx.checkpoint,
            checkpoint_seconds=ctx.checkpoint_seconds,
            restored=ctx.restored,
        )
        assert isinstance(result.network, UNet)
        self._network = result.network
        self._n_steps = result.steps
        self.device, self.micro_batch = device, MICRO_BATCH[device.name]

    def calibrate(self, data: ImageData, ctx: FitContext) -> Calibration:
        """Return how this machine would train, as :class:`.Calibrates` has it."""
        phase, device = self._phase(data, ctx)
        seconds = 0.0
        if not ctx.steps:
            tried = {device.threads} if ctx.threads else {1, device.threads}
            timed = {
                n: loop.seconds_per_step(phase, seed=ctx.seed, device=replace(device, threads=n))
                for n in sorted(tried)
            }
            # Where others use the cores too, threads wait for one another, and one is the fastest.
            threads = min(timed, key=lambda n: timed[n])
            device, seconds = replace(device, threads=threads), timed[threads]
        return Calibration(
            steps=ctx.steps,
            batch_size=phase.batch_size,
            device=device.name,
            precision=device.precision,
            threads=device.threads,
            seconds_per_step=seconds,
        )

    def _phase(self, data: ImageData, ctx: FitContext) -> tuple[_FlowPhase, Device]:
        self._check(data)
        threads = ctx.threads or self._useful_threads(ctx.batch_size or BATCH_SIZE["cpu"])
        device = choose_device(ctx.device, threads=threads, precision=ctx.precision)
        network = self._new_network(ctx.seed).to(device.torch, memory_format=torch.channels_last)
        batch_size = ctx.batch_size or BATCH_SIZE[device.name]
        return _FlowPhase(network, data, self.params, batch_size, device), device

    def _useful_threads(self, batch_size: int) -> int:
        """Return 1 where a step is too small to be shared, else 0: as many as there are cores."""
        squares = (self.spec.size / patch_size(self.spec.size)) ** 2
        return int(batch_size * squares * self.params.width**2 < SMALL_STEP)

    def _new_network(self, seed: int) -> UNet:
        # Initialisers draw from PyTorch's global generator: set it, and put it back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return UNet(
                size=self.spec.size,
                channels=self.spec.channels,
                n_classes=self.spec.n_classes,
                width=self.params.width,
                n_augment=2,
            )

    def _check(self, data: ImageData) -> None:
        if len(data.y) == 0:
            raise EmptyClassError(
                "there are 0 fit records, so the model cannot be trained; give a larger source."
            )
        if data.images.shape != (len(data.y), *self.spec.shape) or data.images.dtype != np.uint8:
            raise ParameterError(
                f"expected uint8 images of shape {(len(data.y), *self.spec.shape)}, found "
                f"{data.images.dtype} of {data.images.shape}; encode them with ImageEncoder."
            )

    # --- sampling ---

    def sample(
        self, conditions: NDArray[np.int64], *, seeds: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Draw one image per condition, as :class:`.GenerativeModel` has it.

        Micro-batches have one size, the last one is padded, and each is computed on one thread, so
        the bits do not depend on the number of cores. Several run side by side.

        Returns
        -------
        ndarray of uint8, shape (n, size, size, channels)

        Raises
        ------
        EmptyClassError
            If a condition is no class of the model.
        ParameterError
            If the model has not been fitted, or there is not one seed per condition.
        """
        conditions, seeds = np.asarray(conditions, np.int64), np.asarray(seeds, np.int64)
        self._check_request(conditions, seeds)
        images = np.empty((len(conditions), *self.spec.shape), dtype=np.uint8)
        starts = range(0, len(conditions), self.micro_batch)

        def draw(start: int) -> None:
            rows = slice(start, start + self.micro_batch)
            images[rows] = self._sample_micro_batch(conditions[rows], seeds[rows])

        one_thread = replace(self.device, threads=1)
        with one_thread.settings():
            if self.device.name == "cpu" and len(starts) > 1:
                with ThreadPoolExecutor(min(usable_cores(), len(starts))) as pool:
                    list(pool.map(draw, starts))
            else:
                for start in starts:
                    draw(start)
        return images

    def _sample_micro_batch(
        self, conditions: NDArray[np.int64], seeds: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Return up to ``micro_batch`` images, computed as one batch of exactly that size."""
        n = len(conditions)
        padding = (0, self.micro_batch - n)
        size, _, channels = self.spec.shape
        noise = normal(record_keys(np.pad(seeds, padding)), channels * size * size)
        noise = noise.reshape(-1, channels, size, size)
        y = torch.from_numpy(np.pad(conditions, padding)).to(self.device.torch)
        with torch.inference_mode():
            x0 = torch.from_numpy(noise).to(self.device.torch, memory_format=torch.channels_last)
            x1 = integrate(self._velocity(y), x0, self.params.sampler_steps)
            pixels = ((x1 + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels[:n].permute(0, 2, 3, 1).cpu().numpy()

    def _velocity(self, y: Tensor) -> Velocity:
        """Return the velocity for classes ``y``, guided where the params say so.

        Guidance moves away from what the network says without a label (Ho & Salimans 2022).
        """
        network, guidance = self._network, self.params.guidance
        assert network is not None
        nothing = torch.full_like(y, self.spec.n_classes)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            with self.device.autocast():
                conditional: Tensor = network(x, t, y)
                if guidance == 1.0:
                    return conditional
                free: Tensor = network(x, t, nothing)
            return torch.lerp(free, conditional, guidance)

        return velocity

    def _check_request(self, conditions: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        if self._network is None:
            raise ParameterError("the model has not been fitted; call fit, or load a checkpoint.")
        if conditions.shape != seeds.shape:
            raise ParameterError(
                f"{len(conditions)} conditions came with {len(seeds)} seeds; give one each."
            )
        if conditions.size and not 0 <= conditions.min() <= conditions.max() < self.spec.n_classes:
            raise EmptyClassError(
                f"conditions go from {conditions.min()} to {conditions.max()}, the model has "
                f"classes 0 to {self.spec.n_classes - 1}: {', '.join(self.spec.classes)}."
            )

    # --- to storage and back ---

    def state(self) -> tuple[Config, Arrays]:
        """Return params, spec and how to compute as JSON, and the averaged weights."""
        if self._network is None:
            raise ParameterError("the model has not been fitted, so there is nothing to keep.")
        config: Config = {
            "params": self.params.model_dump(mode="json"),
            "spec": self.spec.to_config(),
            "precision": self.device.precision,
            "micro_batch": self.micro_batch,
            "n_steps": self._n_steps,
        }
        return config, loop.named_arrays("network", self._network.state_dict())

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, *, device: str = "cpu") -> Self:
        """Return the model whose state this is, in the precision that it was trained in."""
        model = cls.build(DiffusionModel(**config["params"]), ImageSpec.from_config(config["spec"]))
        model.device = choose_device(device, precision=config["precision"])
        model.micro_batch, model._n_steps = config["micro_batch"], config["n_steps"]
        network = model._new_network(0)
        network.load_state_dict(loop.tensors("network", arrays))
        network.requires_grad_(False).eval()
        model._network = network.to(model.device.torch, memory_format=torch.channels_last)
        return model


class _FlowPhase:
    """What :func:`.loop.train` trains: the velocity on tempered classes, labels dropped at times."""

    name = "flow"

    def __init__(
        self,
        network: UNet,
        data: ImageData,
        params: DiffusionModel,
        batch_size: int,
        device: Device,
    ) -> None:
        self.network = network
        self.params = params
        self.batch_size = batch_size
        self.device = device.torch
        images = np.ascontiguousarray(data.images.transpose(0, 3, 1, 2))
        self.images = torch.from_numpy(images).to(self.device)
        self.y = torch.from_numpy(data.y).to(self.device)
        # p(class) ∝ n**q, p(record | class) = 1/n.
        counts = np.bincount(data.y, minlength=network.n_classes)
        weights = counts[data.y].astype(np.float64) ** (params.class_power - 1.0)
        self.cumulative = torch.from_numpy(np.cumsum(weights / weights.sum())).to(self.device)

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

    def lr_factor(self, step: int, n_steps: int) -> float:
        """Warm-up and half a cosine."""
        return loop.warmup_cosine(step, n_steps)

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return images, labels, noise, times and shifts of one step."""
        n, device = self.batch_size, self.device
        drawn = torch.rand(n, generator=rng, device=device, dtype=torch.float64)
        rows = torch.searchsorted(self.cumulative, drawn).clamp_(max=len(self.y) - 1)
        dropped = torch.rand(n, generator=rng, device=device) < self.params.label_dropout
        y = torch.where(dropped, self.network.n_classes, self.y[rows])
        t = self._times(rng)
        noise = torch.randn((n, *self.images.shape[1:]), generator=rng, device=device)
        images, shifts = self._shifted(self.images[rows], rng)
        return images, y, noise, t, shifts

    def _times(self, rng: torch.Generator) -> Tensor:
        """Return logit-normal times (Esser et al. 2024): the middle is where there is most to learn."""
        return torch.sigmoid(torch.randn(self.batch_size, generator=rng, device=self.device))

    def _shifted(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images, some moved by a few pixels, and the moves as shares of the most there is.

        The network is told the move and asked for none when it draws, so that moved images do not
        leak into what it makes (Karras et al. 2020; EDM, section 5).
        """
        n, size = len(images), images.shape[-1]
        if not self.params.shift_prob:
            return images, torch.zeros(n, 2, device=self.device)
        reach = max(1, round(MAX_SHIFT * size))
        moves = torch.randint(-reach, reach + 1, (n, 2), generator=rng, device=self.device)
        kept = torch.rand(n, generator=rng, device=self.device) >= self.params.shift_prob
        moves = torch.where(kept[:, None], 0, moves)
        places = torch.arange(size, device=self.device)
        # The border repeats itself where the image has left.
        down = (places - moves[:, :1]).clamp(0, size - 1)[:, None, :, None]
        right = (places - moves[:, 1:]).clamp(0, size - 1)[:, None, None, :]
        picks = torch.arange(n, device=self.device)[:, None, None, None]
        channels = torch.arange(images.shape[1], device=self.device)[None, :, None, None]
        return images[picks, channels, down, right], moves.float() / reach

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the error of the velocity."""
        images, y, noise, t, shifts = batch
        x1 = images.float() / 127.5 - 1.0
        return velocity_loss(lambda x, at: self.network(x, at, y, shifts), x1, noise, t)
