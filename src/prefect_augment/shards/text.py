"""Text of a source's object, decoded piece by piece as often as it is asked for."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from prefect_augment.errors import InputError, ParameterError
from prefect_augment.shards.packed import UNPACK_ERRORS, refuse_bomb, size_of

__all__ = ["Text"]

PIECE_BYTES = 1 << 20
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Text:
    """The text of a file whose encoding is given or found by looking at all of its bytes.

    Parameters
    ----------
    file : binary file
        Seekable; gzip is unpacked.
    name : str
        Its path, for messages.
    wished : str
        The encoding, or ``auto``.

    Attributes
    ----------
    encoding : str
        Its name.
    is_blank : bool
        Whether there is nothing but blanks.

    Raises
    ------
    InputError
        If it is not text of that encoding, or damaged gzip.
    ParameterError
        If there is no such encoding.
    """

    def __init__(self, file: IO[bytes], name: str, wished: str) -> None:
        self._file = file
        self._name = name
        self._n_bytes = size_of(file)
        self._is_gzip = file.read(2) == b"\x1f\x8b"
        encodings = [wished]
        if wished == "auto":
            encodings = _likely_encodings(next(self._pieces(), b""))
        for encoding in encodings:
            try:
                decoder = codecs.getincrementaldecoder(encoding)()
            except LookupError as exc:
                raise ParameterError(
                    f"encoding {wished!r} is unknown; use e.g. utf-8, cp1252 or utf-16."
                ) from exc
            try:
                self.is_blank = self._look(decoder)
            except UnicodeDecodeError:
                continue
            self._codec = encoding
            self.encoding = encoding.removesuffix("-sig")
            return
        raise InputError(
            f"{name} cannot be read as {' or '.join(encodings)}; say what it is with source.encoding.",
            path=name,
        )

    def _look(self, decoder: codecs.IncrementalDecoder) -> bool:
        """Decode all of it and return whether it is blank."""
        is_blank, has_zero = True, False
        for piece in self._pieces():
            text = decoder.decode(piece)
            has_zero = has_zero or "\0" in text
            is_blank = is_blank and not text.strip()
        decoder.decode(b"", final=True)
        if has_zero:
            raise InputError(
                f"{self._name} holds zero bytes: it is not text, or its encoding must be given.",
                path=self._name,
            )
        return is_blank

    def _pieces(self) -> Iterator[bytes]:
        total = 0
        with self._bytes() as raw:
            while piece := raw.read(PIECE_BYTES):
                total += len(piece)
                refuse_bomb(self._name, self._n_bytes, total)
                yield piece

    @contextmanager
    def _bytes(self) -> Iterator[IO[bytes]]:
        self._file.seek(0)
        if not self._is_gzip:
            yield self._file
            return
        try:
            with gzip.GzipFile(fileobj=self._file) as raw:
                yield raw  # type: ignore[misc]
        except UNPACK_ERRORS as exc:
            raise InputError(
                f"{self._name} cannot be unpacked ({exc}); it may be cut off. Write it again.",
                path=self._name,
            ) from exc

    @contextmanager
    def open(self) -> Iterator[Iterator[str]]:
        """Return the lines, with their ends as they stand."""
        with self._bytes() as raw:
            buffered = io.BufferedReader(_Raw(raw), PIECE_BYTES)
            yield io.TextIOWrapper(buffered, self._codec, newline="")


class _Raw(io.RawIOBase):
    """What a buffer reads from; it leaves the file open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._inner = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._inner.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def _likely_encodings(data: bytes) -> list[str]:
    for mark, encoding in BOMS:
        if data.startswith(mark):
            return [encoding]
    start = data[:4096]
    if len(start) >= 4 and start[1::2].count(0) > len(start) // 4 and start[::2].count(0) == 0:
        return ["utf-16-le"]
    if len(start) >= 4 and start[::2].count(0) > len(start) // 4 and start[1::2].count(0) == 0:
        return ["utf-16-be"]
    return ["utf-8", "cp1252"]
