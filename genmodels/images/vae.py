"""A convolutional variational autoencoder of images, class-conditional by its prior.

An encoder q(z | x) sees an image without its class; every class has a normal prior p(z | y); a
decoder p(x | z) predicts pixels with a learnt deviation (Kingma & Welling 2014, with the
conditional prior of Sohn et al. 2015). Neither side sees the class, so the latent vector encodes
it: a difference of class means is the attribute, and log p(x | y) is bounded for every class at the
cost of one.

``beta`` weighs the divergence (Higgins et al. 2017, "beta-VAE"). Vectors are drawn from a mixture
of normals per class, fitted to draws from q(z | x) of the training records, instead of the prior
(Ghosh et al. 2020, section 4).
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from prefect_augment.array_types import Float, Images
from prefect_augment.genmodels.images.autoencoder import CONV_WIDTH
from prefect_augment.genmodels.images.autoencoder_network import Codec
from prefect_augment.genmodels.images.latent import LatentImages, to_shares
from prefect_augment.genmodels.images.training import ImagePhase, ImageRecords
from prefect_augment.genmodels.latents import Prior, bound_log_scale, kl_divergence
from prefect_augment.nn import loop
from prefect_augment.params import VaeModel

# Least deviation of a pixel, black to white being 1: two levels of 256. Stored pixels are integers, so
# without a bound their density would be infinite.
MIN_SCALE = 2.0 / 255.0
START_SCALE = 0.2

FAST = 5.0  # times the learning rate, of the prior and of the pixels' deviation
N_IMPORTANCE = 16  # draws of z in the bound of log p(x | y)


class VaeNetwork(nn.Module):
    """Encoder q(z | x), prior p(z | y) and decoder p(x | z); ``width`` is a multiple of 16."""

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
        """Means and log scales of q(z | x), each (n, n_latent)."""
        mean, log_scale = self.codec.encode(images).chunk(2, dim=1)
        return mean, bound_log_scale(log_scale)

    def scale(self) -> Tensor:
        """Standard deviation of pixels about the decoder's, a scalar."""
        return MIN_SCALE + self.log_scale.exp()

    def nll(self, images: Tensor, z: Tensor) -> Tensor:
        """-log p(x | z) in nats, of pixels in [0, 1], (n,).

        A normal whose deviation is learnt, which balances both parts of the ELBO (Rybkin,
        Daniilidis & Levine 2021, "Simple and Effective VAE Training with Calibrated Decoders").
        """
        error = ((self.codec.decode(z) - images) ** 2).flatten(1)
        scale = self.scale()
        constant = scale.log() + 0.5 * math.log(2 * math.pi)
        return 0.5 * error.sum(dim=1) / scale**2 + error.shape[1] * constant


