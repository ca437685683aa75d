"""Near-duplicate images: perceptual hash for candidates, pixels for the decision, clusters for the split.

Two images are near when their 24x24 gray thumbnails correlate by more than a level. The level is
0.95; only where so many images are alike that clusters would grow together to more than a twentieth of
all (every pair of trousers of Fashion-MNIST is "near" another), it is raised in that place, step by
step, until no cluster is larger. Everything is counted in whole numbers, so the result depends neither
on the order of the images nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from threadpoolctl import threadpool_limits

__all__ = [
    "LEVELS",
    "MAX_SHARE",
    "MIN_LIMIT",
    "Neighbours",
    "cluster_images",
    "cluster_limit",
    "hash_bands",
    "nearest_by_group",
    "strengths",
]

#: Correlations that a pair has to exceed. A pair's strength is the number of levels it exceeds.
LEVELS = (0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.998)
#: A cluster may hold this share of all images, or ``MIN_LIMIT`` images where that is more.
MAX_SHARE = 0.05
MIN_LIMIT = 20
# Images whose hashes share a band are compared on pixels, all with all; larger buckets are divided by
# the next band first, so that the work grows with the number of images and not with its square.
BUCKET = 1024
BANDS = 8
# Pairs held before they are thinned to the strongest ones that connect the same images.
PAIRS_HELD = 4_000_000

Thumbs = NDArray[np.int8]


def cluster_limit(n_images: int) -> int:
    """Return how many images a cluster may have before its level is raised."""
    return max(MIN_LIMIT, int(MAX_SHARE * n_images))


def cluster_images(
    thumbs: Thumbs, *, levels: NDArray[np.int64] | None = None, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cluster of every image, and how strict it is.

    Parameters
    ----------
    thumbs : ndarray of int8, shape (n, 576)
        Of different images, in an order that does not depend on the source's (by content key).
    levels : ndarray of int64, shape (n,), optional
        The strictness to begin with; 0 where not given.
    limit : int
        Images that a cluster may have.

    Returns
    -------
    clusters : ndarray of int64, shape (n,)
        Number of the cluster; an image without near-duplicates has one of its own.
    levels : ndarray of int64, shape (n,)
        0 to ``len(LEVELS)``: a pair is near when its strength exceeds the level of both.
    """
    n = len(thumbs)
    strict = np.zeros(n, dtype=np.int64) if levels is None else levels.copy()
    i, j, strength = _forest(thumbs, strict)
    while True:
        near = strength > np.maximum(strict[i], strict[j])
        clusters = _components(n, i[near], j[near])
        too_large = np.bincount(clusters, minlength=1)[clusters] > limit
        if not too_large.any():
            return clusters, strict
        strict[too_large] += 1


def _components(n: int, i: NDArray[np.intp], j: NDArray[np.intp]) -> NDArray[np.int64]:
    graph = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _forest(
    thumbs: Thumbs, levels: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]:
    """Near pairs, thinned to a spanning forest of the strongest: it has the same clusters at any level."""
    n = len(thumbs)
    norms = _norms(thumbs)
    codes = np.zeros(0, dtype=np.int64)
    found = np.zeros(0, dtype=np.int64)
    waiting: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    n_waiting = 0
    with threadpool_limits(limits=1, user_api="blas"):  # more threads than these matrices are worth
        for bucket in _buckets(hash_bands(thumbs), np.flatnonzero(norms > 0)):
            a, b, strength = strengths(thumbs[bucket], thumbs[bucket], upper=True)
            a, b = bucket[a], bucket[b]
            near = strength > np.maximum(levels[a], levels[b])
            low, high = np.minimum(a, b)[near], np.maximum(a, b)[near]
            waiting.append((low * n + high, strength[near]))
            n_waiting += int(near.sum())
            if n_waiting > PAIRS_HELD:
                codes, found = _thinned(n, codes, found, waiting)
                waiting, n_waiting = [], 0
    codes, found = _thinned(n, codes, found, waiting)
    return codes // max(n, 1), codes % max(n, 1), found


