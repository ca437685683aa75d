"""Shards of every format: put once, named by their content's hash, read by their ending."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from queue import Queue
from threading import Thread
from typing import IO, Any, Protocol, Required, TypedDict, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Array, Int32
from prefect_augment.errors import IntegrityError, SchemaError, StorageError
from prefect_augment.registry import SHARD_FORMATS, load_shard_format
from prefect_augment.schema import Origin, ShardInfo
from prefect_augment.storage import Draft, Store, sha256_hex
from prefect_augment.storage.keys import KEY

#: What to do about a published object that is not what it was.
ADVICE = (
    "restore it from a copy, or go on with an older version (`prefect-augment rollback`); "
    "`prefect-augment verify` names all that is damaged"
)
# 2 to 4 MB: larger row groups cost 13 times in random access (shared/research/storage.md, section 3).
ROW_GROUP_BYTES = 3 << 20
# Pieces (of about 1 MiB) that may wait to be hashed, which takes about as long as writing them.
WAITING = 16


class ShardReader(Protocol):
    """An open shard: schema and groups are known, no record is read."""

    schema: pa.Schema
    group_rows: tuple[int, ...]  # records per group; a group is what is read at once, a few MiB

    def read(
        self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None
    ) -> pa.Table:
        """Return records of all groups or of some, in order; raises what Arrow and the file raise."""
        ...

    def read_apart(
        self, columns: Sequence[str], images: Sequence[str], *, group: int
    ) -> tuple[pa.Table, dict[str, list[memoryview | None]]]:
        """Return ``columns`` of a group as a table, and of each image column its images, None for null.

        Images are views of the file (mapped or in memory), valid after it is closed. Raises what :meth:`read` does.
        """
        ...


class ShardFormat(Protocol):
    """How records become one object: one class in one module, and a line in the registry.

    Equal tables give equal bytes, and reading returns the encoded table: columns, order, types, values
    and schema metadata.
    """

    ending: str  # of the objects' names, with the dot

    def write(
        self, groups: Iterable[pa.Table], sink: Any, *, label: str, classes: Sequence[str]
    ) -> None:
        """Write records as one object; SchemaError if the format cannot hold a column.

        ``groups`` has at least one table, each a unit of reading, with one dictionary per column; chunks do not matter.
        ``label`` is the class column, empty for none; ``classes`` are all of the version, for formats that number them.
        """
        ...

    def open(self, file: Any) -> ShardReader:
        """Return the reader of an object; the file stays open as long as it is used."""
        ...


def label_names(column: Any) -> list[str]:
    """Return the class of each record: the label cast to text, a dictionary decoded first."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]


def rows_per_group(n_records: int, n_bytes: float) -> int:
    """Return the number of records per row group, given their bytes of Arrow data."""
    return max(1, int(ROW_GROUP_BYTES * n_records / max(1, n_bytes)))


def row_groups(table: pa.Table, n_rows: int) -> Iterator[pa.Table]:
    """Yield the table in groups of ``n_rows``; one empty group for an empty table."""
    for start in range(0, max(1, table.num_rows), n_rows):
        yield table.slice(start, n_rows)


def record_bytes(table: pa.Table) -> Int32:
    """Return the approximate bytes of Arrow data per record, independent of chunks."""
    total = np.zeros(table.num_rows, dtype=np.int64)
    for field in table.schema:
        total += _bytes(table[field.name].combine_chunks())
    return np.minimum(total, np.iinfo(np.int32).max).astype(np.int32)


def _bytes(column: pa.Array) -> Any:
    kind, t = column.type, pa.types
    if isinstance(column, pa.ChunkedArray):
        return np.concatenate([_bytes(chunk) for chunk in column.chunks])
    if t.is_struct(kind):
        return sum((_bytes(pc.struct_field(column, [i])) for i in range(kind.num_fields)), 0)
    if t.is_string(kind) or t.is_binary(kind) or t.is_large_string(kind) or t.is_large_binary(kind):
        lengths = pc.binary_length(column).fill_null(0)
        return lengths.to_numpy(zero_copy_only=False).astype(np.int64) + 4
    if t.is_list(kind) or t.is_large_list(kind):
        lengths = pc.list_value_length(column).fill_null(0)
        return lengths.to_numpy(zero_copy_only=False).astype(np.int64) * 8 + 4
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:
        return 16


def binary_column(keys: Array) -> pa.Array:
    """Return keys as a column of 16 bytes a record."""
    keys = np.ascontiguousarray(keys, dtype=KEY)
    return pa.Array.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(keys)])


