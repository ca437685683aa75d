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

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from prefect_augment.array_types import Float, Float32, Int, Int8, Int32
from prefect_augment.nn.threads import single_threaded
from prefect_augment.storage.spill import ArraySpill

SIDE = 32  # of the thumbnails, as ingest makes them
# Images whose hashes share a band are compared, all with all; larger buckets are divided by the next
# band first, so that the work grows with the number of images and not with its square.
BUCKET = 1024
BANDS = 8  # in each direction
# Of an image's candidates so many are measured: the nearest by a coarse measure.
N_MEASURED = 8
COARSE_LIMIT = 0.3  # and none that the coarse measure has beyond this
PAIRS_AT_ONCE = 512  # their pixels stay in the cache
MARGIN, SHIFT = 3, 2  # of the comparison's window, and how far it is moved
SMOOTHED = 2  # times, with the binomial (1, 2, 1) in both directions
MIN_NORM = 1e-3
N_AXES = 5  # an image and its four tangents


class Thumbs(Protocol):
    """Thumbnails (n, 1024) int8: an array, or rows that are read when they are compared."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True)
class ThumbRows:
    """Some rows of thumbnails, in another order, without a copy of them."""

    thumbs: Thumbs
    rows: Int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any, /) -> Any:
        return self.thumbs[self.rows[rows]]


def distances(thumbs: Thumbs, i: Int, others: Thumbs, j: Int) -> Float:
    """Return the share of contrast, in [0, 2], in which rows ``i`` of ``thumbs`` and ``j`` of ``others`` differ."""
    parts = [np.zeros(0)]
    for start in range(0, len(i), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        parts.append(_aligned(_images(thumbs[i[some]]), _images(others[j[some]])))
    return np.concatenate(parts)


def _images(thumbs: Int8) -> Float32:
    images = thumbs.reshape(len(thumbs), SIDE, SIDE).astype(np.float32)
    for _ in range(SMOOTHED):
        images = _smooth(images)
    return images


def _aligned(a: Float32, b: Float32) -> Float:
    """Return the share of contrast in which images differ after the best shift and a sub-cell remainder.

    The remainder, and a change of scale, are projected out along the images' derivatives (tangent distance:
    Simard, LeCun, Denker 1993, "Efficient pattern recognition using a new transformation distance").
    """
    n, inner = len(a), SIDE - 2 * MARGIN
    dy, dx = _best_shift(a, b)
    # One cell more on each side, for the derivatives.
    window = np.arange(inner + 2) + MARGIN - 1
    rows, columns = (window + dy[:, None])[:, :, None], (window + dx[:, None])[:, None, :]
    a = a[np.arange(n)[:, None, None], rows, columns]
    b = b[:, MARGIN - 1 : SIDE - MARGIN + 1, MARGIN - 1 : SIDE - MARGIN + 1]
    tangents = np.stack(_tangents(a + b), axis=1)  # (n, 4, inner**2)
    one, other = (_unit(x[:, 1:-1, 1:-1].reshape(n, -1)) for x in (a, b))
    difference = one - other
    gram = tangents @ tangents.transpose(0, 2, 1) + 1e-3 * np.eye(4, dtype=np.float32)
    along = tangents @ difference[:, :, None]
    explained = (along * np.linalg.solve(gram, along)).sum(axis=(1, 2))
    distance = ((difference**2).sum(axis=1) - explained) / 2
    # A window without contrast says nothing: only the border differs from plain.
    plain = (np.abs(one).max(axis=1) == 0) | (np.abs(other).max(axis=1) == 0)
    return np.where(plain, 1.0, distance.astype(np.float64))


def _best_shift(a: Float32, b: Float32) -> tuple[Int, Int]:
    """Return the integer shift of ``a`` at which every second cell of the window correlates best."""
    n, low, high = len(a), MARGIN, SIDE - MARGIN
    fixed = _unit(b[:, low:high:2, low:high:2].reshape(n, -1))
    best = np.full(n, -np.inf, dtype=np.float32)
    shift = np.zeros((2, n), dtype=np.int64)
    steps = range(-SHIFT, SHIFT + 1)
    for dy in steps:
        for dx in steps:
            moved = a[:, low + dy : high + dy : 2, low + dx : high + dx : 2].reshape(n, -1)
            moved = moved - moved.mean(axis=1, keepdims=True)
            norm = np.sqrt(np.einsum("ij,ij->i", moved, moved))
            correlation = np.einsum("ij,ij->i", moved, fixed) / np.maximum(norm, MIN_NORM)
            better = correlation > best
            best[better] = correlation[better]
            shift[:, better] = [[dy], [dx]]
    return shift[0], shift[1]


def _tangents(images: Float32) -> list[Float32]:
    """Return derivatives of the images by shift and scale as unit vectors (n, cells), one border cell less."""
    n, inner = len(images), images.shape[1] - 2
    across = images[:, 1:-1, 2:] - images[:, 1:-1, :-2]
    down = images[:, 2:, 1:-1] - images[:, :-2, 1:-1]
    from_middle = ((np.arange(inner) - (inner - 1) / 2) / inner).astype(np.float32)
    changes = (across, down, across * from_middle, down * from_middle[:, None])
    return [_unit(change.reshape(n, -1)) for change in changes]


def _smooth(images: Float32) -> Float32:
    """Smooth with the binomial (1, 2, 1) in both directions; the border is repeated."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    both: Float32 = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return both / np.float32(16)


