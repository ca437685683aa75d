"""The split by record, one bin of keys at a time: known records keep their part, new ones fill the shares.

Held for all records at once: only counts, and per class the hash bounds of hold-out and validation.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from prefect_augment.array_types import Array, Bool, Int, Int8, Int32, Uint64
from prefect_augment.split.ledger import HOLDOUT, PARTS, TRAINING, VALIDATION, Ledger
from prefect_augment.storage.external_sort import PartitionedRows, bin_of, first_of_bin
from prefect_augment.storage.keys import (
    KEY,
    Coded,
    group_ids,
    joined,
    key_texts,
    pairs_of_equals,
    ranks_within,
    sort_order,
)
from prefect_augment.storage.spill import Workspace

#: Records that a class needs before any of them leaves training. By default ten give two in the hold-out and two
#: in validation; with fewer, a part would hold at most one record, whose recall of 0 or 1 says nothing.
MIN_COMPARED = 10
HASHED_AT_ONCE = 65_536  # texts alive at a time


@dataclass(frozen=True)
class Shares:
    """Target shares of hold-out and validation, and whether the hold-out is fixed by the source."""

    holdout: float
    validation: float
    has_fixed_holdout: bool = field(default=False)

    def wanted(self, n_records: int, n_marked: int) -> tuple[int, int]:
        """Return the target numbers of hold-out and validation records of a compared class."""
        if self.has_fixed_holdout:
            n_holdout = n_marked
        else:
            n_holdout = max(1, round(self.holdout * n_records))
        return n_holdout, max(1, round(self.validation * (n_records - n_holdout)))


@dataclass(frozen=True)
class LedgerMatch:
    """The ledger's entries for the records of a bin."""

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
        self,
        ledger: Ledger,
        shares: Shares,
        *,
        workspace: Workspace,
        n_bins: int = 1,
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
        theirs = ledger.labels.codes
        rows = _match(of_record, labels.codes, of_ledger, theirs, ledger, marked)
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
        return LedgerMatch(rows, occurrences, hashes, ledger)

    def note(
        self, entries: LedgerMatch, labels: Coded, marked: Bool | None, number: int = 0
    ) -> None:
        """Count the records of a bin."""
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

    def assign(
        self, entries: LedgerMatch, keys: Array, labels: Coded, marked: Bool | None
    ) -> tuple[Int8, Ledger]:
        """Return the parts of a bin's records, and its rows of the grown ledger."""
        if self._cuts is None:
            self._cuts = self._find_cuts()
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
        codes = np.concatenate([corrected, of_new])
        grown = grown_ledger(
            entries.ledger,
            keys[new],
            entries.occurrences[new],
            Coded(codes, labels.names),
            parts[new],
        )
        return parts, grown

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
    of_record: Int,
    labels: Int32,
    of_ledger: Int,
    their_labels: Int32,
    ledger: Ledger,
    marked: Bool | None,
) -> Int:
    """Return the ledger row of each record, -1 for new ones.

    Equal records are interchangeable: they take rows of their key, label and side first; the rest (a
    corrected label, a moved mark) any row of their key.
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
    labels: Int32,
    of_ledger: Int,
    occurrences: Int32,
    marked: Bool | None,
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
    ledger: Ledger,
    keys: Array,
    occurrences: Int,
    labels: Coded,
    parts: Int8,
) -> Ledger:
    """Return the ledger with new rows in order; ``labels`` are those of old and new rows."""
    every = joined(ledger.keys, keys)
    numbers = np.concatenate([ledger.occurrences, occurrences]).astype(np.int32)
    order = sort_order(every, numbers)
    return Ledger(
        ledger.salt,
        ledger.unit,
        every[order],
        numbers[order],
        labels.take(order),
        np.concatenate([ledger.parts, parts])[order],
        ledger.has_own_holdout,
    )
