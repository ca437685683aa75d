"""The sticky split of records into training, validation and hold-out.

A :class:`Ledger` keeps the part of every record or group from version to version; entries never move.
:func:`assign` fills each class's parts up to their shares in the order of a salted hash, so neither row
order nor date decides, and nobody can choose where a record goes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prefect_augment.array_types import Array, Bool, Int, Int8
from prefect_augment.errors import InputError
from prefect_augment.split.ledger import HOLDOUT, PARTS, TRAINING, VALIDATION, Assignment, Ledger
from prefect_augment.split.record_split import (
    MIN_COMPARED,
    RecordSplit,
    Shares,
    grown_ledger,
    salted,
)
from prefect_augment.storage.keys import (
    Coded,
    as_keys,
    group_ids,
    joined,
    key_texts,
    pairs_of_equals,
    shared_names,
    sort_order,
)
from prefect_augment.storage.spill import Workspace

#: Groups that a class needs: one for each part.
MIN_GROUPS = 3


def make_salt(seed: int) -> str:
    """Return the salt of a first version, 32 hexadecimal digits derived from the seed."""
    return hashlib.blake2b(f"split {seed}".encode(), digest_size=16).hexdigest()


def assign(
    keys: Sequence[str] | Array,
    labels: Sequence[str] | Coded,
    *,
    ledger: Ledger,
    holdout_fraction: float,
    validation_fraction: float,
    marked: Bool | None = None,
    groups: Sequence[str] | Array | Coded | None = None,
) -> Assignment:
    """Return the part of every record and the extended ledger.

    Known records and groups keep their part, even with a corrected label. New ones fill their class's deficit:
    the hold-out's, then validation's; the rest is training. ``holdout_fraction`` is a share of each class, 0
    for a hold-out elsewhere; ``validation_fraction`` a share of the rest. A class with fewer than
    ``MIN_COMPARED`` records (with groups: in fewer than three groups) adds to training only. ``marked`` is the
    source's own hold-out. A group goes to the part whose shares it brings nearer to their target, each class
    weighted by the share of its records. The order of records does not matter. Raises InputError if
    ``marked`` splits a group.
    """
    shares = Shares(
        holdout_fraction, validation_fraction, marked is not None or holdout_fraction == 0.0
    )
    if groups is None:
        return _assign_records(as_keys(keys), Coded.of(labels), ledger, shares, marked)
    return _assign_groups(Coded.of(labels), ledger, shares, marked, Coded.of(groups).only_used())


# --- records ----------------------------------------------------------------------------------


def _assign_records(
    keys: Array, labels: Coded, ledger: Ledger, shares: Shares, marked: Bool | None
) -> Assignment:
    labels, theirs = shared_names(labels, ledger.labels)
    with Workspace() as workspace:
        split = RecordSplit(
            replace(ledger, labels=theirs),
            shares,
            workspace=workspace,
        )
        entries = split.look_up(keys, labels, marked)
        split.note(entries, labels, marked)
        parts, grown = split.assign(entries, keys, labels, marked)
    if split.is_unchanged:
        grown = ledger
    else:
        grown = replace(grown, labels=grown.labels.only_used())
    return Assignment(parts, entries.occurrences, grown, split.n_new, split.n_kept_against_mark)


# --- groups -----------------------------------------------------------------------------------


def _assign_groups(
    labels: Coded, ledger: Ledger, shares: Shares, marked: Bool | None, groups: Coded
) -> Assignment:
    n_groups = len(groups.names)
    sizes = np.bincount(groups.codes, minlength=n_groups)
    is_marked = _marked_groups(groups, sizes, marked)
    part_of = np.full(n_groups, -1, dtype=np.int8)
    rows = pairs_of_equals(*_ids_of_both(ledger.keys, groups.names))
    known = rows >= 0
    part_of[known] = ledger.parts[rows[known]]
    against = 0
    if is_marked is not None:
        against = int(sizes[known & ((part_of == HOLDOUT) != is_marked)].sum())
        part_of[~known & is_marked] = HOLDOUT
    _place_groups(part_of, groups, labels, ledger.salt, shares)

    added = np.flatnonzero(~known)
    grown = ledger
    if len(added):
        none = Coded.of([""] * (len(ledger.keys) + len(added)))
        zeros = np.zeros(len(added), dtype=np.int64)
        grown = grown_ledger(ledger, groups.names[added], zeros, none, part_of[added])
    return Assignment(
        part_of[groups.codes],
        np.zeros(len(groups), dtype=np.int64),
        grown,
        int(sizes[added].sum()),
        against,
    )


def _ids_of_both(theirs: Array, ours: Array) -> tuple[Int, Int]:
    ids = group_ids(joined(theirs, ours))
    return ids[: len(theirs)], ids[len(theirs) :]


def _marked_groups(groups: Coded, sizes: Array, marked: Bool | None) -> Bool | None:
    """Return which groups are marked as hold-out; raises InputError for a group on both sides."""
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


def _place_groups(part_of: Int8, groups: Coded, labels: Coded, salt: str, shares: Shares) -> None:
    """Assign waiting groups in hash order, each where it brings the shares nearer to their target."""
    n_classes = len(labels.names)
    # Records of each (group, class), sorted by group.
    pairs, n = np.unique(
        groups.codes.astype(np.int64) * n_classes + labels.codes, return_counts=True
    )
    group, label = pairs // n_classes, pairs % n_classes
    n_records = np.bincount(labels.codes, minlength=n_classes)
    n_groups = np.bincount(label, minlength=n_classes)
    have = np.zeros((len(PARTS), n_classes), dtype=np.int64)
    placed = part_of[group] >= 0
    np.add.at(have, (part_of[group[placed]], label[placed]), n[placed])
    compared = (n_records >= MIN_COMPARED) & (n_groups >= MIN_GROUPS)
    aims = np.array(
        [shares.wanted(int(n_records[k]), int(have[HOLDOUT, k])) for k in range(n_classes)]
    ).reshape(n_classes, 2)

    def gain(classes: Array, counts: Array, part: int) -> float:
        """By how much the group brings its classes nearer to their aim in a part, in shares."""
        total = 0.0
        for k, n_of in zip(classes.tolist(), counts.tolist(), strict=True):
            missing = int(aims[k, 0 if part == HOLDOUT else 1] - have[part, k])
            total += (abs(missing) - abs(missing - n_of)) / int(n_records[k])
        return total

    # Waiting groups in hash order: hold-out first, then validation, else training.
    starts = np.searchsorted(group, np.arange(len(part_of) + 1))
    is_waiting = part_of < 0
    waiting = np.flatnonzero(is_waiting)
    hashes = salted(salt, groups.names[waiting], np.zeros(len(waiting), dtype=np.int64))
    for g in waiting[sort_order(hashes)].tolist():
        inside = slice(starts[g], starts[g + 1])
        classes, counts = label[inside], n[inside]
        part = TRAINING
        if compared[classes].all():  # a class that is not compared trains on all its records
            if not shares.has_fixed_holdout and gain(classes, counts, HOLDOUT) > 0:
                part = HOLDOUT
            elif gain(classes, counts, VALIDATION) > 0:
                part = VALIDATION
        part_of[g] = part
        have[part, classes] += counts
    # If every group of a class is too large for validation, the one that comes nearest still goes there,
    # provided that all its classes keep records elsewhere.
    for k in np.flatnonzero(compared & (aims[:, 1] > 0)):
        if have[VALIDATION, k]:  # a group that went there for another class may have brought some
            continue
        movable = []
        for g in group[label == k].tolist():
            inside = slice(starts[g], starts[g + 1])
            classes, counts = label[inside], n[inside]
            stay = (have[part_of[g], classes] > counts).all()
            if is_waiting[g] and compared[classes].all() and stay:
                movable.append((gain(classes, counts, VALIDATION), g))
        if movable:
            _, g = max(movable)
            inside = slice(starts[g], starts[g + 1])
            have[part_of[g], label[inside]] -= n[inside]
            have[VALIDATION, label[inside]] += n[inside]
            part_of[g] = VALIDATION
