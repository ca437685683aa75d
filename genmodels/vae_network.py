"""The network of :class:`.vae.Vae`: a convolutional codec, a prior per class, one deviation of pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from prefect_augment.genmodels.autoencoder_networks import Codec
from prefect_augment.genmodels.latent_normals import Prior, kl_divergence, soft

__all__ = ["VaeNetwork", "elbo_parts", "importance_bounds"]

# Least deviation of a pixel, black to white being 1: two levels of 256. A density of stored pixels,
# which are whole numbers, has no bound without one.
MIN_SCALE = 2.0 / 255.0
START_SCALE = 0.2


class VaeNetwork(nn.Module):
    """Encoder q(z | x), prior p(z | y) and decoder p(x | z).

    Parameters
    ----------
    size, channels, n_classes, n_latent : int
    width : int
        Channels of the convolutions, a multiple of 16.
    """

    def __init__(
        self, size: int, channels: int, n_classes: int, *, n_latent: int, width: int
    ) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.codec = Codec(
            size, channels, n_latent, widths=(width,), conv=True, n_encoded=2 * n_latent
        )
        self.prior = Prior(n_classes, n_latent)
        self.log_scale = nn.Parameter(torch.tensor(math.log(START_SCALE - MIN_SCALE)))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of scales of q(z | x), each (n, n_latent)."""
        mean, log_scale = self.codec.encode(images).chunk(2, dim=1)
        return mean, soft(log_scale)

    def scale(self) -> Tensor:
        """Return the deviation of pixels from the decoder's, a scalar."""
        return MIN_SCALE + self.log_scale.exp()

    def nll(self, images: Tensor, z: Tensor) -> Tensor:
        """Return -log p(x | z) in nats, of pixels in [0, 1], (n,).

        References
        ----------
        Rybkin, Daniilidis & Levine 2021, "Simple and Effective VAE Training with Calibrated
        Decoders": a normal whose deviation is learnt, which sets the balance of both parts.
        """
        error = ((self.codec.decode(z) - images) ** 2).flatten(1)
        scale = self.scale()
        constant = scale.log() + 0.5 * math.log(2 * math.pi)
        return 0.5 * error.sum(dim=1) / scale**2 + error.shape[1] * constant


def elbo_parts(
    network: VaeNetwork, images: Tensor, y: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each record's reconstruction error and divergence, both (n,) in nats.

    ``-(reconstruction + divergence)`` is one draw of the ELBO.

    Parameters
    ----------
    images : Tensor of float32, shape (n, channels, size, size)
        In [0, 1].
    y : Tensor of int64, shape (n,)
    noise : Tensor of float32, shape (n, n_latent)
        Standard normal.

    References
    ----------
    Kingma & Welling 2014, "Auto-Encoding Variational Bayes", equation 3.
    """
    mean, log_scale = network.posterior(images)
    z = mean + log_scale.exp() * noise
    return network.nll(images, z), kl_divergence((mean, log_scale), network.prior(y))


def importance_bounds(network: VaeNetwork, images: Tensor, noise: Tensor) -> Tensor:
    """Return bounds of log p(x | y) for every class, (n, n_classes) in nats.

    The decoder knows no class, so that an image is decoded once for all of them.

    Parameters
    ----------
    images : Tensor of float32, shape (n, channels, size, size)
    noise : Tensor of float32, shape (n_draws, n, n_latent) or (n_draws, 1, n_latent)
        Standard normal.

    References
    ----------
    Burda et al. 2016, "Importance Weighted Autoencoders", equation 8.
    """
    mean, log_scale = network.posterior(images)
    centres, spreads = network.prior.mean, soft(network.prior.log_scale)
    found = []
    for eps in noise:
        z = mean + log_scale.exp() * eps
        # Logarithms of the three densities, but for the constant that prior and posterior share.
        posterior = -(0.5 * eps**2 + log_scale).sum(dim=1)
        offsets = (z[:, None] - centres) * torch.exp(-spreads)
        prior = -(0.5 * offsets**2 + spreads).sum(dim=2)
        found.append(prior - (network.nll(images, z) + posterior)[:, None])
    return torch.logsumexp(torch.stack(found), dim=0) - math.log(len(noise))
