"""Select one of several draws of a network by a forest's density ratio.

Networks smooth, and draws of a rare class then stray into other classes. A forest classifies rows
by class and by origin (record or draw), which estimates how much denser records of a class lie at a
point than draws. Several records are drawn per request and one is taken with probability ∝ that
ratio: sampling and importance resampling (Rubin 1988, "Using the SIR algorithm to simulate
posterior distributions", section 2) with a classifier's ratio (Azadi et al. 2019, "Discriminator
Rejection Sampling", section 3.1). No request is rejected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from prefect_augment.array_types import Float, Float32, Int, Int32, Uint64
from prefect_augment.genmodels.counter_rng import uniform
from prefect_augment.genmodels.latents import StoredArrays
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace

# With fewer, a forest memorises the records and prefers draws next to them.
MIN_RERANKER_RECORDS = 1000
MAX_RERANKER_RECORDS = 8000
N_TREES = 50
MIN_LEAF = 5
MAX_LEAVES, MAX_DEPTH = 256, 12
FEATURES_SHARE, MAX_FEATURES = 0.5, 32  # per split
SMOOTHING = 0.5  # over the square root of the records: added to both densities
AT_ONCE = 1024


@dataclass(frozen=True)
class Reranker(StoredArrays):
    """A forest as arrays over the nodes of all its trees."""

    prefix = "chooser"

    roots: Int32  # (n_trees,)
    feature: Int32  # (n_nodes,)
    threshold: Float  # (n_nodes,) left where the feature is not above it
    children: Int32  # (2 * n_nodes,) left and right child; a leaf is its own
    shares: Float32  # (n_nodes, 2 * n_classes) of a leaf: records, then draws by class
    depth_and_smoothing: Float  # (2,)

    @classmethod
    def fit(cls, records: Float, drawn: Float, y: Int, *, space: MixedSpace, seed: int) -> Self:
        """Fit a forest that tells records from draws; row i of both is of class ``y[i]``."""
        n_classes = space.spec.n_classes
        # Classes of the forest: records by class, then draws by class.
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
        # Flatten all trees into arrays over their nodes; a leaf is its own child.
        trees = [tree.tree_ for tree in forest.estimators_]
        counts = [tree.node_count for tree in trees]
        roots = np.concatenate([[0], np.cumsum(counts)])[:-1]
        shares = np.zeros((sum(counts), 2 * n_classes), dtype=np.float32)
        shares[:, forest.classes_] = np.concatenate([tree.value[:, 0, :] for tree in trees])
        sides = np.concatenate(
            [[tree.children_left, tree.children_right] for tree in trees], axis=1
        )
        children = np.where(sides < 0, np.arange(sum(counts)), sides + np.repeat(roots, counts))
        feature = np.concatenate([np.maximum(tree.feature, 0) for tree in trees])
        return cls(
            roots=roots.astype(np.int32),
            feature=feature.astype(np.int32),
            threshold=np.concatenate([tree.threshold for tree in trees]),
            children=children.T.ravel().astype(np.int32),
            shares=shares,
            depth_and_smoothing=np.array(
                [max(tree.max_depth for tree in trees), SMOOTHING / np.sqrt(len(y))]
            ),
        )

    def log_ratios(self, X: Float, y: Int, space: MixedSpace) -> Float:
        """Log ratio of the densities of records and draws at ``X`` for classes ``y``, shape (n,)."""
        ratios = np.empty(len(X))
        n_classes = self.shares.shape[1] // 2
        depth, smoothing = int(self.depth_and_smoothing[0]), self.depth_and_smoothing[1]
        for start in range(0, len(X), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            features, own = features_of(X[rows], space), y[rows, None]
            node = np.repeat(self.roots[None], len(features), axis=0)
            row = np.arange(len(features))[:, None]
            for _ in range(depth):
                right = features[row, self.feature[node]] > self.threshold[node]
                node = self.children[2 * node + right]
            of_records, of_draws = (
                self.shares[node, own + side].mean(axis=1, dtype=np.float64)
                for side in (0, n_classes)
            )
            ratios[rows] = np.log(of_records + smoothing) - np.log(of_draws + smoothing)
        return ratios

    def choose(self, drawn: Sequence[Float], y: Int, keys: Uint64, space: MixedSpace) -> Float:
        """Select one of several draws of each record, shape (n, n_columns).

        Row i of every draw is for record i; ``keys`` from :func:`.counter_rng.record_keys` decide.
        """
        best, chosen = np.full(len(y), -np.inf), drawn[0].copy()
        for i, X in enumerate(drawn):
            # Gumbel-max trick: the argmax is a draw with probability ∝ the ratio.
            noise = -np.log(-np.log(np.clip(uniform(keys, i), 1e-12, 1 - 1e-12)))
            value = self.log_ratios(X, y, space) + noise
            better = value > best
            best[better], chosen[better] = value[better], X[better]
        return chosen


def features_of(X: Float, space: MixedSpace) -> Float32:
    """Codes and mid-ranks, -1 where missing, (n, n_choices + n_scores)."""
    low, high, has_score = space.ranks(X)
    ranks = np.where(has_score, (low + high) / 2, -1.0)
    return np.concatenate([space.codes(X), ranks], axis=1).astype(np.float32)
