"""Folds that depend on the records' keys (by hash), not on the order in which records are read."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefect_augment.array_types import Array, Int, String
from prefect_augment.errors import ParameterError


def stratified_folds(
    y: Int,  # (n_records,) class or stratum codes
    groups: Sequence[Any] | Array | None,
    n_folds: int,
    seed: int,
    keys: Sequence[str] | String,
) -> Int:
    """Fold of each record in ``0 .. n_folds - 1``, classes spread evenly and groups kept whole.

    Without groups, fold sizes and each class's counts per fold differ by at most one. With groups, counts are as even
    as a greedy assignment of the largest groups first makes them. ``keys`` name records (such as ``aug_id``); records
    with equal keys are interchangeable. ParameterError if ``n_folds`` is below 2 or lengths differ.
    """
    if n_folds < 2:
        raise ParameterError(f"n_folds={n_folds} cannot split anything; choose at least 2.")
    if len(keys) != len(y) or (groups is not None and len(groups) != len(y)):
        raise ParameterError(
            f"expected one key and one group for each of the {len(y)} records; got {len(keys)} "
            f"keys and {'no' if groups is None else len(groups)} groups."
        )
    if groups is not None:
        return _spread_groups(y, groups, n_folds, seed, keys)
    # Every strategy's thresholds are tuned in the same folds: half of their time were hashes of keys.
    codes, names = np.asarray(y), np.asarray(keys)
    digest = hashlib.blake2b(repr((n_folds, seed, codes.dtype, names.dtype)).encode())
    digest.update(codes.tobytes())
    digest.update(names.tobytes())
    name = digest.digest()
    folds = _recent.get(name)
    if folds is None:
        folds = _spread_records(y, n_folds, seed, keys)
        if len(_recent) >= MAX_RECENT:
            _recent.clear()
        _recent[name] = folds
    return folds.copy()


MAX_RECENT = 32
_recent: dict[bytes, Int] = {}


def _spread_records(y: Int, n_folds: int, seed: int, keys: Sequence[str] | String) -> Int:
    """Deal each class's records in hash order; the next class goes on where the last stopped."""
    hashes = np.array([_hash(key, seed) for key in keys], dtype="S16")
    order = np.lexsort((hashes, y))
    folds = np.empty(len(y), dtype=np.int64)
    folds[order] = np.arange(len(y)) % n_folds
    return folds


def _spread_groups(
    y: Int, groups: Sequence[Any] | Array, n_folds: int, seed: int, keys: Sequence[str] | String
) -> Int:
    """Deal groups, those with most of a class first, to the fold with least of their classes."""
    # A group is named by its smallest key: codes given to groups may depend on the row order.
    members: dict[Any, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    rows = [np.array(m) for m in members.values()]
    names = [_hash(min(keys[i] for i in m), seed) for m in rows]

    codes, y_dense = np.unique(y, return_inverse=True)
    n_k = np.bincount(y_dense)
    # Shares of each class that a group holds: a class of 4 weighs as much as one of 4,000.
    class_counts = [np.unique(y_dense[m], return_counts=True) for m in rows]
    share = [(ks, counts / n_k[ks]) for ks, counts in class_counts]
    weight = [round(float(values.sum()), 12) for _, values in share]

    filled = np.zeros((n_folds, len(codes)))  # share of class k that fold f has
    size = np.zeros(n_folds)
    folds = np.empty(len(y), dtype=np.int64)
    for g in sorted(range(len(rows)), key=lambda g: (-weight[g], names[g])):
        ks, values = share[g]
        crowding = np.round(filled[:, ks] @ values, 12)
        fold = int(np.lexsort((size, crowding))[0])
        filled[fold, ks] += values
        size[fold] += len(rows[g])
        folds[rows[g]] = fold
    return folds


def _hash(key: str, seed: int) -> bytes:
    """16 hex bytes that order records by key and seed alone."""
    text = f"{seed}\x00{key}".encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()
