"""The sticky split of records into training, validation and hold-out.

A :class:`Ledger` keeps the part of every record or group from version to version; entries never move.
:func:`assign` fills each class's parts up to their shares in the order of a salted hash, so neither row
order nor date decides, and nobody can choose where a record goes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefect_augment.array_types import Array, Bool, Int, Int8, Int32, Uint64
from prefect_augment.errors import InputError
from prefect_augment.split.ledger import HOLDOUT, PARTS, TRAINING, VALIDATION, Assignment, Ledger
from prefect_augment.storage.external_sort import PartitionedRows, bin_of, first_of_bin
from prefect_augment.storage.keys import (
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
from prefect_augment.storage.spill import Workspace

#: Records that a class needs before any of them leaves training. By default ten give two in the hold-out and two
#: in validation; with fewer, a part would hold at most one record, whose recall of 0 or 1 says nothing.
MIN_COMPARED = 10
HASHED_AT_ONCE = 65_536  # texts alive at a time
#: Groups that a class needs: one for each part.
MIN_GROUPS = 3


@dataclass(frozen=True)
class Shares:
    """Target shares: hold-out of each class, validation of the rest; and whether the source fixes the hold-out."""

    holdout: float
    validation: float
    has_fixed_holdout: bool = False

    def wanted(self, n_records: int, n_marked: int) -> tuple[int, int]:
        """Return the target numbers of hold-out and validation records of a compared class."""
        n_holdout = n_marked if self.has_fixed_holdout else max(1, round(self.holdout * n_records))
        return n_holdout, max(1, round(self.validation * (n_records - n_holdout)))


def make_salt(seed: int) -> str:
    """Return the salt of a first version, 32 hexadecimal digits derived from the seed."""
    return hashlib.blake2b(f"split {seed}".encode(), digest_size=16).hexdigest()


def assign(
    keys: Sequence[str] | Array,
    labels: Sequence[str] | Coded,
    *,
    ledger: Ledger,
    shares: Shares,
    marked: Bool | None = None,
    groups: Sequence[str] | Array | Coded | None = None,
) -> Assignment:
    """Return the part of every record and the extended ledger, whatever the order of records.

    Known records and groups keep their part, even with a corrected label. New ones fill their class's deficit:
    the hold-out's, then validation's; the rest is training. A class with fewer than
    ``MIN_COMPARED`` records (with groups: in fewer than three groups) adds to training only. ``marked`` is the
    source's own hold-out; InputError if it splits a group. A group goes to the part whose shares it brings nearer to
    their target, each class weighted by the share of its records.
    """
    if groups is None:
        return _assign_records(as_keys(keys), Coded.of(labels), ledger, shares, marked)
    return _assign_groups(Coded.of(labels), ledger, shares, marked, Coded.of(groups).only_used())


def _assign_records(
    keys: Array, labels: Coded, ledger: Ledger, shares: Shares, marked: Bool | None
) -> Assignment:
    labels, theirs = shared_names(labels, ledger.labels)
    with Workspace() as workspace:
        split = RecordSplit(replace(ledger, labels=theirs), shares, workspace=workspace)
        entries = split.look_up(keys, labels, marked)
        split.note(entries)
        parts, grown = split.assign(entries)
    grown = ledger if split.is_unchanged else replace(grown, labels=grown.labels.only_used())
    return Assignment(parts, entries.occurrences, grown, split.n_new, split.n_kept_against_mark)


def _assign_groups(
    labels: Coded, ledger: Ledger, shares: Shares, marked: Bool | None, groups: Coded
) -> Assignment:
    n_groups = len(groups.names)
    sizes = np.bincount(groups.codes, minlength=n_groups)
    is_marked = _marked_groups(groups, sizes, marked)
    part_of = np.full(n_groups, -1, dtype=np.int8)
    rows = ledger.rows_of(groups.names)
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


@dataclass(frozen=True)
class LedgerMatch:
    """The records of a bin, and the ledger's entries for them."""

    keys: Array
    labels: Coded
    marked: Bool | None
    rows: Int  # (n_records,) row of the bin's ledger; -1 for new
    occurrences: Int  # (n_records,) among records of one key
    hashes: Array  # (n_new,) salted
    ledger: Ledger  # of this bin


