"""Near-duplicate images stay on one side of the split, in this version and in all that follow.

New images form clusters among themselves; a cluster near images of an earlier version joins their part.
One that is near both the training part and the hold-out is a *bridge*: on either side it would leak, so
it is left out. What the ledger has of an image never changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.near_duplicates import (
    Neighbours,
    cluster_images,
    cluster_limit,
    nearest_by_group,
    strengths,
)
from prefect_augment.shards.image_check import THUMB_SIDE
from prefect_augment.splitting import FIT, HOLDOUT, VAL, Assignment, ImageRows, Ledger, assign

__all__ = ["NearClusters", "assign_clusters", "count_near", "find_clusters"]

Thumbs = NDArray[np.int8]


@dataclass(frozen=True)
class NearClusters:
    """The near-duplicate cluster of each record.

    Parameters
    ----------
    names : ndarray of str, shape (n_records,)
        The cluster: an earlier version's where the record joins one.
    levels : ndarray of int64, shape (n_records,)
        How strictly it was compared.
    is_bridge : ndarray of bool, shape (n_records,)
        Near both sides of the split.
    """

    names: NDArray[np.str_]
    levels: NDArray[np.int64]
    is_bridge: NDArray[np.bool_]

    def take(self, rows: NDArray[np.intp]) -> NearClusters:
        """Return the same of these records."""
        return NearClusters(self.names[rows], self.levels[rows], self.is_bridge[rows])


@dataclass(frozen=True)
class _Known:
    """Images of the ledger."""

    thumbs: Thumbs
    parts: NDArray[np.int64]
    levels: NDArray[np.int64]
    clusters: NDArray[np.str_]

    def only(self, chosen: NDArray[np.bool_]) -> _Known:
        return _Known(
            self.thumbs[chosen], self.parts[chosen], self.levels[chosen], self.clusters[chosen]
        )


def find_clusters(
    keys: Sequence[str],
    thumbs: Thumbs,
    *,
    ledger: Ledger,
    marked: NDArray[np.bool_] | None = None,
) -> NearClusters:
    """Return the near-duplicate cluster of each record.

    Parameters
    ----------
    keys : sequence of str, length n_records
        Content keys; records with one key are one image.
    thumbs : ndarray of int8, shape (n_records, 1024)
        Their thumbnails.
    ledger : Ledger
        The parent version's, or an empty one.
    marked : ndarray of bool, shape (n_records,), optional
        Hold-out records where the source says it itself: clusters then end at that border, which is the
        user's, and nothing is a bridge. No key is on both sides.
    """
    distinct, first, of_record = np.unique(
        np.asarray(keys, dtype=str), return_index=True, return_inverse=True
    )
    names = np.array(distinct)
    levels = np.zeros(len(distinct), dtype=np.int64)
    is_bridge = np.zeros(len(distinct), dtype=bool)
    rows = {key: row for row, key in enumerate(ledger.keys)}
    in_ledger = np.array([rows.get(key, -1) for key in distinct.tolist()], dtype=np.int64)
    old = _known(ledger)
    seen = in_ledger >= 0
    names[seen], levels[seen] = old.clusters[in_ledger[seen]], old.levels[in_ledger[seen]]

    for side in (None,) if marked is None else (False, True):
        there = ~seen if marked is None else ~seen & (marked[first] == side)
        others = old if marked is None else old.only((old.parts == HOLDOUT) == side)
        new = np.flatnonzero(there)
        names[new], levels[new], is_bridge[new] = _placed(
            distinct[new], thumbs[first[new]], others, cluster_limit(len(distinct))
        )
    return NearClusters(names[of_record], levels[of_record], is_bridge[of_record])


def _known(ledger: Ledger) -> _Known:
    images = ledger.images or ImageRows()
    return _Known(
        np.frombuffer(images.thumbs, dtype=np.int8).reshape(-1, THUMB_SIDE * THUMB_SIDE),
        np.asarray(ledger.parts if ledger.images else (), dtype=np.int64),
        np.asarray(images.levels, dtype=np.int64),
        np.asarray(images.clusters, dtype="U32"),
    )


def _placed(
    keys: NDArray[np.str_], thumbs: Thumbs, old: _Known, limit: int
) -> tuple[NDArray[np.str_], NDArray[np.int64], NDArray[np.bool_]]:
    """Names, levels and bridges of new images, sorted by key."""
    near = nearest_by_group(thumbs, old.thumbs, groups=old.parts, levels=old.levels, n_groups=3)
    clusters, levels = cluster_images(thumbs, levels=near.level, limit=limit)
    touches = near.strength > levels[:, None]
    clusters, is_bridge = _without_bridges(thumbs, clusters, levels, touches)
    names = np.array(keys)
    if len(keys):
        _, first, which = np.unique(clusters, return_index=True, return_inverse=True)
        names = keys[first][which]  # the smallest key of the cluster
    touching = np.flatnonzero(touches.any(axis=1) & ~is_bridge)
    for cluster in np.unique(clusters[touching]):
        members = np.flatnonzero((clusters == cluster) & ~is_bridge)
        names[members] = old.clusters[_joined(members, near, touches)]
    return names, levels, is_bridge


def _joined(members: NDArray[np.intp], near: Neighbours, touches: NDArray[np.bool_]) -> int:
    """The old image whose cluster the new ones join: the nearest; fit goes before val."""
    part = next(p for p in (FIT, VAL, HOLDOUT) if touches[members, p].any())
    strength = np.where(touches[members, part], near.strength[members, part], 0)
    nearest = near.index[members, part][strength == strength.max()]
    return int(nearest.min())


def _without_bridges(
    thumbs: Thumbs,
    clusters: NDArray[np.int64],
    levels: NDArray[np.int64],
    touches: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Take apart the clusters that touch both sides; what is near both is a bridge.

    An image near the hold-out joins it, and so does what is near that one, as far as the first image
    near the training part: the bridge. What is left beyond it is not near the hold-out any more.
    """
    is_bridge = np.zeros(len(clusters), dtype=bool)
    clusters = clusters.copy()
    in_train, in_holdout = touches[:, FIT] | touches[:, VAL], touches[:, HOLDOUT]
    both = np.intersect1d(clusters[in_train], clusters[in_holdout])
    following = int(clusters.max(initial=-1)) + 1
    for cluster in both:
        members = np.flatnonzero(clusters == cluster)
        near = _near_matrix(thumbs[members], levels[members])
        train, held = in_train[members], in_holdout[members]
        reached = _reach(near, held & ~train, within=~train)
        bridge = train & (held | near[:, reached].any(axis=1))
        is_bridge[members[bridge]] = True
        waiting = ~bridge
        while waiting.any():
            seed = np.zeros(len(members), dtype=bool)
            seed[np.flatnonzero(waiting)[0]] = True
            part = _reach(near, seed, within=waiting & (reached == reached[seed][0]))
            clusters[members[part]] = following
            following += 1
            waiting &= ~part
    return clusters, is_bridge


