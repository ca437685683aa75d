"""The split ledger as a Parquet object: one row per record or group, the rest in its metadata.

An image's row also has its near-duplicate cluster and a thumbnail (1 kB before compression), so later
versions find near-duplicates of images that the source no longer has.
"""

import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_augment.array_types import Array
from prefect_augment.errors import IntegrityError, SchemaError
from prefect_augment.schema import DatasetInfo
from prefect_augment.shards.base import write_shard
from prefect_augment.shards.parquet import ParquetShards
from prefect_augment.sources.images.validation import THUMB_SIDE
from prefect_augment.split.ledger import HOLDOUT, PARTS, ImageRows, Ledger, LedgerSpill
from prefect_augment.storage import SharedStore, Store
from prefect_augment.storage.keys import KEY, Coded, Keys, hex_column, key_texts, unhex
from prefect_augment.storage.spill import ArraySpill

#: Unit of a ledger whose near-duplicate images stay together.
NEAR_DUPLICATE = "near-duplicate"
THUMB_BYTES = THUMB_SIDE * THUMB_SIDE

ROWS_AT_ONCE = 131_072
HEX_DIGITS = frozenset("0123456789abcdef")
SEALED = "sealed"  # in the metadata of a ledger whose keys are sealed
TAG_BYTES = 16

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("occurrence", pa.int64()),
        ("label", pa.string()),
        ("part", pa.string()),
    ]
)

IMAGES = (
    pa.field("cluster", pa.string()),
    pa.field("level", pa.int64()),
    pa.field("thumb", pa.binary(THUMB_BYTES)),
)

_STORED_PARTS = (*PARTS, "fit", "val")  # the last two by versions before 0.2, in the same order


def write_ledger(store: Store, ledger: Ledger | LedgerSpill, *, prefix: str) -> str:
    """Put the ledger as ``{prefix}/ledger-<sha12>.parquet``, in a workspace with sealed keys, and return that path."""
    secret = secret_of(store)
    metadata = {
        "salt": ledger.salt,
        "unit": ledger.unit,
        "has_own_holdout": "true" if ledger.has_own_holdout else "false",
    }
    if secret:
        metadata[SEALED] = "true"
    fields = [*SCHEMA, *(IMAGES if ledger.images is not None else ())]
    schema = pa.schema(fields, metadata=metadata)
    return write_shard(
        store,
        # Text is made of a block at a time: it takes twice the space of the keys.
        (_block(some, schema, secret) for some in ledger.blocks(ROWS_AT_ONCE)),
        kind=ParquetShards(),
        name=f"{prefix}/ledger",
        split="ledger",
        origin="real",
    ).path


def _block(ledger: Ledger, schema: pa.Schema, secret: bytes) -> pa.Table:
    columns = [
        _texts(ledger.keys, secret),
        pa.array(ledger.occurrences, pa.int64()),
        pa.array(ledger.labels, pa.string()),
        pa.array(PARTS).take(pa.array(ledger.parts)),
    ]
    if ledger.images is not None:
        thumbs = np.ascontiguousarray(ledger.images.thumbs)
        columns += [
            _texts(ledger.images.clusters, secret),
            pa.array(ledger.images.levels, pa.int64()),
            pa.Array.from_buffers(
                pa.binary(THUMB_BYTES), len(thumbs), [None, pa.py_buffer(thumbs)]
            ),
        ]
    return pa.table(columns, schema=schema)


def _texts(keys: Array, secret: bytes) -> pa.Array:
    if secret:
        return sealed(keys, secret)
    return hex_column(keys) if keys.dtype == KEY else pa.array(key_texts(keys), pa.string())


def split_clusters(store: Store, info: DatasetInfo, content_keys: Sequence[str]) -> list[str]:
    """Return the near-duplicate cluster of staged images, for folds and resamples; others are their own cluster."""
    ledger = read_ledger(store, info.ledger, with_thumbs=False)
    if ledger.images is None:
        return list(content_keys)
    wanted = _as_keys(content_keys)
    distinct = Coded.of(wanted)
    rows = ledger.rows_of(distinct.names)[distinct.codes]
    names = key_texts(ledger.images.clusters[rows])
    return [
        name if row >= 0 else key
        for key, row, name in zip(content_keys, rows.tolist(), names, strict=True)
    ]


