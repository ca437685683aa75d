"""How far each number of a latent vector stands for one factor of the pictures: MIG and DCI.

References
----------
Chen et al. 2018, "Isolating Sources of Disentanglement in Variational Autoencoders", equation 6 (MIG).
Eastwood & Williams 2018, "A Framework for the Quantitative Evaluation of Disentangled
Representations", section 2 (DCI).
Locatello et al. 2019, "Challenging Common Assumptions in the Unsupervised Learning of Disentangled
Representations", appendix C (20 bins of equal width for mutual information; accuracy as DCI's
informativeness).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

__all__ = ["Dci", "dci", "dci_of", "gaps", "importances", "mutual_information"]

N_BINS = 20
N_TREES = 50
MIN_LEAF = 5  # records in a leaf; pure leaves would spread importance over numbers that hold noise

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


# --- MIG ------------------------------------------------------------------------------------------


def mutual_information(Z: Floats, factors: Codes, n_bins: int = N_BINS) -> tuple[Floats, Floats]:
    """Return the mutual information of each number with each factor, and each factor's entropy.

    Parameters
    ----------
    Z : ndarray of float64, shape (n, n_latent)
        Cut into bins of equal width between the least and the largest.
    factors : ndarray of int64, shape (n, n_factors)
        Codes from 0 on.
    n_bins : int

    Returns
    -------
    information : ndarray of float64, shape (n_latent, n_factors)
        In nats.
    entropy : ndarray of float64, shape (n_factors,)
        In nats.
    """
    low, high = Z.min(axis=0), Z.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    bins = np.minimum((n_bins * (Z - low) / width).astype(np.int64), n_bins - 1)
    information = np.empty((Z.shape[1], factors.shape[1]))
    entropy = np.empty(factors.shape[1])
    for k, factor in enumerate(factors.T):
        n_values = int(factor.max()) + 1
        entropy[k] = _entropy(np.bincount(factor))
        for j, column in enumerate(bins.T):
            joint = np.bincount(column * n_values + factor)
            information[j, k] = _entropy(np.bincount(column)) + entropy[k] - _entropy(joint)
    return information, entropy


def gaps(information: Floats, entropy: Floats) -> Floats:
    """Return each factor's gap between its two most informative numbers, as a share of its entropy.

    Their mean is MIG: 1 where one number tells each factor and no other one does.

    Parameters
    ----------
    information : ndarray of float64, shape (n_latent, n_factors)
        From :func:`mutual_information`; at least two numbers.
    entropy : ndarray of float64, shape (n_factors,)

    Examples
    --------
    >>> gaps(np.array([[1.0, 0.2], [0.5, 0.2]]), np.array([1.0, 0.4])).tolist()
    [0.5, 0.0]
    """
    second, first = np.sort(information, axis=0)[-2:]
    found: Floats = (first - second) / entropy
    return found


def _entropy(counts: NDArray[np.int64]) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


# --- DCI ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dci:
    """Disentanglement, completeness and informativeness, each 1 at best.

    Attributes
    ----------
    disentanglement : float
        Of numbers, weighed by their importance: 1 where each is important for one factor.
    completeness : float
        Mean over the factors: 1 where one number is important for each.
    informativeness : float
        Mean accuracy of the forests on records that they have not seen; chance is above 0.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def dci_of(R: Floats) -> tuple[float, float]:
    """Return disentanglement and completeness of relative importances.

    Parameters
    ----------
    R : ndarray of float64, shape (n_latent, n_factors)
        Importance of each number for each factor, not negative.

    Examples
    --------
    >>> [round(x, 3) for x in dci_of(np.eye(3))]
    [1.0, 1.0]
    >>> [round(x, 3) for x in dci_of(np.ones((4, 3)))]
    [0.0, 0.0]
    """
    by_number, by_factor = R.sum(axis=1), R.sum(axis=0)
    used = by_number > 0
    of_numbers = 1.0 - _spread(R[used] / by_number[used, None], axis=1)
    of_factors = 1.0 - _spread(R / np.where(by_factor > 0, by_factor, 1.0), axis=0)
    weights = by_number[used] / by_number.sum()
    return float(weights @ of_numbers), float(of_factors[by_factor > 0].mean())


def _spread(P: Floats, axis: int) -> Floats:
    """Return entropies with the number of entries as their base: 0 for one alone, 1 for all alike."""
    logs = np.log(P, out=np.zeros_like(P), where=P > 0)
    found: Floats = -(P * logs).sum(axis=axis) / np.log(P.shape[axis])
    return found


def importances(
    Z: Floats, factors: Codes, test_Z: Floats, test_factors: Codes, *, seed: int
) -> tuple[Floats, Floats]:
    """Return how important each number is for each factor, and accuracies, by random forests.

    Returns
    -------
    R : ndarray of float64, shape (n_latent, n_factors)
        Decreases of impurity; every column adds up to 1.
    accuracies : ndarray of float64, shape (n_factors,)
        On the test records.
    """
    columns, accuracies = [], []
    for k in range(factors.shape[1]):
        # All numbers at every split: chosen among a few, one that says nothing would be taken at times.
        forest = RandomForestClassifier(
            N_TREES, min_samples_leaf=MIN_LEAF, max_features=None, random_state=seed
        )
        forest.fit(Z, factors[:, k])
        columns.append(forest.feature_importances_)
        accuracies.append(forest.score(test_Z, test_factors[:, k]))
    return np.stack(columns, axis=1), np.array(accuracies)


def dci(Z: Floats, factors: Codes, test_Z: Floats, test_factors: Codes, *, seed: int) -> Dci:
    """Return all three scores; forests learn from the first records and are held to the others."""
    R, accuracies = importances(Z, factors, test_Z, test_factors, seed=seed)
    return Dci(*dci_of(R), float(accuracies.mean()))
