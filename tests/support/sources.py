"""A reader's batches as one, for tests that compare whole files."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from prefect_augment.sources.base import SourceRecords, in_batches


def whole(result: SourceRecords | Iterable[SourceRecords]) -> SourceRecords:
    batches = list(in_batches(result))
    return SourceRecords(
        pa.concat_tables([b.table for b in batches]).unify_dictionaries(),
        np.concatenate([b.positions for b in batches]),
        tuple(r for b in batches for r in b.rejected),
        tuple(note for b in batches for note in b.notes),
    )
