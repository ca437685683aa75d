"""The sticky split: which records train (fit), choose (val) and are kept for the last comparison.

A :class:`Ledger` says for every record, or every group, the part it once got; it is inherited from
version to version and nothing in it ever moves. :func:`assign` adds new records: each class's parts
are filled up to their shares in the order of a salted hash, so that neither the order of rows nor
the day they came on decides, and nobody can choose where a record lands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.compact import (
    KEY,
    Coded,
    as_keys,
    group_ids,
    joined,
    key_texts,
    pairs_of_equals,
    ranks_within,
    shared_names,
    sort_order,
)
from prefect_augment.errors import InputError
from prefect_augment.split_ledger import (
    FIT,
    HOLDOUT,
    PARTS,
    VAL,
    Assignment,
    ImageRows,
    Ledger,
)

__all__ = [
    "FIT",
    "HOLDOUT",
    "MIN_JUDGED",
    "PARTS",
    "VAL",
    "Assignment",
    "ImageRows",
    "Ledger",
    "assign",
    "make_salt",
]

#: Records that a class needs before any of them leaves fit. With the default shares ten give two in
#: the hold-out and two in val; of fewer, a part would hold a single record or none, whose recall is 0
#: or 1 and judges nothing, while training would miss it.
MIN_JUDGED = 10
#: Groups that a class needs: one for each part.
MIN_GROUPS = 3
HASHED_AT_ONCE = 65_536  # texts alive at a time

Int = NDArray[np.int64]
Marks = NDArray[np.bool_]


@dataclass(frozen=True)
class _Shares:
    """Shares wanted, and whether the hold-out is somebody else's matter."""

    holdout: float
    val: float
    holdout_is_given: bool = field(default=False)

    def wanted(self, n_records: int, n_marked: int) -> tuple[int, int]:
        """Records of a judged class wanted in hold-out and val."""
        if self.holdout_is_given:
            n_holdout = n_marked
        else:
            n_holdout = max(1, round(self.holdout * n_records))
        return n_holdout, max(1, round(self.val * (n_records - n_holdout)))


def make_salt(seed: int) -> str:
    """Return the salt of a first version, 32 hexadecimal digits derived from the seed."""
    return hashlib.blake2b(f"split {seed}".encode(), digest_size=16).hexdigest()


def assign(
    keys: Sequence[str] | NDArray[Any],
    labels: Sequence[str] | Coded,
    *,
    ledger: Ledger,
    holdout_fraction: float,
    val_fraction: float,
    marked: Marks | None = None,
    groups: Sequence[str] | NDArray[Any] | Coded | None = None,
) -> Assignment:
    """Return the part of every record and the ledger that remembers it.

    A record or group that the ledger knows keeps its part, also when its label was corrected. New
    ones fill the deficit of their class: first the hold-out's, then val's; the rest is fit. A class
    with fewer than ``MIN_JUDGED`` records (with groups: or in fewer than three groups) puts nothing
    new outside fit. The result depends on the records as a set, not on their order.

    Parameters
    ----------
    keys : ndarray of keys or sequence of str, length n_records
        Content keys.
    labels : Coded or sequence of str, length n_records
        Class names.
    ledger : Ledger
        The parent version's, or an empty one with a salt.
    holdout_fraction : float in [0, 1)
        Share of each class for the hold-out; 0 where the hold-out lies elsewhere.
    val_fraction : float in (0, 1)
        Share of the rest for val.
    marked : ndarray of bool, shape (n_records,), optional
        Hold-out records, where the source says it itself.
    groups : Coded, ndarray of keys or sequence of str, length n_records, optional
        Records of one group stay together. A group goes to the part whose shares it brings nearer to
        their aim, each class counting by the share of its records.

    Raises
    ------
    InputError
        If the hold-out marks cut through a group.
    """
    shares = _Shares(holdout_fraction, val_fraction, marked is not None or holdout_fraction == 0.0)
    if groups is None:
        return _assign_records(as_keys(keys), Coded.of(labels), ledger, shares, marked)
    return _assign_groups(Coded.of(labels), ledger, shares, marked, Coded.of(groups).only_used())


