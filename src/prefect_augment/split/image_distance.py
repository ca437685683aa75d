"""The distance of two images for near-duplicate detection, and which of many pairs are measured.

Three steps, each with fewer pairs: bands of a perceptual hash put images into buckets, a coarse similarity
finds the likeliest pairs of each by matrix products, and those are aligned and measured.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUCKET", "SIDE", "Best", "Shape", "buckets", "distances", "hash_bands"]

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

Thumbs = NDArray[np.int8]
Float = NDArray[np.float32]
Rows = NDArray[np.int64]


def distances(thumbs: Thumbs, i: Rows, others: Thumbs, j: Rows) -> NDArray[np.float64]:
    """Return the distance of each pair, rows ``i`` of ``thumbs`` and ``j`` of ``others`` (n, 1024).

    The share of contrast in which the two differ after alignment, in [0, 2].
    """
    parts = [np.zeros(0)]
    for start in range(0, len(i), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        parts.append(_aligned(_images(thumbs[i[some]]), _images(others[j[some]])))
    return np.concatenate(parts)


def _images(thumbs: Thumbs) -> Float:
    images = thumbs.reshape(len(thumbs), SIDE, SIDE).astype(np.float32)
    for _ in range(SMOOTHED):
        images = _smooth(images)
    return images


def _aligned(a: Float, b: Float) -> NDArray[np.float64]:
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


def _best_shift(a: Float, b: Float) -> tuple[Rows, Rows]:
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


def _tangents(images: Float) -> list[Float]:
    """Return derivatives of the images by shift and scale as unit vectors (n, cells), one border cell less."""
    n, inner = len(images), images.shape[1] - 2
    across = images[:, 1:-1, 2:] - images[:, 1:-1, :-2]
    down = images[:, 2:, 1:-1] - images[:, :-2, 1:-1]
    from_middle = ((np.arange(inner) - (inner - 1) / 2) / inner).astype(np.float32)
    changes = (across, down, across * from_middle, down * from_middle[:, None])
    return [_unit(change.reshape(n, -1)) for change in changes]


def _smooth(images: Float) -> Float:
    """Smooth with the binomial (1, 2, 1) in both directions; the border is repeated."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    both: Float = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return both / np.float32(16)


def _unit(rows: Float) -> Float:
    """Return each row centred and of length 1; zeros where it is constant."""
    centred = rows - rows.mean(axis=-1, keepdims=True)
    norm = np.sqrt((centred * centred).sum(axis=-1, keepdims=True))
    return np.where(norm > MIN_NORM, centred / np.maximum(norm, MIN_NORM), np.float32(0))


# --- candidates -------------------------------------------------------------------------------


class Shape:
    """Images at a quarter of the cells, to find the likeliest of many pairs by matrix products.

    Per image an orthogonal basis (1 kB) of itself and its tangents: an image in that span is the same one,
    slightly shifted or scaled.
    """

    def __init__(self, thumbs: Thumbs) -> None:
        n, half = len(thumbs), SIDE // 2
        self.informative: Rows = (
            np.flatnonzero(thumbs.any(axis=1)) if n else np.zeros(0, dtype=np.int64)
        )
        self._axes = np.zeros((n, N_AXES, (half - 2) ** 2), dtype=np.int8)
        self._scale = np.zeros((n, N_AXES, 1), dtype=np.float32)
        for start in range(0, n, BUCKET):  # bounds the memory
            some = slice(start, start + BUCKET)
            images = thumbs[some].reshape(-1, SIDE, SIDE).astype(np.float32)
            small = _smooth(images).reshape(-1, half, 2, half, 2).sum(axis=(2, 4))
            axes = np.stack(_axes(_smooth(_smooth(small))), axis=1)
            peak = np.maximum(np.abs(axes).max(axis=2, keepdims=True), np.float32(1e-9))
            self._axes[some] = np.rint(axes * (127 / peak))
            self._scale[some] = peak / 127

    def likeness(self, rows: Rows, others: Rows) -> Float:
        """Return the share of each image's contrast that each of the others explains, (n_rows, n_others)."""
        return self._explained(rows, self, others)

    def is_like(self, others: "Shape") -> NDArray[np.bool_]:
        """Tell for all pairs whether they are worth measuring."""
        every = (np.arange(len(x._axes)) for x in (self, others))
        return self._explained(next(every), others, next(every)) > 1 - COARSE_LIMIT

    def _explained(self, rows: Rows, others: "Shape", their_rows: Rows) -> Float:
        ours = self._axes[rows, 0] * self._scale[rows, 0]
        axes = others._axes[their_rows] * others._scale[their_rows]
        product = ours @ axes[:, 0].T
        share: Float = np.where(product > 0, product * product, np.float32(-1))
        for k in range(1, N_AXES):
            along = ours @ axes[:, k].T
            along *= along
            share += along
        return share


