"""Validation of a generator: distance of its images from real ones, and their diversity.

The adversarial losses show neither quality nor collapse. Drawn and real images of each class are
therefore compared in the features of a network with random weights (Naeem et al. 2020, "Reliable
Fidelity and Diversity Metrics for Generative Models", section 5: such features rank models where
data are far from ImageNet).
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.nn.early_stopping import Validation

__all__ = ["COLLAPSED", "GanValidation", "RandomFeatures", "class_gaps", "compared_rows"]

MIN_COMPARED = 8  # real images that a class needs to be compared
MAX_COMPARED_RECORDS = 64  # of a class
MAX_IMAGES = 1024  # of all classes
AT_ONCE = 128  # images processed together
# Relative spread below which a class has collapsed; training ends when half of the classes have.
COLLAPSED = 0.2

Draw = Callable[[nn.Module, NDArray[np.int64], NDArray[np.int64]], Tensor]


class RandomFeatures(nn.Module):
    """Three convolutions with random weights, averaged over quarters of the image."""

    def __init__(self, channels: int, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        widths = (channels, 32, 64, 128)
        self.weights = nn.ParameterList()
        for n_in, n_out in itertools.pairwise(widths):
            weight = torch.randn(n_out, n_in, 3, 3, generator=rng) * (2.0 / (9 * n_in)) ** 0.5
            self.weights.append(nn.Parameter(weight, requires_grad=False))

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, h, w) in [-1, 1] to (n, n_features)."""
        h, features = images, []
        for weight in self.weights:
            h = F.relu(F.conv2d(h, weight, stride=2, padding=1))
            features.append(F.adaptive_avg_pool2d(h, 2).flatten(1))
        return torch.cat(features, dim=1)


def class_gaps(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """Energy distance of two sets of features (n, n_features), and their relative spread.

    The distance is 2 E|R - G| - E|R - R'| - E|G - G'| (Székely & Rizzo 2013, "Energy statistics",
    equation 5), the spread E|G - G'| / E|R - R'|; at least two records each.
    """
    real_spread, generated_spread = (float(torch.pdist(x).mean()) for x in (real, generated))
    distance = 2.0 * float(torch.cdist(real, generated).mean()) - real_spread - generated_spread
    return distance, generated_spread / max(real_spread, 1e-12)


def compared_rows(y: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Rows of the real records to compare with, by class: the first ones of classes with enough.

    With more classes than ``MAX_IMAGES`` allows, an even selection by class size.
    """
    counts = np.bincount(y)
    eligible = np.flatnonzero(counts >= MIN_COMPARED)
    most_classes = MAX_IMAGES // MIN_COMPARED
    if len(eligible) > most_classes:
        by_size = eligible[np.argsort(-counts[eligible], kind="stable")]
        eligible = np.sort(by_size[np.linspace(0, len(eligible) - 1, most_classes).astype(int)])
    most = min(MAX_COMPARED_RECORDS, max(MIN_COMPARED, MAX_IMAGES // max(1, len(eligible))))
    return {int(k): np.flatnonzero(y == k)[:most] for k in eligible}


@dataclass(frozen=True)
class GanValidation:
    """Validates generators by their images of each class; deterministic.

    ``draw`` maps a network, classes and seeds to images in [-1, 1]; ``real`` has real images by
    class, on the device.
    """

    draw: Draw
    real: dict[int, Tensor]
    seed: int

    def __call__(self, network: nn.Module) -> Validation:
        """Validate a network by its generator."""
        gaps = list(self.gaps(network).values())
        distance = sum(gap for gap, _ in gaps) / len(gaps)
        n_same = sum(spread < COLLAPSED for _, spread in gaps)
        fault = ""
        if 2 * n_same >= len(gaps):
            fault = f"images of a class were all the same in {n_same} of {len(gaps)} classes"
        return Validation({"generator": distance}, fault=fault)

    def gaps(self, network: nn.Module) -> dict[int, tuple[float, float]]:
        """Each class's distance and spread."""
        y = np.concatenate([np.full(len(part), k) for k, part in self.real.items()])
        seeds = seeds_from(self.seed & 0xFFFFFFFFFFFFFFFF, 1 << 20, len(y))
        first = next(iter(self.real.values()))
        features = RandomFeatures(first.shape[1]).to(first.device)
        with torch.inference_mode():
            parts = [slice(i, i + AT_ONCE) for i in range(0, len(y), AT_ONCE)]
            drawn = (self.draw(network, y[part], seeds[part]) for part in parts)
            drawn_features = torch.cat([features(images.clamp(-1.0, 1.0)) for images in drawn])
            return {
                k: class_gaps(features(part), drawn_features[torch.from_numpy(y == k)])
                for k, part in self.real.items()
            }
