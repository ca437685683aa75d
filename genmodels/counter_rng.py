"""Random numbers by counter: the k-th number of a record depends on the record's seed and k alone.

A stream that is drawn one number after the other would tie a record to those drawn before it; here
any record can be made again by itself, in a batch of any size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["normal", "record_keys", "seeds_from", "uniform"]

BLOCK = 1 << 20  # numbers that are computed at once, in about 40 MiB
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64's output function of each number (Steele, Lea & Flood 2014, OOPSLA)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def record_keys(seeds: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return each record's key: its seed mixed, so that neighbouring seeds have unrelated numbers.

    Parameters
    ----------
    seeds : ndarray of int64, shape (n,)
        Any numbers, negative ones included.
    """
    return _mix(np.asarray(seeds, np.int64).view(np.uint64) + np.uint64(_GOLDEN))


def uniform(keys: NDArray[np.uint64], counter: int) -> NDArray[np.float64]:
    """Return number ``counter`` of each record, uniform in [0, 1) with 53 bits.

    Parameters
    ----------
    keys : ndarray of uint64, shape (n,)
        From :func:`record_keys`.
    counter : int
        Which of a record's numbers, from 0.
    """
    step = np.uint64(_GOLDEN * (counter + 1) & _MASK)
    return (_mix(keys + step) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(keys: NDArray[np.uint64], n_values: int, start: int = 0) -> NDArray[np.float32]:
    """Return standard normal numbers of each record, by Box and Muller's transform.

    Parameters
    ----------
    keys : ndarray of uint64, shape (n,)
        From :func:`record_keys`.
    n_values : int
        Numbers per record.
    start : int
        First of a record's uniform numbers that may be used; ``n_values`` of them are, one more
        where that is odd.

    Returns
    -------
    ndarray of float32, shape (n, n_values)
        Number ``j`` of a record is the same whatever ``n_values`` and the other records are.
    """
    made = np.empty((len(keys), n_values), dtype=np.float32)
    # What is computed on the way takes ten times the space of what is returned, and all at once it would be
    # gigabytes for a batch of large images.
    at_once = max(1, BLOCK // max(1, n_values))
    for first in range(0, len(keys), at_once):
        rows = slice(first, first + at_once)
        made[rows] = _normal(keys[rows], n_values, start)
    return made


def _normal(keys: NDArray[np.uint64], n_values: int, start: int) -> NDArray[np.float64]:
    n_pairs = (n_values + 1) // 2
    counters = np.arange(start + 1, start + 2 * n_pairs + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    bits = _mix(keys[:, None] + counters) >> np.uint64(11)
    # In (0, 1]: the logarithm of zero is no number.
    uniforms = ((bits + np.uint64(1)).astype(np.float64) * 2.0**-53).reshape(len(keys), n_pairs, 2)
    radius = np.sqrt(-2.0 * np.log(uniforms[..., 0]))
    angle = 2.0 * np.pi * uniforms[..., 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    found: NDArray[np.float64] = pairs.reshape(len(keys), 2 * n_pairs)[:, :n_values]
    return found


def seeds_from(key: int, start: int, n: int) -> NDArray[np.int64]:
    """Return numbers ``start`` to ``start + n - 1`` of a sequence of seeds, all distinct.

    Parameters
    ----------
    key : int
        Which sequence, in [0, 2**64).
    start, n : int
        The part of it.
    """
    counters = np.arange(start + 1, start + n + 1, dtype=np.uint64)
    return _mix(np.uint64(key) + counters * np.uint64(_GOLDEN)).view(np.int64)
