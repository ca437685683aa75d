"""What models with a latent space share, of images and of tables.

Losses of autoencoders, the normal prior of variational ones, and two ways of drawing vectors of a
class: :class:`ClassDensities`, mixtures instead of a prior that the encoder may not match (Ghosh et
al. 2020, "From Variational to Deterministic Autoencoders", section 4, ex-post density estimation
with ten full components), and :class:`ClassNeighbours`.
"""

import warnings
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from prefect_augment.array_types import Float, Float32, Int
from prefect_augment.genmodels.base import Arrays
from prefect_augment.genmodels.network import RecordNumbers
from prefect_augment.nn.threads import single_threaded

MAX_COMPONENTS = 10
PER_COMPONENT = 32  # records
MAX_RECORDS = 8000  # per class that a density is fitted to
N_ITERATIONS = 50
FLOOR = 1e-3  # of a component's variances, as a share of the mean variance
N_NEIGHBOURS = 5
MAX_NEIGHBOURS = 4000  # vectors kept per class
MAX_LOG_SCALE = 5.0  # of posteriors and priors


@dataclass(frozen=True)
class StoredArrays:
    """Dataclasses of arrays, which are stored with a prefix to their names."""

    prefix: ClassVar[str] = "latent"

    def arrays(self) -> Arrays:
        """The arrays by name, for storage."""
        return {f"{self.prefix}.{name}": array for name, array in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Inverse of :meth:`arrays`; ignores others."""
        return cls(**{f.name: arrays[f"{cls.prefix}.{f.name}"] for f in fields(cls)})

    def _tensors(self, device: torch.device) -> list[Tensor]:
        """The arrays as tensors, in the order of the fields."""
        return [torch.from_numpy(array).to(device) for array in vars(self).values()]


@dataclass(frozen=True)
class ClassDensities(StoredArrays):
    """Gaussian mixtures, one per class."""

    shares: Float  # (n_classes, n_components) cumulative weights
    means: Float32  # (n_classes, n_components, n_latent)
    roots: Float32  # (n_classes, n_components, n_latent, n_latent) Cholesky factors of covariances

    @classmethod
    def fit(
        cls, Z: Float32, y: Int, n_classes: int, *, seed: int, per_component: int = PER_COMPONENT
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
            if len(own):
                weight = n_latent + 1.0  # weight of the pooled covariance, in records
                covariance = within * weight + _covariance(own - centres[k]) * len(own)
                covariance = covariance / (weight + len(own))
            else:
                covariance = _covariance(z - z.mean(axis=0))
            parts.append((np.ones(1), centres[k][None], (covariance + ridge)[None]))
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
        shares, means, roots = self._tensors(y.device)
        place = (shares[y, :-1] <= numbers.uniforms(1)).sum(dim=1)
        normals = numbers.normals(means.shape[2])
        return means[y, place] + torch.einsum("nij,nj->ni", roots[y, place], normals)


def _covariance(centred: Float) -> Float:
    return centred.T @ centred / len(centred)


def _mixture(own: Float, n_components: int, floor: float, seed: int) -> GaussianMixture:
    # k-means++ without k-means, one thread: the same bits on every number of cores.
    mixture = GaussianMixture(
        n_components,
        reg_covar=floor,
        max_iter=N_ITERATIONS,
        init_params="k-means++",
        random_state=seed & 0xFFFFFFFF,
    )
    with single_threaded(), warnings.catch_warnings():
        # The last iterations gain little, so convergence is not required.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(own)


@dataclass(frozen=True)
class ClassNeighbours(StoredArrays):
    """Latent vectors of records, sorted by class, and the neighbours of each.

    The draws lie near to records: they look like their class, and may be close to a copy. Dablain,
    Krawczyk & Chawla 2021, "DeepSMOTE: Fusing Deep Learning and SMOTE for Imbalanced Data"; the
    interpolation and its five neighbours are those of Chawla et al. 2002, "SMOTE".
    """

    vectors: Float32  # (n, n_latent)
    neighbours: Int  # (n, N_NEIGHBOURS) rows of the same class, the nearest first; few repeat
    starts: Int  # (n_classes,) first row of each class; an empty class has all rows
    counts: Int  # (n_classes,)

    @classmethod
    def fit(cls, Z: Float32, y: Int, n_classes: int, *, seed: int) -> Self:
        """Keep at most ``MAX_NEIGHBOURS`` vectors per class and find their neighbours."""
        rng = np.random.default_rng([seed & 0xFFFFFFFF, 3])
        rows, neighbours = [], []
        starts, counts = np.zeros((2, n_classes), dtype=np.int64)
        n = 0
        for k in range(n_classes):
            own = np.flatnonzero(y == k)
            own = own[np.sort(rng.permutation(len(own))[:MAX_NEIGHBOURS])]
            starts[k], counts[k] = n, len(own)
            rows.append(own)
            neighbours.append(n + _nearest(Z[own]))
            n += len(own)
        starts[counts == 0], counts[counts == 0] = 0, n
        return cls(Z[np.concatenate(rows)], np.concatenate(neighbours), starts, counts)

    def draw(self, y: Tensor, numbers: RecordNumbers) -> Tensor:
        """One vector per class index, (n, n_latent) of float32, on the device of ``y``."""
        vectors, neighbours, starts, counts = self._tensors(y.device)
        uniforms = numbers.uniforms(3)
        row = starts[y] + (uniforms[:, 0] * counts[y]).long()
        which = (uniforms[:, 1] * neighbours.shape[1]).long()
        other = neighbours[row, which]
        return torch.lerp(vectors[row], vectors[other], uniforms[:, 2:].float())


def _nearest(Z: Float32) -> Int:
    """Each vector's nearest others, (n, N_NEIGHBOURS); the vector itself where it is alone."""
    n = min(N_NEIGHBOURS, len(Z) - 1)
    if n < 1:
        return np.zeros((len(Z), N_NEIGHBOURS), dtype=np.int64)
    with single_threaded():
        nearest = NearestNeighbors(n_neighbors=n).fit(Z).kneighbors(return_distance=False)
    return nearest[:, np.arange(N_NEIGHBOURS) % n].astype(np.int64)


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


def jacobian_norm(z: Tensor, inputs: Tensor, directions: Tensor) -> Tensor:
    """Unbiased estimate of the squared Frobenius norm of dz/dinputs per record, (n,).

    E[|Jᵀv|²] = |J|² for standard normal ``directions`` (n, n_latent) (Hutchinson 1990). Each row of
    ``z`` depends on its own row of ``inputs`` alone.
    """
    (gradient,) = torch.autograd.grad((z * directions).sum(), inputs, create_graph=True)
    return (gradient**2).flatten(1).sum(dim=1)


def sparsity_divergence(activations: Tensor, target: float) -> Tensor:
    """Sum over units of KL(target || mean activation), a scalar in nats; activations in (0, 1)."""
    mean = activations.mean(dim=0).clamp(1e-6, 1 - 1e-6)
    kl = target * torch.log(target / mean) + (1 - target) * torch.log((1 - target) / (1 - mean))
    return kl.sum()
