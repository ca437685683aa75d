"""Batches of images changed on the fly: classic augmentation, and pairs mixed by mixup, CutMix and CMO. Needs torch.

The ranges are those of the written policy (:mod:`prefect_augment.augmentation.image_policy`), which goes image by
image; here a batch of small images costs less than one convolution. The comparison's classifier and
:meth:`~prefect_augment.loading.torch.TorchDataset.collate` share the mixing, so a recipe does what was compared.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prefect_augment.schema import Mixing


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
    angle, _, right, down, gain, offset = 2 * draws[1:, rows] - 1  # in [-1, 1)
    low, high = ranges.scale_range
    zoom = low + (high - low) * draws[2, rows]
    angle = math.radians(ranges.rotate_degrees) * angle
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # Normalised coordinates of an oblong image are stretched; a rotation must not be.
    aspect = x.shape[3] / x.shape[2]
    # affine_grid's coordinates go from -1 to 1: a share of the side is twice as much there.
    across = torch.stack([cos, -sin / aspect, 2 * ranges.shift * right], dim=1)
    along = torch.stack([sin * aspect, cos, 2 * ranges.shift * down], dim=1)
    theta = torch.stack([across, along], dim=1)  # (n, 2, 3) source position of each output pixel
    chosen = x[rows]
    grid = functional.affine_grid(theta, list(chosen.shape), align_corners=False)
    moved = functional.grid_sample(chosen, grid, padding_mode="reflection", align_corners=False)
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    moved = (moved - mean) * (1 + ranges.contrast * gain).view(-1, 1, 1, 1) + mean
    moved = moved + (ranges.brightness * offset).view(-1, 1, 1, 1)
    out = x.clone()
    out[rows] = moved.clamp_(0.0, 1.0)
    return out


# In the place of minus infinity, whose product with a target of 0 is not a number; exp of it is 0.
LEAST_LOG_PRIOR = -1e4


def soft_targets(y: Tensor, seen: Tensor, smoothing: Tensor | None = None) -> Tensor:
    """Class shares of each record, float32 of shape (n, n_classes), that sum to one.

    A record's own class keeps ``1 - smoothing[y]``; the other classes that are ``seen``, bool of shape
    (n_classes,), get equal parts of the rest.
    """
    own = functional.one_hot(y, len(seen)).float()
    n_others = int(seen.sum()) - 1
    if smoothing is None or n_others < 1:
        return own
    rest = smoothing.float()[y][:, None]
    return own * (1 - rest) + (seen.float() - own).clamp_(min=0.0) * (rest / n_others)


def mix_batch(
    x: Tensor, y: Tensor, targets: Tensor, rng: torch.Generator, *, mixing: Mixing, prob: float
) -> tuple[Tensor, Tensor]:
    """Images and targets of a batch, some of them mixed with a partner from the same batch.

    The partner's class is drawn evenly from the classes in the batch, so that rare ones gain. On
    batches that are drawn as the records are, ``cutmix`` is therefore CMO: the context is mostly a
    common class's, the pasted patch mostly a rare one's.

    ``x`` (n, channels, height, width) is uint8, whose mixed values are rounded, or floating; ``y`` (n,) are
    class codes, ``targets`` (n, n_classes) those of :func:`soft_targets`. The share ``prob`` of the records
    is mixed: ``mixup`` takes a weighted mean of both images, ``cutmix`` a rectangle of the partner. The
    weight or the area is uniform (Beta(1, 1), as in the papers), and the targets follow the pixels.

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", equation 1; Yun et al. 2019, "CutMix",
    equations 1 to 3; Park et al. 2022, "The Majority Can Help The Minority: Context-rich Minority
    Oversampling for Long-tailed Classification", algorithm 1.
    """
    n = len(x)
    chosen, pick, share, row, column = torch.rand((5, n), generator=rng, device=y.device)
    own = torch.where(chosen < prob, share, torch.ones_like(share))  # share of the record itself
    partner = _partners(y, pick)
    if mixing == "mixup":
        weight = own.view(-1, 1, 1, 1)
        mixed = weight * x + (1 - weight) * x[partner]
        mixed = mixed if x.is_floating_point() else mixed.round().to(x.dtype)
    else:
        patch = _rectangles(own, row, column, x.shape[2], x.shape[3])
        mixed = torch.where(patch[:, None], x[partner], x)
        own = 1 - patch.float().mean(dim=(1, 2))
    return mixed, own[:, None] * targets + (1 - own[:, None]) * targets[partner]


def _partners(y: Tensor, uniform: Tensor) -> Tensor:
    """A record for each number in [0, 1): every class that occurs is equally likely, and so is each of its records."""
    weights = 1.0 / torch.bincount(y).double()[y]
    cumulative = torch.cumsum(weights, 0)
    # Divided by the last sum, so that it is 1 exactly and every number finds a record.
    return torch.searchsorted(cumulative / cumulative[-1], uniform.double(), right=True)


def _rectangles(own: Tensor, row: Tensor, column: Tensor, height: int, width: int) -> Tensor:
    """Pixels of the partner, bool of shape (n, height, width): the share ``1 - own``, less what leaves the image."""
    half = (1 - own).sqrt()[:, None] / 2

    def inside(centre: Tensor, side: int) -> Tensor:
        places = (torch.arange(side, device=own.device) + 0.5) / side
        return (places - centre[:, None]).abs() < half

    return inside(row, height)[:, :, None] & inside(column, width)[:, None, :]
