"""Folds that depend on the records, not on the order in which they came.

A record's place is decided by a hash of its key, so a source that is read in another order, or by
more workers, is folded alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.errors import ParameterError

__all__ = ["stratified_folds"]

Int = NDArray[np.int64]


def stratified_folds(
    y: Int,
    groups: Sequence[Any] | NDArray[Any] | None,
    n_folds: int,
    seed: int,
    keys: Sequence[str] | NDArray[np.str_],
) -> Int:
    """Fold of each record, with every class spread evenly and groups kept whole.

    Parameters
    ----------
    y : ndarray of int64, shape (n_records,)
        Class (or stratum) codes.
    groups : sequence, length n_records, optional
        Records with an equal value (a patient, a machine) stay in one fold.
    n_folds : int
        At least 2.
    seed : int
        Another seed gives other folds.
    keys : sequence of str, length n_records
        What names each record, such as ``aug_id``. Where keys repeat, their records are
        interchangeable.

    Returns
    -------
    ndarray of int64, shape (n_records,)
        Fold in ``0 .. n_folds - 1``. Without groups, the folds' sizes and each class's counts per
        fold differ by at most one; a class with fewer records than folds stands in some of them.
        With groups, counts are as even as a greedy assignment of the largest groups first makes
        them.

    Raises
    ------
    ParameterError
        If ``n_folds`` is below 2 or the lengths differ.
    """
    if n_folds < 2:
        raise ParameterError(f"n_folds={n_folds} cannot split anything; choose at least 2.")
    if len(keys) != len(y) or (groups is not None and len(groups) != len(y)):
        raise ParameterError(
            f"expected one key and one group for each of the {len(y)} records; found {len(keys)} "
            f"keys and {'no' if groups is None else len(groups)} groups."
        )
    if groups is None:
        return _spread_records(y, n_folds, seed, keys)
    return _spread_groups(y, groups, n_folds, seed, keys)


def _spread_records(y: Int, n_folds: int, seed: int, keys: Sequence[str] | NDArray[np.str_]) -> Int:
    """Deal each class's records in hash order; the next class goes on where the last stopped."""
    hashes = np.array([_hash(key, seed) for key in keys], dtype="S16")
    order = np.lexsort((hashes, y))
    folds = np.empty(len(y), dtype=np.int64)
    folds[order] = np.arange(len(y)) % n_folds
    return folds


def _spread_groups(
    y: Int,
    groups: Sequence[Any] | NDArray[Any],
    n_folds: int,
    seed: int,
    keys: Sequence[str] | NDArray[np.str_],
) -> Int:
    """Put each group, those that hold most of a class first, where its classes are thinnest."""
    # A group is named by its smallest key: codes given to groups may depend on the row order.
    members: dict[Any, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    rows = [np.array(m) for m in members.values()]
    names = [_hash(min(keys[i] for i in m), seed) for m in rows]

    codes, y_dense = np.unique(y, return_inverse=True)
    n_k = np.bincount(y_dense)
    # Shares of each class that a group holds: a class of 4 weighs as much as one of 4,000.
    held = [np.unique(y_dense[m], return_counts=True) for m in rows]
    share = [(ks, counts / n_k[ks]) for ks, counts in held]
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
