"""Search everything in a folder that is to be shared for real records and for what gives them away.

Every file is looked at, whoever wrote it: Parquet and Arrow by column and by record, archives by
their members, images by their bytes, the rest as text and as numbers. Found are

- records: a row that equals one real record, or a text with several of its values;
- values: a level of few real records, a number of one;
- oracles: ids and content keys of real records, by which somebody who guesses a record knows that it
  is there.

A value by itself counts where chance hardly makes it: a text of five letters, a number of seven
digits. Records of the version's own shards may equal a real one by chance, in tables of few values;
so they count only beyond what equals records that no model has seen.
"""

import gzip
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import binomtest

from prefect_augment.array_types import Uint64
from prefect_augment.encoding.rare_values import MIN_LEVEL_RECORDS
from prefect_augment.encoding.values import is_text, plain, value_type
from prefect_augment.errors import IntegrityError
from prefect_augment.publish.real_values import Rare, RealValues, digests_of, numbers_of, texts_of
from prefect_augment.schema import DatasetInfo, Manifest, Result
from prefect_augment.storage import SharedStore, Store, private_objects, read_result, sha256_hex
from prefect_augment.storage.workspace import is_private
from prefect_augment.text import strings_in

MIN_LETTERS, MIN_DIGITS = 5, 7  # of a value that is a finding by itself
MIN_COLUMNS = 3  # of one record that meet in a text, where each by itself may be chance
NEAR = 80  # numbers and words between them
MAX_DEPTH = 3  # of archives in archives
MAX_BYTES = 1 << 30  # unpacked
MAX_PATTERNS = 2_000_000_000  # letters times texts that are searched for inside words
LEVEL = 0.001  # of the test against chance
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]*\w)")
_HEX = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{32})(?![0-9a-f])")
_CELLS = re.compile(r'[,;|\t\n\r"<>\[\]{}]+')


class Leak(Result):
    """Something of real records in a file; no value is quoted."""

    path: str
    kind: str  # folder, record, value, oracle
    message: str


def find_leaks(store: Store, manifest: Manifest) -> tuple[Leak, ...]:
    """Search a published dataset, with its workspace as the reference.

    Raises IntegrityError if the workspace, or the records staged for this version, are not there.
    """
    if not isinstance(store, SharedStore):
        leaks = [_misplaced(path) for path in private_objects(store)]
        if leaks:
            return tuple(leaks)
        raise IntegrityError(
            f"{store.uri} has no workspace here, so there is nothing to compare it with; run it where the dataset was "
            "made."
        )
    info = read_result(store, manifest.ingest, DatasetInfo) if manifest.ingest else None
    if info is None:
        raise IntegrityError(
            f"the records that version {manifest.version} of {store.uri} was made from are gone from its workspace; "
            "run it again, which stages them anew."
        )
    real = real_values(store, info, manifest)
    return leaks_of(store.destination, real, {s.path for s in manifest.shards})


def real_values(store: Store, info: DatasetInfo, manifest: Manifest) -> RealValues:
    """The reference of a version's staged records."""
    by = {name for entry in manifest.plan for name in entry.by}
    quality = manifest.params.get("quality", {})
    least = int(quality.get("min_level_records", MIN_LEVEL_RECORDS))
    return RealValues.of(store, info, min_records=least, known=[info.label, *by])


def leaks_of(
    destination: Store,
    real: RealValues,
    own_shards: set[str],
    *,
    more: dict[str, bytes] | None = None,
) -> tuple[Leak, ...]:
    """Search every object of a destination, and ``more`` that are not written yet, by path."""
    search = _Search(real, own_shards)
    for path in destination.list():
        if is_private(path):
            search.leaks.append(_misplaced(path))
        else:
            search.file(path, destination.read(path))
    for path, data in (more or {}).items():
        search.file(path, data)
    search.compare_with_chance()
    return tuple(search.leaks)


def _misplaced(path: str) -> Leak:
    return Leak(path=path, kind="folder", message="belongs into the workspace, not into a share")


