"""A perceptual hash of small pictures: the signs of their lowest frequencies.

Equal hashes mean that two pictures look alike from afar, whatever their brightness, contrast or
compression. Among small pictures of one kind different ones may be equal too, so what it says of
candidates is held against what it says of val's records.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

__all__ = ["N_FREQUENCIES", "perceptual_hashes"]

N_FREQUENCIES = 8  # in each direction: 64 bits


def perceptual_hashes(gray: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Hashes of gray pictures.

    Parameters
    ----------
    gray : ndarray of float32, shape (n, height, width)

    Returns
    -------
    ndarray of uint64, shape (n,)
        One bit for each of the 8x8 lowest frequencies of the discrete cosine transform (fewer for
        smaller pictures): whether it is above their median, the mean brightness left out.

    References
    ----------
    Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2
    (pHash).
    """
    if not len(gray):
        return np.empty(0, dtype=np.uint64)
    low = dctn(gray, axes=(1, 2), norm="ortho")[:, :N_FREQUENCIES, :N_FREQUENCIES]
    rows = low.reshape(len(gray), -1)
    bits = rows > np.median(rows[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False
    padded = np.zeros((len(gray), N_FREQUENCIES**2), dtype=bool)
    padded[:, : bits.shape[1]] = bits
    return np.packbits(padded, axis=1).view(np.uint64)[:, 0]
