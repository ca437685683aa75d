"""What becomes of every record: left out, or in which part, and under which id.

All of it is decided for all records together, on arrays, in an order that does not depend on the source's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.compact import KEY, Coded, group_ids, ranks_within
from prefect_augment.datatypes import ImageFacts
from prefect_augment.encoding.keys import real_ids
from prefect_augment.encoding.labels import check_classes, class_names, label_text
from prefect_augment.errors import InputError
from prefect_augment.params import Source
from prefect_augment.spill import give_back
from prefect_augment.splitting import Assignment, Ledger, assign
from prefect_augment.stages.holdout import in_holdout, refuse_other_classes
from prefect_augment.stages.marks import refuse_one_side
from prefect_augment.stages.near_split import (
    NearClusters,
    assign_clusters,
    count_near,
    find_clusters,
)
from prefect_augment.stages.record_index import LEFT_OUT, RecordIndex
from prefect_augment.stages.usable import Candidates
from prefect_augment.stages.usable_images import Traits, image_facts

__all__ = ["REASONS", "Decided", "decide", "numbers_within"]

#: Why records are left out that could be used by themselves.
REASONS = ("", "in hold-out", "bridge")


@dataclass(frozen=True)
class Decided:
    """What was decided.

    Parameters
    ----------
    index : RecordIndex
        The records.
    parts : ndarray of int8, shape (n_records,)
        Index into :data:`~prefect_augment.splitting.PARTS`, or :data:`~prefect_augment.stages.record_index.LEFT_OUT`.
    numbers : ndarray of int32, shape (n_records,)
        Number of each record among those of its key and class.
    ids : ndarray of keys, shape (n_records,)
        ``aug_id``.
    reasons : ndarray of int8, shape (n_records,)
        Why a record is left out: index into :data:`REASONS`; 0 where it is not.
    assignment : Assignment
        The split of those that are not.
    classes : tuple of str
        Names of the classes in the order of their values.
    is_grouped : bool
        Whether records stay together, by group or as near-duplicates.
    image : ImageFacts, optional
        What was found about the images.
    """

    index: RecordIndex
    parts: NDArray[np.int8]
    numbers: NDArray[np.int32]
    ids: NDArray[Any]
    reasons: NDArray[np.int8]
    assignment: Assignment
    classes: tuple[str, ...]
    is_grouped: bool
    image: ImageFacts | None


def decide(
    found: Candidates,
    index: RecordIndex,
    held: Candidates | None,
    *,
    ledger: Ledger,
    source: Source,
) -> Decided:
    """Decide on all records.

    Parameters
    ----------
    found : Candidates
        Those that were read.
    index : RecordIndex
        These and those of earlier batches.
    held : Candidates, optional
        A hold-out of its own.
    ledger : Ledger
        The parent version's, or an empty one.
    source : Source
        How records are split.

    Raises
    ------
    InputError
        If what the user says of the hold-out does not fit the records.
    """
    return _Decision(found, index, held, ledger, source).run()


class _Decision:
    def __init__(
        self,
        found: Candidates,
        index: RecordIndex,
        held: Candidates | None,
        ledger: Ledger,
        source: Source,
    ) -> None:
        self.found, self.index, self.held = found, index, held
        self.ledger, self.source = ledger, source
        self.reasons = np.zeros(len(index), dtype=np.int8)
        self.rows = np.arange(len(index))  # those that are not left out
        self.clusters: NearClusters | None = None

    def run(self) -> Decided:
        index = self.index
        self._check_label()
        if index.marked is not None:
            refuse_one_side(index.marked, self.source.holdout_column)
        if self.held is not None:
            refuse_other_classes(
                self.held, index.labels, self._label_values(), self.held.scan.listing.store.uri
            )
        self._settle_overlap()
        self._settle_twins()
        self._find_clusters()
        give_back()
        assignment = self._assign()
        give_back()
        parts = np.full(len(index), LEFT_OUT, dtype=np.int8)
        parts[self.rows] = assignment.parts
        numbers = np.zeros(len(index), dtype=np.int32)
        numbers[self.rows] = self._numbers(assignment)
        ids = np.zeros(len(index), dtype=KEY)
        new = self.rows[index.rows[self.rows] >= 0]
        ids[new] = real_ids(index.keys[new], index.labels.take(new), numbers[new].astype(np.int64))
        left = index.take(self.rows)
        counts = left.labels.counts()
        return Decided(
            index,
            parts,
            numbers,
            ids,
            self.reasons,
            assignment,
            tuple(name for name in class_names(self._label_values()) if name in counts),
            left.groups is not None or self.clusters is not None,
            self._image_facts(left),
        )

    # --- the label ---

    def _label_values(self) -> pa.Array:
        """The different labels of the records in their own type, also of those of earlier batches."""
        names = [n for n in self.index.labels.take(self.rows).counts() if n]
        values = self.found.label_values
        texts = label_text(values).to_pylist()
        values = values.filter(pa.array([text in names for text in texts], pa.bool_()))
        others = sorted(set(names).difference(texts))
        if not others:
            return values
        return pa.concat_arrays([values, pa.array(others, pa.string()).cast(values.type)])

    def _check_label(self) -> None:
        n = len(self.rows)
        check_classes(self._label_values(), n, n, name=self.found.roles.label)

    # --- the hold-out ---

    def _settle_overlap(self) -> None:
        if self.held is None:
            return
        index = self.index
        overlap = in_holdout(index.keys, index.labels, index.groups, self.held)
        if overlap.any() and self.source.on_overlap == "error":
            n, total = int(overlap.sum()), len(overlap)
            raise InputError(
                f"{n} of the source's {total} records are also in the hold-out {self.source.holdout_uri} (equal values "
                "and label, or the same group): the comparison would judge what was trained on. Take them out, or set "
                "source.on_overlap to 'drop' to quarantine them.",
                n_overlap=n,
            )
        self._leave_out(overlap, "in hold-out")
        if len(self.rows) == 0:
            raise InputError(
                "every record of the source is also in the hold-out; nothing is left to train on."
            )
        self._check_label()

    def _settle_twins(self) -> None:
        """An image on both sides of the user's own marks is in the hold-out, as one at its URI would be."""
        index = self.index
        if index.marked is None or index.traits is None or index.groups is not None:
            return
        overlap = ~index.marked & np.isin(index.keys, index.keys[index.marked])
        if overlap.any() and self.source.on_overlap == "error":
            raise InputError(
                f"{int(overlap.sum())} images that {self.source.holdout_column!r} marks as training are byte for byte "
                "also marked as hold-out: the comparison would judge what was trained on. Take them out, or set "
                "source.on_overlap to 'drop' to quarantine them.",
                n_overlap=int(overlap.sum()),
            )
        self._leave_out(overlap, "in hold-out")

    def _leave_out(self, unusable: NDArray[np.bool_], reason: str) -> None:
        """Leave records out; ``unusable`` is about all of them."""
        self.reasons[self.rows[unusable[self.rows]]] = REASONS.index(reason)
        self.rows = self.rows[~unusable[self.rows]]

    # --- the split ---

    def _find_clusters(self) -> None:
        """Find near-duplicate images, where no group says what belongs together."""
        if self.index.traits is None or self.index.groups is not None:
            return
        left = self.index.take(self.rows)
        assert left.thumbs is not None
        clusters = find_clusters(
            left.keys,
            left.thumbs,
            ledger=self.ledger,
            thumb_rows=left.thumb_rows,
            marked=left.marked,
        )
        bridges = np.zeros(len(self.index), dtype=bool)
        bridges[self.rows] = clusters.is_bridge
        self.clusters = clusters.take(np.flatnonzero(~clusters.is_bridge))
        self._leave_out(bridges, "bridge")

    def _assign(self) -> Assignment:
        left = self.index.take(self.rows)
        wishes: dict[str, Any] = {
            "ledger": self.ledger,
            "holdout_fraction": 0.0 if self.held is not None else self.source.holdout_fraction,
            "val_fraction": self.source.val_fraction,
            "marked": left.marked,
        }
        if self.clusters is not None and left.thumbs is not None:
            return assign_clusters(
                left.keys,
                left.labels,
                self.clusters,
                left.thumbs,
                thumb_rows=left.thumb_rows,
                **wishes,
            )
        return assign(left.keys, left.labels, groups=left.groups, **wishes)

    def _numbers(self, assignment: Assignment) -> NDArray[np.int64]:
        """Number of each record among those of its key and class, in the ledger's order."""
        order = np.argsort(assignment.occurrences, kind="stable")
        rows = self.rows[order]
        numbers = np.zeros(len(order), dtype=np.int64)
        numbers[order] = numbers_within(self.index.keys[rows], self.index.labels.take(rows))
        return numbers

    # --- images ---

    def _image_facts(self, left: RecordIndex) -> ImageFacts | None:
        if left.traits is None or left.thumb_rows is None or left.thumbs is None:
            return None
        found = {}
        if self.clusters is not None:
            sizes = np.unique(self.clusters.names, return_counts=True)[1]
            found = {
                "n_clusters": int((sizes > 1).sum()),
                "n_clustered": int(sizes[sizes > 1].sum()),
                "largest_cluster": int(sizes.max(initial=0)),
            }
        if self.held is not None and self.held.images is not None:
            levels = np.zeros(len(left), dtype=np.int64)
            found["n_near_holdout"] = count_near(
                left.keys,
                self._thumbs_of(left),
                levels if self.clusters is None else self.clusters.levels,
                self.held.keys,
                self.held.images.thumbs,
            )
        counts = np.bincount(left.traits, minlength=len(left.kinds)).tolist()
        kinds: Mapping[Traits, int] = {
            kind: n for kind, n in zip(left.kinds, counts, strict=True) if n
        }
        return image_facts(self.found.roles.image, kinds, **found)

    def _thumbs_of(self, left: RecordIndex) -> NDArray[np.int8]:
        """Thumbnails of all records; the ledger has those of earlier batches."""
        assert left.thumbs is not None
        assert left.thumb_rows is not None
        known = left.thumb_rows < 0
        if not known.any():
            return left.thumbs[left.thumb_rows]
        thumbs = np.zeros((len(left), left.thumbs.shape[1]), dtype=np.int8)
        thumbs[~known] = left.thumbs[left.thumb_rows[~known]]
        if self.ledger.images is not None:
            place = np.searchsorted(self.ledger.keys, left.keys[known])
            thumbs[known] = self.ledger.images.thumbs[np.minimum(place, len(self.ledger.keys) - 1)]
        return thumbs


def numbers_within(keys: NDArray[Any], labels: Coded) -> NDArray[np.int64]:
    """Return how many records of the same key and class come before each."""
    return ranks_within(group_ids(keys) * max(1, len(labels.names)) + labels.codes)
