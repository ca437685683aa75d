"""The sticky split: which records train (fit), choose (val) and are kept for the last comparison.

A :class:`Ledger` says for every record, or every group, the part it once got; it is inherited from
version to version and nothing in it ever moves. :func:`assign` adds new records: each class's parts
are filled up to their shares in the order of a salted hash, so that neither the order of rows nor
the day they came on decides, and nobody can choose where a record lands.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.errors import InputError

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

PARTS = ("fit", "val", "holdout")
FIT, VAL, HOLDOUT = 0, 1, 2

#: Records that a class needs before any of them leaves fit. With the default shares ten give two in
#: the hold-out and two in val; of fewer, a part would hold a single record or none, whose recall is 0
#: or 1 and judges nothing, while training would miss it.
MIN_JUDGED = 10
#: Groups that a class needs: one for each part.
MIN_GROUPS = 3


@dataclass(frozen=True)
class ImageRows:
    """What the ledger keeps of each image, so that a later version finds near-duplicates of it.

    Parameters
    ----------
    clusters : tuple of str
        Name of the near-duplicate cluster: the content key of one of its first members.
    levels : tuple of int
        How strictly the image was compared.
    thumbs : bytes
        Gray thumbnails of 32x32 int8, one after the other: 1 kB an image.
    """

    clusters: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    thumbs: bytes = b""


@dataclass(frozen=True)
class Ledger:
    """Parts once given, sorted by key and occurrence.

    Parameters
    ----------
    salt : str
        Fixed when the first version is made.
    unit : str
        What a key names: ``record``; ``group:<column>`` or ``pattern:<expression>``; or
        ``near-duplicate``, where keys are images and their clusters stay together.
    keys : tuple of str
        Content keys, or the groups' values as text.
    occurrences : tuple of int
        Number of the record among those with its key; 0 for groups.
    labels : tuple of str
        Class of the record; empty for groups, which may hold several.
    parts : tuple of int
        Index into :data:`PARTS`.
    has_own_holdout : bool
        Whether the hold-out lies at a URI of its own, so that no record here may be in it.
    images : ImageRows, optional
        With the unit ``near-duplicate``, one row per key.
    """

    salt: str
    unit: str = "record"
    keys: tuple[str, ...] = ()
    occurrences: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()
    has_own_holdout: bool = False
    images: ImageRows | None = None

    @property
    def digest(self) -> str:
        """sha256 over the content: equal for equal ledgers, however they are stored."""
        text = repr(
            (
                self.salt,
                self.unit,
                self.has_own_holdout,
                self.keys,
                self.occurrences,
                self.labels,
                self.parts,
            )
        )
        digest = hashlib.sha256(text.encode())
        if self.images is not None:
            digest.update(repr((self.images.clusters, self.images.levels)).encode())
            digest.update(self.images.thumbs)
        return digest.hexdigest()


@dataclass(frozen=True)
class Assignment:
    """What :func:`assign` decided.

    Parameters
    ----------
    parts : ndarray of int8, shape (n_records,)
        Index into :data:`PARTS` of each record.
    occurrences : ndarray of int64, shape (n_records,)
        The ledger's occurrence number of each record; 0 with groups.
    ledger : Ledger
        The given one with the new records or groups added.
    n_new : int
        Records that the given ledger did not know.
    n_kept_against_mark : int
        Records that the ledger has on the other side than the hold-out column now says.
    """

    parts: NDArray[np.int8]
    occurrences: NDArray[np.int64]
    ledger: Ledger
    n_new: int = 0
    n_kept_against_mark: int = 0


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
    keys: Sequence[str],
    labels: Sequence[str],
    *,
    ledger: Ledger,
    holdout_fraction: float,
    val_fraction: float,
    marked: NDArray[np.bool_] | None = None,
    groups: Sequence[str] | None = None,
) -> Assignment:
    """Return the part of every record and the ledger that remembers it.

    A record or group that the ledger knows keeps its part, also when its label was corrected. New
    ones fill the deficit of their class: first the hold-out's, then val's; the rest is fit. A class
    with fewer than ``MIN_JUDGED`` records (with groups: or in fewer than three groups) puts nothing
    new outside fit. The result depends on the records as a set, not on their order.

    Parameters
    ----------
    keys : sequence of str, length n_records
        Content keys.
    labels : sequence of str, length n_records
        Class names.
    ledger : Ledger
        The parent version's, or an empty one with a salt.
    holdout_fraction : float in [0, 1)
        Share of each class for the hold-out; 0 where the hold-out lies elsewhere.
    val_fraction : float in (0, 1)
        Share of the rest for val.
    marked : ndarray of bool, shape (n_records,), optional
        Hold-out records, where the source says it itself.
    groups : sequence of str, length n_records, optional
        Records of one group stay together. A group goes to the part whose shares it brings nearer to
        their aim, each class counting by the share of its records.

    Raises
    ------
    InputError
        If the hold-out marks cut through a group.
    """
    shares = _Shares(holdout_fraction, val_fraction, marked is not None or holdout_fraction == 0.0)
    if groups is None:
        return _assign_records(keys, labels, ledger, shares, marked)
    return _assign_groups(labels, ledger, shares, marked, groups)


# --- records ----------------------------------------------------------------------------------


def _assign_records(
    keys: Sequence[str],
    labels: Sequence[str],
    ledger: Ledger,
    shares: _Shares,
    marked: NDArray[np.bool_] | None,
) -> Assignment:
    n_records = len(keys)
    parts = np.full(n_records, -1, dtype=np.int8)
    occurrences = np.full(n_records, -1, dtype=np.int64)
    rows = _match(keys, labels, ledger, marked)
    known = rows >= 0
    parts[known] = np.asarray(ledger.parts, dtype=np.int8)[rows[known]]
    occurrences[known] = np.asarray(ledger.occurrences, dtype=np.int64)[rows[known]]

    new: list[int] = np.flatnonzero(~known).tolist()
    occurrences[new] = _next_occurrences(new, keys, labels, ledger, marked)
    order = _hash_order(ledger.salt, [(keys[i], int(occurrences[i])) for i in new])
    _fill(
        parts,
        np.asarray(new, dtype=np.intp)[order],
        np.asarray(labels, dtype=object),
        shares,
        marked,
    )

    against = 0 if marked is None else int(np.count_nonzero((parts == HOLDOUT) != marked))
    changed = {
        int(rows[i]): labels[i]
        for i in np.flatnonzero(known).tolist()
        if ledger.labels[rows[i]] != labels[i]
    }
    added = [(keys[i], int(occurrences[i]), labels[i], int(parts[i])) for i in new]
    return Assignment(parts, occurrences, _grown(ledger, added, changed), len(new), against)


def _match(
    keys: Sequence[str], labels: Sequence[str], ledger: Ledger, marked: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """Row of the ledger that each record is, -1 for new ones.

    Equal records are interchangeable, so they take the rows of their key, label and side first; what
    is left over (a corrected label, a moved mark) takes any row of its key.
    """
    matched = np.full(len(keys), -1, dtype=np.int64)
    if not ledger.keys:
        return matched
    sides = None if marked is None else marked.tolist()
    exact: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row in range(
        len(ledger.keys) - 1, -1, -1
    ):  # reversed: pop() then gives the lowest occurrence
        side = None if sides is None else ledger.parts[row] == HOLDOUT
        exact[ledger.keys[row], ledger.labels[row], side].append(row)
    left: defaultdict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        rows = exact.get((key, labels[i], None if sides is None else sides[i]))
        if rows:
            matched[i] = rows.pop()
        else:
            left[key].append(i)
    free: defaultdict[str, list[int]] = defaultdict(list)
    for (key, _, _), rows in exact.items():
        if rows and key in left:
            free[key].extend(rows)
    for key, free_rows in free.items():
        records = sorted(left[key], key=lambda i: (labels[i], sides is not None and sides[i]))
        for i, row in zip(records, sorted(free_rows), strict=False):
            matched[i] = row
    return matched


def _next_occurrences(
    new: list[int],
    keys: Sequence[str],
    labels: Sequence[str],
    ledger: Ledger,
    marked: NDArray[np.bool_] | None,
) -> NDArray[np.int64]:
    """Numbers of new records, counting on from the ledger's; equal keys by label, then mark."""
    new_keys = {keys[i] for i in new}
    following: dict[str, int] = {}
    for key, occurrence in zip(ledger.keys, ledger.occurrences, strict=True):
        if key in new_keys:
            following[key] = max(following.get(key, 0), occurrence + 1)
    numbers = np.zeros(len(new), dtype=np.int64)
    rank = [(labels[i], False if marked is None else bool(marked[i])) for i in new]
    for j in sorted(range(len(new)), key=rank.__getitem__):
        key = keys[new[j]]
        numbers[j] = following.get(key, 0)
        following[key] = int(numbers[j]) + 1
    return numbers


