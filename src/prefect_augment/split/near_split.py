"""The split that keeps near-duplicate images on one side, in this version and all later ones.

New images form clusters; a cluster near images of an earlier version joins their part. One near both the training part
and the hold-out is a *bridge*: on either side it would leak, so it is left out. Ledger entries never change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefect_augment.array_types import Array, Bool, Int
from prefect_augment.split.assignment import Shares, assign
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
    components,
    likeliest,
    nearest_by_group,
    strengths,
)
from prefect_augment.storage.keys import Coded, as_keys, group_ids, joined, sort_order
from prefect_augment.storage.spill import ArraySpill

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class NearClusters:
    """The near-duplicate cluster of each record; arrays of shape (n_records,)."""

    names: Array  # an earlier version's where the record joins one
    levels: Int  # strictness of the comparison
    is_bridge: Bool  # near both sides of the split

    def take(self, rows: Int) -> "NearClusters":
        """Return the same of these records."""
        return NearClusters(self.names[rows], self.levels[rows], self.is_bridge[rows])


@dataclass(frozen=True)
class _Known:
    thumbs: Thumbs
    parts: Int
    levels: Int
    clusters: Array

    def only(self, chosen: Bool) -> "_Known":
        return _Known(
            ThumbRows(self.thumbs, np.flatnonzero(chosen)),
            self.parts[chosen],
            self.levels[chosen],
            self.clusters[chosen],
        )


def find_clusters(
    keys: Sequence[str] | Array,
    thumbs: Thumbs,
    *,
    ledger: Ledger,
    thumb_rows: Int | None = None,
    marked: Bool | None = None,
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
    in_ledger = ledger.rows_of(distinct)
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


def _known(ledger: Ledger) -> _Known:
    images = ledger.images or ImageRows()
    parts = ledger.parts if ledger.images else np.zeros(0)
    return _Known(images.thumbs, parts.astype(np.int64), images.levels, images.clusters)


def _placed(
    keys: Array, thumbs: Thumbs, old: _Known, limit: int, likely: Likely
) -> tuple[Array, Int, Bool]:
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


def _joined(members: Int, near: Neighbours, touches: Bool) -> int:
    """Return the old image whose cluster new ones join: the nearest, training before validation."""
    part = next(p for p in (TRAINING, VALIDATION, HOLDOUT) if touches[members, p].any())
    strength = np.where(touches[members, part], near.strength[members, part], 0)
    nearest = near.index[members, part][strength == strength.max()]
    return int(nearest.min())


def _without_bridges(thumbs: Thumbs, clusters: Int, levels: Int, touches: Bool) -> tuple[Int, Bool]:
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
        a, b, strength = strengths(thumbs[members])
        near = strength > np.maximum(levels[members][a], levels[members][b])
        a, b = a[near], b[near]
        train, held = in_train[members], in_holdout[members]
        parts = _connected(a, b, train)
        reached = ~train & np.isin(parts, parts[held & ~train])
        is_beside = np.zeros(len(members), dtype=bool)
        is_beside[a[reached[b]]] = is_beside[b[reached[a]]] = True
        bridge = train & (held | is_beside)
        is_bridge[members[bridge]] = True
        # The others are clusters of those that are connected on one side.
        parts = _connected(a, b, np.where(bridge, 2, reached))
        new = np.unique(parts[~bridge], return_inverse=True)[1]
        clusters[members[~bridge]] = following + new
        following += int(new.max(initial=-1)) + 1
    return clusters, is_bridge


def _connected(a: Int, b: Int, group: Array) -> Int:
    """Return the number of each image's connected part, by pairs within a group."""
    inside = group[a] == group[b]
    return components(len(group), a[inside], b[inside])


def assign_clusters(
    keys: Array,
    labels: Coded,
    clusters: NearClusters,
    thumbs: Thumbs,
    *,
    thumb_rows: Int,
    ledger: Ledger,
    shares: Shares,
    marked: Bool | None,
) -> Assignment:
    """Return the part of every record (without bridges) as :func:`assign` does; the ledger has a row per image."""
    by_cluster = _by_cluster(ledger)
    assignment = assign(
        keys, labels, ledger=by_cluster, shares=shares, marked=marked, groups=clusters.names
    )
    is_new = ledger.rows_of(keys) < 0
    new = np.flatnonzero(is_new)
    order = sort_order(keys[new])  # of equal ones the first stands for all
    new = new[order]
    first = new[np.concatenate([[True], keys[new][1:] != keys[new][:-1]])] if len(new) else new
    grown = _grown(ledger, keys, first, assignment, clusters, thumbs, thumb_rows)
    return replace(assignment, ledger=grown, n_new=int(is_new.sum()))


def _by_cluster(ledger: Ledger) -> Ledger:
    """Return the ledger's clusters with their parts, as a ledger of groups."""
    if ledger.images is None:
        return ledger
    clusters = Coded.of(ledger.images.clusters)
    n = len(clusters.names)
    parts = np.zeros(n, dtype=np.int8)
    parts[clusters.codes] = ledger.parts
    return replace(
        ledger,
        keys=clusters.names,
        occurrences=np.zeros(n, dtype=np.int32),
        labels=Coded.of([""] * n),
        parts=parts,
        images=None,
    )


def _grown(
    ledger: Ledger,
    keys: Array,
    added: Int,
    assignment: Assignment,
    clusters: NearClusters,
    thumbs: Thumbs,
    thumb_rows: Int,
) -> Ledger:
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
    return replace(
        ledger,
        keys=every[order],
        occurrences=np.zeros(len(every), dtype=np.int32),
        labels=Coded.of([""] * len(every)),
        parts=np.concatenate([known.parts, assignment.parts[added]])[order].astype(np.int8),
        images=ImageRows(
            joined(known.clusters, clusters.names[added])[order],
            np.concatenate([known.levels, clusters.levels[added]])[order],
            pixels,
        ),
    )


def count_near(
    keys: Array, thumbs: Thumbs, levels: Int | None, holdout_keys: Array, holdout_thumbs: Thumbs
) -> int:
    """Return how many records have a near-duplicate, but no equal image, in the hold-out.

    Without ``levels`` (groups decided the split) they are found here: most small pictures of one kind would be near.
    """
    if levels is None:
        distinct, first, which = np.unique(keys, return_index=True, return_inverse=True)
        limit = cluster_limit(len(distinct))
        levels = cluster_images(ThumbRows(thumbs, first), limit=limit)[1][which.ravel()]
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