def _unit(rows: Float32) -> Float32:
    """Return each row centred and of length 1; zeros where it is constant."""
    centred = rows - rows.mean(axis=-1, keepdims=True)
    norm = np.sqrt((centred * centred).sum(axis=-1, keepdims=True))
    return np.where(norm > MIN_NORM, centred / np.maximum(norm, MIN_NORM), np.float32(0))


class Shape:
    """Images at a quarter of the cells, to find the likeliest of many pairs by matrix products.

    Per image an orthogonal basis (1 kB, on local disk) of itself and its tangents: an image in that span is
    the same one, slightly shifted or scaled.
    """

    def __init__(self, thumbs: Thumbs) -> None:
        n, half = len(thumbs), SIDE // 2
        is_informative = np.zeros(n, dtype=bool)
        self._axes = ArraySpill(N_AXES * (half - 2) ** 2)
        self._scale = np.zeros((n, N_AXES, 1), dtype=np.float32)
        for start in range(0, n, BUCKET):  # bounds the memory
            some = slice(start, start + BUCKET)
            images = thumbs[some].reshape(-1, SIDE, SIDE).astype(np.float32)
            is_informative[some] = images.any(axis=(1, 2))
            small = _smooth(images).reshape(-1, half, 2, half, 2).sum(axis=(2, 4))
            axes = np.stack(_axes(_smooth(_smooth(small))), axis=1)
            peak = np.maximum(np.abs(axes).max(axis=2, keepdims=True), np.float32(1e-9))
            self._axes.append(np.rint(axes * (127 / peak)).astype(np.int8))
            self._scale[some] = peak / 127
        self.informative: Int = np.flatnonzero(is_informative)

    def likeness(self, rows: Int, others: Int) -> Float32:
        """Return the share of each image's contrast that each of the others explains, (n_rows, n_others)."""
        axes = self._axes_of(others) * self._scale[others]
        if others is rows:
            ours = axes[:, 0].copy()
        else:
            ours = self._axes_of(rows)[:, 0] * self._scale[rows, 0]
        product = ours @ axes[:, 0].T
        share: Float32 = np.where(product > 0, product * product, np.float32(-1))
        for k in range(1, N_AXES):
            along = ours @ axes[:, k].T
            along *= along
            share += along
        return share

    def _axes_of(self, rows: Int) -> Int8:
        return self._axes[rows].reshape(len(rows), N_AXES, -1)


def _axes(images: Float32) -> list[Float32]:
    """Return each image and its tangents as orthogonal unit vectors (n, cells), one border cell less."""
    axes = [_unit(images[:, 1:-1, 1:-1].reshape(len(images), -1))]
    for tangent in _tangents(images):
        for axis in axes:
            tangent = tangent - (tangent * axis).sum(axis=1, keepdims=True) * axis
        axes.append(_unit(tangent))
    return axes


class Top(NamedTuple):
    """The likeliest others of some images of a bucket."""

    bucket: int  # its number
    rows: Int  # (n,)
    others: Int  # (n, k)
    likeness: Float32  # (n, k)


def _top(bucket: int, rows: Int, others: Int, likeness: Float32) -> Top | None:
    """Return what is worth measuring of all pairs of two subsets."""
    # Most images are like no other: only pairs beyond the limit are ever measured.
    some = (likeness > 1 - COARSE_LIMIT).any(axis=1)
    if not some.any():
        return None
    rows, likeness = rows[some], likeness[some]
    k = min(N_MEASURED, len(others))
    top = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
    return Top(bucket, rows, others[top], np.take_along_axis(likeness, top, axis=1))


def likeliest(thumbs: Thumbs, *, part: int = 0, n_parts: int = 1) -> Iterator[Top]:
    """Yield the likeliest pairs of every ``n_parts``-th bucket of images, sorted by content key."""
    shape = Shape(thumbs)
    with single_threaded():  # more threads than these matrices are worth
        for number, bucket in enumerate(buckets(hash_bands(thumbs), shape.informative)):
            if number % n_parts == part:
                likeness = shape.likeness(bucket, bucket)
                likeness = np.maximum(likeness, likeness.T)
                np.fill_diagonal(likeness, -np.inf)
                if (top := _top(number, bucket, bucket, likeness)) is not None:
                    yield top


