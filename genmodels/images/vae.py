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

import logging
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefect_augment.genmodels.base import FitContext, ImageData, ImageSpec
from prefect_augment.genmodels.checks import check_classes
from prefect_augment.genmodels.images.autoencoder import CONV_WIDTH
from prefect_augment.genmodels.images.autoencoder_network import Codec, check_conv_width
from prefect_augment.genmodels.images.latent import AT_ONCE, LatentImages, to_shares
from prefect_augment.genmodels.images.training import ImagePhase, ImageRecords, channels_first
from prefect_augment.genmodels.latent_density import Prior, bound_log_scale, kl_divergence
from prefect_augment.nn import loop
from prefect_augment.params import VaeModel

# Least deviation of a pixel, black to white being 1: two levels of 256. Stored pixels are integers, so
# without a bound their density would be infinite.
MIN_SCALE = 2.0 / 255.0
START_SCALE = 0.2

logger = logging.getLogger(__name__)
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
        n, device, records = self.batch_size, self.device, self.records
        rows = records.rows(n, rng)
        noise = torch.randn(n, self.network.n_latent, generator=rng, device=device)
        return records.take(rows), records.y[rows], noise

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean over records and dimensions."""
        images, y, noise = batch
        reconstruction, divergence = elbo_parts(self.network, to_shares(images), y, noise)
        loss = reconstruction + self.params.beta * self.warmth * divergence
        return loss.mean() / images[0].numel()


class Vae(LatentImages[VaeModel, VaeNetwork]):
    """One variational autoencoder for all classes; see the module."""

    params_class: ClassVar[type[Any]] = VaeModel
    batch_sizes: ClassVar[dict[str, int]] = {"cpu": 128, "cuda": 512}

    @classmethod
    def build(cls, params: Any, spec: ImageSpec) -> Self:
        """Return an untrained model; refuses a width that convolutions cannot have."""
        model = super().build(params, spec)
        check_conv_width(params.width)
        return model

    def new_network(self) -> VaeNetwork:
        """Encoder, prior and decoder."""
        return VaeNetwork(
            self.spec.size,
            self.spec.channels,
            self.spec.n_classes,
            n_latent=self.n_latent,
            width=self.params.width or CONV_WIDTH,
        )

    def new_phase(self, network: VaeNetwork, records: ImageRecords, batch_size: int) -> VaePhase:
        """Train all three together."""
        return VaePhase(network, records, self.params, batch_size)

    def fit(self, data: ImageData, ctx: FitContext) -> None:
        """Train, and log the two parts of the ELBO."""
        super().fit(data, ctx)
        some = np.random.default_rng(0).permutation(len(data.y))[:AT_ONCE]
        logger.info(
            "Of the ELBO, the reconstruction is %.3f and the divergence %.3f nats per dimension.",
            *self.elbo(data.images[some], data.y[some]),
        )

    def after_training(self, network: VaeNetwork, records: ImageRecords, seed: int) -> None:
        """Fit the densities to draws of q(z | x)."""
        rng = loop.step_generator(seed, "vae/settle", 0, records.y.device)
        draws = []
        with torch.inference_mode():
            for part in records.images.split(AT_ONCE):
                mean, log_scale = network.posterior(to_shares(part.to(records.y.device)))
                noise = torch.randn(mean.shape, generator=rng, device=mean.device)
                draws.append(mean + log_scale.exp() * noise)
        self.fit_densities(torch.cat(draws).cpu().numpy(), records, seed)

    def raw(self, network: VaeNetwork, images: Tensor) -> Tensor:
        """Means of q(z | x)."""
        return network.posterior(images)[0]

    def decoded(self, network: VaeNetwork, codes: Tensor) -> Tensor:
        """The decoder's images."""
        return network.codec.decode(codes)

    # --- how likely ---

    def elbo(self, X: NDArray[np.uint8], y: NDArray[np.int64]) -> tuple[float, float]:
        """Return the two parts of the ELBO of images ``X`` of classes ``y``, in nats per dimension.

        Mean log p(x | z) under q(z | x) as a density of pixels in [0, 1], and mean KL(q(z | x) ||
        p(z | y)), both over the number of pixels. Their difference is the ELBO.
        """
        network, y = self.network, np.asarray(y, np.int64)
        check_classes(y, self.spec.classes)
        rng = loop.step_generator(0, "vae/elbo", 0, self.device.torch)
        parts = []
        with torch.inference_mode():
            for images, rows in self._batches(X):
                labels = torch.from_numpy(y[rows]).to(self.device.torch)
                shape = (len(images), self.n_latent)
                noise = torch.randn(shape, generator=rng, device=self.device.torch)
                parts.append(torch.stack(elbo_parts(network, images, labels, noise)))
        nll, divergence = torch.cat(parts, dim=1).double().mean(dim=1).tolist()
        n_pixels = int(np.prod(self.spec.shape))
        return -nll / n_pixels, divergence / n_pixels

    def class_log_likelihoods(
        self, X: NDArray[np.uint8], n_draws: int = N_IMPORTANCE
    ) -> NDArray[np.float64]:
        """Return a bound on log p(image | class) of pixels in [0, 1]; see :class:`.base.ScoresClasses`.

        More draws of z make the bound tighter.
        """
        network = self.network
        return self._each(
            X,
            lambda x: importance_bounds(network, x, self._importance_noise(n_draws)),
            np.float64,
            (self.spec.n_classes,),
        )

    def anomaly(self, network: VaeNetwork, images: Tensor) -> Tensor:
        """Negative bound under the best class."""
        bounds = importance_bounds(network, images, self._importance_noise(N_IMPORTANCE))
        return -bounds.max(dim=1).values

    def _importance_noise(self, n_draws: int) -> Tensor:
        """The same noise for every record, (n_draws, 1, n_latent)."""
        rng = loop.step_generator(0, "vae/bound", 0, self.device.torch)
        shape = (n_draws, 1, self.n_latent)
        return torch.randn(shape, generator=rng, device=self.device.torch)

    def _batches(self, X: NDArray[np.uint8]) -> Iterator[tuple[Tensor, slice]]:
        X = np.asarray(X)
        self.check_images(X, len(X))
        for start in range(0, len(X), AT_ONCE):
            rows = slice(start, min(len(X), start + AT_ONCE))
            images = channels_first(X[rows])
            yield to_shares(images.to(self.device.torch)), rows

    # --- single latent numbers ---

    def informative(self, X: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return how informative each latent number is, mean nats of shape (n_latent,).

        The divergence of q(z_j | x) from a normal with the prior's mean and deviation over all
        classes.
        """
        network, total = self.network, np.zeros(self.n_latent)
        centre, deviation = self._over_classes()
        with torch.inference_mode():
            for images, _ in self._batches(X):
                mean, log_scale = network.posterior(images)
                for j in range(self.n_latent):
                    own = mean[:, j : j + 1], log_scale[:, j : j + 1]
                    other = centre[j].expand(len(mean), 1), deviation[j].log().expand(len(mean), 1)
                    total[j] += float(kl_divergence(own, other).sum())
        return total / max(1, len(X))

    def _over_classes(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each latent number over the classes' priors, (n_latent,)."""
        prior = self.network.prior
        with torch.inference_mode():
            variance = (2 * bound_log_scale(prior.log_scale)).exp().mean(dim=0)
            spread = prior.mean.var(dim=0, correction=0)
            return prior.mean.mean(dim=0), (variance + spread).sqrt()