# --- records ----------------------------------------------------------------------------------


def _assign_records(
    keys: NDArray[Any], labels: Coded, ledger: Ledger, shares: _Shares, marked: Marks | None
) -> Assignment:
    labels, theirs = shared_names(labels, ledger.labels)
    ids = group_ids(joined(ledger.keys, keys))
    of_ledger, of_record = ids[: len(ledger.keys)], ids[len(ledger.keys) :]
    rows = _match(of_record, labels.codes, of_ledger, theirs.codes, ledger, marked)
    known = rows >= 0
    parts = np.full(len(keys), -1, dtype=np.int8)
    parts[known] = ledger.parts[rows[known]]
    occurrences = np.full(len(keys), -1, dtype=np.int64)
    occurrences[known] = ledger.occurrences[rows[known]]

    new = np.flatnonzero(~known)
    mark = None if marked is None else marked[new]
    occurrences[new] = _next_occurrences(
        of_record[new], labels.codes[new], of_ledger, ledger.occurrences, mark
    )
    order = _hash_order(ledger.salt, keys[new], occurrences[new])
    _fill(parts, new[order], labels, shares, marked)

    against = 0 if marked is None else int(np.count_nonzero((parts == HOLDOUT) != marked))
    corrected = theirs.codes.copy()
    corrected[rows[known]] = labels.codes[known]
    if len(new) == 0 and (corrected == theirs.codes).all():
        return Assignment(parts, occurrences, ledger, 0, against)
    grown = _grown(
        ledger,
        keys[new],
        occurrences[new],
        Coded(np.concatenate([corrected, labels.codes[new]]), labels.names),
        parts[new],
    )
    return Assignment(parts, occurrences, grown, len(new), against)


def _match(
    of_record: Int,
    labels: NDArray[np.int32],
    of_ledger: Int,
    their_labels: NDArray[np.int32],
    ledger: Ledger,
    marked: Marks | None,
) -> Int:
    """Row of the ledger that each record is, -1 for new ones.

    Equal records are interchangeable, so they take the rows of their key, label and side first; what
    is left over (a corrected label, a moved mark) takes any row of its key.
    """
    if len(of_ledger) == 0:
        return np.full(len(of_record), -1, dtype=np.int64)
    side = np.zeros(len(of_record), dtype=np.int64) if marked is None else marked.astype(np.int64)
    their_side = (
        np.zeros(len(of_ledger), dtype=np.int64)
        if marked is None
        else (ledger.parts == HOLDOUT).astype(np.int64)
    )
    n_labels = int(max(labels.max(initial=0), their_labels.max(initial=0))) + 1
    matched = pairs_of_equals(
        (of_ledger * n_labels + their_labels) * 2 + their_side,
        (of_record * n_labels + labels) * 2 + side,
    )
    left = np.flatnonzero(matched < 0)
    is_free = np.ones(len(of_ledger), dtype=bool)
    is_free[matched[matched >= 0]] = False
    free = np.flatnonzero(is_free)
    left = left[np.lexsort((side[left], labels[left]))]
    rows = pairs_of_equals(of_ledger[free], of_record[left])
    matched[left[rows >= 0]] = free[rows[rows >= 0]]
    return matched


def _next_occurrences(
    new: Int,
    labels: NDArray[np.int32],
    of_ledger: Int,
    occurrences: NDArray[np.int32],
    marked: Marks | None,
) -> Int:
    """Numbers of new records, counting on from the ledger's; equal keys by label, then mark."""
    following = np.zeros(int(max(new.max(initial=0), of_ledger.max(initial=0))) + 1, dtype=np.int64)
    np.maximum.at(following, of_ledger, occurrences.astype(np.int64) + 1)
    mark = np.zeros(len(new), dtype=bool) if marked is None else marked
    order = np.lexsort((mark, labels, new))
    numbers = np.zeros(len(new), dtype=np.int64)
    numbers[order] = following[new[order]] + ranks_within(new[order])
    return numbers