def _thinned(
    n: int,
    codes: NDArray[np.int64],
    found: NDArray[np.int64],
    waiting: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep of the pairs those that a maximum spanning forest needs."""
    codes = np.concatenate([codes, *(c for c, _ in waiting)])
    found = np.concatenate([found, *(s for _, s in waiting)])
    codes, first = np.unique(codes, return_index=True)  # a pair may share several bands
    if len(codes) == 0:
        return codes, found[first]
    weight = len(LEVELS) + 1 - found[first]  # at least 1: zero would mean no edge
    graph = coo_array((weight.astype(np.float64), (codes // n, codes % n)), shape=(n, n))
    forest = minimum_spanning_tree(graph.tocsr()).tocoo()
    rows, columns = forest.row.astype(np.int64), forest.col.astype(np.int64)
    return rows * n + columns, len(LEVELS) + 1 - forest.data.astype(np.int64)


# --- images of two sets -----------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """Near-duplicates of images in another set, by group of that set.

    Parameters
    ----------
    strength : ndarray of int64, shape (n, n_groups)
        Strength of the nearest one in each group; 0 where none is near.
    index : ndarray of int64, shape (n, n_groups)
        Which one it is; the first of equally strong ones, -1 where none is near.
    level : ndarray of int64, shape (n,)
        The strictest level among the others that are near: the place of the image is as crowded.
    """

    strength: NDArray[np.int64]
    index: NDArray[np.int64]
    level: NDArray[np.int64]


def nearest_by_group(
    thumbs: Thumbs,
    others: Thumbs,
    *,
    groups: NDArray[np.int64],
    levels: NDArray[np.int64],
    n_groups: int,
) -> Neighbours:
    """Return for each image its nearest near-duplicates among ``others``.

    Parameters
    ----------
    thumbs, others : ndarray of int8, shapes (n, 576) and (n_others, 576)
        Both in an order that does not depend on the source's.
    groups, levels : ndarray of int64, shape (n_others,)
        Group and strictness of the others.
    n_groups : int
        How many groups there are.
    """
    n = len(thumbs)
    found = Neighbours(
        np.zeros((n, n_groups), dtype=np.int64),
        np.full((n, n_groups), -1, dtype=np.int64),
        np.zeros(n, dtype=np.int64),
    )
    both = np.concatenate([thumbs, others])
    with threadpool_limits(limits=1, user_api="blas"):
        usable = np.flatnonzero(_norms(both) > 0)
        for bucket in _buckets(hash_bands(both), usable, in_windows=False):
            ours, theirs = bucket[bucket < n], bucket[bucket >= n] - n
            for i, j in product(range(0, len(ours), BUCKET), range(0, len(theirs), BUCKET)):
                some, those = ours[i : i + BUCKET], theirs[j : j + BUCKET]
                a, b, strength = strengths(thumbs[some], others[those])
                a, b = some[a], those[b]
                np.maximum.at(found.level, a, levels[b])
                _keep_nearest(found, a, b, strength, groups[b])
    return found


def _keep_nearest(
    found: Neighbours,
    a: NDArray[np.intp],
    b: NDArray[np.intp],
    strength: NDArray[np.int64],
    group: NDArray[np.int64],
) -> None:
    """Note the pairs that are stronger than what is known; of equals the first of the others."""
    order = np.lexsort((-b, strength))  # the best one last: the last write wins
    rows, which, found_strength, k = a[order], b[order], strength[order], group[order]
    known = found.strength[rows, k]
    better = (found_strength > known) | (
        (found_strength == known) & ((found.index[rows, k] < 0) | (which < found.index[rows, k]))
    )
    rows, which, k = rows[better], which[better], k[better]
    found.strength[rows, k] = found_strength[better]
    found.index[rows, k] = which


def strengths(
    thumbs: Thumbs, others: Thumbs, *, upper: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]:
    """Return the near pairs of two sets and how many levels each exceeds.

    Parameters
    ----------
    thumbs, others : ndarray of int8, shapes (n, 576) and (m, 576)
        Compared all with all.
    upper : bool
        Both are the same set: each pair once, none with itself.
    """
    # float32 holds these sums of products exactly (576 * 127**2 < 2**24), in any order of summing.
    products = thumbs.astype(np.float32) @ others.astype(np.float32).T
    scale = np.outer(_norms(thumbs), _norms(others))
    near = products > np.float32(LEVELS[0] - 1e-4) * scale.astype(np.float32)
    if upper:
        near = np.triu(near, 1)
    a, b = np.nonzero(near & (scale > 0))
    correlation = products[a, b].astype(np.float64) / scale[a, b]
    strength = np.searchsorted(np.asarray(LEVELS), correlation, side="left").astype(np.int64)
    keep = strength > 0
    return a[keep], b[keep], strength[keep]


def _norms(thumbs: Thumbs) -> NDArray[np.float64]:
    wide = thumbs.astype(np.int32)
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", wide, wide)), dtype=np.float64)


# --- candidates -------------------------------------------------------------------------------


def hash_bands(thumbs: Thumbs) -> NDArray[np.uint8]:
    """Return the 64-bit difference hash of each image as its eight rows of bits, shape (n, 8).

    A bit says whether brightness rises between two neighbouring cells of a grid of 9x8.

    References
    ----------
    Krawetz 2013, "Kind of Like That" (dHash). Near pairs of the sets in use differ in 3 bits (median)
    to 12 (99 %), so 98 to 100 % of them share one row of bits whole.
    """
    side = int(thumbs.shape[1] ** 0.5) if thumbs.size else 24
    images = thumbs.reshape(len(thumbs), side, side).astype(np.int64)
    rows = images.reshape(len(thumbs), 8, side // 8, side).sum(axis=2)
    # Cell k covers columns [k, k + 1) * side / 9: weights in ninths, so that they are whole numbers.
    edges = 9 * np.arange(side)
    weights = np.stack(
        [
            np.clip(np.minimum(edges + 9, (k + 1) * side) - np.maximum(edges, k * side), 0, None)
            for k in range(9)
        ],
        axis=1,
    )
    cells = rows @ weights
    return np.packbits(cells[:, :, 1:] > cells[:, :, :-1], axis=2)[:, :, 0]


def _buckets(
    bands: NDArray[np.uint8], usable: NDArray[np.intp], *, in_windows: bool = True
) -> Iterator[NDArray[np.intp]]:
    """Sets of images that share a band of their hash, or several where one would not tell them apart."""
    for first in range(BANDS):
        for bucket in _divided(bands, usable, first, 0):
            # More than that have one hash: windows that overlap by half keep chains together.
            step = BUCKET // 2 if in_windows and len(bucket) > BUCKET else len(bucket)
            for start in range(0, max(1, len(bucket) - step), step):
                yield bucket[start : start + 2 * step]


def _divided(
    bands: NDArray[np.uint8], members: NDArray[np.intp], first: int, depth: int
) -> Iterator[NDArray[np.intp]]:
    if depth == BANDS or (depth > 0 and len(members) <= BUCKET):
        if len(members) > 1:
            yield members
        return
    keys = bands[members, (first + depth) % BANDS]
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    for part in np.split(members[order], cuts):
        yield from _divided(bands, part, first, depth + 1)
