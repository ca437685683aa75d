"""Counter-based random numbers: number k of a record depends on the record's seed and k alone.

A sequential stream would tie a record to those drawn before it. Here any record can be drawn again
by itself, in a batch of any size.
"""

import numpy as np

from prefect_augment.array_types import Float, Float32, Int, Uint64
from prefect_augment.storage.keys import GOLDEN, mixed

BLOCK = 1 << 20  # numbers computed at once, in about 40 MiB
_MASK = 2**64 - 1


def record_keys(seeds: Int) -> Uint64:
    """Key of each record: its seed mixed, so that neighbouring seeds have unrelated numbers."""
    return mixed(np.asarray(seeds, np.int64).view(np.uint64) + np.uint64(GOLDEN))


def uniform(keys: Uint64, counter: int) -> Float:
    """Number ``counter`` (from 0) of each record, uniform in [0, 1) with 53 bits."""
    step = np.uint64(GOLDEN * (counter + 1) & _MASK)
    return (mixed(keys + step) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(keys: Uint64, n_values: int, start: int = 0) -> Float32:
    """Standard normal numbers of each record by the Box-Muller transform, (n, n_values).

    Uses ``n_values`` uniform numbers from ``start`` on, rounded up to an even count. Number j of a
    record depends neither on ``n_values`` nor on the other records.
    """
    values = np.empty((len(keys), n_values), dtype=np.float32)
    # Intermediate results take ten times the memory of the values: gigabytes for large images.
    at_once = max(1, BLOCK // max(1, n_values))
    for first in range(0, len(keys), at_once):
        rows = slice(first, first + at_once)
        values[rows] = _normal(keys[rows], n_values, start)
    return values


def _normal(keys: Uint64, n_values: int, start: int) -> Float:
    n_pairs = (n_values + 1) // 2
    counters = np.arange(start + 1, start + 2 * n_pairs + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    bits = mixed(keys[:, None] + counters) >> np.uint64(11)
    # In (0, 1], because log(0) is infinite.
    uniforms = ((bits + np.uint64(1)).astype(np.float64) * 2.0**-53).reshape(len(keys), n_pairs, 2)
    radius = np.sqrt(-2.0 * np.log(uniforms[..., 0]))
    angle = 2.0 * np.pi * uniforms[..., 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(len(keys), 2 * n_pairs)[:, :n_values]


def seeds_from(key: int, start: int, n: int) -> Int:
    """Numbers ``start`` to ``start + n - 1`` of the seed sequence ``key`` (its low 64 bits), all distinct."""
    counters = np.arange(start + 1, start + n + 1, dtype=np.uint64)
    return mixed(np.uint64(int(key) & _MASK) + counters * np.uint64(GOLDEN)).view(np.int64)
