"""The split that keeps near-duplicate images on one side, in this version and all later ones.

New images form clusters; a cluster near images of an earlier version joins their part. One near both the
training part and the hold-out is a *bridge*: on either side it would leak, so it is left out. Ledger
entries never change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.split.assignment import assign
from prefect_augment.split.ledger import (
    HOLDOUT,
    TRAINING,
    VALIDATION,
    Assignment,
    ImageRows,
    Ledger,
)
from prefect_augment.split.near_duplicates import (
    SIDE,
    Likely,
    Neighbours,
    ThumbRows,
    Thumbs,
    cluster_images,
    cluster_limit,
    likeliest,
    nearest_by_group,
    strengths,
)
from prefect_augment.storage.keys import (
    Coded,
    as_keys,
    group_ids,
    joined,
    pairs_of_equals,
    sort_order,
)
from prefect_augment.storage.spill import ArraySpill

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class NearClusters:
    """The near-duplicate cluster of each record; arrays of shape (n_records,)."""

    names: NDArray[Any]  # an earlier version's where the record joins one
    levels: NDArray[np.int64]  # strictness of the comparison
    is_bridge: NDArray[np.bool_]  # near both sides of the split

    def take(self, rows: NDArray[np.intp]) -> "NearClusters":
        """Return the same of these records."""
        return NearClusters(self.names[rows], self.levels[rows], self.is_bridge[rows])


@dataclass(frozen=True)
class _Known:
    """The ledger's images."""

    thumbs: Thumbs
    parts: NDArray[np.int64]
    levels: NDArray[np.int64]
    clusters: NDArray[Any]

    def only(self, chosen: NDArray[np.bool_]) -> "_Known":
        return _Known(
            ThumbRows(self.thumbs, np.flatnonzero(chosen)),
            self.parts[chosen],
            self.levels[chosen],
            self.clusters[chosen],
        )


def find_clusters(
    keys: Sequence[str] | NDArray[Any],
    thumbs: Thumbs,
    *,
    ledger: Ledger,
    thumb_rows: NDArray[np.int64] | None = None,
    marked: NDArray[np.bool_] | None = None,
    likely: Likely = likeliest,
) -> NearClusters:
    """Return the near-duplicate cluster of each record.

    Records with one key are one image. ``thumbs`` (n_thumbs, 1024) are indexed by ``thumb_rows`` (default: row
    order), which only matter for the first record of an image not in the ledger. With ``marked``, the source's
    own hold-out, clusters end at its border and nothing is a bridge; no key is on both sides.
    """
    keys = as_keys(keys)
    # One row per image; known images keep their cluster.
    of_record = group_ids(keys)
    n = int(of_record.max(initial=-1)) + 1
    first = np.zeros(n, dtype=np.int64)
    first[of_record[::-1]] = np.arange(len(keys))[::-1]
    distinct = keys[first]
    rows = np.arange(len(keys)) if thumb_rows is None else thumb_rows
    in_ledger = _rows_of(distinct, ledger)
    old = _known(ledger)
    levels = np.zeros(n, dtype=np.int64)
    is_bridge = np.zeros(n, dtype=bool)
    seen = in_ledger >= 0
    names = distinct.astype(np.promote_types(distinct.dtype, old.clusters.dtype))
    names[seen], levels[seen] = old.clusters[in_ledger[seen]], old.levels[in_ledger[seen]]

    # New images, per side of the source's own border if there is one.
    for side in (None,) if marked is None else (False, True):
        there = ~seen if marked is None else ~seen & (marked[first] == side)
        others = old if marked is None else old.only((old.parts == HOLDOUT) == side)
        new = np.flatnonzero(there)
        names[new], levels[new], is_bridge[new] = _placed(
            distinct[new], ThumbRows(thumbs, rows[first[new]]), others, cluster_limit(n), likely
        )
    return NearClusters(names[of_record], levels[of_record], is_bridge[of_record])


def _rows_of(keys: NDArray[Any], ledger: Ledger) -> NDArray[np.int64]:
    """Return the ledger row of each key, -1 for none."""
    ids = group_ids(joined(ledger.keys, keys))
    return pairs_of_equals(ids[: len(ledger.keys)], ids[len(ledger.keys) :])


def _known(ledger: Ledger) -> _Known:
    images = ledger.images or ImageRows()
    parts = ledger.parts if ledger.images else np.zeros(0)
    return _Known(images.thumbs, parts.astype(np.int64), images.levels, images.clusters)


def _placed(
    keys: NDArray[Any], thumbs: Thumbs, old: _Known, limit: int, likely: Likely
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]:
    """Return cluster names, levels and bridges of new images, sorted by key."""
    near = nearest_by_group(thumbs, old.thumbs, groups=old.parts, levels=old.levels, n_groups=3)
    clusters, levels = cluster_images(thumbs, levels=near.level, limit=limit, likely=likely)
    touches = near.strength > levels[:, None]
    clusters, is_bridge = _without_bridges(thumbs, clusters, levels, touches)
    names = keys.astype(np.promote_types(keys.dtype, old.clusters.dtype))
    if len(keys):
        _, first, which = np.unique(clusters, return_index=True, return_inverse=True)
        names = keys[first][which]  # the smallest key of the cluster
    touching = np.flatnonzero(touches.any(axis=1) & ~is_bridge)
    for cluster in np.unique(clusters[touching]):
        members = np.flatnonzero((clusters == cluster) & ~is_bridge)
        names[members] = old.clusters[_joined(members, near, touches)]
    return names, levels, is_bridge


