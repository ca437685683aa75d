"""How much a file of a source may unpack to: a small one must not fill the memory.

Text and tables shrink far better than images, so the bound is looser than that of archives
(:mod:`prefect_augment.shards.archives`), and far below what a bomb is made for.
"""

from __future__ import annotations

import gzip
import os
import zlib
from typing import IO

from prefect_augment.errors import InputError

__all__ = ["UNPACK_ERRORS", "most_bytes", "opened", "refuse_bomb", "size_of"]

MAX_EXPANSION = 250
MIN_TOTAL_BYTES = 1 << 30
PIECE_BYTES = 1 << 20
GZIP = b"\x1f\x8b"

#: What reading a damaged gzip file raises; an OSError with an errno is the store's.
UNPACK_ERRORS = (OSError, EOFError, zlib.error)


def most_bytes(n_bytes: int) -> int:
    """Return how much a file of ``n_bytes`` may unpack to."""
    return max(MIN_TOTAL_BYTES, MAX_EXPANSION * n_bytes)


def refuse_bomb(name: str, n_bytes: int, n_unpacked: int) -> None:
    """Raise where a file has unpacked to more than an honest one would.

    Raises
    ------
    InputError
        If ``n_unpacked`` is more than :func:`most_bytes`.
    """
    if n_unpacked > most_bytes(n_bytes):
        raise InputError(
            f"{name} ({n_bytes:,} bytes) unpacks to more than {most_bytes(n_bytes):,} bytes, as decompression bombs "
            "do; if you trust it, write it again in several files or with less compression.",
            path=name,
            n_bytes=n_bytes,
        )


def size_of(file: IO[bytes]) -> int:
    """Return the file's size in bytes; it is then at its beginning."""
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return n_bytes


def opened(file: IO[bytes]) -> IO[bytes]:
    """Return a stream of the file's content from its beginning, unpacked where it is gzip."""
    file.seek(0)
    is_packed = file.read(len(GZIP)) == GZIP
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if is_packed else file  # type: ignore[return-value]
