"""Classic augmentation of a whole batch on the fly: one affine resampling, brightness and contrast.

The ranges are those of the written policy (:mod:`prefect_augment.augmentation.image_policy`), which
goes image by image; here a batch of small images costs less than one convolution. Needs torch.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ClassicRanges:
    """How far an image may be changed; every amount is drawn uniformly.

    No flips: not every label survives them.
    """

    rotate_degrees: float = 10.0  # either way
    scale_range: tuple[float, float] = (0.9, 1.1)
    shift: float = 0.07  # share of the width and of the height, either way
    brightness: float = 0.1  # share of the full range
    contrast: float = 0.1  # change of differences from the image's mean

    def stronger(self, times: float) -> "ClassicRanges":
        """Ranges that are ``times`` as wide."""
        low, high = self.scale_range
        return ClassicRanges(
            rotate_degrees=times * self.rotate_degrees,
            scale_range=(1 + times * (low - 1), 1 + times * (high - 1)),
            shift=times * self.shift,
            brightness=times * self.brightness,
            contrast=times * self.contrast,
        )


def classic_batch(x: Tensor, rng: torch.Generator, *, prob: float, ranges: ClassicRanges) -> Tensor:
    """A copy of the batch (n, channels, height, width) in [0, 1], each image changed with probability ``prob``.

    The random amounts do not depend on ``prob``. Areas that a shift uncovers are filled by reflection.
    """
    draws = torch.rand((7, len(x)), generator=rng, device=x.device)
    rows = torch.nonzero(draws[0] < prob)[:, 0]
    if not len(rows):
        return x
    angle, zoom, right, down, gain, offset = draws[1:, rows]
    low, high = ranges.scale_range
    theta = _inverse_affine(
        math.radians(ranges.rotate_degrees) * _both_ways(angle),
        low + (high - low) * zoom,
        # affine_grid's coordinates go from -1 to 1: a share of the side is twice as much there.
        2 * ranges.shift * _both_ways(right),
        2 * ranges.shift * _both_ways(down),
        aspect=x.shape[3] / x.shape[2],
    )
    chosen = x[rows]
    grid = functional.affine_grid(theta, list(chosen.shape), align_corners=False)
    moved = functional.grid_sample(chosen, grid, padding_mode="reflection", align_corners=False)
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    moved = (moved - mean) * (1 + ranges.contrast * _both_ways(gain)).view(-1, 1, 1, 1) + mean
    moved = moved + (ranges.brightness * _both_ways(offset)).view(-1, 1, 1, 1)
    out = x.clone()
    out[rows] = moved.clamp_(0.0, 1.0)
    return out


def _both_ways(uniform: Tensor) -> Tensor:
    """Numbers in [0, 1) as numbers in [-1, 1)."""
    return 2 * uniform - 1


def _inverse_affine(
    angle: Tensor, zoom: Tensor, right: Tensor, down: Tensor, *, aspect: float
) -> Tensor:
    """Source position of each output pixel, shape (n, 2, 3); ``aspect`` is width over height."""
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # Normalised coordinates of an oblong image are stretched; a rotation must not be.
    across = torch.stack([cos, -sin / aspect, right], dim=1)
    along = torch.stack([sin * aspect, cos, down], dim=1)
    return torch.stack([across, along], dim=1)