def _fill(
    parts: NDArray[np.int8],
    new: NDArray[np.intp],
    labels: NDArray[np.object_],
    shares: _Shares,
    marked: NDArray[np.bool_] | None,
) -> None:
    """Give each new record, in the order given, the part that its class lacks most urgently."""
    by_class: defaultdict[str, list[int]] = defaultdict(list)
    for i in new.tolist():
        by_class[labels[i]].append(i)
    known = parts >= 0
    n_known = Counter(labels[known].tolist())
    n_holdout = Counter(labels[known & (parts == HOLDOUT)].tolist())
    n_val = Counter(labels[known & (parts == VAL)].tolist())
    for name, members in by_class.items():
        waiting = np.asarray(members)
        if marked is not None:  # the user's split is respected whatever the class's size
            parts[waiting[marked[waiting]]] = HOLDOUT
            waiting = waiting[~marked[waiting]]
        in_holdout = n_holdout[name] + len(members) - len(waiting)
        n_records = n_known[name] + len(members)
        n_to_holdout = n_to_val = 0
        if n_records >= MIN_JUDGED:
            wanted_holdout, wanted_val = shares.wanted(n_records, in_holdout)
            n_to_holdout = max(0, wanted_holdout - in_holdout)
            n_to_val = max(0, wanted_val - n_val[name])
        parts[waiting[:n_to_holdout]] = HOLDOUT
        parts[waiting[n_to_holdout : n_to_holdout + n_to_val]] = VAL
        parts[waiting[n_to_holdout + n_to_val :]] = FIT


