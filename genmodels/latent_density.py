"""The density of each class's latent vectors, which models of tables and of images draw from.

:class:`ClassDensities` is fitted after training to the vectors of the records trained on, a mixture
of normals per class, and drawn from in the place of a prior that the encoder may never have met.

References
----------
Ghosh et al. 2020, "From Variational to Deterministic Autoencoders", section 4 (ex-post density
estimation): ten full components per density there.

Normals of latent vectors, as variational autoencoders of tables and of images have them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from prefect_augment.genmodels.base import Arrays
from prefect_augment.genmodels.record_numbers import RecordNumbers

__all__ = ["ClassDensities", "Prior", "kl_divergence", "soft"]

MAX_COMPONENTS = 10
PER_COMPONENT = 32  # records
MAX_RECORDS = 8000  # of a class that a density is fitted to
N_ITERATIONS = 50
FLOOR = 1e-3  # of a component's variances, as a share of the mean variance

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ClassDensities:
    """Mixtures of normals, one per class.

    Parameters
    ----------
    shares : ndarray of float64, shape (n_classes, n_components)
        Cumulative.
    means : ndarray of float32, shape (n_classes, n_components, n_latent)
    roots : ndarray of float32, shape (n_classes, n_components, n_latent, n_latent)
        Lower Cholesky factors of the covariances.
    """

    shares: NDArray[np.float64]
    means: Floats
    roots: Floats

    @classmethod
    def fit(
        cls,
        Z: Floats,
        y: NDArray[np.int64],
        n_classes: int,
        *,
        seed: int,
        per_component: int = PER_COMPONENT,
    ) -> Self:
        """Return the densities of these vectors.

        A class of few records has one component, its covariance drawn towards that of all classes
        within; one of no record has the mean and covariance of all.

        Parameters
        ----------
        Z : ndarray of float32, shape (n, n_latent)
        y : ndarray of int64, shape (n,)
        n_classes, seed : int
        per_component : int
            Records of a class for each normal of its mixture: the more, the less it keeps to single ones.
        """
        z = Z.astype(np.float64)
        n_latent = z.shape[1]
        centres = np.stack(
            [z[y == k].mean(axis=0) if (y == k).any() else z.mean(axis=0) for k in range(n_classes)]
        )
        within = _covariance(z - centres[y])
        ridge = FLOOR * max(float(np.trace(within)) / n_latent, 1e-12) * np.eye(n_latent)
        rng = np.random.default_rng([seed & 0xFFFFFFFF, 2])
        parts: list[tuple[NDArray[np.float64], ...]] = []
        for k in range(n_classes):
            own = z[y == k]
            own = own[np.sort(rng.permutation(len(own))[:MAX_RECORDS])]
            n_components = min(MAX_COMPONENTS, len(own) // per_component)
            if n_components >= 2:
                found = _mixture(own, n_components, float(ridge[0, 0]), seed)
                parts.append((found.weights_, found.means_, found.covariances_))
                continue
            weight = n_latent + 1.0  # records that the other classes' covariance counts for
            covariance = within * weight
            if len(own):
                covariance = covariance + _covariance(own - centres[k]) * len(own)
            covariance = covariance / (weight + len(own)) + ridge
            if not len(own):
                covariance = _covariance(z - z.mean(axis=0)) + ridge
            parts.append((np.ones(1), centres[k][None], covariance[None]))
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
        """Return a vector of each class, (n, n_latent) of float32, on the device of ``y``."""
        device = y.device
        shares, means, roots = (
            torch.from_numpy(a).to(device) for a in (self.shares, self.means, self.roots)
        )
        place = (shares[y, :-1] <= numbers.uniforms(1)).sum(dim=1)
        normals = numbers.normals(means.shape[2])
        return means[y, place] + torch.einsum("nij,nj->ni", roots[y, place], normals)

    def arrays(self) -> Arrays:
        """Return all three by name."""
        return {f"latent.{name}": getattr(self, name) for name in ("shares", "means", "roots")}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Return what :meth:`arrays` wrote down."""
        return cls(*(arrays[f"latent.{name}"] for name in ("shares", "means", "roots")))


def _covariance(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = centred.T @ centred / len(centred)
    return found


def _mixture(
    own: NDArray[np.float64], n_components: int, floor: float, seed: int
) -> GaussianMixture:
    # k-means++ without k-means, one thread: the same bits on every number of cores.
    mixture = GaussianMixture(
        n_components,
        reg_covar=floor,
        max_iter=N_ITERATIONS,
        init_params="k-means++",
        random_state=seed & 0xFFFFFFFF,
    )
    with threadpool_limits(1), warnings.catch_warnings():
        # Where the last iterations would gain little, they are not needed.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(own)


MAX_LOG_SCALE = 5.0  # softly, of posteriors and priors


class Prior(nn.Module):
    """A normal per class: p(z | y) = N(mean_y, scale_y²)."""

    def __init__(self, n_classes: int, n_latent: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(n_classes, n_latent))
        self.log_scale = nn.Parameter(torch.zeros(n_classes, n_latent))

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of scales of classes, each (n, n_latent)."""
        # Unlike indexing's, the gradient has the same bits each time on several threads.
        return F.embedding(y, self.mean), soft(F.embedding(y, self.log_scale))


def soft(log_scale: Tensor) -> Tensor:
    """Return logarithms of scales, pressed softly into what an exponential can bear."""
    return MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)


def kl_divergence(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor]) -> Tensor:
    """Return KL(q || p) of diagonal normals, given as means and logarithms of scales, (n,) in nats.

    References
    ----------
    Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B, with any normal as prior.
    """
    (mean, log_scale), (prior_mean, prior_log_scale) = q, p
    ratio = torch.exp(2 * (log_scale - prior_log_scale))
    offset = ((mean - prior_mean) * torch.exp(-prior_log_scale)) ** 2
    return 0.5 * (ratio + offset - 1.0 - 2 * (log_scale - prior_log_scale)).sum(dim=1)