def _as_keys(content_keys: Sequence[str]) -> Array:
    """Return the content keys as bytes; anything else as a key that no image has."""
    keys = np.zeros(len(content_keys), dtype=KEY)
    is_key = [len(key) == 32 and not set(key) - HEX_DIGITS for key in content_keys]
    whole = [key for key, good in zip(content_keys, is_key, strict=True) if good]
    keys[is_key] = unhex(pa.array(whole, pa.string()))
    return keys


def read_ledger(store: Store, path: str, *, with_thumbs: bool = True) -> Ledger:
    """Return the ledger at ``path``, without a kilobyte per image if ``with_thumbs`` is false.

    Raises IntegrityError if it cannot be read: without it, hold-out records could enter training.
    """
    with _opened(store, path) as (file, metadata):
        return _read(file, metadata, secret_of(store), with_thumbs)


@contextmanager
def _opened(store: Store, path: str) -> Iterator[tuple[pq.ParquetFile, dict[str, str]]]:
    """Open a ledger with its metadata; IntegrityError if it is missing or damaged."""
    try:
        with store.open(path) as raw:
            file = pq.ParquetFile(raw)
            metadata = file.schema_arrow.metadata or {}
            yield file, {k.decode(): v.decode() for k, v in metadata.items()}
    except (FileNotFoundError, pa.ArrowException, KeyError, ValueError) as exc:
        raise IntegrityError(
            f"the split ledger {store.uri}/{path} cannot be read ({type(exc).__name__}: {exc}); restore it, or "
            "publish to another destination, which starts a new split.",
            path=path,
        ) from exc


def holdout_entries(store: Store, path: str) -> tuple[int, Literal["record", "group"]]:
    """Return how many records or groups the hold-out has ever held, but for erased ones, and which they are."""
    with _opened(store, path) as (file, metadata):
        n = sum(
            pc.sum(pc.equal(batch["part"], PARTS[HOLDOUT])).as_py() or 0
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=["part"])
        )
        return n, "group" if _is_grouped(metadata) else "record"


def part_codes(parts: pa.Array) -> pa.Int8Array:
    """Return stored names of parts as positions in :data:`.PARTS`."""
    codes = pc.index_in(parts, value_set=pa.array(_STORED_PARTS))
    if codes.null_count:
        raise ValueError("a part is none of training, validation and holdout")
    return pa.array(codes.to_numpy() % len(PARTS), type=pa.int8())


def _is_grouped(metadata: Mapping[str, str]) -> bool:
    return metadata["unit"].startswith(("group:", "pattern:"))


def _read(
    file: pq.ParquetFile, metadata: dict[str, str], secret: bytes, with_thumbs: bool
) -> Ledger:
    """Read a ledger block by block into coded columns."""
    schema = file.schema_arrow
    has_images = "cluster" in schema.names
    if has_images and schema.field("thumb").type.byte_width != THUMB_BYTES:
        raise SchemaError(
            f"the dataset's ledger has thumbnails of {schema.field('thumb').type.byte_width} bytes "
            f"and this version compares {THUMB_BYTES}; publish to a new folder."
        )

    def read(column: pa.Array, *, is_text: bool) -> Array:
        if SEALED in metadata:
            return opened(column, secret, is_text=is_text)
        return _as_objects(column) if is_text else unhex(column)

    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    thumbs = ArraySpill(THUMB_BYTES)
    label_names: dict[str, int] = {}
    wanted = [name for name in schema.names if with_thumbs or name != "thumb"]
    for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
        labels = batch["label"].dictionary_encode()
        codes = [label_names.setdefault(n, len(label_names)) for n in labels.dictionary.to_pylist()]
        columns["label"].append(np.array(codes, dtype=np.int32)[labels.indices.to_numpy()])
        columns["key"].append(read(batch["key"], is_text=_is_grouped(metadata)))
        columns["occurrence"].append(batch["occurrence"].to_numpy().astype(np.int32))
        columns["part"].append(part_codes(batch["part"]).to_numpy())
        if has_images:
            columns["cluster"].append(read(batch["cluster"], is_text=False))
            columns["level"].append(batch["level"].to_numpy())
        if has_images and with_thumbs:
            data = batch["thumb"].buffers()[1]
            start = batch["thumb"].offset * THUMB_BYTES
            pixels = np.frombuffer(data, np.int8)[start : start + batch.num_rows * THUMB_BYTES]
            thumbs.append(pixels)
    ledger = Ledger(
        metadata["salt"],
        metadata["unit"],
        has_own_holdout=metadata["has_own_holdout"] == "true",
        images=ImageRows() if has_images else None,
    )
    if not columns["key"]:
        return ledger
    column = {name: np.concatenate(values) for name, values in columns.items() if values}
    return replace(
        ledger,
        keys=column["key"],
        occurrences=column["occurrence"],
        labels=Coded.from_names(column["label"], list(label_names)),
        parts=column["part"],
        images=ImageRows(column["cluster"], column["level"], thumbs) if has_images else None,
    )


