"""The contracts of formats.

Of a source: bytes in, records out, and what could not be read said (:class:`SourceReader`). Of our
own shards: records in, one object out, and the same records back (:class:`ShardFormat`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.params import Source

__all__ = [
    "BATCH_BYTES",
    "Rejected",
    "ShardFormat",
    "ShardReader",
    "SourceReader",
    "SourceRecords",
    "in_batches",
    "whole",
]

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


class ShardReader(Protocol):
    """One of our shards, open: its schema and its groups are known, no record is read."""

    schema: pa.Schema
    group_rows: tuple[int, ...]  # records per group; a group is what is read at once, a few MiB

    def read(
        self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None
    ) -> pa.Table:
        """Return records of all groups or of some, in the order they were written in.

        Raises what Arrow and the file raise; :mod:`prefect_augment.shards.base` says it in our words.
        """
        ...

    def read_apart(
        self, columns: Sequence[str], images: Sequence[str], *, group: int
    ) -> tuple[pa.Table, dict[str, list[memoryview | None]]]:
        """Return these columns of a group, and of these image columns the images; None where there is none.

        Images are views: of the file itself where it is mapped or in memory, so that none is copied that
        is not used. They stay when the file is closed. Raises what :meth:`read` raises.
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