class RecordSplit:
    """The split by record, one bin of keys at a time, in two passes.

    The first notes every bin, the second assigns parts: how many of a class go to hold-out and validation is
    known after the first, and which ones follows from a bound on their hash. ``n_new``,
    ``n_kept_against_mark`` and ``is_unchanged`` hold for the bins assigned so far.
    """

    def __init__(
        self, ledger: Ledger, shares: Shares, *, workspace: Workspace, n_bins: int = 1
    ) -> None:
        self.ledger, self.shares, self.n_bins = ledger, shares, n_bins
        self.n_new = self.n_kept_against_mark = 0
        self.is_unchanged = True
        self._n_classes = n = len(ledger.labels.names)
        self._known = np.zeros((len(PARTS), n), dtype=np.int64)
        self._n_new, self._n_marked = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self._bounds = [0, len(ledger.keys)]
        if n_bins > 1:
            firsts = np.concatenate([first_of_bin(b, n_bins) for b in range(1, n_bins)])
            self._bounds[1:1] = np.searchsorted(ledger.keys, firsts).tolist()
        # Hashes of the records that wait for a part, by hash.
        fields = np.dtype([("hash", KEY), ("label", np.int32)])
        self._waiting = PartitionedRows(workspace, fields, n_bins)
        self._n_waiting = np.zeros((n_bins, n), dtype=np.int64)
        # Those of all new records by key: to make them takes longer than to write and read them.
        self._hashes = PartitionedRows(workspace, np.dtype([("hash", KEY)]), n_bins)
        self._is_noted = np.zeros(n_bins, dtype=bool)
        self._cuts: Array | None = None

    def look_up(
        self, keys: Array, labels: Coded, marked: Bool | None, number: int = 0
    ) -> LedgerMatch:
        """Find the records of a bin in the ledger; number and hash the others."""
        ledger = self.ledger.take(slice(self._bounds[number], self._bounds[number + 1]))
        ids = group_ids(joined(ledger.keys, keys))
        of_ledger, of_record = ids[: len(ledger.keys)], ids[len(ledger.keys) :]
        rows = _match(of_record, labels.codes, of_ledger, ledger, marked)
        known = rows >= 0
        occurrences = np.full(len(keys), -1, dtype=np.int64)
        occurrences[known] = ledger.occurrences[rows[known]]
        new = np.flatnonzero(~known)
        mark = None if marked is None else marked[new]
        occurrences[new] = _next_occurrences(
            of_record[new], labels.codes[new], of_ledger, ledger.occurrences, mark
        )
        if self._is_noted[number]:
            hashes = np.ascontiguousarray(self._hashes.read(number)["hash"])
        else:
            hashes = salted(self.ledger.salt, keys[new], occurrences[new])
        return LedgerMatch(keys, labels, marked, rows, occurrences, hashes, ledger)

    def note(self, entries: LedgerMatch, number: int = 0) -> None:
        """Count the records of a bin."""
        labels, marked = entries.labels, entries.marked
        if self.n_bins > 1:
            hashes = np.zeros(len(entries.hashes), dtype=self._hashes.dtype)
            hashes["hash"] = entries.hashes
            self._hashes.add(hashes, np.full(len(hashes), number))
            self._is_noted[number] = True
        known = entries.rows >= 0
        parts = entries.ledger.parts[entries.rows[known]]
        of_known, of_new = labels.codes[known], labels.codes[~known]
        np.add.at(self._known, (parts, of_known), 1)
        self._n_new += np.bincount(of_new, minlength=self._n_classes)
        waits = np.ones(len(of_new), dtype=bool) if marked is None else ~marked[~known]
        self._n_marked += np.bincount(of_new[~waits], minlength=self._n_classes)
        rows = np.zeros(int(waits.sum()), dtype=self._waiting.dtype)
        rows["hash"], rows["label"] = entries.hashes[waits], of_new[waits]
        bins = bin_of(rows["hash"], self.n_bins)
        np.add.at(self._n_waiting, (bins, rows["label"]), 1)
        self._waiting.add(rows, bins)

    def assign(self, entries: LedgerMatch) -> tuple[Int8, Ledger]:
        """Return the parts of a bin's records, and its rows of the grown ledger."""
        if self._cuts is None:
            self._cuts = self._find_cuts()
        keys, labels, marked = entries.keys, entries.labels, entries.marked
        known = entries.rows >= 0
        new = np.flatnonzero(~known)
        parts = np.full(len(keys), TRAINING, dtype=np.int8)
        parts[known] = entries.ledger.parts[entries.rows[known]]
        of_new = labels.codes[new]
        for part, cut in ((VALIDATION, self._cuts[1]), (HOLDOUT, self._cuts[0])):
            parts[new[_is_below(entries.hashes, cut[of_new])]] = part
        if marked is not None:
            # The user's split is respected whatever the class's size.
            parts[new[marked[new]]] = HOLDOUT
            self.n_kept_against_mark += int(np.count_nonzero((parts == HOLDOUT) != marked))
        corrected = entries.ledger.labels.codes.copy()
        corrected[entries.rows[known]] = labels.codes[known]
        self.n_new += len(new)
        if len(new) or (corrected != entries.ledger.labels.codes).any():
            self.is_unchanged = False
        every = Coded(np.concatenate([corrected, of_new]), labels.names)
        new_occurrences = entries.occurrences[new]
        return parts, grown_ledger(entries.ledger, keys[new], new_occurrences, every, parts[new])

    def _find_cuts(self) -> Array:
        """Return the hash bounds below which a class's records go to hold-out and validation."""
        # How many waiting records of each class go to hold-out, and to hold-out or validation, (2, n_classes).
        n = self._n_classes
        ends = np.zeros((2, n), dtype=np.int64)
        for k in range(n):
            n_records = int(self._known[:, k].sum() + self._n_new[k])
            if n_records >= MIN_COMPARED:
                in_holdout = int(self._known[HOLDOUT, k] + self._n_marked[k])
                wanted_holdout, wanted_validation = self.shares.wanted(n_records, in_holdout)
                ends[0, k] = max(0, wanted_holdout - in_holdout)
                ends[1, k] = ends[0, k] + max(
                    0, wanted_validation - int(self._known[VALIDATION, k])
                )
        # Their bound is the hash at that rank; bins are in hash order.
        cuts = np.zeros((2, n, 2), dtype=np.uint64)
        before = np.zeros(n, dtype=np.int64)
        for number in range(self.n_bins):
            after = before + self._n_waiting[number]
            here = (ends >= before) & (ends < after)
            if here.any():
                rows = self._waiting.read(number)
                for k in np.flatnonzero(here.any(axis=0)).tolist():
                    hashes = _numbers(rows["hash"][rows["label"] == k])
                    hashes = hashes[np.lexsort((hashes[:, 1], hashes[:, 0]))]
                    for i in np.flatnonzero(here[:, k]).tolist():
                        cuts[i, k] = hashes[ends[i, k] - before[k]]
            before = after
        cuts[ends >= before] = np.iinfo(np.uint64).max  # all of them
        self._waiting.clear()
        return cuts


