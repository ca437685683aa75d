"""Files of a zip or tar, read in memory only; nothing is extracted to disk.

Names that leave the folder, links and devices are not read; sizes are bounded before and while unpacking, so
that a small file cannot fill the memory. The bound for text and tables is looser, as they compress better.
"""

import gzip
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from prefect_augment.errors import AugmentError, InputError
from prefect_augment.sources.images.files import Member, is_ignored

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# What an archive may unpack to: images hardly shrink, so this is far above any honest one.
MAX_EXPANSION = 50
MIN_TOTAL_BYTES = 1 << 30
# More would not fit in memory by their names alone; ImageNet has 1.3 million.
MAX_MEMBERS = 2_000_000
# What a tar says of one member beside its header: a long name, attributes. tarfile reads it at once.
MAX_EXTRA_BYTES = 1 << 20
EXTRA_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
PIECE_BYTES = 1 << 20
# An uncompressed pixel of four channels of 16 bits; no encoding needs more, save for its header.
BYTES_PER_PIXEL = 8
HEADER_BYTES = 1 << 20


def too_large(n_bytes: int, max_megapixels: float) -> bool:
    """Tell whether a file is larger than any image within the limit could be."""
    return n_bytes > max_megapixels * 1e6 * BYTES_PER_PIXEL + HEADER_BYTES


def read_archive(
    file: IO[bytes], *, name: str, n_bytes: int, max_megapixels: float
) -> Iterator[Member]:
    """Yield the files of a zip or tar (by the ending of ``name``), unreadable ones with the reason.

    Raises InputError if it is no archive, unpacks to far more than images would, or has too many members.
    """
    walk = _zip_members if name.lower().endswith(".zip") else _tar_members
    limit = max(MIN_TOTAL_BYTES, MAX_EXPANSION * n_bytes)
    n_members = total = 0
    try:
        for member, n_unpacked in walk(file, max_megapixels):
            n_members += 1
            total += n_unpacked
            if total > limit:
                raise _bomb(name, n_bytes, f"unpacks to more than {limit:,} bytes")
            if n_members > MAX_MEMBERS:
                raise _bomb(name, n_bytes, f"has more than {MAX_MEMBERS:,} members")
            yield member
    except _ExtraTooLong as exc:
        raise _bomb(name, n_bytes, f"says {exc} bytes of one member beside its content") from exc
    except AugmentError:
        raise
    except Exception as exc:  # tarfile and zipfile raise anything on headers that are made up
        if isinstance(exc, OSError) and exc.errno is not None:
            raise  # the store failed, not the archive
        if not n_members:
            raise InputError(
                f"{name} cannot be read as an archive ({str(exc) or type(exc).__name__}); it may be cut off or of "
                "another format. Write it again, or leave it out of the source.",
                path=name,
            ) from exc
        yield Member(
            f"{name}: from here on",
            n_members + 1,
            reason=f"truncated archive: {str(exc) or type(exc).__name__}",
        )


def _bomb(name: str, n_bytes: int, what: str) -> InputError:
    return InputError(
        f"{name} ({n_bytes:,} bytes) {what}, as decompression bombs do; "
        "unpack it yourself if you trust it, and give the folder.",
        path=name,
    )


def _zip_members(file: IO[bytes], max_megapixels: float) -> Iterator[tuple[Member, int]]:
    """Yield the members, each with its unpacked bytes."""
    with zipfile.ZipFile(file) as archive:
        for i, info in enumerate(archive.infolist(), start=1):
            if info.is_dir():
                continue
            path, reason = _checked(info.filename)
            if stat.S_ISLNK(info.external_attr >> 16):
                reason = "a link in an archive is not followed"
            elif too_large(info.file_size, max_megapixels):
                reason = "oversized (more bytes than an image may have)"
            if reason or is_ignored(path):
                yield Member(path, i, reason=reason), 0
                continue
            try:
                with archive.open(info) as member:
                    data, whole = _read(member, info.file_size)
            except AugmentError:
                raise
            except Exception as exc:  # noqa: BLE001 - as in read_archive
                yield Member(path, i, reason=f"cannot be unpacked: {_plain(exc)}"), 0
                continue
            reason = "" if whole else "oversized (more bytes than the archive says)"
            yield Member(path, i, data if whole else b"", reason), len(data)


class _ExtraTooLong(Exception):
    """A member's name or attributes would fill the memory before the member is seen."""


class _BoundedInfo(tarfile.TarInfo):
    """A member's header whose extra parts are read only where they are short."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type in EXTRA_TYPES and self.size > MAX_EXTRA_BYTES:
            raise _ExtraTooLong(f"{self.size:,}")
        return super()._proc_member(tar)  # type: ignore[misc]


def _tar_members(file: IO[bytes], max_megapixels: float) -> Iterator[tuple[Member, int]]:
    """Yield the members, each with its size: skipped ones are unpacked too."""
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_BoundedInfo) as archive:
        for i, info in enumerate(archive, start=1):
            if info.isdir():
                continue
            path, reason = _checked(info.name)
            if info.issym() or info.islnk():
                reason = "a link in an archive is not followed"
            elif not info.isreg():
                reason = "not a regular file"
            elif too_large(info.size, max_megapixels):
                reason = "oversized (more bytes than an image may have)"
            if reason or is_ignored(path):
                yield Member(path, i, reason=reason), info.size
                continue
            member = archive.extractfile(info)
            assert member is not None, "regular files have content"
            yield Member(path, i, _read(member, info.size)[0]), info.size


def _read(member: IO[bytes], n_bytes: int) -> tuple[bytes, bool]:
    """Read what the archive's directory announced; False where there is more."""
    pieces = []
    left = n_bytes + 1  # a directory that lies must not make us read on
    while left > 0 and (piece := member.read(min(PIECE_BYTES, left))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces), left > 0


def _plain(exc: Exception) -> str:
    """Return one line without the member's name, so that equal faults are counted together."""
    text = str(exc).splitlines()[0] if str(exc) else ""
    if isinstance(exc, RuntimeError) and "encrypted" in text:
        return "it is encrypted"
    return "its checksum is wrong" if "CRC" in text else type(exc).__name__


def _checked(name: str) -> tuple[str, str]:
    """Return the member's normalised path, and why it is not safe."""
    path = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    path = path.replace("\\", "/")
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return path, "unsafe name: an absolute path"
    segments = [s for s in path.split("/") if s not in ("", ".")]
    if ".." in segments:
        return path, "unsafe name: leaves the archive's folder"
    return "/".join(segments), ""


MAX_PACKED_EXPANSION = 250


def refuse_bomb(name: str, n_bytes: int, n_unpacked: int) -> None:
    """Raise InputError if a file of ``n_bytes`` has unpacked to far more than a table does."""
    limit = max(MIN_TOTAL_BYTES, MAX_PACKED_EXPANSION * n_bytes)
    if n_unpacked > limit:
        raise InputError(
            f"{name} ({n_bytes:,} bytes) unpacks to more than {limit:,} bytes, as decompression bombs "
            "do; if you trust it, write it again in several files or with less compression.",
            path=name,
            n_bytes=n_bytes,
        )


def size_of(file: IO[bytes]) -> int:
    """Return the file's size in bytes; it is then at its beginning."""
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return n_bytes


@contextmanager
def unpacked(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    """Yield a stream of the file's content from its start, unpacked if it is gzip; InputError if that is damaged."""
    file.seek(0)
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not is_packed:
        yield file
        return
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            yield stream  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise  # the store failed, not the file
        raise InputError(
            f"{name} cannot be unpacked ({exc}); it may be cut off. Write it again.", path=name
        ) from exc
