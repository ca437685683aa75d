"""Gaussian mixtures of each class's latent vectors, and the normal prior of variational autoencoders.

Models of tables and images draw from :class:`ClassDensities` instead of a prior that the encoder
may not match (Ghosh et al. 2020, "From Variational to Deterministic Autoencoders", section 4,
ex-post density estimation with ten full components).
"""

import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from prefect_augment.array_types import Float, Float32, Int
from prefect_augment.genmodels.base import Arrays
from prefect_augment.genmodels.record_numbers import RecordNumbers

MAX_COMPONENTS = 10
PER_COMPONENT = 32  # records
MAX_RECORDS = 8000  # per class that a density is fitted to
N_ITERATIONS = 50
FLOOR = 1e-3  # of a component's variances, as a share of the mean variance


MAX_LOG_SCALE = 5.0  # of posteriors and priors


@dataclass(frozen=True)
class ClassDensities:
    """Gaussian mixtures, one per class."""

    shares: Float  # (n_classes, n_components) cumulative weights
    means: Float32  # (n_classes, n_components, n_latent)
    roots: Float32  # (n_classes, n_components, n_latent, n_latent) Cholesky factors of covariances

    @classmethod
    def fit(
        cls,
        Z: Float32,
        y: Int,
        n_classes: int,
        *,
        seed: int,
        per_component: int = PER_COMPONENT,
    ) -> Self:
        """Fit a mixture to each class's latent vectors (n, n_latent).

        A class with few records gets one component, its covariance shrunk towards the pooled
        within-class one. An empty class gets the mean and covariance of all. ``per_component`` is
        the number of records needed per component: more of them smooth over single records.
        """
        z = Z.astype(np.float64)
        n_latent = z.shape[1]
        # Pooled within-class covariance, (n_latent, n_latent), and a floor of the variances.
        centres = np.stack(
            [z[y == k].mean(axis=0) if (y == k).any() else z.mean(axis=0) for k in range(n_classes)]
        )
        within = _covariance(z - centres[y])
        ridge = FLOOR * max(float(np.trace(within)) / n_latent, 1e-12) * np.eye(n_latent)
        rng = np.random.default_rng([seed & 0xFFFFFFFF, 2])
        # Per class: weights, means and covariances.
        parts: list[tuple[Float, ...]] = []
        for k in range(n_classes):
            own = z[y == k]
            own = own[np.sort(rng.permutation(len(own))[:MAX_RECORDS])]
            n_components = min(MAX_COMPONENTS, len(own) // per_component)
            if n_components >= 2:
                mixture = _mixture(own, n_components, float(ridge[0, 0]), seed)
                parts.append((mixture.weights_, mixture.means_, mixture.covariances_))
                continue
            weight = n_latent + 1.0  # weight of the pooled covariance, in records
            covariance = within * weight
            if len(own):
                covariance = covariance + _covariance(own - centres[k]) * len(own)
            covariance = covariance / (weight + len(own)) + ridge
            if not len(own):
                covariance = _covariance(z - z.mean(axis=0)) + ridge
            parts.append((np.ones(1), centres[k][None], covariance[None]))
        # Pad to the largest number of components; padding has no weight.
        most = max(len(weights) for weights, _, _ in parts)
        shares = np.ones((n_classes, most))
        means = np.zeros((n_classes, most, n_latent), dtype=np.float32)
        roots = np.zeros((n_classes, most, n_latent, n_latent), dtype=np.float32)
        for k, (weights, centre, covariances) in enumerate(parts):
            n = len(weights)
            shares[k, : n - 1] = np.cumsum(weights)[: n - 1]
            means[k, :n] = centre
            roots[k, :n] = np.linalg.cholesky(covariances)
        return cls(shares, means, roots)

    def draw(self, y: Tensor, numbers: RecordNumbers) -> Tensor:
        """One vector per class index, (n, n_latent) of float32, on the device of ``y``."""
        device = y.device
        shares, means, roots = (
            torch.from_numpy(a).to(device) for a in (self.shares, self.means, self.roots)
        )
        place = (shares[y, :-1] <= numbers.uniforms(1)).sum(dim=1)
        normals = numbers.normals(means.shape[2])
        return means[y, place] + torch.einsum("nij,nj->ni", roots[y, place], normals)

    def arrays(self) -> Arrays:
        """The arrays by name, for storage."""
        return {f"latent.{name}": getattr(self, name) for name in ("shares", "means", "roots")}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Inverse of :meth:`arrays`."""
        return cls(*(arrays[f"latent.{name}"] for name in ("shares", "means", "roots")))


def _covariance(centred: Float) -> Float:
    covariance: Float = centred.T @ centred / len(centred)
    return covariance


def _mixture(own: Float, n_components: int, floor: float, seed: int) -> GaussianMixture:
    # k-means++ without k-means, one thread: the same bits on every number of cores.
    mixture = GaussianMixture(
        n_components,
        reg_covar=floor,
        max_iter=N_ITERATIONS,
        init_params="k-means++",
        random_state=seed & 0xFFFFFFFF,
    )
    with threadpool_limits(1), warnings.catch_warnings():
        # The last iterations gain little, so convergence is not required.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(own)


class Prior(nn.Module):
    """A normal per class: p(z | y) = N(mean_y, scale_y²)."""

    def __init__(self, n_classes: int, n_latent: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(n_classes, n_latent))
        self.log_scale = nn.Parameter(torch.zeros(n_classes, n_latent))

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log scales of classes, each (n, n_latent)."""
        # Unlike indexing, embedding has a deterministic gradient on several threads.
        return F.embedding(y, self.mean), bound_log_scale(F.embedding(y, self.log_scale))


def bound_log_scale(log_scale: Tensor) -> Tensor:
    """Log scales, bounded smoothly so that their exponential is finite."""
    return MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)


def kl_divergence(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor]) -> Tensor:
    """KL(q || p) of diagonal normals, given as means and log scales, (n,) in nats.

    Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B, with any normal as prior.
    """
    (mean, log_scale), (prior_mean, prior_log_scale) = q, p
    ratio = torch.exp(2 * (log_scale - prior_log_scale))
    offset = ((mean - prior_mean) * torch.exp(-prior_log_scale)) ** 2
    return 0.5 * (ratio + offset - 1.0 - 2 * (log_scale - prior_log_scale)).sum(dim=1)