class Best:
    """The likeliest candidates of each image."""

    def __init__(self, n: int) -> None:
        self.likeness = np.full((n, N_MEASURED), -np.inf, dtype=np.float32)
        self.index: Int32 = np.full((n, N_MEASURED), -1, dtype=np.int32)

    def add(self, top: Top) -> None:
        """Update with the likeliest pairs of a bucket; a pair may recur in another."""
        rows = top.rows
        scores = np.concatenate([self.likeness[rows], top.likeness], axis=1)
        which = np.concatenate([self.index[rows], top.others], axis=1)
        by_index = np.argsort(which, axis=1, kind="stable")
        scores, which = (np.take_along_axis(x, by_index, axis=1) for x in (scores, which))
        scores[:, 1:][which[:, 1:] == which[:, :-1]] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :N_MEASURED]
        self.likeness[rows] = np.take_along_axis(scores, best, axis=1)
        self.index[rows] = np.take_along_axis(which, best, axis=1)

    def pairs(self) -> tuple[Int, Int]:
        """Return the pairs of every image with its candidates."""
        rows, places = np.nonzero(self.likeness > 1 - COARSE_LIMIT)
        return rows, self.index[rows, places].astype(np.int64)


def hash_bands(thumbs: Thumbs) -> NDArray[np.uint8]:
    """Return two 64-bit difference hashes of each image as rows of bits, shape (n, 16).

    The first eight rows compare horizontal neighbours of a 9x8 grid, the others vertical ones (dHash: Krawetz
    2013, "Kind of Like That"). Copies shifted by a pixel of 16 share a row in 97 % of cases, others in more.
    """
    bands = [np.zeros((0, 2 * BANDS), dtype=np.uint8)]
    for start in range(0, len(thumbs), BUCKET):  # bounds the memory
        bands.append(_bands(thumbs[start : start + BUCKET]))
    return np.concatenate(bands)


