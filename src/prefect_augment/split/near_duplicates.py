"""Near-duplicate images: candidate pairs by perceptual hash, distances by pixels, clusters for the split.

The distance is the share of contrast that differs: ``1 - correlation`` of smoothed 32x32 gray thumbnails
after the best shift of up to two cells and a small remainder of shift or scale. Copies re-encoded,
resized, brightened or shifted by a pixel are at about 0.

A cluster has to be isolated: its threshold, at most 0.05, is the largest at which everything outside is at
least four times as far (twice in units of pixels). Different images hardly ever meet that: two pairs of
1,797 digits of 16x16 pixels, of which a fixed 0.05 would cluster half. A cluster of more than a twentieth
of all images (frames of one camera) gets a stricter threshold.

Pairs are computed independently and images sorted by key, so neither the source's order nor the number
of threads changes the result.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from threadpoolctl import threadpool_limits

from prefect_augment.split.image_distance import (
    BUCKET,
    Best,
    Shape,
    buckets,
    distances,
    hash_bands,
)

__all__ = [
    "DISTANCES",
    "GAP",
    "MAX_LEVEL",
    "MAX_SHARE",
    "MIN_LIMIT",
    "Neighbours",
    "cluster_images",
    "cluster_limit",
    "nearest_by_group",
    "strengths",
]

#: Distances from 0.2 down, each the one before over the root of two: the steps that are told apart.
DISTANCES = tuple(0.2 * 2.0 ** (-k / 2) for k in range(15))
#: A pair is near at level 0 where it is nearer than ``DISTANCES[GAP]``, a quarter of the first; at
#: level k than ``DISTANCES[GAP + k]``. At a cluster's level all else is beyond ``DISTANCES[level]``.
GAP = 4
MAX_LEVEL = len(DISTANCES) - 1 - GAP
#: A cluster may hold this share of all images, or ``MIN_LIMIT`` images where that is more.
MAX_SHARE = 0.05
MIN_LIMIT = 20

Thumbs = NDArray[np.int8]
Rows = NDArray[np.int64]


def cluster_limit(n_images: int) -> int:
    """Return how many images a cluster may have before its level is raised."""
    return max(MIN_LIMIT, int(MAX_SHARE * n_images))


def cluster_images(thumbs: Thumbs, *, levels: Rows | None = None, limit: int) -> tuple[Rows, Rows]:
    """Return the cluster (n,) of every image and its strictness level (n,), 0 to :data:`MAX_LEVEL`.

    ``thumbs`` (n, 1024) are of different images, sorted by content key. Clusters have at most ``limit``
    images and start at ``levels`` (default 0). A pair is near when its strength exceeds the levels of both; a
    single image's level says how dense its neighbourhood is, and so what may join it later.
    """
    n = len(thumbs)
    strict = np.zeros(n, dtype=np.int64) if levels is None else levels.copy()
    i, j, steps = _forest(thumbs)
    while True:
        near = steps - GAP > np.maximum(strict[i], strict[j])
        clusters = _components(n, i[near], j[near])
        too_large = np.bincount(clusters, minlength=1)[clusters] > limit
        # A spanning forest of the nearest pairs has the nearest pair out of every cluster.
        outward = np.zeros(n, dtype=np.int64)
        leaves = clusters[i] != clusters[j]
        for end in (i, j):
            np.maximum.at(outward, clusters[end[leaves]], steps[leaves])
        # One level at a time: what is cut off first may be alone at the next level.
        stricter = (too_large | (outward[clusters] > strict)) & (strict < MAX_LEVEL)
        if not stricter.any():
            return clusters, strict
        strict[stricter] += 1


def _components(n: int, i: Rows, j: Rows) -> Rows:
    graph = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _forest(thumbs: Thumbs) -> tuple[Rows, Rows, Rows]:
    """Return the nearest pairs within the first distance as a spanning forest, with their steps."""
    n = len(thumbs)
    shape = Shape(thumbs)
    best = Best(n)
    with threadpool_limits(limits=1, user_api="blas"):  # more threads than these matrices are worth
        for bucket in buckets(hash_bands(thumbs), shape.informative):
            likeness = shape.likeness(bucket, bucket)
            likeness = np.maximum(likeness, likeness.T)
            np.fill_diagonal(likeness, -np.inf)
            best.keep(bucket, bucket, likeness)
        a, b = best.pairs()
        codes = np.unique(np.minimum(a, b) * n + np.maximum(a, b))
        i, j = codes // max(n, 1), codes % max(n, 1)
        steps = _steps(distances(thumbs, i, thumbs, j))
    i, j, steps = i[steps > 0], j[steps > 0], steps[steps > 0]
    weight = (len(DISTANCES) + 1 - steps).astype(np.float64)  # at least 1: zero would mean no edge
    forest = minimum_spanning_tree(coo_array((weight, (i, j)), shape=(n, n)).tocsr()).tocoo()
    kept = len(DISTANCES) + 1 - forest.data.astype(np.int64)
    return forest.row.astype(np.int64), forest.col.astype(np.int64), kept


# --- images of two sets -----------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """Nearest near-duplicates of images in another set, by group of that set."""

    strength: Rows  # (n, n_groups) of the nearest; 0 for none near
    index: Rows  # (n, n_groups) the first of equally strong ones; -1 for none
    level: Rows  # (n,) strictest level among the near others


def nearest_by_group(
    thumbs: Thumbs, others: Thumbs, *, groups: Rows, levels: Rows, n_groups: int
) -> Neighbours:
    """Return for each image its nearest near-duplicates among ``others``, with ``groups`` and ``levels`` (n_others,).

    Both sets of thumbnails (n, 1024) are in an order that does not depend on the source's.
    """
    n = len(thumbs)
    nearest = Neighbours(
        np.zeros((n, n_groups), dtype=np.int64),
        np.full((n, n_groups), -1, dtype=np.int64),
        np.zeros(n, dtype=np.int64),
    )
    if n == 0 or len(others) == 0:
        return nearest
    every = np.concatenate([thumbs, others])
    shape, bands = Shape(every), hash_bands(every)
    del every
    with threadpool_limits(limits=1, user_api="blas"):
        for group in range(n_groups):
            best = Best(n)
            members = n + np.flatnonzero(groups == group)
            candidates = np.concatenate([np.arange(n), members])
            candidates = candidates[np.isin(candidates, shape.informative)]
            for bucket in buckets(bands, candidates, in_windows=False):
                ours, theirs = bucket[bucket < n], bucket[bucket >= n]
                for i, j in product(range(0, len(ours), BUCKET), range(0, len(theirs), BUCKET)):
                    some, those = ours[i : i + BUCKET], theirs[j : j + BUCKET]
                    best.keep(some, those, shape.likeness(some, those))
            a, b = best.pairs()
            b = b - n
            strength = _strength(distances(thumbs, a, others, b))
            near = strength > 0
            np.maximum.at(nearest.level, a[near], levels[b[near]])
            _keep_nearest(nearest, a[near], b[near], strength[near], group)
    return nearest


def _keep_nearest(nearest: Neighbours, a: Rows, b: Rows, strength: Rows, group: int) -> None:
    """Keep the strongest pair of each image; of equals the first of the others."""
    order = np.lexsort((-b, strength))  # the best one last: the last write wins
    nearest.strength[a[order], group] = strength[order]
    nearest.index[a[order], group] = b[order]


def strengths(thumbs: Thumbs, others: Thumbs, *, upper: bool = False) -> tuple[Rows, Rows, Rows]:
    """Return the near pairs of two small sets, compared all with all: rows, other rows, strength.

    A pair is near at the levels below its strength. With ``upper`` both are one set, each pair comes once.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        like = Shape(thumbs).is_like(Shape(others))
        a, b = np.nonzero(np.triu(like | like.T, 1) if upper else like)
        strength = _strength(distances(thumbs, a, others, b))
    keep = strength > 0
    return a[keep], b[keep], strength[keep]


def _strength(distance: NDArray[np.float64]) -> Rows:
    return np.maximum(_steps(distance) - GAP, 0)


def _steps(distance: NDArray[np.float64]) -> Rows:
    """Return how many of ``DISTANCES`` each distance is below."""
    rising = np.asarray(DISTANCES[::-1])
    return len(DISTANCES) - np.searchsorted(rising, distance, side="right").astype(np.int64)
