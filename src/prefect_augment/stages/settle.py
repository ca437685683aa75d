"""What stays of the decision on all records: where each that was read goes, and objects for later runs.

The arrays of all records are let go of before the records themselves are gone through again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefect_augment.compact import KEY, group_ids, joined, sort_order
from prefect_augment.datatypes import ImageFacts
from prefect_augment.encoding.keys import real_ids
from prefect_augment.spill import give_back
from prefect_augment.splitting import HOLDOUT, PARTS
from prefect_augment.stages.decide import Decided, numbers_within
from prefect_augment.stages.ledger import write_ledger
from prefect_augment.stages.record_index import LEFT_OUT, write_index
from prefect_augment.stages.staged_shards import Placing, place
from prefect_augment.stages.usable import Candidates
from prefect_augment.staging import Stage

__all__ = ["Settled", "place_holdout", "settle"]


@dataclass(frozen=True)
class Settled:
    """What was decided, as far as records that were read go, and in sums.

    Parameters
    ----------
    placing : Placing
        The shard of each candidate.
    reasons : ndarray of int8, shape (n_candidates,)
        Why one goes nowhere: index into :data:`~prefect_augment.stages.decide.REASONS`.
    indexes : dict
        Batch number -> path of its index and number of its records; batches that were read.
    n_used : ndarray of int64, shape (n_files,)
        Records of each file that are in a part.
    class_counts : dict
        Class -> records in a part, those of earlier batches too.
    classes : tuple of str
        In the order of their values.
    n_twins : int
        Records whose key occurs more than once.
    ledger, ledger_digest : str
        Path and content of the split's ledger.
    n_new, n_kept_against_mark : int
        See :class:`prefect_augment.splitting.Assignment`.
    is_grouped : bool
        Whether records stay together.
    image : ImageFacts, optional
        What was found about the images.
    """

    placing: Placing
    reasons: NDArray[np.int8]
    indexes: dict[int, tuple[str, int]]
    n_used: NDArray[np.int64]
    class_counts: dict[str, int]
    classes: tuple[str, ...]
    n_twins: int
    ledger: str
    ledger_digest: str
    n_new: int
    n_kept_against_mark: int
    is_grouped: bool
    image: ImageFacts | None


def settle(
    decided: Decided,
    found: Candidates,
    held: Candidates | None,
    *,
    batches: NDArray[np.int32],
    stage: Stage,
) -> Settled:
    """Put ledger and indexes into the stage, and return what is needed to write the records.

    Parameters
    ----------
    decided : Decided
        On all records; where nothing else refers to it, its arrays go on the way.
    found : Candidates
        The records that were read.
    held : Candidates, optional
        A hold-out of its own.
    batches : ndarray of int32, shape (n_files,)
        Batch of each file.
    stage : Stage
        Where objects go.
    """
    index, ledger = decided.index, decided.assignment.ledger
    index.parts, index.numbers = decided.parts, decided.numbers
    new = np.flatnonzero(index.rows >= 0)
    indexes = {
        number: (
            write_index(stage.store, index, prefix=stage.prefix, batch=number),
            int((index.batch == number).sum()),
        )
        for number in np.unique(index.batch[new]).tolist()
    }
    ledger_path = write_ledger(stage.store, ledger, prefix=stage.prefix)
    ledger_digest = ledger.digest
    n_new, n_kept = decided.assignment.n_new, decided.assignment.n_kept_against_mark
    classes, is_grouped, image = decided.classes, decided.is_grouped, decided.image
    is_used = decided.parts >= 0
    class_counts = index.labels.take(is_used).counts()
    n_twins = _n_twins(index.keys[is_used], held)

    n, rows = found.n_records, index.rows[new]
    part = np.full(n, LEFT_OUT, dtype=np.int8)
    ids, keys = np.zeros(n, dtype=KEY), np.zeros(n, dtype=KEY)
    reasons = np.zeros(n, dtype=np.int8)
    part[rows], ids[rows], keys[rows] = decided.parts[new], decided.ids[new], index.keys[new]
    reasons[rows] = decided.reasons[new]
    # The largest arrays go before others are made.
    del decided, index, ledger, new, rows, is_used
    give_back()
    return Settled(
        placing=place(dict(enumerate(PARTS)), part, batches[found.files], ids, keys, found.sizes),
        reasons=reasons,
        indexes=indexes,
        n_used=np.bincount(found.files[part >= 0], minlength=len(batches)),
        class_counts=class_counts,
        classes=classes,
        n_twins=n_twins,
        ledger=ledger_path,
        ledger_digest=ledger_digest,
        n_new=n_new,
        n_kept_against_mark=n_kept,
        is_grouped=is_grouped,
        image=image,
    )


def _n_twins(keys: NDArray[np.bytes_], held: Candidates | None) -> int:
    keys = joined(keys, held.keys if held else keys[:0])
    n = np.bincount(group_ids(keys))
    return int(n[n > 1].sum())


def place_holdout(held: Candidates) -> Placing:
    """Return where the records of a hold-out of its own go."""
    order = sort_order(held.keys, held.labels.codes, held.variants)
    numbers = np.zeros(len(order), dtype=np.int64)
    numbers[order] = numbers_within(held.keys[order], held.labels.take(order))
    n = len(order)
    return place(
        {HOLDOUT: PARTS[HOLDOUT]},
        np.full(n, HOLDOUT, dtype=np.int8),
        np.ones(n, dtype=np.int32),
        real_ids(held.keys, held.labels, numbers),
        held.keys,
        held.sizes,
    )
