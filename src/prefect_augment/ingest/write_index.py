"""The outcome of the split, written per bin of keys: each record's shard, the ledger, and the record indexes.

Everything goes through local disk and comes back in the order in which it is needed.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from prefect_augment.array_types import ByteString, Int, Int32
from prefect_augment.encoding.record_ids import real_ids
from prefect_augment.ingest.assign import Decision, numbers_within
from prefect_augment.ingest.incremental import n_moved, refuse_moved
from prefect_augment.ingest.record_index import IndexSpill
from prefect_augment.ingest.validate import Candidates
from prefect_augment.ingest.write_shards import ShardLayout, ShardPlanner
from prefect_augment.schema import ImageInfo
from prefect_augment.split.ledger import HOLDOUT, PARTS
from prefect_augment.split.ledger_io import write_ledger
from prefect_augment.storage import Stage
from prefect_augment.storage.external_sort import bin_of
from prefect_augment.storage.keys import KEY, group_ids, joined, sort_order


@dataclass(frozen=True)
class SplitResult:
    """The split of the records that were read, and its totals."""

    layout: ShardLayout
    indexes: dict[int, tuple[str, int]]  # batch -> path of its index, number of its records
    n_used: Int  # (n_files,) records in a part
    class_counts: dict[str, int]  # records in a part, those of earlier batches too
    classes: tuple[str, ...]
    n_twins: int  # records whose key occurs more than once
    ledger: str
    ledger_digest: str
    n_new: int
    n_kept_against_mark: int
    is_grouped: bool  # whether any records stay together
    image: ImageInfo | None


def write_index(
    decision: Decision,
    candidates: Candidates,
    held: Candidates | None,
    *,
    batches: Int32,
    stage: Stage,
) -> SplitResult:
    """Write ledger and indexes into the stage, and return what writing the records needs.

    ``held`` is a hold-out with a source of its own; ``batches`` has the batch of each file. Raises
    NotReusableError, before anything is written, if a staged record would move.
    """
    workspace = candidates.scan.workspace
    indexes = IndexSpill(workspace, np.unique(batches).tolist())
    planner = ShardPlanner(candidates.n_records, workspace)
    class_counts: Counter[str] = Counter()
    n_used = np.zeros(len(batches), dtype=np.int64)
    n_twins = n_elsewhere = 0
    # A bin of keys at a time: count its records and spill their index and places.
    for number, piece in enumerate(decision.pieces()):
        index = piece.index
        n_elsewhere += n_moved(index, piece.parts, piece.numbers)
        index.parts, index.numbers = piece.parts, piece.numbers
        is_used, is_new = piece.parts >= 0, index.rows >= 0
        indexes.append(index)
        class_counts.update(index.labels.take(is_used).counts())
        keys = np.zeros(0, dtype=KEY) if held is None else held.every.keys
        in_bin: ByteString = keys[bin_of(keys, candidates.n_bins) == number]
        n_twins += _n_twins(index.keys[is_used], in_bin)
        there = is_used & is_new
        n_used += np.bincount(index.files[there], minlength=len(batches))
        planner.add(
            part=piece.parts[there],
            batch=index.batch[there],
            ids=piece.ids[there],
            keys=index.keys[there],
            sizes=index.sizes[there],
            rows=index.rows[there],
        )
        planner.leave_out(index.rows[is_new & ~is_used], piece.reasons[is_new & ~is_used])
        del piece, index
    refuse_moved(n_elsewhere)  # before anything is written
    ledger = decision.ledger
    return SplitResult(
        layout=planner.layout(dict(enumerate(PARTS))),
        indexes={
            number: (indexes.write(stage.store, prefix=stage.prefix, batch=number), n)
            for number, n in indexes.counts().items()
        },
        n_used=n_used,
        class_counts=dict(class_counts),
        classes=decision.classes,
        n_twins=n_twins,
        ledger=write_ledger(stage.store, ledger, prefix=stage.prefix),
        ledger_digest=ledger.digest,
        n_new=decision.n_new,
        n_kept_against_mark=decision.n_kept_against_mark,
        is_grouped=decision.is_grouped,
        image=decision.image,
    )


def _n_twins(keys: ByteString, theirs: ByteString) -> int:
    """Count records whose key occurs more than once, including a separate hold-out's."""
    n = np.bincount(group_ids(joined(keys, theirs)))
    return int(n[n > 1].sum())


def place_holdout(held: Candidates) -> ShardLayout:
    """Return the shard layout of a separate hold-out."""
    every = held.every
    order = sort_order(every.keys, every.labels.codes, every.variants)
    numbers = np.zeros(len(order), dtype=np.int64)
    numbers[order] = numbers_within(every.keys[order], every.labels.take(order))
    n = len(order)
    planner = ShardPlanner(n, held.scan.workspace)
    planner.add(
        part=np.full(n, HOLDOUT, dtype=np.int8),
        batch=np.ones(n, dtype=np.int32),
        ids=real_ids(every.keys, every.labels, numbers),
        keys=every.keys,
        sizes=every.sizes,
        rows=every.rows,
    )
    return planner.layout({HOLDOUT: PARTS[HOLDOUT]})