def _axes(images: Float) -> list[Float]:
    """Return each image and its tangents as orthogonal unit vectors (n, cells), one border cell less."""
    axes = [_unit(images[:, 1:-1, 1:-1].reshape(len(images), -1))]
    for tangent in _tangents(images):
        for axis in axes:
            tangent = tangent - (tangent * axis).sum(axis=1, keepdims=True) * axis
        axes.append(_unit(tangent))
    return axes


class Best:
    """The likeliest candidates of each image."""

    def __init__(self, n: int) -> None:
        self.likeness = np.full((n, N_MEASURED), -np.inf, dtype=np.float32)
        self.index = np.full((n, N_MEASURED), -1, dtype=np.int64)

    def keep(self, rows: Rows, others: Rows, likeness: Float) -> None:
        """Update with all pairs of two subsets; a pair may recur in another bucket."""
        k = min(N_MEASURED, len(others))
        top = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
        scores = np.concatenate(
            [self.likeness[rows], np.take_along_axis(likeness, top, axis=1)], axis=1
        )
        which = np.concatenate([self.index[rows], others[top]], axis=1)
        by_index = np.argsort(which, axis=1, kind="stable")
        scores, which = (np.take_along_axis(x, by_index, axis=1) for x in (scores, which))
        scores[:, 1:][which[:, 1:] == which[:, :-1]] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :N_MEASURED]
        self.likeness[rows] = np.take_along_axis(scores, best, axis=1)
        self.index[rows] = np.take_along_axis(which, best, axis=1)

    def pairs(self) -> tuple[Rows, Rows]:
        """Return the pairs of every image with its candidates."""
        rows, places = np.nonzero(self.likeness > 1 - COARSE_LIMIT)
        return rows, self.index[rows, places]


def hash_bands(thumbs: Thumbs) -> NDArray[np.uint8]:
    """Return two 64-bit difference hashes of each image as rows of bits, shape (n, 16).

    The first eight rows compare horizontal neighbours of a 9x8 grid, the others vertical ones (dHash: Krawetz
    2013, "Kind of Like That"). Copies shifted by a pixel of 16 share a row in 97 % of cases, others in more.
    """
    bands = [np.zeros((0, 2 * BANDS), dtype=np.uint8)]
    for start in range(0, len(thumbs), BUCKET):  # bounds the memory
        bands.append(_bands(thumbs[start : start + BUCKET]))
    return np.concatenate(bands)


def _bands(thumbs: Thumbs) -> NDArray[np.uint8]:
    images = thumbs.reshape(len(thumbs), SIDE, SIDE).astype(np.int64)
    # Cell k covers columns [k, k + 1) * side / 9: weights in ninths, so that they are whole numbers.
    edges = 9 * np.arange(SIDE)
    weights = np.stack(
        [
            np.clip(np.minimum(edges + 9, (k + 1) * SIDE) - np.maximum(edges, k * SIDE), 0, None)
            for k in range(9)
        ],
        axis=1,
    )
    bits = []
    for turned in (images, images.transpose(0, 2, 1)):
        cells = turned.reshape(len(thumbs), BANDS, SIDE // BANDS, SIDE).sum(axis=2) @ weights
        bits.append(np.packbits(cells[:, :, 1:] > cells[:, :, :-1], axis=2)[:, :, 0])
    return np.concatenate(bits, axis=1)


def buckets(bands: NDArray[np.uint8], rows: Rows, *, in_windows: bool = True) -> Iterator[Rows]:
    """Yield sets of the images ``usable`` that share a hash band, or several where one separates too few.

    ``in_windows`` cuts a set of images of one hash larger than ``BUCKET`` into parts.
    """
    for first in range(2 * BANDS):
        for bucket in _divided(bands, rows, first, 0):
            # More than that have one hash: windows that overlap by half keep chains together.
            step = BUCKET // 2 if in_windows and len(bucket) > BUCKET else len(bucket)
            for start in range(0, max(1, len(bucket) - step), step):
                yield bucket[start : start + 2 * step]


def _divided(bands: NDArray[np.uint8], members: Rows, first: int, depth: int) -> Iterator[Rows]:
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