def _numbers(hashes: Array) -> Uint64:
    """Return each hash as two numbers that compare as its bytes do."""
    return np.ascontiguousarray(hashes).view(">u8").reshape(-1, 2).astype(np.uint64)


def _is_below(hashes: Array, cuts: Uint64) -> Bool:
    numbers = _numbers(hashes)
    high, low = numbers[:, 0], numbers[:, 1]
    is_below: Bool = (high < cuts[:, 0]) | ((high == cuts[:, 0]) & (low < cuts[:, 1]))
    return is_below


def _match(
    of_record: Int, labels: Int32, of_ledger: Int, ledger: Ledger, marked: Bool | None
) -> Int:
    """Return the ledger row of each record, -1 for new ones.

    Equal records are interchangeable: they take rows of their key, label and side first; the rest (a
    corrected label, a moved mark) any row of their key.
    """
    if len(of_ledger) == 0:
        return np.full(len(of_record), -1, dtype=np.int64)
    side = np.zeros(len(of_record), dtype=bool) if marked is None else marked
    their_side = (ledger.parts == HOLDOUT) & (marked is not None)
    their_labels = ledger.labels.codes
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
    new: Int, labels: Int32, of_ledger: Int, occurrences: Int32, marked: Bool | None
) -> Int:
    """Number new records from the ledger's on; equal keys by label, then mark."""
    following = np.zeros(int(max(new.max(initial=0), of_ledger.max(initial=0))) + 1, dtype=np.int64)
    np.maximum.at(following, of_ledger, occurrences.astype(np.int64) + 1)
    mark = np.zeros(len(new), dtype=bool) if marked is None else marked
    order = np.lexsort((mark, labels, new))
    numbers = np.zeros(len(new), dtype=np.int64)
    numbers[order] = following[new[order]] + ranks_within(new[order])
    return numbers


def salted(salt: str, keys: Array, occurrences: Int) -> Array:
    """Return salted hashes of (key, occurrence) pairs."""
    prefix = hashlib.blake2b(salt.encode(), digest_size=16)
    digests = np.zeros(len(keys), dtype=KEY)
    for start in range(0, len(keys), HASHED_AT_ONCE):
        some = slice(start, start + HASHED_AT_ONCE)
        hashed = []
        for key, occurrence in zip(key_texts(keys[some]), occurrences[some].tolist(), strict=True):
            hasher = prefix.copy()
            hasher.update(f"{occurrence} {key}".encode())
            hashed.append(hasher.digest())
        digests[some] = hashed
    return digests


def grown_ledger(
    ledger: Ledger, keys: Array, occurrences: Int, labels: Coded, parts: Int8
) -> Ledger:
    """Return the ledger with new rows in order; ``labels`` are those of old and new rows."""
    every = joined(ledger.keys, keys)
    numbers = np.concatenate([ledger.occurrences, occurrences]).astype(np.int32)
    order = sort_order(every, numbers)
    return replace(
        ledger,
        keys=every[order],
        occurrences=numbers[order],
        labels=labels.take(order),
        parts=np.concatenate([ledger.parts, parts])[order],
        images=None,
    )