def elbo_parts(
    network: VaeNetwork, images: Tensor, y: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Each record's reconstruction error and divergence, both (n,) in nats.

    ``-(reconstruction + divergence)`` is one draw of the ELBO (Kingma & Welling 2014,
    "Auto-Encoding Variational Bayes", equation 3). ``noise`` (n, n_latent) is standard normal.
    """
    mean, log_scale = network.posterior(images)
    z = mean + log_scale.exp() * noise
    return network.nll(images, z), kl_divergence((mean, log_scale), network.prior(y))


def importance_bounds(network: VaeNetwork, images: Tensor, noise: Tensor) -> Tensor:
    """Bounds of log p(x | y) for every class, (n, n_classes) in nats.

    Burda et al. 2016, "Importance Weighted Autoencoders", equation 8. The decoder does not see the
    class, so an image is decoded once for all. ``noise`` is (n_draws, n or 1, n_latent).
    """
    mean, log_scale = network.posterior(images)
    centres, spreads = network.prior.mean, bound_log_scale(network.prior.log_scale)
    log_weights = []
    for eps in noise:
        z = mean + log_scale.exp() * eps
        # Logarithms of the three densities, but for the constant that prior and posterior share.
        posterior = -(0.5 * eps**2 + log_scale).sum(dim=1)
        offsets = (z[:, None] - centres) * torch.exp(-spreads)
        prior = -(0.5 * offsets**2 + spreads).sum(dim=2)
        log_weights.append(prior - (network.nll(images, z) + posterior)[:, None])
    return torch.logsumexp(torch.stack(log_weights), dim=0) - math.log(len(noise))


class VaePhase(ImagePhase):
    """Negative ELBO in nats per dimension, the divergence times beta and warmed up."""

    name = "vae"
    params: VaeModel
    warmth = 1.0  # share of beta at this step

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """AdamW, faster for the prior and the deviation."""
        network, rate = self.network, self.params.learning_rate
        # At the codec's rate, a few hundred steps would not fit these.
        fast = {"params": [*network.prior.parameters(), network.log_scale], "lr": FAST * rate}
        groups = [{"params": network.codec.parameters()}, {**fast, "weight_decay": 0.0}]
        return {"vae": self.adamw(groups, rate)}

    def lr_factor(self, step: int, n_steps: int) -> float:
        """Warm-up and half a cosine; the divergence warms up too (Sønderby et al. 2016)."""
        self.warmth = min(1.0, (step + 1) / max(1.0, self.params.kl_warmup * n_steps))
        return loop.warmup_cosine(step, n_steps)

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Images, classes and noise."""
        records, rows = self.records, self.rows(rng)
        shape = (self.batch_size, self.network.n_latent)
        noise = torch.randn(shape, generator=rng, device=self.device)
        return records.take(rows), records.y[rows], noise

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean over records and dimensions."""
        images, y, noise = batch
        reconstruction, divergence = elbo_parts(self.network, to_shares(images), y, noise)
        loss = reconstruction + self.params.beta * self.warmth * divergence
        return loss.mean() / images[0].numel()


class Vae(LatentImages[VaeModel, VaeNetwork]):
    """One variational autoencoder for all classes; see the module."""

    params_class = VaeModel
    phase_class = VaePhase

    def new_network(self) -> VaeNetwork:
        """Encoder, prior and decoder."""
        return VaeNetwork(
            self.spec.size,
            self.spec.channels,
            self.spec.n_classes,
            n_latent=self.n_latent,
            width=self.params.width or CONV_WIDTH,
        )

    def after_training(self, network: VaeNetwork, records: ImageRecords, seed: int) -> None:
        """Fit the densities to draws of q(z | x)."""
        rng = loop.step_generator(seed, "vae/settle", 0, records.y.device)

        def drawn(images: Tensor) -> Tensor:
            mean, log_scale = network.posterior(images)
            noise = torch.randn(mean.shape, generator=rng, device=mean.device)
            return mean + log_scale.exp() * noise

        self.fit_densities(drawn, records, seed)

    def raw(self, network: VaeNetwork, images: Tensor) -> Tensor:
        """Means of q(z | x)."""
        return network.posterior(images)[0]

    def decoded(self, network: VaeNetwork, codes: Tensor) -> Tensor:
        """The decoder's images."""
        return network.codec.decode(codes)

    def class_log_likelihoods(self, X: Images) -> Float:
        """Return a bound on log p(image | class) of pixels in [0, 1]; see :class:`.base.ScoresClasses`."""
        return self._each(X, self._bounds, (self.spec.n_classes,), np.float64)

    def anomaly(self, network: VaeNetwork, images: Tensor) -> Tensor:
        """Negative bound under the best class."""
        return -self._bounds(images).max(dim=1).values

    def _bounds(self, images: Tensor) -> Tensor:
        """Bounds of log p(x | y), (n, n_classes) in nats; every record gets the same noise."""
        rng = loop.step_generator(0, "vae/bound", 0, images.device)
        noise = torch.randn((N_IMPORTANCE, 1, self.n_latent), generator=rng, device=images.device)
        return importance_bounds(self.network, images, noise)
