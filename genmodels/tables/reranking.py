"""Of several draws of a network, one that is like the records: what trees see and networks miss.

A network smooths what it learns, and a rare class's records then stray into another's ground. A
forest of trees on records and on draws of the network, its classes told apart by where a row comes
from, knows how much denser records of a class lie at a place than draws of it do. Several records are
drawn in the place of one, and one of them is taken by chance, with a probability ∝ that ratio:
sampling and importance resampling (Rubin 1988, "Using the SIR algorithm to simulate posterior
distributions", section 2), the ratio being a classifier's (Azadi et al. 2019, "Discriminator Rejection
Sampling", section 3.1). No record is refused, so that as many come out as are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from prefect_augment.genmodels.base import Arrays
from prefect_augment.genmodels.counter_rng import uniform
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace

__all__ = ["MAX_CHOOSER_RECORDS", "MIN_CHOOSER_RECORDS", "Chooser"]

# With fewer, a forest knows the records one by one, and takes draws that are next to them.
MIN_CHOOSER_RECORDS = 1000
MAX_CHOOSER_RECORDS = 8000
N_TREES = 50
MIN_LEAF = 5
MAX_LEAVES, MAX_DEPTH = 256, 12
FEATURES_SHARE, MAX_FEATURES = 0.5, 32  # that a split looks at
SMOOTHING = 0.5  # over the square root of the records: added to both densities
AT_ONCE = 1024

Features = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Chooser:
    """A forest as arrays over the nodes of all its trees.

    Parameters
    ----------
    roots : ndarray of int32, shape (n_trees,)
    feature : ndarray of int32, shape (n_nodes,)
    threshold : ndarray of float64, shape (n_nodes,)
        Left where the feature is not above it.
    children : ndarray of int32, shape (2 * n_nodes,)
        Left and right child of each node; a leaf is its own.
    shares : ndarray of float32, shape (n_nodes, 2 * n_classes)
        Of a leaf: records of each class, then draws of each; they add up to one.
    depth_and_smoothing : ndarray of float64, shape (2,)
        Steps to the deepest leaf; what is added to shares.
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    children: NDArray[np.int32]
    shares: NDArray[np.float32]
    depth_and_smoothing: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        records: NDArray[np.float64],
        drawn: NDArray[np.float64],
        y: Ints,
        *,
        space: MixedSpace,
        seed: int,
    ) -> Self:
        """Return what tells records from draws.

        Parameters
        ----------
        records, drawn : ndarray of float64, shape (n, n_columns)
            The matrix form; row i of both is of class ``y[i]``.
        y : ndarray of int64, shape (n,)
        space : MixedSpace
            Where both are compared.
        seed : int
        """
        n_classes = space.spec.n_classes
        features = np.concatenate([features_of(records, space), features_of(drawn, space)])
        n_features = features.shape[1]
        forest = RandomForestClassifier(
            N_TREES,
            min_samples_leaf=MIN_LEAF,
            max_leaf_nodes=MAX_LEAVES,
            max_depth=MAX_DEPTH,
            max_features=min(MAX_FEATURES, max(1, round(FEATURES_SHARE * n_features))),
            random_state=seed & 0xFFFFFFFF,
            n_jobs=1,
        ).fit(features, np.concatenate([y, y + n_classes]))
        trees = [tree.tree_ for tree in forest.estimators_]
        counts = [tree.node_count for tree in trees]
        roots = np.concatenate([[0], np.cumsum(counts)])[:-1]
        shares = np.zeros((sum(counts), 2 * n_classes), dtype=np.float32)
        shares[:, forest.classes_] = np.concatenate([tree.value[:, 0, :] for tree in trees])
        itself = [root + np.arange(n) for root, n in zip(roots, counts, strict=True)]
        children = [
            np.where(side < 0, own, root + side)
            for of_side in ("children_left", "children_right")
            for tree, root, own in zip(trees, roots, itself, strict=True)
            for side in [getattr(tree, of_side)]
        ]
        both = np.concatenate(children).reshape(2, -1).T.ravel()
        return cls(
            roots=roots.astype(np.int32),
            feature=np.concatenate([np.maximum(tree.feature, 0) for tree in trees]).astype(
                np.int32
            ),
            threshold=np.concatenate([tree.threshold for tree in trees]),
            children=both.astype(np.int32),
            shares=shares,
            depth_and_smoothing=np.array(
                [max(tree.max_depth for tree in trees), SMOOTHING / np.sqrt(len(y))]
            ),
        )

    def log_ratios(self, X: NDArray[np.float64], y: Ints, space: MixedSpace) -> NDArray[np.float64]:
        """Return how much denser records lie than draws, as logarithms, shape (n,).

        Parameters
        ----------
        X : ndarray of float64, shape (n, n_columns)
        y : ndarray of int64, shape (n,)
            Class of each row.
        space : MixedSpace
            As in :meth:`fit`.
        """
        found = np.empty(len(X))
        n_classes = self.shares.shape[1] // 2
        depth, smoothing = int(self.depth_and_smoothing[0]), self.depth_and_smoothing[1]
        for start in range(0, len(X), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            features, own = features_of(X[rows], space), y[rows, None]
            at = np.repeat(self.roots[None], len(features), axis=0)
            place = np.arange(len(features))[:, None]
            for _ in range(depth):
                right = features[place, self.feature[at]] > self.threshold[at]
                at = self.children[2 * at + right]
            of_records, of_draws = (
                self.shares[at, own + side].mean(axis=1, dtype=np.float64)
                for side in (0, n_classes)
            )
            found[rows] = np.log(of_records + smoothing) - np.log(of_draws + smoothing)
        return found

    def choose(
        self,
        drawn: Sequence[NDArray[np.float64]],
        y: Ints,
        keys: NDArray[np.uint64],
        space: MixedSpace,
    ) -> NDArray[np.float64]:
        """Return one of several draws of each record, shape (n, n_columns).

        Parameters
        ----------
        drawn : sequence of ndarray of float64, shape (n, n_columns)
            Row i of all of them is for record i.
        y : ndarray of int64, shape (n,)
        keys : ndarray of uint64, shape (n,)
            From :func:`.counter_random.record_keys`: the records' own chance.
        space : MixedSpace
        """
        best, chosen = np.full(len(y), -np.inf), drawn[0].copy()
        for i, X in enumerate(drawn):
            # The largest of logarithms with Gumbel's noise is a draw by what they are logarithms of.
            noise = -np.log(-np.log(np.clip(uniform(keys, i), 1e-12, 1 - 1e-12)))
            value = self.log_ratios(X, y, space) + noise
            better = value > best
            best[better], chosen[better] = value[better], X[better]
        return chosen

    def arrays(self) -> Arrays:
        """Return all arrays by name."""
        return {f"chooser.{name}": value for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self | None:
        """Return what :meth:`arrays` wrote down; None where there is nothing of it."""
        found = {
            name.removeprefix("chooser."): a for name, a in arrays.items() if "chooser." in name
        }
        return cls(**found) if found else None


def features_of(X: NDArray[np.float64], space: MixedSpace) -> Features:
    """Return codes and the middles of ranks, -1 where there is none, (n, n_choices + n_scores)."""
    low, high, has_score = space.ranks(X)
    ranks = np.where(has_score, (low + high) / 2, -1.0)
    return np.concatenate([space.codes(X), ranks], axis=1).astype(np.float32)
