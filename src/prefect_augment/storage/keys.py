"""Columns of many records without an object per record: keys as bytes, texts as codes, ids as 64-bit hashes.

Keys are numpy arrays: ``S16`` for content keys (16 bytes, shown as 32 hexadecimal digits), any other
type for names compared as they are. Sorting and grouping agree for both.
"""

from binascii import unhexlify
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.array_types import Array, Int, Int32, Uint64

#: Content keys and ids: 16 bytes each.
KEY = np.dtype("S16")

HEX_AT_ONCE = 1 << 14  # keys that are text twice at a time

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, the step of splitmix64

Keys = Array


def unhex(column: pa.Array | pa.ChunkedArray) -> Keys:
    """Return texts of 32 hexadecimal digits, without nulls, as 16-byte keys; raises ValueError otherwise."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    keys = [np.zeros(0, dtype=KEY)]
    for chunk in chunks:
        chunk = chunk.cast(pa.binary())
        offsets = np.frombuffer(chunk.buffers()[1], dtype=np.int32)[
            chunk.offset : chunk.offset + len(chunk) + 1
        ]
        if len(chunk) == 0:
            continue
        if chunk.null_count or (np.diff(offsets) != 32).any():
            raise ValueError("a key is not 32 hexadecimal digits")
        digits = memoryview(chunk.buffers()[2])[offsets[0] : offsets[-1]]
        keys.append(np.frombuffer(unhexlify(digits), dtype=KEY))
    return np.concatenate(keys)


def hex_column(keys: Keys) -> pa.StringArray:
    """Return 16-byte keys as text of 32 hexadecimal digits."""
    digits = np.empty(32 * len(keys), dtype=np.uint8)
    for start in range(0, len(keys), HEX_AT_ONCE):
        text = np.ascontiguousarray(keys[start : start + HEX_AT_ONCE], dtype=KEY).tobytes().hex()
        digits[32 * start :][: len(text)] = np.frombuffer(text.encode(), dtype=np.uint8)
    offsets = np.arange(0, 32 * len(keys) + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(digits))


def key_texts(keys: Keys) -> list[str]:
    """Return keys as text, content keys in hexadecimal digits."""
    if keys.dtype == KEY:
        return hex_column(keys).to_pylist()  # type: ignore[no-any-return]
    return [str(key) for key in keys.tolist()]


def as_keys(values: Any) -> Keys:
    """Return an array of keys; arrays stay as they are."""
    if isinstance(values, np.ndarray):
        return values
    values = list(values)
    return np.asarray(values) if values else np.zeros(0, dtype=KEY)


def joined(one: Keys, other: Keys) -> Keys:
    """Return the keys of both, in the type of the one that has any."""
    if len(one) == 0:
        return other
    return one if len(other) == 0 else np.concatenate([one, other])


def sort_order(*columns: Array) -> Int:
    """Return the stable order by the first column, then the second …; keys by their bytes."""
    parts: list[Array] = []
    for column in columns:
        if column.dtype == KEY:
            # Two numbers compare many times faster than 16 bytes.
            numbers = np.ascontiguousarray(column).view(">u8").reshape(-1, 2)
            parts += [numbers[:, 0].astype(np.uint64), numbers[:, 1].astype(np.uint64)]
        elif column.dtype == object:
            parts.append(np.unique(column, return_inverse=True)[1])
        else:
            parts.append(column)
    return np.lexsort(parts[::-1]).astype(np.int64)


def group_ids(values: Array) -> Int:
    """Return a number per value: equal for equal values, greater for greater ones."""
    ids = np.zeros(len(values), dtype=np.int64)
    if len(values) == 0:
        return ids
    order = sort_order(values)
    ordered = values[order]
    ids[order] = np.cumsum(np.concatenate([[False], ordered[1:] != ordered[:-1]]))
    return ids


def ranks_within(ids: Array) -> Int:
    """Return how many equal ids come before each.

    Examples
    --------
    >>> ranks_within(np.array([5, 7, 5, 5]))
    array([0, 0, 1, 2])
    """
    ranks = np.zeros(len(ids), dtype=np.int64)
    if len(ids) == 0:
        return ranks
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    place = np.arange(len(ids))
    ranks[order] = place - np.maximum.accumulate(np.where(starts, place, 0))
    return ranks


def pairs_of_equals(theirs: Int, ours: Int) -> Int:
    """Return for each of ``ours`` the row of an equal one in ``theirs``, -1 for none.

    Each row is taken once: the first of ours takes the first of theirs, and so on.
    """
    matches = np.full(len(ours), -1, dtype=np.int64)
    if len(theirs) == 0 or len(ours) == 0:
        return matches
    ids = group_ids(np.concatenate([theirs, ours]))
    n = len(theirs)
    there, here = ranks_within(ids[:n]), ranks_within(ids[n:])
    width = int(max(there.max(), here.max())) + 1
    there, here = ids[:n] * width + there, ids[n:] * width + here
    order = np.argsort(there)
    place = np.minimum(np.searchsorted(there[order], here), n - 1)
    equal = there[order[place]] == here
    matches[equal] = order[place[equal]]
    return matches


@dataclass(frozen=True)
class Coded:
    """Texts (or keys) as numbers: record i has ``names[codes[i]]``."""

    codes: Int32  # (n_records,) greater for greater names
    names: Array  # (n_names,) sorted, distinct

    @classmethod
    def of(cls, values: "Coded | Sequence[Any] | NDArray[Any]") -> "Coded":
        """Return the values coded."""
        if isinstance(values, Coded):
            return values
        if isinstance(values, np.ndarray) and values.dtype != object:
            ids = group_ids(values)
            names = np.zeros(int(ids.max(initial=-1)) + 1, dtype=values.dtype)
            names[ids] = values
            return cls(ids.astype(np.int32), names)
        encoded = pa.array(list(values), pa.large_string()).dictionary_encode()
        return cls.from_names(encoded.indices.to_numpy(), encoded.dictionary.to_pylist())

    @classmethod
    def from_names(cls, codes: Array, names: Sequence[str]) -> "Coded":
        """Return codes of names in any order as codes of the sorted names."""
        order = sorted(range(len(names)), key=names.__getitem__)
        rank = np.zeros(len(names), dtype=np.int32)
        rank[order] = np.arange(len(names))
        ordered = np.empty(len(names), dtype=object)
        ordered[:] = [names[i] for i in order]
        return cls(rank[codes] if len(codes) else np.zeros(0, dtype=np.int32), ordered)

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.names[self.codes].tolist())

    def take(self, rows: Array | slice) -> "Coded":
        """Return these records' texts; all names stay."""
        return Coded(self.codes[rows], self.names)

    def only_used(self) -> "Coded":
        """Return the same without names that no record has."""
        used, codes = np.unique(self.codes, return_inverse=True)
        return Coded(codes.astype(np.int32), self.names[used])

    def counts(self) -> dict[Any, int]:
        """Return records per name, names without any left out."""
        n = np.bincount(self.codes, minlength=len(self.names)).tolist()
        return {name: k for name, k in zip(self.names.tolist(), n, strict=True) if k}


