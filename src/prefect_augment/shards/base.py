"""The contract of every source format: bytes in, records out, and what could not be read said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.params import Source

__all__ = ["Rejected", "SourceReader", "SourceRecords"]


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
    """The records of one source object; ``positions[i]`` is where record i stood in it."""

    table: pa.Table
    positions: NDArray[np.int64]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = field(default=())


class SourceReader(Protocol):
    """Reads one object of a source. ``name`` is its path, for messages."""

    def __call__(self, file: IO[bytes], *, name: str, source: Source) -> SourceRecords:
        """Return the records, and what could not be read."""
        ...
