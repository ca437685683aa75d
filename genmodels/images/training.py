"""Training data of images: records on the device, drawn by class, and augmentations that do not leak.

There are two kinds of augmentation. A diffusion model is told how an image was augmented, and draws
with none (EDM, section 5). A critic sees real and generated images under the same random
augmentations, some of which are none, so that only real-looking images pass (Karras et al. 2020,
"Training Generative Adversarial Networks with Limited Data", section 2.2; Zhao et al. 2020,
DiffAugment).

Random numbers are drawn apart from their use, first axis records, so a batch can be computed in
parts.
"""

import logging
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prefect_augment.array_types import Images
from prefect_augment.genmodels.base import ImageData
from prefect_augment.genmodels.network import NetworkPhase
from prefect_augment.nn.devices import Device

logger = logging.getLogger(__name__)

# Share of the device's free memory for images; the rest is for activations.
MAX_SHARE = 0.25

N_CRITIC = 7  # numbers of one image's augmentation for the critic
MAX_SHIFT = 0.125  # of the size; DiffAugment's
MAX_CUT = 0.5  # edge of the cutout as a share of the size; DiffAugment's
MAX_LIGHT, MAX_CONTRAST = 0.4, 0.4  # of the range from black to middle gray; as a factor
N_AUGMENT = 5  # numbers that describe an augmentation to the network
AUGMENT_SHIFT = 0.1  # of the size
MAX_ANGLE = 0.2  # radians: 11 degrees
MAX_SCALE = 0.14  # of the logarithm: 15 % more or less


def channels_first(images: Images) -> Tensor:
    """Pixels (n, h, w, c) as a tensor (n, c, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def to_unit(images: Tensor) -> Tensor:
    """Uint8 pixels as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0


@dataclass(frozen=True)
class ImageRecords:
    """Training records, classes and sampling probabilities on the device."""

    images: Tensor  # (n_records, channels, size, size) uint8, on the device or pinned beside it
    y: Tensor  # (n_records,) int64
    cumulative: Tensor  # (n_records,) float64, cumulative sampling probability

    @classmethod
    def of(cls, data: ImageData, *, class_power: float, device: Device) -> Self:
        """Records drawn with p(class) ∝ n**class_power and p(record | class) = 1/n."""
        weights = np.bincount(data.y)[data.y].astype(np.float64) ** (class_power - 1.0)
        images = channels_first(data.images)
        return cls(
            _held(images, device),
            torch.from_numpy(data.y).to(device.torch),
            torch.from_numpy(np.cumsum(weights / weights.sum())).to(device.torch),
        )

    def take(self, rows: Tensor) -> Tensor:
        """Images at row indices, on the device of the indices."""
        if self.images.device == rows.device:
            return self.images[rows]
        batch = self.images[rows.to(self.images.device)]
        # From pinned memory the copy overlaps with computation.
        return batch.pin_memory().to(rows.device, non_blocking=True)


def _held(images: Tensor, device: Device) -> Tensor:
    """Images on the device if they fit, else pinned in host memory; logs which."""
    if device.name != "cuda":
        return images
    free, _ = torch.cuda.mem_get_info()
    n_bytes = images.numel()
    if n_bytes <= MAX_SHARE * free:
        logger.info("%d images (%.2f GiB) are held on the GPU.", len(images), n_bytes / 2**30)
        return images.to(device.torch)
    logger.info(
        "%d images (%.2f GiB) do not fit on the GPU beside the network (%.2f GiB are free): they "
        "stay in host memory, and batches are copied from there.",
        len(images), n_bytes / 2**30, free / 2**30,
    )  # fmt: skip
    return images


class ImagePhase(NetworkPhase):
    """A phase of :func:`.loop.train` for images."""

    records: ImageRecords

    def __init__(self, network: Any, records: ImageRecords, params: Any, batch_size: int) -> None:
        super().__init__(network, records, params, batch_size)
        self.cumulative = records.cumulative


def shifted(images: Tensor, moves: Tensor) -> Tensor:
    """Images moved by whole pixels (n, 2), down and right; the border is repeated. Differentiable."""
    n, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    down = (rows - moves[:, :1]).clamp(0, height - 1)[:, None, :, None]
    right = (columns - moves[:, 1:]).clamp(0, width - 1)[:, None, None, :]
    picks = torch.arange(n, device=images.device)[:, None, None, None]
    planes = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[picks, planes, down, right]


def turned(images: Tensor, angles: Tensor, scales: Tensor) -> Tensor:
    """Images rotated counter-clockwise by angles (n,) in radians and enlarged by scales (n,), bilinear."""
    # grid_sample needs the source of each pixel: the inverse transform.
    cos, sin = angles.cos() / scales, angles.sin() / scales
    zero = torch.zeros_like(cos)
    inverse = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(inverse, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def critic_moves(n: int, prob: float, rng: torch.Generator, device: torch.device) -> Tensor:
    """Augmentations of n images for the critic, float32 of shape (n, N_CRITIC).

    Shifts down and right as shares of the maximum, position and size of a cutout, brightness,
    contrast. Each kind is left out independently with probability 1 - prob.
    """
    numbers = 2.0 * torch.rand(n, N_CRITIC, generator=rng, device=device) - 1.0
    is_active = torch.rand(n, 4, generator=rng, device=device) < prob
    active_values = is_active[:, torch.tensor([0, 0, 1, 1, 1, 2, 3], device=device)]
    # A cutout of no size in the middle is none.
    identity = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0], device=device)
    return torch.where(active_values, numbers, identity)


def seen_by_critic(images: Tensor, moves: Tensor) -> Tensor:
    """Images (n, channels, size, size) augmented by :func:`critic_moves`; differentiable."""
    light, contrast = (moves[:, i, None, None, None] for i in (5, 6))
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (1.0 + MAX_CONTRAST * contrast) + MAX_LIGHT * light
    size = images.shape[-1]
    images = shifted(images, (moves[:, :2] * MAX_SHIFT * size).round().long())
    return images * _uncovered(moves[:, 2:5], size)


def _uncovered(squares: Tensor, size: int) -> Tensor:
    """0 inside each image's cutout and 1 outside, shape (n, 1, size, size)."""
    places = (torch.arange(size, device=squares.device) + 0.5) / size * 2.0 - 1.0
    half = (squares[:, 2:] + 1.0) / 2.0 * MAX_CUT  # of half the size
    down, right = ((places - squares[:, i : i + 1]).abs() < half for i in (0, 1))
    return 1.0 - (down[:, :, None] & right[:, None, :])[:, None].float()


def moved(
    images: Tensor, *, shift: float, flip: float, turn: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Augment some uint8 images; return them and their augmentations.

    ``shift``, ``flip`` and ``turn`` are the shares of images shifted, mirrored, and rotated and
    scaled. Images become float32 in [0, 255] if some may be turned. The augmentations (n, 5) are
    shift down and right, mirrored, angle and log scale, each over its maximum; 0 is none.
    """
    n, size, device = len(images), images.shape[-1], images.device
    moves = torch.zeros(n, N_AUGMENT, device=device)

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
        reach = max(1, round(AUGMENT_SHIFT * size))
        pixels = torch.randint(-reach, reach + 1, (n, 2), generator=rng, device=device)
        pixels = torch.where(some(shift)[:, None], pixels, 0)
        images, moves[:, :2] = shifted(images, pixels), pixels.float() / reach
    return images, moves