def _fill(
    parts: NDArray[np.int8], new: Int, labels: Coded, shares: _Shares, marked: Marks | None
) -> None:
    """Give each new record, in the order given, the part that its class lacks most urgently."""
    known = parts >= 0
    n_classes = len(labels.names)
    n_known = np.bincount(labels.codes[known], minlength=n_classes)
    n_holdout = np.bincount(labels.codes[known & (parts == HOLDOUT)], minlength=n_classes)
    n_val = np.bincount(labels.codes[known & (parts == VAL)], minlength=n_classes)
    of_new = labels.codes[new]
    new = new[np.argsort(of_new, kind="stable")]
    n_new = np.bincount(of_new, minlength=n_classes)
    for k, members in enumerate(np.split(new, np.cumsum(n_new)[:-1])):
        waiting = members
        if marked is not None:  # the user's split is respected whatever the class's size
            parts[waiting[marked[waiting]]] = HOLDOUT
            waiting = waiting[~marked[waiting]]
        in_holdout = int(n_holdout[k]) + len(members) - len(waiting)
        n_records = int(n_known[k]) + len(members)
        n_to_holdout = n_to_val = 0
        if n_records >= MIN_JUDGED:
            wanted_holdout, wanted_val = shares.wanted(n_records, in_holdout)
            n_to_holdout = max(0, wanted_holdout - in_holdout)
            n_to_val = max(0, wanted_val - int(n_val[k]))
        parts[waiting[:n_to_holdout]] = HOLDOUT
        parts[waiting[n_to_holdout : n_to_holdout + n_to_val]] = VAL
        parts[waiting[n_to_holdout + n_to_val :]] = FIT


# --- groups -----------------------------------------------------------------------------------


def _assign_groups(
    labels: Coded, ledger: Ledger, shares: _Shares, marked: Marks | None, groups: Coded
) -> Assignment:
    n_groups = len(groups.names)
    sizes = np.bincount(groups.codes, minlength=n_groups)
    marks = _group_marks(groups, sizes, marked)
    part_of = np.full(n_groups, -1, dtype=np.int8)
    rows = pairs_of_equals(*_ids_of_both(ledger.keys, groups.names))
    known = rows >= 0
    part_of[known] = ledger.parts[rows[known]]
    against = 0
    if marks is not None:
        against = int(sizes[known & ((part_of == HOLDOUT) != marks)].sum())
        part_of[~known & marks] = HOLDOUT
    _place_groups(part_of, groups, labels, ledger.salt, shares)

    added = np.flatnonzero(~known)
    grown = ledger
    if len(added):
        none = Coded.of([""] * (len(ledger.keys) + len(added)))
        zeros = np.zeros(len(added), dtype=np.int64)
        grown = _grown(ledger, groups.names[added], zeros, none, part_of[added])
    return Assignment(
        part_of[groups.codes],
        np.zeros(len(groups), dtype=np.int64),
        grown,
        int(sizes[added].sum()),
        against,
    )


def _ids_of_both(theirs: NDArray[Any], ours: NDArray[Any]) -> tuple[Int, Int]:
    ids = group_ids(joined(theirs, ours))
    return ids[: len(theirs)], ids[len(theirs) :]


def _group_marks(groups: Coded, sizes: NDArray[Any], marked: Marks | None) -> Marks | None:
    """Which groups are marked as hold-out; a group on both sides is refused."""
    if marked is None:
        return None
    n_marked = np.bincount(groups.codes[marked], minlength=len(sizes))
    cut = key_texts(groups.names[(n_marked > 0) & (n_marked < sizes)])
    if cut:
        raise InputError(
            f"{len(cut)} groups have records both inside and outside the hold-out, e.g. {cut[0]!r}; "
            "a group must be on one side. Mark its records alike, or leave group_column out.",
            groups=cut,
        )
    return np.asarray(n_marked > 0)