def taken(values: Any, rows: Array) -> Any:
    """Return some rows of an array or coded texts; None stays."""
    if values is None:
        return None
    return values.take(rows) if isinstance(values, Coded) else values[rows]


def shared_names(*columns: Coded) -> list[Coded]:
    """Return columns of texts with one set of names."""
    if all(c.names is columns[0].names for c in columns):
        return list(columns)
    names = sorted({name for c in columns for name in c.names.tolist()})
    index = {name: i for i, name in enumerate(names)}
    every = np.empty(len(names), dtype=object)
    every[:] = names
    recoded = []
    for c in columns:
        rank = np.array([index[name] for name in c.names.tolist()], dtype=np.int32)
        recoded.append(Coded(rank[c.codes] if len(c.codes) else c.codes.astype(np.int32), every))
    return recoded


def hash_ids(ids: pa.StringArray | pa.ChunkedArray) -> Uint64:
    """Return a 64-bit hash of each id, shape (n_ids,), by it alone: a tenth of the memory of their texts."""
    texts = [text.encode() for text in ids.cast(pa.string()).to_pylist()]
    words = np.frombuffer(b"".join(t for t in texts if len(t) == 32), np.uint64).reshape(-1, 4)
    own = np.zeros(len(words), dtype=np.uint64)
    for i in range(4):
        own = (own ^ words[:, i]) * np.uint64(GOLDEN)
        own ^= own >> np.uint64(29)
    if len(own) == len(texts):
        return own
    others = b"".join(blake2b(t, digest_size=8).digest() for t in texts if len(t) != 32)
    hashes = np.zeros(len(texts), dtype=np.uint64)
    is_own = np.array([len(t) == 32 for t in texts])
    hashes[is_own], hashes[~is_own] = own, np.frombuffer(others, np.uint64)
    return hashes


def mixed(z: Uint64) -> Uint64:
    """Output function of splitmix64 (Steele, Lea & Flood 2014, OOPSLA)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