def _joined(members: NDArray[np.intp], near: Neighbours, touches: NDArray[np.bool_]) -> int:
    """Return the old image whose cluster new ones join: the nearest, training before validation."""
    part = next(p for p in (TRAINING, VALIDATION, HOLDOUT) if touches[members, p].any())
    strength = np.where(touches[members, part], near.strength[members, part], 0)
    nearest = near.index[members, part][strength == strength.max()]
    return int(nearest.min())


def _without_bridges(
    thumbs: Thumbs,
    clusters: NDArray[np.int64],
    levels: NDArray[np.int64],
    touches: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Split the clusters that touch both sides; what is near both is a bridge.

    Images near the hold-out join it, transitively, up to the first image near the training part: the bridge.
    What remains beyond it is no longer near the hold-out.
    """
    is_bridge = np.zeros(len(clusters), dtype=bool)
    clusters = clusters.copy()
    in_train, in_holdout = touches[:, TRAINING] | touches[:, VALIDATION], touches[:, HOLDOUT]
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
    """Return what is connected to the seeds by near images ``within``."""
    reached = seeds & within
    while True:
        grown = reached | (near[:, reached].any(axis=1) & within)
        if (grown == reached).all():
            return reached
        reached = grown


# --- the split --------------------------------------------------------------------------------


def assign_clusters(
    keys: NDArray[Any],
    labels: Coded,
    clusters: NearClusters,
    thumbs: Thumbs,
    *,
    ledger: Ledger,
    holdout_fraction: float,
    validation_fraction: float,
    thumb_rows: NDArray[np.int64] | None = None,
    marked: NDArray[np.bool_] | None = None,
) -> Assignment:
    """Return the part of every record (without bridges), and the ledger with a row for every new image.

    Parameters are those of :func:`find_clusters` and :func:`prefect_augment.split.assignment.assign`.
    """
    assignment = assign(
        keys,
        labels,
        ledger=_by_cluster(ledger),
        holdout_fraction=holdout_fraction,
        validation_fraction=validation_fraction,
        marked=marked,
        groups=clusters.names,
    )
    is_new = _rows_of(keys, ledger) < 0
    new = np.flatnonzero(is_new)
    order = sort_order(keys[new])  # of equal ones the first stands for all
    new = new[order]
    first = new[np.concatenate([[True], keys[new][1:] != keys[new][:-1]])] if len(new) else new
    rows = np.arange(len(keys)) if thumb_rows is None else thumb_rows
    grown = _grown(ledger, keys, first, assignment, clusters, thumbs, rows)
    return replace(assignment, ledger=grown, n_new=int(is_new.sum()))


def _by_cluster(ledger: Ledger) -> Ledger:
    """Return the ledger's clusters with their parts, as a ledger of groups."""
    if ledger.images is None:
        return ledger
    names = Coded.of(ledger.images.clusters)
    parts = np.zeros(len(names.names), dtype=np.int8)
    parts[names.codes] = ledger.parts
    n = len(names.names)
    none = Coded.of([""] * n)
    return Ledger(
        ledger.salt,
        ledger.unit,
        names.names,
        np.zeros(n, dtype=np.int32),
        none,
        parts,
        ledger.has_own_holdout,
    )


def _grown(
    ledger: Ledger,
    keys: NDArray[Any],
    added: NDArray[np.int64],
    assignment: Assignment,
    clusters: NearClusters,
    thumbs: Thumbs,
    thumb_rows: NDArray[np.int64],
) -> Ledger:
    """Return the ledger with a row per new key, sorted by key."""
    known = _known(ledger)
    every = joined(ledger.keys, keys[added])
    order = sort_order(every)
    n_old = len(ledger.keys)
    pixels = ArraySpill(SIDE * SIDE)
    for start in range(0, len(order), ROWS_AT_ONCE):
        some = order[start : start + ROWS_AT_ONCE]
        rows, is_old = np.empty((len(some), SIDE * SIDE), dtype=np.int8), some < n_old
        rows[is_old] = known.thumbs[some[is_old]]
        rows[~is_old] = thumbs[thumb_rows[added[some[~is_old] - n_old]]]
        pixels.append(rows)
    return Ledger(
        salt=ledger.salt,
        unit=ledger.unit,
        keys=every[order],
        occurrences=np.zeros(len(every), dtype=np.int32),
        labels=Coded.of([""] * len(every)),
        parts=np.concatenate([known.parts, assignment.parts[added]])[order].astype(np.int8),
        has_own_holdout=ledger.has_own_holdout,
        images=ImageRows(
            joined(known.clusters, clusters.names[added])[order],
            np.concatenate([known.levels, clusters.levels[added]])[order],
            pixels,
        ),
    )


def count_near(
    keys: NDArray[Any],
    thumbs: Thumbs,
    levels: NDArray[np.int64] | None,
    holdout_keys: NDArray[Any],
    holdout_thumbs: Thumbs,
) -> int:
    """Return how many records have a near-duplicate, but no equal image, in the hold-out.

    Without ``levels`` (the source's groups decided the split) the strictness is computed here: most small
    pictures of one kind would be near.
    """
    if levels is None:
        levels = _levels(keys, thumbs)
    n_holdout = len(holdout_keys)
    near = nearest_by_group(
        thumbs,
        holdout_thumbs,
        groups=np.zeros(n_holdout, dtype=np.int64),
        levels=np.zeros(n_holdout, dtype=np.int64),
        n_groups=1,
    )
    equal = np.isin(keys, holdout_keys)
    return int(((near.strength[:, 0] > levels) & ~equal).sum())


def _levels(keys: NDArray[Any], thumbs: Thumbs) -> NDArray[np.int64]:
    """Return the strictness of each image, from its distance to the source's others."""
    distinct, first, which = np.unique(keys, return_index=True, return_inverse=True)
    _, levels = cluster_images(ThumbRows(thumbs, first), limit=cluster_limit(len(distinct)))
    return levels[which.ravel()]
