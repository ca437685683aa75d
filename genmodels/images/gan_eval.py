"""What a generator of images draws, beside the real ones: how far from them, and how varied.

No loss of the game says how good images are, nor whether they have become all the same: both sides can
be content with that. Drawn and real images of each class are compared in the features of a network of
random weights, which knows nothing of either (Naeem et al. 2020, "Reliable Fidelity and Diversity
Metrics for Generative Models", section 5: such features rank models where data are far from ImageNet).
"""

from __future__ import annotations

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

MIN_COMPARED = 8  # real images that a class needs, to be compared
MAX_COMPARED_RECORDS = 64  # of a class
MAX_IMAGES = 1024  # of all classes
AT_ONCE = 128  # images that are drawn and looked at together
# Mean distance between two drawn images of a class, over that between two real ones: below it in half of
# the classes, the generator has collapsed.
COLLAPSED = 0.2

Draw = Callable[[nn.Module, NDArray[np.int64], NDArray[np.int64]], Tensor]


class RandomFeatures(nn.Module):
    """Three convolutions of random weights, and the means of what they see over quarters of the image.

    Parameters
    ----------
    channels : int
        Of the images.
    seed : int
        Of the weights.
    """

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
        h, found = images, []
        for weight in self.weights:
            h = F.relu(F.conv2d(h, weight, stride=2, padding=1))
            found.append(F.adaptive_avg_pool2d(h, 2).flatten(1))
        return torch.cat(found, dim=1)


def class_gaps(real: Tensor, made: Tensor) -> tuple[float, float]:
    """Return the energy distance of two sets of features, and how spread the second is to the first.

    Parameters
    ----------
    real, made : Tensor, shape (n, n_features), (m, n_features)
        At least two of each.

    Returns
    -------
    distance : float
        2 E|R - M| - E|R - R'| - E|M - M'|, 0 where both are the same.
    spread : float
        E|M - M'| / E|R - R'|.

    References
    ----------
    Székely & Rizzo 2013, "Energy statistics", equation 5.
    """
    of_real, of_made = (float(torch.pdist(x).mean()) for x in (real, made))
    distance = 2.0 * float(torch.cdist(real, made).mean()) - of_real - of_made
    return distance, of_made / max(of_real, 1e-12)


def compared_rows(y: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Return by class which records generators are compared with: the first of each; few make none.

    Of more classes than ``MAX_IMAGES`` has room for, some: every so many-th, by their sizes.
    """
    counts = np.bincount(y)
    able = np.flatnonzero(counts >= MIN_COMPARED)
    most_classes = MAX_IMAGES // MIN_COMPARED
    if len(able) > most_classes:
        by_size = able[np.argsort(-counts[able], kind="stable")]
        able = np.sort(by_size[np.linspace(0, len(able) - 1, most_classes).astype(int)])
    most = min(MAX_COMPARED_RECORDS, max(MIN_COMPARED, MAX_IMAGES // max(1, len(able))))
    return {int(k): np.flatnonzero(y == k)[:most] for k in able}


@dataclass(frozen=True)
class GanValidation:
    """Judges generators by what they draw of each class; the same one always gets the same judgement.

    Parameters
    ----------
    draw : callable
        Takes a network, classes and seeds, returns images in [-1, 1].
    real : mapping of int to Tensor
        Some real images of each class, in [-1, 1], on the device.
    seed : int
        Of what is drawn.
    """

    draw: Draw
    real: dict[int, Tensor]
    seed: int

    def __call__(self, network: nn.Module) -> Validation:
        """Judge a network by its generator."""
        gaps = list(self.gaps(network).values())
        distance = sum(gap for gap, _ in gaps) / len(gaps)
        n_same = sum(spread < COLLAPSED for _, spread in gaps)
        fault = ""
        if 2 * n_same >= len(gaps):
            fault = f"images of a class were all the same in {n_same} of {len(gaps)} classes"
        return Validation({"generator": distance}, fault=fault)

    def gaps(self, network: nn.Module) -> dict[int, tuple[float, float]]:
        """Return each class's distance and spread."""
        y = np.concatenate([np.full(len(part), k) for k, part in self.real.items()])
        seeds = seeds_from(self.seed & 0xFFFFFFFFFFFFFFFF, 1 << 20, len(y))
        first = next(iter(self.real.values()))
        features = RandomFeatures(first.shape[1]).to(first.device)
        with torch.inference_mode():
            parts = [slice(i, i + AT_ONCE) for i in range(0, len(y), AT_ONCE)]
            drawn = (self.draw(network, y[part], seeds[part]) for part in parts)
            of_made = torch.cat([features(made.clamp(-1.0, 1.0)) for made in drawn])
            return {
                k: class_gaps(features(part), of_made[torch.from_numpy(y == k)])
                for k, part in self.real.items()
            }
