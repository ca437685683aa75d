"""The split of all records: left out, or assigned to a part, with their ids.

The order does not depend on the source's. Bins of keys are visited twice, as each class's part sizes are
known after the first pass; groups and near-duplicates are split in one pass over arrays of all records.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Array, Bool, Int, Int8, Int32
from prefect_augment.encoding.labels import check_classes, class_names, label_text
from prefect_augment.encoding.record_ids import real_ids
from prefect_augment.errors import InputError
from prefect_augment.ingest.holdout import in_holdout, refuse_other_classes
from prefect_augment.ingest.record_index import LEFT_OUT, THUMB_BYTES, RecordIndex, merge
from prefect_augment.ingest.validate import Candidates
from prefect_augment.ingest.validate_images import image_info
from prefect_augment.params import Source
from prefect_augment.schema import ImageInfo
from prefect_augment.split.assignment import LedgerMatch, RecordSplit, Shares, assign
from prefect_augment.split.ledger import Assignment, Ledger, LedgerSpill
from prefect_augment.split.near_duplicates import Likely, ThumbRows, Thumbs
from prefect_augment.split.near_split import (
    NearClusters,
    assign_clusters,
    count_near,
    find_clusters,
)
from prefect_augment.storage.keys import KEY, Coded, group_ids, ranks_within, shared_names
from prefect_augment.storage.spill import give_back

#: Why valid records are left out.
REASONS = ("", "in hold-out", "bridge")
HELD, TWINS = REASONS[1], "twins"


@dataclass(frozen=True)
class Piece:
    """The split of one bin; arrays of shape (n_records,)."""

    index: RecordIndex
    parts: Int8  # index into PARTS, or LEFT_OUT
    numbers: Int32  # among records of one key and class
    ids: Array  # aug_id; of new records only
    reasons: Int8  # index into REASONS; 0 where not left out


class Decision:
    """The split of all records: one pass on construction, then :meth:`pieces` yields it bin by bin.

    ``reused`` are the indexes of reused batches, ``held`` a hold-out with a source of its own, ``parent`` the parent
    version's ledger or an empty one; ``likely`` finds pairs of images. ``ledger``, ``n_new``, ``n_kept_against_mark``
    and ``image`` are final after the last piece. Raises InputError if the requested hold-out does not suit the records.
    """

    def __init__(
        self,
        candidates: Candidates,
        reused: Sequence[RecordIndex],
        held: Candidates | None,
        *,
        parent: Ledger,
        source: Source,
        likely: Likely,
    ) -> None:
        self.candidates, self.reused, self.held, self.source = candidates, reused, held, source
        self.parent, self.likely = parent, likely
        self.ledger: Ledger | LedgerSpill = parent
        self.is_grouped = bool(candidates.roles.grouped_by or candidates.roles.image)
        self.n_new = self.n_kept_against_mark = 0
        self.image: ImageInfo | None = None
        is_fixed = held is not None or candidates.holdout_column is not None
        fraction = 0.0 if held is not None else source.holdout_fraction
        is_fixed = is_fixed or fraction == 0.0
        self._shares = Shares(fraction, source.validation_fraction, is_fixed)
        self._split: RecordSplit | None = None
        self._last: _Bin | None = None
        self._scan_all()

    def _scan_all(self) -> None:
        candidates = self.candidates
        n_marked = sum(int(i.marked.sum()) for i in self.reused if i.marked is not None)
        counts = Counter(candidates.label_counts)
        for index in self.reused:
            counts.update(index.labels.counts())
        # Checks on the classes of all records.
        ours, theirs = shared_names(Coded.of(sorted(counts)), self.parent.labels)
        self._label_names = ours.names  # of the ledger too
        n = sum(counts.values())
        self._check_label(counts)
        if candidates.holdout_column is not None:
            candidates.holdout_column.check(n=sum(map(len, self.reused)), n_marked=n_marked)
        if self.held is not None:
            uri = self.held.scan.listing.store.uri
            values = self._label_values(counts)
            refuse_other_classes(self.held, {k: m for k, m in counts.items() if m}, values, uri)
        if not self.is_grouped:
            self._split = RecordSplit(
                replace(self.parent, labels=theirs),
                self._shares,
                workspace=candidates.scan.workspace,
                n_bins=candidates.n_bins,
            )
        # A bin at a time: overlaps with the hold-out, and class counts for the split.
        left, outside, overlaps = Counter[str](), Counter[str](), Counter[str]()
        for number in range(candidates.n_bins):
            some = self._bin(number)
            overlaps.update(some.overlaps)
            left.update(some.left().labels.counts())
            outside.update(some.outside)
            if self._split is not None and some.entries is not None:
                self._split.note(some.entries, number)
            del some
            give_back()
        self._refuse_overlap(overlaps, n)
        if overlaps[HELD]:
            if not outside:
                raise InputError(
                    "every record of the source is also in the hold-out; nothing is left to train on."
                )
            self._check_label(outside)
        values = class_names(self._label_values(left))
        self.classes = tuple(name for name in values if name in left)

    def _bin(self, number: int) -> "_Bin":
        if self._last is not None:
            return self._last
        n_bins = self.candidates.n_bins
        parts = [i.of_bin(number, n_bins) for i in self.reused]
        index = merge([*parts, self.candidates.index(number)])
        every_name = Coded(np.zeros(0, dtype=np.int32), self._label_names)
        index = replace(index, labels=shared_names(index.labels, every_name)[0])
        some = _Bin(self, index)
        some.exclude(number, n_bins)
        if self._split is not None:
            left = some.left()
            some.entries = self._split.look_up(left.keys, left.labels, left.marked, number)
        if n_bins == 1:
            self._last = some
        return some

    def _label_values(self, counts: Mapping[str, int]) -> pa.Array:
        """Return the distinct labels in their own type, including those of earlier batches."""
        names = [n for n in counts if n and counts[n]]
        values = self.candidates.label_values
        texts = label_text(values).to_pylist()
        values = values.filter(pa.array([text in names for text in texts], pa.bool_()))
        others = sorted(set(names).difference(texts))
        if not others:
            return values
        return pa.concat_arrays([values, pa.array(others, pa.string()).cast(values.type)])

    def _check_label(self, counts: Mapping[str, int]) -> None:
        n = sum(counts.values())
        check_classes(self._label_values(counts), n, n, name=self.candidates.roles.label)

    def _refuse_overlap(self, overlaps: Mapping[str, int], total: int) -> None:
        """Refuse records on both sides of the split if ``on_overlap`` is "error"."""
        if self.source.on_overlap != "error":
            return
        if n := overlaps.get(HELD):
            raise InputError(
                f"{n} of the source's {total} records are also in the hold-out {self.source.holdout_uri} (equal values "
                "and label, or the same group): the comparison would score training records. Take them out, or leave "
                "source.on_overlap at 'drop', which does.",
                n_overlap=n,
            )
        if n := overlaps.get(TWINS):
            raise InputError(
                f"{n} images that {self.source.holdout_column!r} marks as training are byte for byte "
                "also marked as hold-out: the comparison would score training records. Take them out, or leave "
                "source.on_overlap at 'drop', which does.",
                n_overlap=n,
            )

    def pieces(self) -> Iterator[Piece]:
        """Yield the split of each bin, sorted by key; once."""
        spill = LedgerSpill(self.parent, self._label_names, self.candidates.scan.workspace)
        for number in range(self.candidates.n_bins):
            some = self._bin(number)
            if self._split is not None and some.entries is not None:
                parts, grown = self._split.assign(some.entries)
                spill.append(grown)
                occurrences = some.entries.occurrences
            else:
                assignment = self._together(some)
                parts, occurrences = assignment.parts, assignment.occurrences
            self._last = None
            yield _piece(some, parts, occurrences)
            del some, parts, occurrences
            give_back()
        if self._split is not None:
            self.ledger = spill
            self.n_new = self._split.n_new
            self.n_kept_against_mark = self._split.n_kept_against_mark

    def _together(self, some: "_Bin") -> Assignment:
        """Split groups or near-duplicates; all records are one bin."""
        left, ledger, shares = some.left(), self.parent, self._shares
        if some.clusters is not None and left.thumbs is not None and left.thumb_rows is not None:
            assignment = assign_clusters(
                left.keys,
                left.labels,
                some.clusters,
                left.thumbs,
                thumb_rows=left.thumb_rows,
                ledger=ledger,
                shares=shares,
                marked=left.marked,
            )
        else:
            assignment = assign(
                left.keys,
                left.labels,
                ledger=ledger,
                shares=shares,
                marked=left.marked,
                groups=left.groups,
            )
        self.ledger, self.n_new = assignment.ledger, assignment.n_new
        self.n_kept_against_mark = assignment.n_kept_against_mark
        self.image = some.image_info(left)
        return assignment


def _piece(some: "_Bin", parts: Int8, occurrences: Int) -> Piece:
    index, left = some.index, some.left()
    every = np.full(len(index), LEFT_OUT, dtype=np.int8)
    every[some.rows] = parts
    # Numbers among those of a key and class are in the ledger's order.
    order = np.argsort(occurrences, kind="stable")
    numbers = np.zeros(len(index), dtype=np.int32)
    numbers[some.rows[order]] = numbers_within(left.keys[order], left.labels.take(order))
    ids = np.zeros(len(index), dtype=KEY)
    new = some.rows[index.rows[some.rows] >= 0]
    ids[new] = real_ids(index.keys[new], index.labels.take(new), numbers[new].astype(np.int64))
    return Piece(index, every, numbers, ids, some.reasons)


class _Bin:
    """The records of one bin of keys, and which of them are left out."""

    def __init__(self, decision: Decision, index: RecordIndex) -> None:
        self.decision, self.index, self.held = decision, index, decision.held
        self.reasons = np.zeros(len(index), dtype=np.int8)
        self.rows = np.arange(len(index))  # not left out
        self.overlaps: dict[str, int] = {}
        self.outside: dict[str, int] = {}  # class counts outside the hold-out
        self.clusters: NearClusters | None = None
        self.entries: LedgerMatch | None = None  # of the ledger, in a split by record

    def left(self) -> RecordIndex:
        return self.index.take(self.rows)

    def exclude(self, number: int, n_bins: int) -> None:
        """Leave out records on both sides of the split."""
        self._exclude_overlap(number, n_bins)
        self._exclude_twins()
        self.outside = self.left().labels.counts()
        # Fail on an overlap before the long search.
        if self.decision.source.on_overlap != "error" or not any(self.overlaps.values()):
            self._find_clusters()

    def _exclude_overlap(self, number: int, n_bins: int) -> None:
        if self.held is None:
            return
        # Several bins come without groups: what is equal is in the same bin.
        overlap = in_holdout(self.index, self.held.every.of_bin(number, n_bins))
        self.overlaps[HELD] = int(overlap.sum())
        self._leave_out(overlap, HELD)

    def _exclude_twins(self) -> None:
        """Leave out training copies of images that the user's column marks as hold-out."""
        index = self.index
        if index.marked is None or index.traits is None or index.groups is not None:
            return
        overlap = ~index.marked & np.isin(index.keys, index.keys[index.marked])
        self.overlaps[TWINS] = int(overlap.sum())
        self._leave_out(overlap, HELD)

    def _leave_out(self, unusable: Bool, reason: str) -> None:
        """Leave out the records where ``unusable``, over the whole bin, is true."""
        self.reasons[self.rows[unusable[self.rows]]] = REASONS.index(reason)
        self.rows = self.rows[~unusable[self.rows]]

    def _find_clusters(self) -> None:
        """Cluster near-duplicate images, unless groups decide what stays together."""
        if self.index.traits is None or self.index.groups is not None:
            return
        left = self.left()
        assert left.thumbs is not None
        clusters = find_clusters(
            left.keys,
            left.thumbs,
            ledger=self.decision.parent,
            thumb_rows=left.thumb_rows,
            marked=left.marked,
            likely=self.decision.likely,
        )
        bridges = np.zeros(len(self.index), dtype=bool)
        bridges[self.rows] = clusters.is_bridge
        self.clusters = clusters.take(np.flatnonzero(~clusters.is_bridge))
        self._leave_out(bridges, "bridge")

    def image_info(self, left: RecordIndex) -> ImageInfo | None:
        if left.traits is None:
            return None
        clusters = None if self.clusters is None else self.clusters.names
        n_near = 0
        if self.held is not None and self.held.images is not None:
            levels = None if self.clusters is None else self.clusters.levels
            held = self.held.every
            n_near = count_near(
                left.keys, self._thumbs_of(left), levels, held.keys, self._thumbs_of(held)
            )
        return image_info(
            self.decision.candidates.roles.image,
            left.traits,
            left.distinct_traits,
            clusters=clusters,
            n_near_holdout=n_near,
        )

    def _thumbs_of(self, left: RecordIndex) -> Thumbs:
        """Return the thumbnails of all records; those of earlier batches are in the ledger."""
        assert left.thumbs is not None
        assert left.thumb_rows is not None
        known = left.thumb_rows < 0
        if not known.any():
            return ThumbRows(left.thumbs, left.thumb_rows)
        thumbs = np.zeros((len(left), THUMB_BYTES), dtype=np.int8)
        thumbs[~known] = left.thumbs[left.thumb_rows[~known]]
        ledger = self.decision.parent
        if ledger.images is not None:
            place = np.searchsorted(ledger.keys, left.keys[known])
            thumbs[known] = ledger.images.thumbs[np.minimum(place, len(ledger.keys) - 1)]
        return thumbs


def numbers_within(keys: Array, labels: Coded) -> Int:
    """Return how many records of the same key and class come before each."""
    return ranks_within(group_ids(keys) * max(1, len(labels.names)) + labels.codes)