def keys_of(column: pa.ChunkedArray) -> Array:
    """Return the keys of such a column."""
    chunks = [np.zeros(0, dtype=KEY)]
    for chunk in column.chunks:
        if n := len(chunk):
            data, start = chunk.buffers()[1], chunk.offset * KEY.itemsize
            chunks.append(np.frombuffer(data, dtype=KEY, count=n, offset=start))
    return np.concatenate(chunks)


def as_stream(table: pa.Table, options: pa.ipc.IpcWriteOptions | None = None) -> pa.Buffer:
    """Return a table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


class HashedSink:
    """A binary file over a draft; when the context ends, ``sha256`` is known and the data synced."""

    closed = False  # Arrow asks

    def __init__(self, draft: Draft) -> None:
        self.sha256 = ""
        self._draft = draft
        self._digest = hashlib.sha256()
        self._pieces: Queue[Any] = Queue(WAITING)
        self._thread = Thread(target=self._hash, daemon=True)

    def write(self, data: Any) -> int:
        """Append bytes; they may not change afterwards."""
        self._pieces.put(data)
        return self._draft.write(data)

    def flush(self) -> None:
        """Do nothing: the end of the context syncs."""

    close = flush

    def _hash(self) -> None:
        while (data := self._pieces.get()) is not None:
            self._digest.update(data)

    def __enter__(self) -> "HashedSink":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pieces.put(None)
        try:
            if error is None:
                self._draft.sync()  # the last pieces are hashed while the disk works
        finally:
            self._thread.join()
        self.sha256 = self._digest.hexdigest()


class ShardFields(TypedDict, total=False):
    """What a shard's records are."""

    split: Required[str]
    origin: Required[Origin]
    label: str  # empty where records have no class (quarantine, ledgers)
    classes: Sequence[str]  # for formats that number them


def write_shards(
    store: Store,
    table: pa.Table,
    *,
    prefix: str,
    stem: str,
    max_records: int,
    max_bytes: int,
    shard_format: str = "parquet",
    **of: Unpack[ShardFields],
) -> tuple[ShardInfo, ...]:
    """Put the records as immutable objects ``{prefix}/{stem}-{i:05d}-{sha12}``, in their order.

    A shard holds at most ``max_records`` and about ``max_bytes`` of Arrow data. It is written to a temporary
    file, or to memory for a remote store, and named when complete: a failing stream to the final key would
    commit half of it on an object store. Raises SchemaError if the format cannot hold a column.
    """
    kind = _format(shard_format)
    table = table.unify_dictionaries()
    n = table.num_rows
    if n == 0:
        return ()
    n_shards = max(math.ceil(n / max_records), math.ceil(table.nbytes / max_bytes))
    n_rows = math.ceil(n / min(n_shards, n))
    group = rows_per_group(n, table.nbytes)
    parts = (table.slice(start, n_rows) for start in range(0, n, n_rows))
    return tuple(
        write_shard(
            store, row_groups(part, group), kind=kind, name=f"{prefix}/{stem}-{i:05d}", **of
        )
        for i, part in enumerate(parts)
    )


def write_shard(
    store: Store,
    groups: Iterable[pa.Table],
    *,
    kind: ShardFormat,
    name: str,
    **of: Unpack[ShardFields],
) -> ShardInfo:
    """Put one shard as ``{name}-{sha12}`` with the format's ending; ``groups`` as in :meth:`ShardFormat.write`."""
    label = of.get("label", "")
    counts: Counter[str] = Counter()
    sizes: list[int] = []

    def counted() -> Iterator[pa.Table]:
        for group in groups:
            sizes.append(group.num_rows)
            if label:
                values = group[label].value_counts()
                names = label_names(values.field("values"))
                for one, n in zip(names, values.field("counts").to_pylist(), strict=True):
                    counts[one] += n  # two values may have one name
            yield group

    with store.draft(name.rpartition("/")[0]) as draft:
        with HashedSink(draft) as sink:
            kind.write(counted(), sink, label=label, classes=of.get("classes", ()))
        path = f"{name}-{sink.sha256[:12]}{kind.ending}"
        put_once(store, path, draft)
    return ShardInfo(
        path=path,
        split=of["split"],
        origin=of["origin"],
        n_records=sum(sizes),
        n_bytes=len(draft),
        sha256=sink.sha256,
        class_counts=dict(sorted(counts.items())),
    )


def put_once(store: Store, path: str, data: bytes | Draft) -> None:
    """Put the object unless one of that name, which holds its digest, and size exists."""
    if not store.holds(path, len(data)):
        store.put(path, data)


