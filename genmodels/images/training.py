"""Images on their way into training: drawn class by class, on the device where they fit.

Moves of images in training that do not leak into what is drawn.

Two kinds. A diffusion model is told how an image was moved, and asked for none when it draws (EDM,
section 5). A critic sees real and made images through the same random moves, of which some part is
no move at all, so that the only way to look real is to be so (Karras et al. 2020, "Training
Generative Adversarial Networks with Limited Data", section 2.2; Zhao et al. 2020, DiffAugment).

Moves are drawn apart from being made: numbers first axis records, so that a batch can be computed in
parts.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.genmodels.base import ImageData
from prefect_augment.nn import loop
from prefect_augment.nn.devices import Device

__all__ = [
    "N_CRITIC",
    "N_TOLD",
    "ImagePhase",
    "ImageRecords",
    "critic_moves",
    "moved",
    "seen_by_critic",
    "shifted",
    "to_unit",
    "turned",
]

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


N_CRITIC = 7  # numbers of one image's moves before the critic
MAX_SHIFT = 0.125  # of the size; DiffAugment's
MAX_CUT = 0.5  # edge of the square that is covered, as a share of the size; DiffAugment's
MAX_LIGHT, MAX_CONTRAST = 0.4, 0.4  # of the range from black to middle gray; as a factor
N_TOLD = 5  # numbers that say how an image was moved
TOLD_SHIFT = 0.1  # of the size
MAX_ANGLE = 0.2  # radians: 11 degrees
MAX_SCALE = 0.14  # of the logarithm: 15 % more or less


def shifted(images: Tensor, moves: Tensor) -> Tensor:
    """Return images moved by whole pixels; the border repeats itself where the image has left.

    Parameters
    ----------
    images : Tensor, shape (n, channels, height, width)
        Of any type; a gradient passes through.
    moves : Tensor of int64, shape (n, 2)
        Pixels down and to the right.
    """
    n, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    down = (rows - moves[:, :1]).clamp(0, height - 1)[:, None, :, None]
    right = (columns - moves[:, 1:]).clamp(0, width - 1)[:, None, None, :]
    picks = torch.arange(n, device=images.device)[:, None, None, None]
    planes = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[picks, planes, down, right]


def turned(images: Tensor, angles: Tensor, scales: Tensor) -> Tensor:
    """Return images turned about their middle and enlarged, between pixels by straight lines.

    Parameters
    ----------
    images : Tensor of float32, shape (n, channels, size, size)
    angles : Tensor of float32, shape (n,)
        Radians, counter-clockwise on the screen.
    scales : Tensor of float32, shape (n,)
        Above 1 enlarges.
    """
    # grid_sample asks where each pixel comes from: the inverse of the move.
    cos, sin = angles.cos() / scales, angles.sin() / scales
    zero = torch.zeros_like(cos)
    inverse = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(inverse, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def critic_moves(n: int, prob: float, rng: torch.Generator, device: torch.device) -> Tensor:
    """Return the moves of n images before the critic, float32 of shape (n, N_CRITIC).

    Shift down and right in shares of the most there is, where a covered square is and how large,
    light, contrast. Each kind is left out with a chance of 1 - prob, by itself.
    """
    numbers = 2.0 * torch.rand(n, N_CRITIC, generator=rng, device=device) - 1.0
    made = torch.rand(n, 4, generator=rng, device=device) < prob
    kinds = made[:, torch.tensor([0, 0, 1, 1, 1, 2, 3], device=device)]
    # A square in the middle of no size is none.
    nothing = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0], device=device)
    return torch.where(kinds, numbers, nothing)


def seen_by_critic(images: Tensor, moves: Tensor) -> Tensor:
    """Return images as the critic sees them.

    Parameters
    ----------
    images : Tensor of float32, shape (n, channels, size, size)
        In about [-1, 1]; a gradient passes through.
    moves : Tensor of float32, shape (n, N_CRITIC)
        From :func:`critic_moves`.
    """
    light, contrast = (moves[:, i, None, None, None] for i in (5, 6))
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (1.0 + MAX_CONTRAST * contrast) + MAX_LIGHT * light
    size = images.shape[-1]
    images = shifted(images, (moves[:, :2] * MAX_SHIFT * size).round().long())
    return images * _uncovered(moves[:, 2:5], size)


def _uncovered(squares: Tensor, size: int) -> Tensor:
    """Return 0 inside each image's square and 1 outside, shape (n, 1, size, size)."""
    places = (torch.arange(size, device=squares.device) + 0.5) / size * 2.0 - 1.0
    half = (squares[:, 2:] + 1.0) / 2.0 * MAX_CUT  # of half the size
    down, right = ((places - squares[:, i : i + 1]).abs() < half for i in (0, 1))
    return 1.0 - (down[:, :, None] & right[:, None, :])[:, None].float()


def moved(
    images: Tensor, *, shift: float, flip: float, turn: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return images, some of them moved, and the moves as the network is told them.

    Parameters
    ----------
    images : Tensor of uint8, shape (n, channels, size, size)
    shift, flip, turn : float
        Share of the images that are shifted, mirrored, turned and scaled.
    rng : torch.Generator

    Returns
    -------
    images : Tensor of uint8, or of float32 in [0, 255] where some may be turned
    moves : Tensor of float32, shape (n, 5)
        Down, right, mirrored, angle, logarithm of the scale, each over the most there is; 0: none.
    """
    n, size, device = len(images), images.shape[-1], images.device
    moves = torch.zeros(n, N_TOLD, device=device)

    def some(share: float) -> Tensor:
        return torch.rand(n, generator=rng, device=device) < share

    if flip:
        mirrored = some(flip)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        moves[:, 2] = mirrored.float()
    if turn:
        drawn = 2.0 * torch.rand(n, 2, generator=rng, device=device) - 1.0
        moves[:, 3:] = torch.where(some(turn)[:, None], drawn, 0.0)
        images = turned(images.float(), MAX_ANGLE * moves[:, 3], (MAX_SCALE * moves[:, 4]).exp())
    if shift:
        reach = max(1, round(TOLD_SHIFT * size))
        pixels = torch.randint(-reach, reach + 1, (n, 2), generator=rng, device=device)
        pixels = torch.where(some(shift)[:, None], pixels, 0)
        images, moves[:, :2] = shifted(images, pixels), pixels.float() / reach
    return images, moves