def _place_groups(
    part_of: NDArray[np.int8], groups: Coded, labels: Coded, salt: str, shares: _Shares
) -> None:
    """Place the waiting groups in hash order, each where it brings the shares nearer to their aim."""
    n_classes = len(labels.names)
    pairs, n = np.unique(
        groups.codes.astype(np.int64) * n_classes + labels.codes, return_counts=True
    )
    group, label = pairs // n_classes, pairs % n_classes
    n_records = np.bincount(labels.codes, minlength=n_classes)
    n_groups = np.bincount(label, minlength=n_classes)
    have = np.zeros((len(PARTS), n_classes), dtype=np.int64)
    placed = part_of[group] >= 0
    np.add.at(have, (part_of[group[placed]], label[placed]), n[placed])
    judged = (n_records >= MIN_JUDGED) & (n_groups >= MIN_GROUPS)
    aims = np.array(
        [shares.wanted(int(n_records[k]), int(have[HOLDOUT, k])) for k in range(n_classes)]
    ).reshape(n_classes, 2)

    def gain(classes: NDArray[Any], counts: NDArray[Any], part: int) -> float:
        """By how much the group brings its classes nearer to their aim in a part, in shares."""
        total = 0.0
        for k, n_of in zip(classes.tolist(), counts.tolist(), strict=True):
            missing = int(aims[k, 0 if part == HOLDOUT else 1] - have[part, k])
            total += (abs(missing) - abs(missing - n_of)) / int(n_records[k])
        return total

    starts = np.searchsorted(group, np.arange(len(part_of) + 1))
    waiting = np.flatnonzero(part_of < 0)
    order = _hash_order(salt, groups.names[waiting], np.zeros(len(waiting), dtype=np.int64))
    for g in waiting[order].tolist():
        inside = slice(starts[g], starts[g + 1])
        classes, counts = label[inside], n[inside]
        part = FIT
        if judged[classes].all():  # a class that is not judged needs all its records in fit
            if not shares.holdout_is_given and gain(classes, counts, HOLDOUT) > 0:
                part = HOLDOUT
            elif gain(classes, counts, VAL) > 0:
                part = VAL
        part_of[g] = part
        have[part, classes] += counts


# --- both -------------------------------------------------------------------------------------


def _hash_order(salt: str, keys: NDArray[Any], occurrences: Int) -> Int:
    """Order of (key, occurrence) pairs by their salted hash."""
    prefix = hashlib.blake2b(salt.encode(), digest_size=16)
    digests = np.zeros(len(keys), dtype=KEY)
    for start in range(0, len(keys), HASHED_AT_ONCE):
        some = slice(start, start + HASHED_AT_ONCE)
        found = []
        for key, occurrence in zip(key_texts(keys[some]), occurrences[some].tolist(), strict=True):
            hasher = prefix.copy()
            hasher.update(f"{occurrence} {key}".encode())
            found.append(hasher.digest())
        digests[some] = found
    return sort_order(digests)


def _grown(
    ledger: Ledger,
    keys: NDArray[Any],
    occurrences: Int,
    labels: Coded,
    parts: NDArray[np.int8],
) -> Ledger:
    """Return the ledger with new rows in their place; ``labels`` are those of old and new rows."""
    every = joined(ledger.keys, keys)
    numbers = np.concatenate([ledger.occurrences, occurrences]).astype(np.int32)
    order = sort_order(every, numbers)
    return Ledger(
        ledger.salt,
        ledger.unit,
        every[order],
        numbers[order],
        labels.take(order).only_used(),
        np.concatenate([ledger.parts, parts])[order],
        ledger.has_own_holdout,
    )
