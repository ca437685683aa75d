"""What a velocity of flow matching can do beside drawing: it is EDM's denoiser in other coordinates.

With noise of deviation sigma on an image, x = x1 + sigma n, the place on the line is t = 1 / (1 + sigma)
and the point t x, so that

    D(x, sigma) = E[x1 | x] = t x + (1 - t) v(t x, t)

which is EDM's preconditioning (Karras et al. 2022, equation 7) with c_skip = c_in = 1 / (1 + sigma),
c_out = sigma / (1 + sigma), and the velocity in the network's place. The loss of the velocity is
EDM's with the weight 1 / c_out².
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.image_training import to_unit

__all__ = [
    "Velocity",
    "as_images",
    "check_noise",
    "check_unlabelled",
    "denoised",
    "log_likelihoods",
]

Velocity = Callable[[Tensor, Tensor], Tensor]

# Places where the bound is measured: evenly in log(t / (1 - t)), from much noise to less than a level of
# gray. Differences between classes lie in between.
FIRST_PLACE, LAST_PLACE, N_PLACES = -3.0, 3.0, 8


def denoised(velocity: Velocity, x: Tensor, sigma: float) -> Tensor:
    """Return the expected image of a noisy one: EDM's denoiser, one Euler step to t = 1.

    Parameters
    ----------
    velocity : callable
        Takes points (n, c, h, w) and times (n,), returns velocities.
    x : Tensor of float32, shape (n, c, h, w)
        Images in [-1, 1] with noise.
    sigma : float
        The noise's standard deviation on that scale.
    """
    t = torch.full((len(x),), 1.0 / (1.0 + sigma), dtype=x.dtype, device=x.device)
    point = x * t[:, None, None, None]
    return point + (1.0 - t)[:, None, None, None] * velocity(point, t)


def log_likelihoods(velocity: Velocity, x: Tensor) -> Tensor:
    """Return a bound on the log density of images, up to a number that all classes share, (n,).

    The bound is minus the integral of t² E|v - (x1 - n)|² over log(t / (1 - t)): what EDM's denoiser
    leaves over, in nats. The noise is the same for every image and class, so that differences between
    classes are of the classes.

    Parameters
    ----------
    velocity : callable
        Of one class.
    x : Tensor of float32, shape (n, c, h, w)
        Images in [-1, 1].

    References
    ----------
    Kingma & Gao 2023, "Understanding Diffusion Objectives as the ELBO", equation 13; Li et al. 2023,
    "Your Diffusion Model is Secretly a Zero-Shot Classifier", equation 6, for shared noise.
    """
    rng = torch.Generator().manual_seed(0)
    step = (LAST_PLACE - FIRST_PLACE) / N_PLACES
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i in range(N_PLACES):
        noise = torch.randn(x.shape[1:], generator=rng).to(x.device)
        place = torch.tensor(FIRST_PLACE + (i + 0.5) * step)
        t = torch.sigmoid(place).to(x).expand(len(x))
        point = torch.lerp(noise.expand_as(x), x, t[:, None, None, None])
        error = (velocity(point, t) - (x - noise)).double().square().sum(dim=(1, 2, 3))
        # |v - (x1 - n)|² (1 - t)² is the denoiser's error, over sigma² in log(1 / sigma): t² is left.
        total -= t.double() ** 2 * error * step
    return total


def as_images(X: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return pixels (n, h, w, c) as float32 in [-1, 1] of shape (n, c, h, w)."""
    images = torch.from_numpy(np.ascontiguousarray(X.transpose(0, 3, 1, 2))).to(device)
    return to_unit(images)


def check_noise(noise: float) -> None:
    """Refuse a deviation that is none."""
    if not 0.0 < noise <= 1.0:
        raise ParameterError(
            f"noise is {noise}; give the standard deviation of the images' noise, white being 1, "
            "above 0 and at most 1."
        )


def check_unlabelled(label_dropout: float) -> None:
    """Refuse what needs a network that knows images without their labels."""
    if not label_dropout:
        raise ParameterError(
            "this model was trained with label_dropout=0 and does not know images without their "
            "label; train one with label_dropout above 0 to denoise."
        )
