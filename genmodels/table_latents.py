"""Latent spaces of tables: records in and out, and the density of each class's latent vectors.

:class:`ClassDensities` is fitted after training to the vectors of the records trained on, a mixture
of normals per class, and drawn from in the place of a prior that the encoder may never have met.

References
----------
Ghosh et al. 2020, "From Variational to Deterministic Autoencoders", section 4 (ex-post density
estimation): ten full components per density there.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Arrays
from prefect_augment.genmodels.counter_random import record_keys
from prefect_augment.genmodels.table_network import N, P, RecordNumbers, TableNetwork
from prefect_augment.genmodels.table_training import Encoded
from prefect_augment.training.devices import Device

__all__ = ["ClassDensities", "LatentTable"]

MAX_COMPONENTS = 10
PER_COMPONENT = 32  # records
MAX_RECORDS = 8000  # of a class that a density is fitted to
N_ITERATIONS = 50
FLOOR = 1e-3  # of a component's variances, as a share of the mean variance
AT_ONCE = 4096  # records encoded at once
MIN_BATCH = 64  # records of a step

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
    def fit(cls, Z: Floats, y: NDArray[np.int64], n_classes: int, *, seed: int) -> Self:
        """Return the densities of these vectors.

        A class of few records has one component, its covariance drawn towards that of all classes
        within; one of no record has the mean and covariance of all.

        Parameters
        ----------
        Z : ndarray of float32, shape (n, n_latent)
        y : ndarray of int64, shape (n,)
        n_classes, seed : int
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
            n_components = min(MAX_COMPONENTS, len(own) // PER_COMPONENT)
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


class LatentTable(TableNetwork[P, N]):
    """A network with an encoder and a decoder: see :class:`.base.Encodes`."""

    @property
    @abstractmethod
    def n_latent(self) -> int:
        """Size of a latent vector."""

    @abstractmethod
    def encode(self, network: N, codes: Tensor, scores: Tensor) -> Tensor:
        """Return latent vectors, (n, n_latent), of codes and scores (0 where there is none)."""

    @abstractmethod
    def likeliest(self, network: N, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most likely codes and scores of latent vectors and classes."""

    @abstractmethod
    def strangeness(self, network: N, records: Encoded) -> Tensor:
        """Return how badly each record is accounted for, (n,)."""

    def batch_size(self, n_records: int, device: Device) -> int:
        """Return a quarter of a small table: passes over it then cost less, and are as many."""
        most = super().batch_size(n_records, device)
        return min(most, max(MIN_BATCH, 1 << (n_records // 4).bit_length() - 1))

    def latents_of(self, network: N, records: Encoded) -> Floats:
        """Return the latent vectors of records as tensors."""
        at = replace(self.device, threads=1)
        found = []
        with at.settings(), torch.inference_mode(), at.autocast():
            for start in range(0, len(records), AT_ONCE):
                rows = slice(start, start + AT_ONCE)
                z = self.encode(network, records.codes[rows], records.middle_scores[rows])
                found.append(z.float().cpu().numpy())
        return np.concatenate(found) if found else np.empty((0, self.n_latent), np.float32)

    def embed(self, X: NDArray[np.float64]) -> Floats:
        """Return each record's latent vector, as :class:`.base.Encodes` has it."""
        return self.latents_of(self.network, self.encoded(X))

    def decode_latents(self, Z: Floats, y: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the most likely record of each latent vector and class.

        Raises
        ------
        ParameterError
            If the vectors have another size, or there is not one class for each.
        EmptyClassError
            If the model does not have a class.
        """
        Z, y = np.asarray(Z, np.float32), np.asarray(y, np.int64)
        if Z.shape != (len(y), self.n_latent):
            raise ParameterError(
                f"expected latent vectors of shape {(len(y), self.n_latent)}, one per class given, "
                f"found {Z.shape}; take those of embed."
            )
        self.check_classes(y)
        X = np.empty((len(y), self.spec.n_columns))
        at = replace(self.device, threads=1)
        with at.settings(), torch.inference_mode(), at.autocast():
            for start in range(0, len(y), AT_ONCE):
                rows = slice(start, start + AT_ONCE)
                z, labels = (torch.from_numpy(a[rows]).to(at.torch) for a in (Z, y))
                codes, scores = self.likeliest(self.network, z, labels)
                X[rows] = self.space.decode(
                    codes.cpu().numpy(),
                    scores.float().cpu().numpy(),
                    y=y[rows],
                    keys=record_keys(np.zeros(len(labels), dtype=np.int64)),
                    counter=0,
                )
        return X

    def anomaly_scores(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how badly the model accounts for each record, as :class:`.base.Encodes` has it."""
        network = self.network
        at = replace(self.device, threads=1)
        found = np.empty(len(X))
        with at.settings(), torch.inference_mode(), at.autocast():
            for start in range(0, len(X), AT_ONCE):
                rows = slice(start, start + AT_ONCE)
                found[rows] = self.strangeness(network, self.encoded(X[rows])).cpu().numpy()
        return found

    def encoded(self, X: NDArray[np.float64]) -> Encoded:
        """Return records of unknown class as tensors.

        Raises
        ------
        ParameterError
            If the matrix does not have the spec's columns.
        """
        X = np.asarray(X, np.float64)
        if X.ndim != 2 or X.shape[1] != self.spec.n_columns:
            raise ParameterError(
                f"expected a matrix of {self.spec.n_columns} columns, found one of shape {X.shape}; "
                "encode the records with the model's TableEncoder."
            )
        return Encoded.of(X, np.zeros(len(X), dtype=np.int64), self.space, self.device)
