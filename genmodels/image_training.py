"""Images on their way into training: drawn class by class, on the device where they fit."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from prefect_augment.genmodels.base import ImageData
from prefect_augment.training import loop
from prefect_augment.training.devices import Device

__all__ = ["ImagePhase", "ImageRecords", "to_unit"]

logger = logging.getLogger(__name__)

# Of the device's free memory that images may take: the rest is for the network's activations.
MAX_SHARE = 0.25


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0


@dataclass(frozen=True)
class ImageRecords:
    """Fit records, classes and chances on the device.

    Parameters
    ----------
    images : Tensor of uint8, shape (n_records, channels, size, size)
        On the device, or in pinned memory beside it where they would not fit.
    y : Tensor of int64, shape (n_records,)
        Classes.
    cumulative : Tensor of float64, shape (n_records,)
        Up to each record, the chance to be drawn.
    """

    images: Tensor
    y: Tensor
    cumulative: Tensor

    @classmethod
    def of(cls, data: ImageData, *, n_classes: int, class_power: float, device: Device) -> Self:
        """Return records that are drawn with p(class) ∝ n**class_power, and p(record | class) = 1/n."""
        counts = np.bincount(data.y, minlength=n_classes)
        weights = counts[data.y].astype(np.float64) ** (class_power - 1.0)
        images = torch.from_numpy(np.ascontiguousarray(data.images.transpose(0, 3, 1, 2)))
        return cls(
            _held(images, device),
            torch.from_numpy(data.y).to(device.torch),
            torch.from_numpy(np.cumsum(weights / weights.sum())).to(device.torch),
        )

    def rows(self, n: int, rng: torch.Generator) -> Tensor:
        """Return the places of n drawn records, int64 of shape (n,)."""
        drawn = torch.rand(n, generator=rng, device=self.y.device, dtype=torch.float64)
        return torch.searchsorted(self.cumulative, drawn).clamp_(max=len(self.y) - 1)

    def take(self, rows: Tensor) -> Tensor:
        """Return the images at places, on the device of the places."""
        if self.images.device == rows.device:
            return self.images[rows]
        batch = self.images[rows.to(self.images.device)]
        # From pinned memory the copy goes on beside the computation.
        return batch.pin_memory().to(rows.device, non_blocking=True)


def _held(images: Tensor, device: Device) -> Tensor:
    """Return images on the device where they fit, else pinned beside it; says so."""
    if device.name != "cuda":
        return images
    free, _ = torch.cuda.mem_get_info()
    n_bytes = images.numel()
    if n_bytes <= MAX_SHARE * free:
        logger.info("%d images (%.2f GiB) are held on the GPU.", len(images), n_bytes / 2**30)
        return images.to(device.torch)
    logger.info(
        "%d images (%.2f GiB) do not fit on the GPU beside the network (%.2f GiB are free): they "
        "are held in memory, and batches copied from there.",
        len(images), n_bytes / 2**30, free / 2**30,
    )  # fmt: skip
    return images


class ImagePhase(ABC):
    """What :func:`.loop.train` trains, of images; a model adds its batches and its loss.

    Parameters
    ----------
    network : nn.Module
        On the device already.
    records : ImageRecords
        Fit records.
    params : Params
        The wish; has ``learning_rate``.
    batch_size : int
        Records of a step.
    """

    name: str

    def __init__(
        self, network: nn.Module, records: ImageRecords, params: Any, batch_size: int
    ) -> None:
        self.network: Any = network
        self.records = records
        self.params = params
        self.batch_size = batch_size
        self.device = records.y.device

    def lr_factor(self, step: int, n_steps: int) -> float:
        """Warm-up and half a cosine."""
        return loop.warmup_cosine(step, n_steps)

    @abstractmethod
    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimisers by the name of their loss."""

    @abstractmethod
    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return the records of one step and every random number about them; first axis: records."""

    @abstractmethod
    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the mean loss over the records of a batch, or of a part of it."""
