"""Keys of a ledger that nobody can test without the workspace's secret.

A content key is a hash of a record's values, so whoever guesses a record can look whether its hash
is there. A sealed key is ``HMAC(secret, key)`` followed by the key, masked by a stream that the secret
and the HMAC give: a synthetic initialisation vector (Rogaway & Shrimpton 2006, "A provable-security
treatment of the key-wrap problem"; here with SHA-256 and SHAKE-256). Equal keys are sealed alike, so
that ledgers can be compared; the secret opens them again, so that the split, which goes by the keys
themselves, is the same under any secret.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa

from prefect_augment.errors import IntegrityError
from prefect_augment.storage import SharedStore, Store
from prefect_augment.storage.keys import KEY, Keys, hex_column, unhex

#: Metadata of a ledger whose keys are sealed.
SEALED = "sealed"
TAG_BYTES = 16


def secret_of(store: Store) -> bytes:
    """Return the secret of a dataset's workspace; empty where there is none, and keys stay as they are."""
    return store.ledger_key if isinstance(store, SharedStore) else b""


def sealed(keys: Keys, secret: bytes) -> pa.Array:
    """Return keys, 16 bytes each or texts, sealed as text.

    Examples
    --------
    >>> keys = np.array(["anna", "bert"], dtype=object)
    >>> opened(sealed(keys, b"secret"), b"secret", is_text=True).tolist()
    ['anna', 'bert']
    """
    return pa.array([_seal(key, secret).hex() for key in _bytes_of(keys)], pa.string())


def opened(column: pa.Array, secret: bytes, *, is_text: bool) -> Keys:
    """Return the keys that :func:`sealed` got; IntegrityError under another secret."""
    plain = list(_opened(column.to_pylist(), secret))
    if is_text:
        return np.array([*(key.decode() for key in plain), None], dtype=object)[:-1]
    return np.frombuffer(b"".join(plain), dtype=KEY)


def with_opened_keys(store: Store, table: pa.Table) -> pa.Table:
    """Return rows of a ledger with keys and clusters as they are, whether they are sealed or not."""
    return _changed(store, table, _opened_texts)


def with_sealed_keys(store: Store, table: pa.Table) -> pa.Table:
    """Return rows of :func:`with_opened_keys` as they were."""
    return _changed(store, table, _sealed_texts)


def _changed(
    store: Store, table: pa.Table, change: Callable[[pa.Array, bytes, bool], pa.Array]
) -> pa.Table:
    metadata = table.schema.metadata or {}
    if SEALED.encode() not in metadata:
        return table
    of_groups = metadata[b"unit"].startswith((b"group:", b"pattern:"))
    for name, is_text in (("key", of_groups), ("cluster", False)):
        if name in table.column_names:
            column = table[name].combine_chunks()
            values = change(column, secret_of(store), is_text)
            table = table.set_column(table.column_names.index(name), name, values)
    return table


def _opened_texts(column: pa.Array, secret: bytes, is_text: bool) -> pa.Array:
    keys = opened(column, secret, is_text=is_text)
    return pa.array(keys, pa.string()) if is_text else hex_column(keys)


def _sealed_texts(column: pa.Array, secret: bytes, is_text: bool) -> pa.Array:
    keys = np.array(column.to_pylist(), dtype=object) if is_text else unhex(column)
    return sealed(keys, secret)


def _bytes_of(keys: Keys) -> Iterator[bytes]:
    if keys.dtype != KEY:
        yield from (str(key).encode() for key in keys.tolist())
        return
    data = np.ascontiguousarray(keys).tobytes()  # numpy would drop zeros at the end
    yield from (data[i : i + KEY.itemsize] for i in range(0, len(data), KEY.itemsize))


def _seal(key: bytes, secret: bytes) -> bytes:
    tag = hmac.digest(secret, key, "sha256")[:TAG_BYTES]
    return tag + _masked(key, tag, secret)


def _masked(data: bytes, tag: bytes, secret: bytes) -> bytes:
    stream = hashlib.shake_256(secret + tag).digest(len(data))
    masked = int.from_bytes(data) ^ int.from_bytes(stream)
    return masked.to_bytes(len(data))


def _opened(texts: Iterable[str], secret: bytes) -> Iterator[bytes]:
    for text in texts:
        data = bytes.fromhex(text)
        tag = data[:TAG_BYTES]
        key = _masked(data[TAG_BYTES:], tag, secret)
        if not secret or not hmac.compare_digest(
            tag, hmac.digest(secret, key, "sha256")[:TAG_BYTES]
        ):
            raise IntegrityError(
                "the split ledger is sealed with the secret of another workspace; put back the workspace that this "
                "dataset was made with."
            )
        yield key
