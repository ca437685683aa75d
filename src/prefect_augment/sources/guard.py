"""The one guard around parsers of users' files: whatever they raise is an error that names the file.

Readers refuse what they know to be wrong in their own words. This is for the rest: parsers of other packages raise
anything on bytes that were made to harm.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO

from prefect_augment.errors import AugmentError, InputError
from prefect_augment.params import Source
from prefect_augment.sources.base import SourceRecords, in_batches

Read = Callable[..., SourceRecords | Iterable[SourceRecords]]


@contextmanager
def untrusted(name: str, what: str) -> Iterator[None]:
    """Turn any error on a file into an :class:`InputError` that names it; ours and a store's failures pass.

    ``what`` is what the file should be, such as Parquet. An `OSError` with a number is the store's: parsers'
    own have none.
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


def guarded(read: Read, what: str) -> Callable[..., Iterator[SourceRecords]]:
    """Return a :class:`~prefect_augment.sources.base.SourceReader` in the guard, batch by batch."""

    def read_guarded(file: IO[bytes], *, name: str, source: Source) -> Iterator[SourceRecords]:
        with untrusted(name, what):
            yield from in_batches(read(file, name=name, source=source))

    return read_guarded