class _Search:
    """What one search has found so far."""

    def __init__(self, real: RealValues, own_shards: set[str]) -> None:
        self.real, self.own_shards = real, own_shards
        self.leaks: list[Leak] = []
        self.names = [c.name for c in real.info.columns]
        self.equal = Counter[tuple[str, bool]]()  # rows of own shards that equal one record
        self.n_lone: Counter[bool] = Counter()
        self._lone: dict[tuple[str, ...], tuple[set[bytes], set[bytes]]] = {}
        texts = {t for rare in real.texts.values() for t in rare.values.tolist()}
        self.long_texts = {t for t in texts if len(t) >= MIN_LETTERS}

    def add(self, path: str, kind: str, message: str) -> None:
        if not any((leak.path, leak.kind) == (path, kind) for leak in self.leaks):
            self.leaks.append(Leak(path=path, kind=kind, message=message))

    # --- files --------------------------------------------------------------------------------

    def file(self, path: str, data: bytes, depth: int = 0) -> None:
        """Look at a file and, in an archive, at its members."""
        if sha256_hex(data) in self.real.hashes:
            self.add(path, "record", "is a file of a real record, byte by byte")
        is_table = data.startswith((b"PAR1", b"ARROW1"))
        archives = [unpack for at, magic, unpack in _ARCHIVES if data.startswith(magic, at)]
        if is_table:
            try:
                if data[:1] == b"P":
                    self._parquet(path, data)
                else:
                    self.table(path, pa.ipc.open_file(pa.BufferReader(data)).read_all())
            except (pa.ArrowException, OSError, ValueError) as exc:
                self.add(path, "unread", f"cannot be searched ({type(exc).__name__})")
        elif archives and depth < MAX_DEPTH:
            try:
                for name, member in archives[0](data):
                    self.file(f"{path}/{name}", member, depth + 1)
            except _DAMAGED:
                why = "is a damaged archive, of which not every member was searched"
                self.add(path, "unread", why)
        self.name_or_text(path, path)
        if is_table:
            return
        try:
            self.name_or_text(path, data.decode())
        except UnicodeDecodeError:
            self._binary(path, data)

    def _parquet(self, path: str, data: bytes) -> None:
        file = pq.ParquetFile(io.BytesIO(data))
        texts = [f.name for f in file.schema_arrow if is_text(value_type(f.type))]
        file = pq.ParquetFile(io.BytesIO(data), read_dictionary=texts)
        for key, value in (file.metadata.metadata or {}).items():
            if key != b"ARROW:schema":
                self.name_or_text(path, value.decode(errors="replace"))
        for i in range(file.num_row_groups):
            self.table(path, file.read_row_group(i))

    # --- tables -------------------------------------------------------------------------------

    def table(self, path: str, table: pa.Table) -> None:
        """Look at a table's columns, its dictionaries and its rows."""
        for name in dict.fromkeys(table.column_names):
            column = table.column(table.column_names.index(name))
            self._column(path, name, column)
        there = [
            name
            for name in self.names
            if name in table.column_names and table[name].null_count < table.num_rows
        ]
        if there and table.num_rows:
            self._rows(path, table, tuple(there))

    def _column(self, path: str, name: str, column: pa.ChunkedArray) -> None:
        kind = value_type(column.type)
        if pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            self._blobs(path, column, kind)
            return
        if is_text(kind) or pa.types.is_temporal(kind):
            shown = [c.dictionary for c in column.chunks if pa.types.is_dictionary(c.type)]
            texts = texts_of(plain(column))
            texts = np.concatenate([texts, *(texts_of(plain(values)) for values in shown)])
            refs = self._texts_of(path, name)
            if any((ref.find(texts) >= 0).any() for ref in refs):
                self.add(path, "value", f"column {name!r} has values of few real records")
            if is_text(kind) and self.real.hashes.intersection(texts.tolist()):
                self.add(path, "oracle", f"column {name!r} has ids or hashes of real records")
        elif name in self.real.numbers:
            rare = self._of(path, name, self.real.numbers)
            if (rare.find(numbers_of(plain(column))) >= 0).any():
                self.add(path, "value", f"column {name!r} has numbers of single real records")
        elif not name.startswith("aug_"):
            x = numbers_of(plain(column))
            x = np.array([v for v in x.tolist() if _digits(repr(v)) >= MIN_DIGITS])
            if any((rare.find(x) >= 0).any() for rare in self.real.numbers.values()):
                self.add(path, "value", f"column {name!r} has numbers of single real records")

    def _of(self, path: str, name: str, everywhere: dict[str, Rare]) -> Rare:
        """A column's rare values: in the version's own shards those that the generator has seen."""
        learnt = self.real.learnt if path in self.own_shards else {}
        return learnt.get(name, everywhere[name])

    def _texts_of(self, path: str, name: str) -> list[Rare]:
        if name in self.real.texts:
            return [self._of(path, name, self.real.texts)]
        return [] if name == self.real.info.label else [*self.real.texts.values()]

    def _blobs(self, path: str, column: pa.ChunkedArray, kind: pa.DataType) -> None:
        if pa.types.is_struct(kind):
            if "bytes" not in [f.name for f in kind]:
                return
            column = pa.compute.struct_field(column, "bytes")
        for value in column.drop_null():
            if sha256_hex(value.as_py()) in self.real.hashes:
                self.add(path, "record", "has the image of a real record")
                return

    def _rows(self, path: str, table: pa.Table, columns: tuple[str, ...]) -> None:
        """Count rows that equal one real record in all columns that the table has."""
        if len(columns) < len(self.names) / 2:
            return
        if columns not in self._lone:
            self._lone[columns] = (
                self.real.lone_rows(columns, training=True),
                self.real.lone_rows(columns, training=False),
            )
        members, others = self._lone[columns]
        rows = digests_of(iter([table]), columns).tolist()
        n_members, n_others = len(members.intersection(rows)), len(others.intersection(rows))
        if path not in self.own_shards:
            if n_members or n_others:
                self.add(path, "record", f"{n_members + n_others} rows equal a real record")
            return
        self.equal[path, True] += n_members
        self.equal[path, False] += n_others
        self.n_lone[True], self.n_lone[False] = len(members), len(others)

    def compare_with_chance(self) -> None:
        """Count equal rows of the version's own shards where members are met more than others."""
        n = {
            seen: sum(k for (_, s), k in self.equal.items() if s == seen) for seen in (True, False)
        }
        if not n[True] or not self.n_lone[True]:
            return
        if n[False]:
            share = self.n_lone[True] / (self.n_lone[True] + self.n_lone[False])
            if binomtest(n[True], n[True] + n[False], share, "greater").pvalue >= LEVEL:
                return
        for (path, is_member), k in self.equal.items():
            if is_member and k:
                self.add(path, "record", f"{k} rows equal a real training record")

    # --- texts --------------------------------------------------------------------------------

    def name_or_text(self, path: str, text: str) -> None:
        """Look for hashes, values and records in a text or a file's name."""
        if self.real.hashes.intersection(_HEX.findall(text)):
            self.add(path, "oracle", "has ids or hashes of real records")
        unescaped = _json_texts(text)
        cells = {c.strip().strip("'") for c in _CELLS.split(text)} | set(unescaped)
        words = set(re.findall(r"[\w.@+-]{5,}", text))
        is_there = not self.long_texts.isdisjoint(cells | words)
        if not is_there and len(text) * len(self.long_texts) < MAX_PATTERNS:
            is_there = any(" " in t and t in text for t in self.long_texts)
        if is_there:
            self.add(path, "value", "has texts of few real records")
        self._numbers(path, text)

    def _numbers(self, path: str, text: str) -> None:
        """Look for numbers of single records: one of many digits, or several of one record together."""
        tokens = [match.group() for match in _NUMBER.finditer(text)]
        if not tokens:
            return
        x = np.array([float(token) for token in tokens])
        digits = np.array([_digits(token) for token in tokens])
        near: dict[int, dict[str, int]] = defaultdict(dict)
        for name, rare in self.real.numbers.items():
            rows = rare.find(x)
            hits = np.flatnonzero(rows >= 0)
            if (digits[hits] >= MIN_DIGITS).any():
                self.add(path, "value", f"has numbers of single real records (column {name!r})")
                return
            for i in hits[digits[hits] >= 2].tolist():
                near[int(rows[i])].setdefault(name, i)
        needed = min(MIN_COLUMNS, max(2, len(self.real.numbers)))
        for places in near.values():
            at = sorted(places.values())
            if (
                len(at) >= needed
                and min(np.subtract(at[needed - 1 :], at[: len(at) - needed + 1])) < NEAR
            ):
                self.add(path, "record", "has several numbers of one real record side by side")
                return

    def _binary(self, path: str, data: bytes) -> None:
        """Look at a file that is no text: texts inside it, and float64 numbers at any place."""
        self.name_or_text(path, re.sub(r"[^\x20-\x7e\n]+", "\n", data.decode("latin-1")))
        if any(t.encode() in data for t in self.long_texts if not t.isascii()):
            self.add(path, "value", "has texts of few real records")
        for name, rare in self.real.numbers.items():
            wanted = np.array([v for v in rare.values.tolist() if _digits(repr(v)) >= MIN_DIGITS])
            if not len(wanted):
                continue
            bits = wanted.astype("<f8").view("<u8")
            for start in range(min(8, len(data))):
                end = start + (len(data) - start) // 8 * 8
                view: Uint64 = np.frombuffer(data[start:end], "<u8")
                if np.isin(view, bits).any():
                    self.add(path, "value", f"has numbers of single real records (column {name!r})")
                    return


def _digits(number: str) -> int:
    """Significant digits of a number as it is written."""
    mantissa = number.lower().partition("e")[0].replace(".", "").lstrip("+-0")
    return len(mantissa.rstrip("0"))


def _json_texts(text: str) -> list[str]:
    """Texts in a JSON file or in lines of JSON, unescaped; none if it is neither."""
    texts: list[str] = []
    if text.lstrip()[:1] in ("{", "["):
        for part in (text, *text.splitlines()):
            try:
                texts += strings_in(json.loads(part))
            except (ValueError, RecursionError):
                continue
            if part is text:
                break
    return texts


def _gzip(data: bytes) -> Iterator[tuple[str, bytes]]:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        yield "unpacked", file.read(MAX_BYTES)


def _zip(data: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                yield member.filename, file.read(MAX_BYTES)


def _tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read(MAX_BYTES)


# Where an archive's first bytes are, and what yields its members.
_ARCHIVES = ((0, b"\x1f\x8b", _gzip), (0, b"PK\x03\x04", _zip), (257, b"ustar", _tar))
_DAMAGED = (OSError, ValueError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
