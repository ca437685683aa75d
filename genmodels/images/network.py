"""Base of all networks of images: a model adds its network, its phase and how it draws.

:class:`ImageNetwork` checks its input, puts records and network on the device, trains by
:func:`.loop.train`, and computes in micro-batches of one size.
"""

from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from prefect_augment.array_types import Array, Images, Int, Uint64
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import FitContext, ImageData, ImageSpec
from prefect_augment.genmodels.checks import check_not_empty, check_request
from prefect_augment.genmodels.counter_rng import record_keys
from prefect_augment.genmodels.images.training import ImagePhase, ImageRecords, channels_first
from prefect_augment.genmodels.network import N, Network, P
from prefect_augment.nn import loop
from prefect_augment.nn.budget import Calibration
from prefect_augment.nn.devices import Device, available_cores, choose_device
from prefect_augment.nn.networks import patch_size

MIN_SIZE, MAX_SIZE = 8, 256
# Batch × squares of pixels × width²: below it an operation takes a fraction of a millisecond, and on busy
# cores threads wait for one another (8 px, width 16, two cores with eleven processes: 3.4 s a step with
# two threads, 0.7 s with one). One thread also gives the same bits on every number of cores.
SMALL_STEP = 8_000_000


class ImageNetwork(Network[P, N]):
    """A generative model of images trained by gradient descent; see :class:`.Network`."""

    spec: ImageSpec
    spec_class = ImageSpec
    batch_sizes: ClassVar[dict[str, int]] = {"cpu": 64, "cuda": 256}
    micro_batches: ClassVar[dict[str, int]] = {"cpu": 64, "cuda": 512}

    @abstractmethod
    def draw(self, network: N, y: Tensor, keys: Uint64) -> Tensor:
        """Return images of classes ``y``, float32 in [-1, 1] of shape (n, channels, size, size).

        Every random number comes from a record's own key (:mod:`.counter_rng`).
        """

    def train(self, phase: ImagePhase, device: Device, ctx: FitContext) -> tuple[nn.Module, int]:
        """Return the trained network and the steps taken."""
        return loop.train(phase, ctx, device)

    def step_seconds(self, phase: ImagePhase, device: Device, seed: int) -> float:
        """Return the mean seconds of a step."""
        return loop.seconds_per_step(phase, seed=seed, device=device)

    def useful_threads(self, batch_size: int) -> int:
        """Return the threads that a step can use on a CPU; 0: as many as there are cores."""
        return 0

    @classmethod
    def build(cls, params: Any, spec: ImageSpec) -> Self:
        """Return an untrained model; raises ParameterError for unsuitable params or image sizes."""
        if not MIN_SIZE <= spec.size <= MAX_SIZE or spec.channels not in (1, 3):
            raise ParameterError(
                f"{cls.__name__} takes images of {MIN_SIZE} to {MAX_SIZE} px with 1 or 3 channels, not "
                f"{spec.size} px with {spec.channels}; choose another resolution with model.size."
            )
        return super().build(params, spec)

    def fit(self, data: ImageData, ctx: FitContext) -> None:
        """Train on training records for ``ctx.steps`` steps.

        Raises EmptyClassError without records; ParameterError if images do not have the spec's
        shape or there is no step to take; DivergedError if the loss is not finite.
        """
        phase, device = self._phase(data, ctx)
        network: Any
        network, self._n_steps = self.train(phase, device, ctx)
        self._network, self.micro_batch = network, self.micro_batches[device.name]
        with device.settings():
            self.after_training(network, phase.records, ctx.seed)

    def calibrate(self, data: ImageData, ctx: FitContext) -> Calibration:
        """Return how this machine would train; see :class:`.Calibrates`."""
        phase, device = self._phase(data, ctx)
        seconds = 0.0
        if not ctx.steps:
            tried = {device.threads} if ctx.threads else {1, device.threads}
            timed = {
                n: self.step_seconds(phase, replace(device, threads=n), ctx.seed)
                for n in sorted(tried)
            }
            # On busy cores threads wait for one another, and one is the fastest.
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

    def _phase(self, data: ImageData, ctx: FitContext) -> tuple[ImagePhase, Device]:
        check_not_empty(len(data.y))
        self.check_images(data.images, len(data.y))
        threads = ctx.threads or self.useful_threads(ctx.batch_size or self.batch_sizes["cpu"])
        self.device = choose_device(ctx.device, threads=threads, precision=ctx.precision)
        records = ImageRecords.of(data, class_power=self.params.class_power, device=self.device)
        batch_size = ctx.batch_size or self.batch_sizes[self.device.name]
        network = self.initialised(ctx.seed)
        return self.phase_class(network, records, self.params, batch_size), self.device

    def check_images(self, images: Array, n: int) -> None:
        """Refuse images that are not uint8 or not of the spec's shape."""
        if images.shape != (n, *self.spec.shape) or images.dtype != np.uint8:
            raise ParameterError(
                f"expected uint8 images of shape {(n, *self.spec.shape)}, found "
                f"{images.dtype} of {images.shape}; encode them with ImageEncoder."
            )

    def sample(self, conditions: Int, *, seeds: Int) -> Images:
        """Draw one image per condition; see :meth:`.GenerativeModel.sample`.

        Micro-batches have one size, the last one padded, and each is computed on one thread, so the
        bits do not depend on the number of cores. Several run in parallel.
        """
        conditions, seeds = np.asarray(conditions, np.int64), np.asarray(seeds, np.int64)
        network = self.network
        check_request(conditions, seeds, self.spec.classes)
        images = np.empty((len(conditions), *self.spec.shape), dtype=np.uint8)

        def draw(rows: slice) -> None:
            n = len(conditions[rows])
            padding = (0, self.micro_batch - n)
            labels = torch.from_numpy(np.pad(conditions[rows], padding)).to(self.device.torch)
            drawn = self.draw(network, labels, record_keys(np.pad(seeds[rows], padding)))
            images[rows] = to_pixels(drawn[:n]).cpu().numpy()

        self.in_micro_batches(len(conditions), draw)
        return images

    def of_images(
        self, X: Images, of: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: type
    ) -> Array:
        """Apply a function to uint8 tensors (n, channels, size, size) of the images."""
        X = np.asarray(X)
        self.check_images(X, len(X))
        output: Array = np.empty((len(X), *shape), dtype=dtype)

        def each(rows: slice) -> None:
            output[rows] = of(channels_first(X[rows]).to(self.device.torch)).cpu().numpy()

        self.in_micro_batches(len(X), each)
        return output

    def in_micro_batches(self, n: int, do: Callable[[slice], None]) -> None:
        """Call ``do`` with the rows of each micro-batch; in parallel on a CPU, one thread each."""
        starts = range(0, n, self.micro_batch)
        parts = [slice(start, min(n, start + self.micro_batch)) for start in starts]

        def quietly(rows: slice) -> None:
            with torch.inference_mode():  # local to a thread
                do(rows)

        with replace(self.device, threads=1).settings():
            if self.device.name == "cpu" and len(parts) > 1:
                with ThreadPoolExecutor(min(available_cores(), len(parts))) as pool:
                    list(pool.map(quietly, parts))
            else:
                for part in parts:
                    quietly(part)


def threads_of_step(size: int, width: int, batch_size: int) -> int:
    """1 if a step is too small for several threads, else 0: as many as there are cores."""
    squares = (size / patch_size(size)) ** 2
    return int(batch_size * squares * width**2 < SMALL_STEP)


def to_pixels(images: Tensor) -> Tensor:
    """Images (n, channels, h, w) in [-1, 1] as uint8 pixels of shape (n, h, w, channels)."""
    pixels = ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1)