# --- groups -----------------------------------------------------------------------------------


def _assign_groups(
    labels: Sequence[str],
    ledger: Ledger,
    shares: _Shares,
    marked: NDArray[np.bool_] | None,
    groups: Sequence[str],
) -> Assignment:
    members: defaultdict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    counts = {group: Counter(labels[i] for i in rows) for group, rows in members.items()}
    marks = _group_marks(members, marked)
    part_of = {
        key: part for key, part in zip(ledger.keys, ledger.parts, strict=True) if key in members
    }
    against = sum(
        len(members[g]) for g, part in part_of.items() if marks and (part == HOLDOUT) != marks[g]
    )
    new = [group for group in members if group not in part_of]
    part_of.update({group: HOLDOUT for group in new if marks.get(group)})
    waiting = [group for group in new if group not in part_of]
    _place_groups(part_of, sorted(waiting), counts, ledger.salt, shares)

    parts = np.asarray([part_of[group] for group in groups], dtype=np.int8)
    added = [(group, 0, "", part_of[group]) for group in new]
    n_new = sum(len(members[group]) for group in new)
    return Assignment(
        parts, np.zeros(len(groups), dtype=np.int64), _grown(ledger, added, {}), n_new, against
    )


def _group_marks(
    members: dict[str, list[int]], marked: NDArray[np.bool_] | None
) -> dict[str, bool]:
    """Which groups are marked as hold-out; a group on both sides is refused."""
    if marked is None:
        return {}
    cut = sorted(
        group for group, rows in members.items() if 0 < int(marked[rows].sum()) < len(rows)
    )
    if cut:
        raise InputError(
            f"{len(cut)} groups have records both inside and outside the hold-out, e.g. {cut[0]!r}; "
            "a group must be on one side. Mark its records alike, or leave group_column out.",
            groups=cut,
        )
    return {group: bool(marked[rows[0]]) for group, rows in members.items()}


def _place_groups(
    part_of: dict[str, int],
    waiting: list[str],
    counts: dict[str, Counter[str]],
    salt: str,
    shares: _Shares,
) -> None:
    """Place the waiting groups in hash order, each where it brings the shares nearer to their aim."""
    n_records: Counter[str] = Counter()
    n_groups: Counter[str] = Counter()
    have = {part: Counter[str]() for part in (FIT, VAL, HOLDOUT)}
    for group, of_class in counts.items():
        n_records.update(of_class)
        n_groups.update(of_class.keys())
        if group in part_of:
            have[part_of[group]].update(of_class)
    judged = {k for k in n_records if n_records[k] >= MIN_JUDGED and n_groups[k] >= MIN_GROUPS}
    aims = {k: shares.wanted(n_records[k], have[HOLDOUT][k]) for k in judged}

    def gain(of_class: Counter[str], part: int) -> float:
        """By how much the group brings its classes nearer to their aim in a part, in shares."""
        total = 0.0
        for k, n in sorted(of_class.items()):
            missing = aims[k][0 if part == HOLDOUT else 1] - have[part][k]
            total += (abs(missing) - abs(missing - n)) / n_records[k]
        return total

    for j in _hash_order(salt, [(group, 0) for group in waiting]).tolist():
        of_class = counts[waiting[j]]
        part = FIT
        if of_class.keys() <= judged:  # a class that is not judged needs all its records in fit
            if not shares.holdout_is_given and gain(of_class, HOLDOUT) > 0:
                part = HOLDOUT
            elif gain(of_class, VAL) > 0:
                part = VAL
        part_of[waiting[j]] = part
        have[part].update(of_class)


# --- both -------------------------------------------------------------------------------------


def _hash_order(salt: str, names: list[tuple[str, int]]) -> NDArray[np.intp]:
    """Order of (key, occurrence) pairs by their salted hash."""
    prefix = hashlib.blake2b(salt.encode(), digest_size=16)
    digests = []
    for key, occurrence in names:
        hasher = prefix.copy()
        hasher.update(f"{occurrence} {key}".encode())
        digests.append(hasher.digest())
    return np.argsort(np.asarray(digests, dtype="S16"), kind="stable")


def _grown(
    ledger: Ledger, added: list[tuple[str, int, str, int]], changed: dict[int, str]
) -> Ledger:
    """Return the ledger with new rows in their place and corrected labels noted."""
    if not added and not changed:
        return ledger
    labels = [changed.get(row, label) for row, label in enumerate(ledger.labels)]
    rows = [*zip(ledger.keys, ledger.occurrences, labels, ledger.parts, strict=True), *added]
    keys, occurrences, names, parts = zip(*sorted(rows), strict=True)
    return Ledger(ledger.salt, ledger.unit, keys, occurrences, names, parts, ledger.has_own_holdout)