def _as_objects(column: pa.Array) -> Array:
    return np.array([*column.to_pylist(), None], dtype=object)[:-1]


# A content key is a hash of a record's values, so whoever guesses a record can look whether its hash is there. A
# sealed key is HMAC(secret, key) followed by the key, masked by a stream that the secret and the HMAC give: a
# synthetic initialisation vector (Rogaway & Shrimpton 2006, "A provable-security treatment of the key-wrap
# problem"; here with SHA-256 and SHAKE-256). Equal keys are sealed alike; the secret opens them again.


def secret_of(store: Store) -> bytes:
    """Return the secret of a dataset's workspace; empty where there is none, and keys stay as they are."""
    return store.ledger_key if isinstance(store, SharedStore) else b""


def sealed(keys: Keys, secret: bytes) -> pa.Array:
    """Return keys, 16 bytes each or texts, sealed as text."""
    tagged = ((_tag(key, secret), key) for key in _bytes_of(keys))
    return pa.array([(t + _masked(key, t, secret)).hex() for t, key in tagged], pa.string())


def opened(column: pa.Array, secret: bytes, *, is_text: bool) -> Keys:
    """Return the keys that :func:`sealed` got; IntegrityError under another secret."""
    plain = []
    for text in column.to_pylist():
        data = bytes.fromhex(text)
        tag = data[:TAG_BYTES]
        key = _masked(data[TAG_BYTES:], tag, secret)
        if not secret or not hmac.compare_digest(tag, _tag(key, secret)):
            raise IntegrityError(
                "the split ledger is sealed with the secret of another workspace; put back the workspace that this "
                "dataset was made with."
            )
        plain.append(key)
    if is_text:
        return _as_objects(pa.array([key.decode() for key in plain], pa.string()))
    return np.frombuffer(b"".join(plain), dtype=KEY)


def with_keys(store: Store, table: pa.Table, *, opens: bool) -> pa.Table:
    """Return rows of a ledger whose keys are sealed with keys and clusters as they are, or with these sealed again."""
    metadata = table.schema.metadata or {}
    if SEALED.encode() not in metadata:
        return table
    secret = secret_of(store)
    of_groups = metadata[b"unit"].startswith((b"group:", b"pattern:"))
    for name, is_text in (("key", of_groups), ("cluster", False)):
        if name not in table.column_names:
            continue
        column = table[name].combine_chunks()
        if opens:
            keys = opened(column, secret, is_text=is_text)
            values = pa.array(keys, pa.string()) if is_text else hex_column(keys)
        else:
            keys = np.array(column.to_pylist(), dtype=object) if is_text else unhex(column)
            values = sealed(keys, secret)
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def _bytes_of(keys: Keys) -> Iterator[bytes]:
    if keys.dtype != KEY:
        yield from (str(key).encode() for key in keys.tolist())
        return
    data = np.ascontiguousarray(keys).tobytes()  # numpy would drop zeros at the end
    yield from (data[i : i + KEY.itemsize] for i in range(0, len(data), KEY.itemsize))


def _tag(key: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, key, "sha256")[:TAG_BYTES]


def _masked(data: bytes, tag: bytes, secret: bytes) -> bytes:
    stream = hashlib.shake_256(secret + tag).digest(len(data))
    masked = int.from_bytes(data) ^ int.from_bytes(stream)
    return masked.to_bytes(len(data))
