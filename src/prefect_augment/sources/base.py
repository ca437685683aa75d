"""The contracts of formats.

Of a source: bytes in, records out, and what could not be read said (:class:`SourceReader`). Of our
own shards: records in, one object out, and the same records back (:class:`ShardFormat`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.params import Source

__all__ = ["BATCH_BYTES", "Rejected", "SourceReader", "SourceRecords", "in_batches", "whole"]

#: About so many bytes of Arrow data in a batch of records.
BATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class Rejected:
    """One record that cannot be used.

    ``position`` counts from 1: the line of a text file, the row of a table.
    """

    position: int
    reason: str
    raw: str = ""


@dataclass(frozen=True)
class SourceRecords:
    """Records of one source object, all or a batch; ``positions[i]`` is where record i stood in it."""

    table: pa.Table
    positions: NDArray[np.int64]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = field(default=())


class SourceReader(Protocol):
    """Reads one object of a source: one function, and a line in the registry's ``FORMATS``."""

    def __call__(
        self, file: IO[bytes], *, name: str, source: Source
    ) -> SourceRecords | Iterable[SourceRecords]:
        """Return the records in batches, or all at once where a format allows nothing else.

        Parameters
        ----------
        file : binary file
            Seekable; open as long as batches are asked for.
        name : str
            The object's path, for messages.
        source : Source
            How the user wants it to be read.

        Returns
        -------
        iterable of SourceRecords, or SourceRecords
            At least one batch, also of an object without records: it says the columns. Each about
            ``BATCH_BYTES`` of Arrow data, whatever the object says of its own size. All have one
            schema; the dictionaries of category columns may differ. Rejected records and notes come
            with any of them, each once.
        """
        ...


def in_batches(found: SourceRecords | Iterable[SourceRecords]) -> Iterator[SourceRecords]:
    """Return what a reader returned as batches."""
    return iter((found,) if isinstance(found, SourceRecords) else found)


def whole(found: SourceRecords | Iterable[SourceRecords]) -> SourceRecords:
    """Return what a reader returned as one."""
    batches = list(in_batches(found))
    return SourceRecords(
        pa.concat_tables([b.table for b in batches]).unify_dictionaries(),
        np.concatenate([b.positions for b in batches]),
        tuple(r for b in batches for r in b.rejected),
        tuple(note for b in batches for note in b.notes),
    )