def _bands(thumbs: Int8) -> NDArray[np.uint8]:
    images = thumbs.reshape(len(thumbs), SIDE, SIDE).astype(np.int64)
    # Cell k covers columns [k, k + 1) * side / 9: weights in ninths, so that they are whole numbers.
    edges, k = 9 * np.arange(SIDE)[:, None], np.arange(9)
    weights = np.clip(np.minimum(edges + 9, (k + 1) * SIDE) - np.maximum(edges, k * SIDE), 0, None)
    bits = []
    for turned in (images, images.transpose(0, 2, 1)):
        cells = turned.reshape(len(thumbs), BANDS, SIDE // BANDS, SIDE).sum(axis=2) @ weights
        bits.append(np.packbits(cells[:, :, 1:] > cells[:, :, :-1], axis=2)[:, :, 0])
    return np.concatenate(bits, axis=1)


def buckets(bands: NDArray[np.uint8], rows: Int, *, in_windows: bool = True) -> Iterator[Int]:
    """Yield sets of the images ``rows`` that share a hash band, or several where one separates too few."""
    for first in range(2 * BANDS):
        for bucket in _divided(bands, rows, first, 0):
            # More than that have one hash: windows that overlap by half keep chains together.
            step = BUCKET // 2 if in_windows and len(bucket) > BUCKET else len(bucket)
            for start in range(0, max(1, len(bucket) - step), step):
                yield bucket[start : start + 2 * step]


def _divided(bands: NDArray[np.uint8], members: Int, first: int, depth: int) -> Iterator[Int]:
    if depth == BANDS or (depth > 0 and len(members) <= BUCKET):
        if len(members) > 1:
            yield members
        return
    hash_start = first - first % BANDS
    keys = bands[members, hash_start + (first + depth) % BANDS]
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    for part in np.split(members[order], cuts):
        yield from _divided(bands, part, first, depth + 1)


#: Distances from 0.2 down, each the one before over the root of two: the steps that are told apart.
DISTANCES = tuple(0.2 * 2.0 ** (-k / 2) for k in range(15))
#: A pair is near at level 0 where it is nearer than ``DISTANCES[GAP]``, a quarter of the first; at
#: level k than ``DISTANCES[GAP + k]``. At a cluster's level all else is beyond ``DISTANCES[level]``.
GAP = 4
MAX_LEVEL = len(DISTANCES) - 1 - GAP
#: A cluster may hold this share of all images, or ``MIN_LIMIT`` images where that is more.
MAX_SHARE = 0.05
MIN_LIMIT = 20


def cluster_limit(n_images: int) -> int:
    """Return how many images a cluster may have before its level is raised."""
    return max(MIN_LIMIT, int(MAX_SHARE * n_images))


Likely = Callable[[Thumbs], Iterable[Top]]  # pairs of all buckets, in the order of their numbers


def cluster_images(
    thumbs: Thumbs, *, levels: Int | None = None, limit: int, likely: Likely = likeliest
) -> tuple[Int, Int]:
    """Return the cluster (n,) of every image and its strictness level (n,), 0 to :data:`MAX_LEVEL`.

    ``thumbs`` (n, 1024) are of different images, sorted by content key. Clusters have at most ``limit`` images and
    start at ``levels`` (default 0). A pair is near when its strength exceeds the levels of both; a single image's level
    says how dense its neighbourhood is, and so what may join it later. ``likely`` finds the pairs that are measured.
    """
    n = len(thumbs)
    strict = np.zeros(n, dtype=np.int64) if levels is None else levels.copy()
    i, j, steps = _forest(thumbs, likely)
    while True:
        near = steps - GAP > np.maximum(strict[i], strict[j])
        clusters = components(n, i[near], j[near])
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


def components(n: int, i: Int, j: Int) -> Int:
    """Return the number of each image's connected part, (n,), by the pairs ``i`` and ``j``."""
    graph = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _forest(thumbs: Thumbs, likely: Likely) -> tuple[Int, Int, Int]:
    """Return the nearest pairs within the first distance as a spanning forest, with their steps."""
    n = len(thumbs)
    best = Best(n)
    for top in likely(thumbs):
        best.add(top)
    with single_threaded():
        a, b = best.pairs()
        codes = np.unique(np.minimum(a, b) * n + np.maximum(a, b))
        i, j = codes // max(n, 1), codes % max(n, 1)
        steps = _steps(distances(thumbs, i, thumbs, j))
    i, j, steps = i[steps > 0], j[steps > 0], steps[steps > 0]
    weight = (len(DISTANCES) + 1 - steps).astype(np.float64)  # at least 1: zero would mean no edge
    forest = minimum_spanning_tree(coo_array((weight, (i, j)), shape=(n, n)).tocsr()).tocoo()
    kept = len(DISTANCES) + 1 - forest.data.astype(np.int64)
    return forest.row.astype(np.int64), forest.col.astype(np.int64), kept


@dataclass(frozen=True)
class Neighbours:
    """Nearest near-duplicates of images in another set, by group of that set."""

    strength: Int  # (n, n_groups) of the nearest; 0 for none near
    index: Int  # (n, n_groups) the first of equally strong ones; -1 for none
    level: Int  # (n,) strictest level among the near others


def nearest_by_group(
    thumbs: Thumbs, others: Thumbs, *, groups: Int, levels: Int, n_groups: int
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
    every = ArraySpill(SIDE * SIDE)
    every.extend(thumbs)
    every.extend(others)
    shape, bands = Shape(every), hash_bands(every)
    del every
    with single_threaded():
        for group in range(n_groups):
            best = Best(n)
            members = n + np.flatnonzero(groups == group)
            candidates = np.concatenate([np.arange(n), members])
            candidates = candidates[np.isin(candidates, shape.informative)]
            for bucket in buckets(bands, candidates, in_windows=False):
                ours, theirs = bucket[bucket < n], bucket[bucket >= n]
                for i, j in product(range(0, len(ours), BUCKET), range(0, len(theirs), BUCKET)):
                    some, those = ours[i : i + BUCKET], theirs[j : j + BUCKET]
                    if (top := _top(0, some, those, shape.likeness(some, those))) is not None:
                        best.add(top)
            a, b = best.pairs()
            b = b - n
            strength = _strength(distances(thumbs, a, others, b))
            near = strength > 0
            a, b, strength = a[near], b[near], strength[near]
            np.maximum.at(nearest.level, a, levels[b])
            # The strongest pair of each image, of equals the first of the others: the last write wins.
            order = np.lexsort((-b, strength))
            nearest.strength[a[order], group] = strength[order]
            nearest.index[a[order], group] = b[order]
    return nearest


def strengths(thumbs: Thumbs) -> tuple[Int, Int, Int]:
    """Return the near pairs of a small set: rows, other rows above them, strength."""
    with single_threaded():
        shape, every = Shape(thumbs), np.arange(len(thumbs))
        like = shape.likeness(every, every) > 1 - COARSE_LIMIT
        a, b = np.nonzero(np.triu(like | like.T, 1))
        strength = _strength(distances(thumbs, a, thumbs, b))
    keep = strength > 0
    return a[keep], b[keep], strength[keep]


def _strength(distance: Float) -> Int:
    return np.maximum(_steps(distance) - GAP, 0)


def _steps(distance: Float) -> Int:
    """Return how many of ``DISTANCES`` each distance is below."""
    rising = np.asarray(DISTANCES[::-1])
    return len(DISTANCES) - np.searchsorted(rising, distance, side="right").astype(np.int64)
