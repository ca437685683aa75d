"""The contract of source formats (:class:`SourceReader`): bytes in, records and rejected records out.

Readers refuse what they know to be wrong in their own words. :func:`untrusted` is for the rest: parsers of other
packages raise anything on bytes that were made to harm.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Protocol

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Int
from prefect_augment.errors import AugmentError, InputError, SchemaError
from prefect_augment.params import Source

#: About so many bytes of Arrow data in a batch of records.
BATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class Rejected:
    """One invalid record; ``position`` is the line of a text file or row of a table, from 1."""

    position: int
    reason: str
    raw: str = ""


@dataclass(frozen=True)
class SourceRecords:
    """Records of one source object, all or a batch; ``positions[i]`` is the place of record i in it."""

    table: pa.Table
    positions: Int
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class StoredTable:
    """One state of a table that is no file: of a database, or of Delta, Iceberg or Lance."""

    name: str
    title: str  # in messages, such as Delta
    identity: str  # the snapshot's, or a digest of the records
    n_bytes: int
    open: Callable[[], pa.RecordBatchReader]


class SourceReader(Protocol):
    """Reads one object of a source: one function, and a line in the registry's ``FORMATS``."""

    def __call__(
        self, file: IO[bytes], *, name: str, source: Source
    ) -> SourceRecords | Iterable[SourceRecords]:
        """Return the records of the open, seekable file ``name``, in batches or all at once.

        At least one batch gives the columns of an empty object. Each has about ``BATCH_BYTES`` of Arrow data, whatever
        the object claims. One schema for all; dictionaries of category columns may differ. A rejected record
        or note comes once, with any batch.
        """
        ...


def in_batches(result: SourceRecords | Iterable[SourceRecords]) -> Iterator[SourceRecords]:
    """Return a reader's result as batches."""
    return iter((result,) if isinstance(result, SourceRecords) else result)


def numbered(tables: Iterable[pa.Table]) -> Iterator[SourceRecords]:
    """Yield tables as records, numbered from 1."""
    start = 1
    for table in tables:
        end = start + table.num_rows
        yield SourceRecords(table, np.arange(start, end, dtype=np.int64))
        start = end


@contextmanager
def untrusted(name: str, what: str) -> Iterator[None]:
    """Turn any error on a file, which should be a ``what``, into an InputError; ours and a store's failures pass.

    An `OSError` with a number is the store's: parsers' own have none.
    """
    try:
        yield
    except AugmentError:
        raise
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise
        text = str(exc).strip()
        reason = text.splitlines()[0][:300] if text else type(exc).__name__
        raise InputError(
            f"{name} cannot be read as {what} ({reason}); it may be cut off or of another format. "
            "Write it again, or leave it out of the source.",
            path=name,
        ) from exc


def guarded(read: SourceReader, what: str) -> Callable[..., Iterator[SourceRecords]]:
    """Return a reader in :func:`untrusted`, batch by batch."""

    def read_guarded(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
        with untrusted(name, what):
            yield from in_batches(read(file, name=name, source=source))

    return read_guarded


def refuse_duplicates(names: Sequence[str], where: str) -> None:
    """Refuse two columns of one name, of which one would be lost."""
    repeated = sorted(name for name, n in Counter(names).items() if n > 1)
    if repeated:
        raise SchemaError(
            f"{where} has more than one column named {', '.join(map(repr, repeated))}; "
            "rename or drop all but one of each.",
            columns=repeated,
        )
