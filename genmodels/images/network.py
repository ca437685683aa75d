"""Base of all networks of images: a model adds its network, its losses and how it draws.

:class:`ImageNetwork` checks its input, puts records and network on the device, trains by
:func:`.loop.train`, draws in micro-batches of one size, and handles storage.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.genmodels.base import Arrays, Config, FitContext, ImageData, ImageSpec
from prefect_augment.genmodels.checks import check_request
from prefect_augment.genmodels.counter_rng import record_keys
from prefect_augment.genmodels.images.training import ImagePhase, ImageRecords
from prefect_augment.nn import loop
from prefect_augment.nn.budget import Calibration
from prefect_augment.nn.devices import Device, available_cores, choose_device
from prefect_augment.nn.networks import patch_size
from prefect_augment.params.base import Params

MIN_SIZE, MAX_SIZE = 8, 256
# Batch × squares of pixels × width²: below it an operation takes a fraction of a millisecond, and on busy
# cores threads wait for one another (8 px, width 16, two cores with eleven processes: 3.4 s a step with
# two threads, 0.7 s with one). One thread also gives the same bits on every number of cores.
SMALL_STEP = 8_000_000

P = TypeVar("P", bound=Params)
N = TypeVar("N", bound=nn.Module)


class ImageNetwork(ABC, Generic[P, N]):
    """A generative model of images trained by gradient descent; see :class:`.GenerativeModel`.

    ``params`` is of ``params_class``, with ``class_power``, ``ema_fraction`` and what the phase
    reads.
    """

    trained_in_steps: ClassVar[bool] = True
    params_class: ClassVar[type[Any]]
    batch_sizes: ClassVar[dict[str, int]] = {"cpu": 64, "cuda": 256}
    # Records drawn at once; a record's place in the micro-batch affects its bits.
    micro_batches: ClassVar[dict[str, int]] = {"cpu": 64, "cuda": 512}

    def __init__(self, params: P, spec: ImageSpec) -> None:
        self.params = params
        self.spec = spec
        self.device = Device()
        self.micro_batch = self.micro_batches["cpu"]
        self._network: N | None = None
        self._n_steps = 0

    # --- what a model defines ---

    @abstractmethod
    def new_network(self) -> N:
        """Return an untrained network."""

    @abstractmethod
    def new_phase(self, network: N, records: ImageRecords, batch_size: int) -> ImagePhase:
        """Return how it is trained."""

    @abstractmethod
    def draw(self, network: N, y: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        """Return images of classes ``y``, float32 in [-1, 1] of shape (n, channels, size, size).

        Every random number comes from a record's own key (:mod:`.counter_rng`).
        """

    def train(self, phase: ImagePhase, device: Device, ctx: FitContext) -> tuple[nn.Module, int]:
        """Return the trained network and the steps taken."""
        result = loop.train(
            phase,
            steps=ctx.steps,
            seed=ctx.seed,
            device=device,
            ema_fraction=getattr(self.params, "ema_fraction", 0.0),
            on_progress=ctx.report,
            checkpoint=ctx.checkpoint,
            checkpoint_seconds=ctx.checkpoint_seconds,
            restored=ctx.restored,
        )
        return result.network, result.steps

    def step_seconds(self, phase: ImagePhase, device: Device, seed: int) -> float:
        """Return the mean seconds of a step."""
        return loop.seconds_per_step(phase, seed=seed, device=device)

    def after_training(self, network: N, records: ImageRecords, seed: int) -> None:
        """Fit what drawing needs besides the weights, from the training records."""

    def useful_threads(self, batch_size: int) -> int:
        """Return the threads that a step can use on a CPU; 0: as many as there are cores."""
        return 0

    def extra_config(self) -> Config:
        """Return facts about the training, as plain JSON."""
        return {}

    def load_extra_config(self, config: Config) -> None:
        """Inverse of :meth:`extra_config`; gets the whole configuration."""

    def extra_state(self) -> Arrays:
        """Return what :meth:`after_training` fitted."""
        return {}

    def load_extra_state(self, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""

    # --- shared ---

    @classmethod
    def build(cls, params: Any, spec: ImageSpec) -> Self:
        """Return an untrained model; raises ParameterError for unsuitable params or image sizes."""
        if not isinstance(params, cls.params_class):
            raise ParameterError(
                f"{cls.__name__} takes {cls.params_class.__name__} params, not {type(params).__name__}."
            )
        if not MIN_SIZE <= spec.size <= MAX_SIZE or spec.channels not in (1, 3):
            raise ParameterError(
                f"{cls.__name__} takes images of {MIN_SIZE} to {MAX_SIZE} px with 1 or 3 channels, not "
                f"{spec.size} px with {spec.channels}; choose another resolution with model.size."
            )
        return cls(params, spec)

    @property
    def n_steps(self) -> int:
        """Training steps taken."""
        return self._n_steps

    @property
    def network(self) -> N:
        """The trained network."""
        if self._network is None:
            raise ParameterError("the model has not been fitted; call fit, or load a checkpoint.")
        return self._network

    # --- training ---

    def fit(self, data: ImageData, ctx: FitContext) -> None:
        """Train on training records for ``ctx.steps`` steps.

        Raises EmptyClassError without records; ParameterError if images do not have the spec's
        shape or there is no step to take; DivergedError if the loss is not finite.
        """
        phase, device = self._phase(data, ctx)
        trained, steps = self.train(phase, device, ctx)
        network: Any = trained
        self._network, self._n_steps = network, steps
        self.device, self.micro_batch = device, self.micro_batches[device.name]
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
        if len(data.y) == 0:
            raise EmptyClassError(
                "there are 0 training records, so the model cannot be trained; give a larger source."
            )
        self.check_images(data.images, len(data.y))
        threads = ctx.threads or self.useful_threads(ctx.batch_size or self.batch_sizes["cpu"])
        device = choose_device(ctx.device, threads=threads, precision=ctx.precision)
        network = self._new_network(ctx.seed).to(device.torch, memory_format=torch.channels_last)
        records = ImageRecords.of(
            data,
            n_classes=self.spec.n_classes,
            class_power=getattr(self.params, "class_power", 1.0),
            device=device,
        )
        batch_size = ctx.batch_size or self.batch_sizes[device.name]
        return self.new_phase(network, records, batch_size), device

    def _new_network(self, seed: int) -> N:
        # Initialisers use PyTorch's global generator: seed it, then restore it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.new_network()

    def check_images(self, images: NDArray[Any], n: int) -> None:
        """Refuse images that are not uint8 or not of the spec's shape."""
        if images.shape != (n, *self.spec.shape) or images.dtype != np.uint8:
            raise ParameterError(
                f"expected uint8 images of shape {(n, *self.spec.shape)}, found "
                f"{images.dtype} of {images.shape}; encode them with ImageEncoder."
            )

    # --- sampling ---

    def sample(
        self, conditions: NDArray[np.int64], *, seeds: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Draw one image per condition; see :meth:`.GenerativeModel.sample`.

        Micro-batches have one size, the last one padded, and each is computed on one thread, so the
        bits do not depend on the number of cores. Several run in parallel.
        """
        conditions, seeds = np.asarray(conditions, np.int64), np.asarray(seeds, np.int64)
        network = self.network
        check_request(conditions, seeds, self.spec.classes)
        images = np.empty((len(conditions), *self.spec.shape), dtype=np.uint8)

        def draw(rows: slice) -> None:
            images[rows] = self._drawn(network, conditions[rows], seeds[rows])

        self.in_micro_batches(len(conditions), draw)
        return images

    def in_micro_batches(self, n: int, do: Callable[[slice], None]) -> None:
        """Call ``do`` with the rows of each micro-batch; in parallel on a CPU, one thread each."""
        starts = range(0, n, self.micro_batch)
        parts = [slice(start, min(n, start + self.micro_batch)) for start in starts]
        with replace(self.device, threads=1).settings():
            if self.device.name == "cpu" and len(parts) > 1:
                with ThreadPoolExecutor(min(available_cores(), len(parts))) as pool:
                    list(pool.map(do, parts))
            else:
                for part in parts:
                    do(part)

    def _drawn(
        self, network: N, y: NDArray[np.int64], seeds: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Up to ``micro_batch`` images, computed as one batch of exactly that size."""
        n = len(y)
        padding = (0, self.micro_batch - n)
        with torch.inference_mode():
            labels = torch.from_numpy(np.pad(y, padding)).to(self.device.torch)
            drawn = self.draw(network, labels, record_keys(np.pad(seeds, padding)))
            return to_pixels(drawn[:n])

    # --- to storage and back ---

    def state(self) -> tuple[Config, Arrays]:
        """Return params, spec and device settings as JSON, and the weights as arrays."""
        config: Config = {
            "params": self.params.model_dump(mode="json"),
            "spec": self.spec.to_config(),
            "precision": self.device.precision,
            "micro_batch": self.micro_batch,
            "n_steps": self._n_steps,
            **self.extra_config(),
        }
        return config, loop.named_arrays("network", self.network.state_dict()) | self.extra_state()

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, *, device: str = "cpu") -> Self:
        """Return the model of a state, in the precision of its training."""
        spec = ImageSpec.from_config(config["spec"])
        model = cls.build(cls.params_class.from_stored(config["params"]), spec)
        model.device = choose_device(device, precision=config["precision"])
        model.micro_batch, model._n_steps = config["micro_batch"], config["n_steps"]
        network = model._new_network(0)
        network.load_state_dict(loop.tensors("network", arrays))
        network.requires_grad_(False).eval()
        model._network = network.to(model.device.torch, memory_format=torch.channels_last)
        model.load_extra_config(config)
        model.load_extra_state(arrays)
        return model


def threads_of_step(size: int, width: int, batch_size: int) -> int:
    """1 if a step is too small for several threads, else 0: as many as there are cores."""
    squares = (size / patch_size(size)) ** 2
    return int(batch_size * squares * width**2 < SMALL_STEP)


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Images (n, channels, h, w) in [-1, 1] as uint8 pixels of shape (n, h, w, channels)."""
    pixels = ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
