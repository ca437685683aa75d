"""The contracts of formats.

Of a source: bytes in, records out, and what could not be read said (:class:`SourceReader`). Of our
own shards: records in, one object out, and the same records back (:class:`ShardFormat`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.params import Source

__all__ = ["Rejected", "ShardFormat", "ShardReader", "SourceReader", "SourceRecords"]


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


class ShardReader(Protocol):
    """One of our shards, open: its schema and its groups are known, no record is read."""

    schema: pa.Schema
    group_rows: tuple[int, ...]  # records per group; a group is what is read at once, a few MiB

    def read(
        self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None
    ) -> pa.Table:
        """Return records of all groups or of some, in the order they were written in.

        Raises what Arrow and the file raise; :mod:`prefect_augment.shards.formats` says it in our words.
        """
        ...


class ShardFormat(Protocol):
    """How records become one object. One class in one file, and a line in the registry.

    Equal tables give equal bytes, and what is read is the table that was encoded: columns, order,
    types, values and schema metadata.
    """

    ending: str  # of the objects' names, with the dot

    def write(
        self, groups: Iterable[pa.Table], sink: Any, *, label: str, classes: Sequence[str]
    ) -> None:
        """Write records as one object.

        Parameters
        ----------
        groups : iterable of pyarrow.Table
            The records in order, at least one table; what is in one is read together later. One
            dictionary per column; chunks as they come, which change no byte.
        sink : binary file
            Written from its start to its end; what is written is not changed afterwards.
        label : str
            The column that holds the class; empty where there is none.
        classes : sequence of str
            All classes of the version in their order, for formats that number them.

        Raises
        ------
        SchemaError
            If the format has no form for a column.
        """
        ...

    def open(self, file: Any) -> ShardReader:
        """Return the reader of an object; the file stays open as long as it is used."""
        ...