def _near_matrix(thumbs: Thumbs, levels: NDArray[np.int64]) -> NDArray[np.bool_]:
    a, b, strength = strengths(thumbs, thumbs, upper=True)
    keep = strength > np.maximum(levels[a], levels[b])
    near = np.zeros((len(thumbs), len(thumbs)), dtype=bool)
    near[a[keep], b[keep]] = True
    return near | near.T


def _reach(
    near: NDArray[np.bool_], seeds: NDArray[np.bool_], *, within: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """What can be reached from the seeds over near images, all of them ``within``."""
    reached = seeds & within
    while True:
        grown = reached | (near[:, reached].any(axis=1) & within)
        if (grown == reached).all():
            return reached
        reached = grown


# --- the split --------------------------------------------------------------------------------


def assign_clusters(
    keys: Sequence[str],
    labels: Sequence[str],
    clusters: NearClusters,
    thumbs: Thumbs,
    *,
    ledger: Ledger,
    holdout_fraction: float,
    val_fraction: float,
    marked: NDArray[np.bool_] | None = None,
) -> Assignment:
    """Return the part of every record, and the ledger with a row for every new image.

    Parameters
    ----------
    keys, labels, clusters, thumbs
        Of the records, bridges left out.
    ledger : Ledger
        The parent version's, or an empty one.
    holdout_fraction, val_fraction, marked
        As :func:`prefect_augment.splitting.assign` takes them.
    """
    known = ledger.images or ImageRows()
    part_of = dict(zip(known.clusters, ledger.parts, strict=True)) if ledger.images else {}
    old = sorted(part_of)
    by_cluster = Ledger(
        ledger.salt,
        ledger.unit,
        tuple(old),
        (0,) * len(old),
        ("",) * len(old),
        tuple(part_of[name] for name in old),
        ledger.has_own_holdout,
    )
    found = assign(
        keys,
        labels,
        ledger=by_cluster,
        holdout_fraction=holdout_fraction,
        val_fraction=val_fraction,
        marked=marked,
        groups=clusters.names.tolist(),
    )
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    added = sorted(set(first).difference(ledger.keys))
    grown = _grown(ledger, added, [first[key] for key in added], found, clusters, thumbs)
    n_new = int(np.isin(np.asarray(keys, dtype=str), np.asarray(added, dtype="U32")).sum())
    return replace(found, ledger=grown, n_new=n_new)


def _grown(
    ledger: Ledger,
    added: list[str],
    rows: list[int],
    found: Assignment,
    clusters: NearClusters,
    thumbs: Thumbs,
) -> Ledger:
    """Return the ledger with a row per new key, sorted by key."""
    known = _known(ledger)
    keys = [*ledger.keys, *added]
    order = np.argsort(np.asarray(keys, dtype="U32"), kind="stable")
    parts = np.concatenate([known.parts, found.parts[rows]])[order]
    names = np.concatenate([known.clusters, clusters.names[rows].astype("U32")])[order]
    levels = np.concatenate([known.levels, clusters.levels[rows]])[order]
    pixels = np.concatenate([known.thumbs, thumbs[rows]])[order]
    return Ledger(
        salt=ledger.salt,
        unit=ledger.unit,
        keys=tuple(keys[i] for i in order),
        occurrences=(0,) * len(keys),
        labels=("",) * len(keys),
        parts=tuple(int(part) for part in parts),
        has_own_holdout=ledger.has_own_holdout,
        images=ImageRows(tuple(names.tolist()), tuple(levels.tolist()), pixels.tobytes()),
    )


def count_near(
    keys: Sequence[str],
    thumbs: Thumbs,
    levels: NDArray[np.int64],
    holdout_keys: Sequence[str],
    holdout_thumbs: Thumbs,
) -> int:
    """Return how many records have a near-duplicate, not an equal image, among hold-out records.

    Each is compared as strictly as within the source.
    """
    n_holdout = len(holdout_keys)
    near = nearest_by_group(
        thumbs,
        holdout_thumbs,
        groups=np.zeros(n_holdout, dtype=np.int64),
        levels=np.zeros(n_holdout, dtype=np.int64),
        n_groups=1,
    )
    equal = np.isin(np.asarray(keys, dtype=str), np.asarray(holdout_keys, dtype=str))
    return int(((near.strength[:, 0] > levels) & ~equal).sum())