def read_shard(
    store: Store, path: str, columns: Sequence[str] | None = None, *, sha256: str = ""
) -> pa.Table:
    """Return the records of one of our shards, with ``columns`` in this order; ``sha256`` is of all bytes.

    Raises IntegrityError if the object is missing, truncated or altered, SchemaError for an unknown column.
    """
    with open_shard(store, path, sha256=sha256) as shard:
        return shard.read(columns)


def open_shard(store: Store, path: str, *, sha256: str = "", mapped: bool = True) -> "OpenShard":
    """Return a shard to read parts of; parameters and errors as in :func:`read_shard`.

    A local file is mapped without a copy, but pages read count as this process's memory until it is closed;
    sequential readers should pass ``mapped=False``.
    """
    with _readable(store, path):
        if sha256:
            file: Any = pa.BufferReader(_read_checked(store, path, sha256))
        elif store.is_local:  # mapped, as shards are never changed in place
            file = (pa.memory_map if mapped else pa.OSFile)(store.full(path))
        else:
            file = store.open(path)
        try:
            return OpenShard(store, path, file, _format(format_of(path)).open(file))
        except BaseException:
            file.close()
            raise


def check_digest(store: Store, path: str, sha256: str) -> None:
    """Check the object's bytes against its digest; raises what :func:`read_shard` does."""
    with _readable(store, path):
        _read_checked(store, path, sha256)


def _read_checked(store: Store, path: str, sha256: str) -> bytes:
    data = store.read(path)
    actual = sha256_hex(data)
    if actual != sha256:
        raise IntegrityError(
            f"{store.uri}/{path} has other bytes than were published (sha256 {actual[:12]}…, "
            f"expected {sha256[:12]}…); {ADVICE}.",
            path=path,
        )
    return data


def check_count(store: Store, shard: ShardInfo, n_records: int) -> None:
    """Raise IntegrityError if a shard does not hold as many records as the dataset says."""
    if n_records != shard.n_records:
        raise IntegrityError(
            f"{store.uri}/{shard.path} holds {n_records} records, and the dataset says {shard.n_records}; {ADVICE}.",
            path=shard.path,
        )


class OpenShard(AbstractContextManager["OpenShard"]):
    """A shard and its open file; a context manager."""

    def __init__(self, store: Store, path: str, file: IO[bytes], reader: ShardReader) -> None:
        self._store = store
        self._path = path
        self._file = file
        self._reader = reader
        self.schema, self.group_rows = reader.schema, reader.group_rows

    def read(
        self, columns: Sequence[str] | None = None, *, groups: Sequence[int] | None = None
    ) -> pa.Table:
        """Return records of all groups or of some, all columns or these in this order."""
        self._check(columns or ())
        with _readable(self._store, self._path):
            return self._reader.read(columns, groups=groups)

    def read_apart(
        self, columns: Sequence[str], images: Sequence[str], *, group: int
    ) -> tuple[pa.Table, dict[str, list[memoryview | None]]]:
        """Return columns of a group, and image columns as views of their images, not copied from a local file."""
        self._check([*columns, *images])
        with _readable(self._store, self._path):
            return self._reader.read_apart(columns, images, group=group)

    def _check(self, columns: Sequence[str]) -> None:
        unknown = [name for name in columns if name not in self.schema.names]
        if unknown:
            raise SchemaError(f"there is no column {', '.join(map(repr, unknown))} in the dataset.")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def _readable(store: Store, path: str) -> Iterator[None]:
    """Turn the errors of an unreadable shard into ours, with advice."""
    where = f"{store.uri}/{path}"
    try:
        yield
    except FileNotFoundError as exc:
        raise IntegrityError(
            f"{where} is missing, though the dataset lists it; {ADVICE}.", path=path
        ) from exc
    except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:  # the last of a column's name
        if isinstance(exc, OSError) and exc.errno is not None:
            raise StorageError(f"cannot read {where}: {exc}.", path=path) from exc
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise IntegrityError(f"{where} is damaged: {reason}; {ADVICE}.", path=path) from exc


@cache
def _format(name: str) -> ShardFormat:
    shard_format: ShardFormat = load_shard_format(name)()
    return shard_format


def format_of(path: str) -> str:
    """Return the name of a shard's format, by its ending."""
    for name in SHARD_FORMATS:
        if path.endswith(_format(name).ending):
            return name
    raise IntegrityError(
        f"{path} is a shard of a format that this release does not know; upgrade prefect-augment.",
        path=path,
    )
