"""Identities of records: content keys from feature values, and the ``aug_id`` of every kind of record.

A content key identifies feature values, whatever file, chunk, column order, dictionary encoding or
integer width they came in; an ``aug_id`` identifies one record. Neither depends on row order.
"""

import json
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefect_augment.encoding.values import plain
from prefect_augment.shards.image_columns import main_image
from prefect_augment.sources.images.columns import image_bytes
from prefect_augment.storage.keys import KEY, Coded, hex_column, key_texts

ROWS_AT_ONCE = 65_536  # bounds the byte matrix below; 17 bytes per value

# Every value becomes one tag and 16 bytes. The tag is the value's family, not its Arrow type: an
# integer column that turned into floats because a null joined it keeps its records' keys.
TOKEN_BYTES = 17
NULL, NUMBER, LARGE_INTEGER, BOOLEAN, TEXT, BINARY, INSTANT, DURATION, TIME, DECIMAL, NESTED = (
    range(11)
)
EXACT_INTEGER = 2**62  # below it a float64 that equals an integer can be cast back without overflow
NANOSECONDS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}

Bytes = NDArray[np.uint8]


def content_digests(table: pa.Table, *, exclude: Collection[str] = ()) -> NDArray[Any]:
    """Return each record's content key, 16 bytes: blake2b-128 over its feature values, shape (n_records,).

    NaN counts as null, -0.0 as 0.0, 1 as 1.0, a date as its midnight. Column names are part of the key,
    their order is not. ``exclude`` names columns that are not features: the label, lineage.
    """
    names = sorted(name for name in table.column_names if name not in exclude)
    header = np.frombuffer(
        blake2b(json.dumps(names).encode(), digest_size=16).digest(), dtype=np.uint8
    )
    keys = np.zeros(table.num_rows, dtype=KEY)
    for start in range(0, table.num_rows, ROWS_AT_ONCE):
        batch = table.slice(start, ROWS_AT_ONCE)
        matrix = np.empty((batch.num_rows, 16 + TOKEN_BYTES * len(names)), dtype=np.uint8)
        matrix[:, :16] = header
        for j, name in enumerate(names):
            place = 16 + TOKEN_BYTES * j
            matrix[:, place : place + TOKEN_BYTES] = _tokens(batch.column(name))
        data, width = memoryview(matrix.data).cast("B"), matrix.shape[1]
        keys[start : start + ROWS_AT_ONCE] = [
            blake2b(data[i : i + width], digest_size=16).digest()
            for i in range(0, len(data), width)
        ]
    return keys


def value_hashes(column: pa.ChunkedArray | pa.Array) -> NDArray[np.uint64]:
    """Return a 64-bit hash per value that is neither null nor NaN, equal for equal values.

    Exact for numbers, dates and times; two texts collide once in about 10**19 pairs.
    """
    tokens = _tokens(column)
    tokens = tokens[tokens[:, 0] != NULL]
    numbers = np.ascontiguousarray(tokens[:, 1:]).view("<u8").reshape(-1, 2)
    return np.asarray(numbers[:, 0] ^ (numbers[:, 1] * np.uint64(0x9E3779B97F4A7C15)))


def _tokens(column: pa.ChunkedArray) -> Bytes:
    """Return the column's canonical values as bytes, shape (n_records, TOKEN_BYTES)."""
    values = plain(column)
    tokens = np.zeros((len(values), TOKEN_BYTES), dtype=np.uint8)
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    if valid.any():
        tokens[valid] = _valid_tokens(values.drop_null())
    return tokens


def _valid_tokens(values: pa.Array) -> Bytes:
    """Tokens of an array without nulls."""
    kind, t = values.type, pa.types
    if t.is_floating(kind):
        return _float_tokens(values.cast(pa.float64()).to_numpy())
    if t.is_integer(kind):
        return _integer_tokens(values.to_numpy())
    if t.is_boolean(kind):
        return _pack(BOOLEAN, values.cast(pa.int64()).to_numpy())
    if t.is_date(kind) or t.is_timestamp(kind):
        return _instant_tokens(values)
    if t.is_duration(kind) or t.is_time(kind):
        unit = NANOSECONDS[kind.unit]
        counts = (
            values.cast(pa.int32() if t.is_time32(kind) else pa.int64()).to_numpy().astype(np.int64)
        )
        return _split_seconds(
            DURATION if t.is_duration(kind) else TIME, counts, 1_000_000_000 // unit
        )
    if t.is_decimal(kind):
        if kind.bit_width < 128:  # which Arrow has few functions for
            values = values.cast(pa.decimal128(kind.precision, kind.scale))
        return _hashed(DECIMAL, values, _plain_decimal)
    if t.is_string(kind) or t.is_large_string(kind):
        return _hashed(TEXT, values, str.encode)
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind):
        return _hashed(BINARY, values, bytes)
    return _hashed(NESTED, values, lambda v: json.dumps(_canonical(v), sort_keys=True).encode())


def _pack(
    tag: int | NDArray[np.uint8], first: NDArray[Any], second: NDArray[Any] | None = None
) -> Bytes:
    """Lay out a tag and one or two 8-byte numbers, little-endian on every machine."""
    out = np.zeros((len(first), TOKEN_BYTES), dtype=np.uint8)
    out[:, 0] = tag
    for place, numbers in ((1, first), (9, second)):
        if numbers is not None:
            little = np.ascontiguousarray(
                numbers.astype(numbers.dtype.newbyteorder("<"), copy=False)
            )
            out[:, place : place + 8] = little.view(np.uint8).reshape(len(first), 8)
    return out


def _float_tokens(x: NDArray[np.float64]) -> Bytes:
    tokens = _pack(NUMBER, x + 0.0)  # + 0.0 turns -0.0 into 0.0
    tokens[np.isnan(x)] = 0  # NaN is null
    return tokens


def _integer_tokens(values: NDArray[Any]) -> Bytes:
    """Integers that a float64 holds exactly get the float's token, others one of their own."""
    with np.errstate(invalid="ignore"):
        as_float = values.astype(np.float64)
        small = np.abs(as_float) < EXACT_INTEGER
        exact = small & (
            np.where(small, as_float, 0.0).astype(values.dtype) == np.where(small, values, 0)
        )
    tokens = _pack(NUMBER, as_float)
    if not exact.all():
        rest = values[~exact]
        tokens[~exact] = _pack(
            LARGE_INTEGER, rest.astype(np.uint64, casting="unsafe"), (rest < 0).astype(np.int64)
        )
    return tokens


def _instant_tokens(values: pa.Array) -> Bytes:
    """Dates and timestamps as whole seconds and nanoseconds, so that the unit does not matter."""
    if pa.types.is_date32(values.type):
        return _pack(INSTANT, values.cast(pa.int32()).to_numpy().astype(np.int64) * 86_400, None)
    if pa.types.is_date64(values.type):
        return _split_seconds(INSTANT, values.cast(pa.int64()).to_numpy(), 1_000)
    counts = values.cast(pa.int64()).to_numpy()
    return _split_seconds(INSTANT, counts, 1_000_000_000 // NANOSECONDS[values.type.unit])


def _split_seconds(tag: int, counts: NDArray[np.int64], per_second: int) -> Bytes:
    seconds, rest = np.divmod(counts, per_second)
    return _pack(tag, seconds, rest * (1_000_000_000 // per_second))


def _hashed(tag: int, values: pa.Array, encode: Callable[[Any], bytes]) -> Bytes:
    """Tokens of variable-width values; text and binary are hashed once per distinct value."""
    if tag == NESTED:  # Arrow cannot dictionary-encode nested values
        distinct, codes = values.to_pylist(), np.arange(len(values))
    else:
        encoded = values.dictionary_encode()
        distinct, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    digests = b"".join(blake2b(encode(v), digest_size=16).digest() for v in distinct)
    out = np.empty((len(values), TOKEN_BYTES), dtype=np.uint8)
    out[:, 0] = tag
    out[:, 1:] = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16)[codes]
    return out


def _plain_decimal(value: Any) -> bytes:
    """Return the digits without trailing zeros: 1.50 and 1.5 are one number, whatever the type's scale."""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return b"0" if text in ("-0", "") else text.encode()


def _canonical(value: Any) -> Any:
    """Nested values as JSON that compares like the flat ones: NaN null, -0.0 zero, 1.0 one."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, dict):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, float):
        if value != value:
            return None
        return int(value) if value.is_integer() else value
    if isinstance(value, int):
        return value
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return {type(value).__name__: str(value)}


def float_variants(table: pa.Table, *, exclude: Collection[str] = ()) -> NDArray[np.uint64]:
    """Return a number per record that separates what content keys equate: NaN and null, -0.0 and 0.0.

    Equal content keys are sorted by it before they are numbered; without it each one's ``aug_id`` would
    depend on the order of the rows.
    """
    state = np.zeros(table.num_rows, dtype=np.uint64)
    for name in sorted(n for n in table.column_names if n not in exclude):
        if not pa.types.is_floating(table.schema.field(name).type):
            continue
        values = plain(table.column(name)).cast(pa.float64())
        x = values.fill_null(1.0).to_numpy(zero_copy_only=False)
        state = state * np.uint64(3) + np.isnan(x).astype(np.uint64)
        state += np.uint64(2) * ((x == 0.0) & np.signbit(x)).astype(np.uint64)
    return state


def real_ids(keys: NDArray[Any], labels: Coded, occurrences: NDArray[np.int64]) -> NDArray[Any]:
    """Return the ``aug_id`` of real records as 16 bytes: a hash of content key, label and occurrence number.

    Equal to ``derived_ids("real", ...)``, holding one chunk of texts at a time.
    """
    names = np.array([json.dumps(name) for name in labels.names.tolist()], dtype=object)
    ids = np.zeros(len(keys), dtype=KEY)
    for start in range(0, len(keys), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        rows = zip(
            key_texts(keys[some]),
            names[labels.codes[some]].tolist(),
            occurrences[some].tolist(),
            strict=True,
        )
        ids[some] = [
            blake2b(f'["real", "{key}", {name}, {n}]'.encode(), digest_size=16).digest()
            for key, name, n in rows
        ]
    return ids


def derived_ids(origin: str, *parts: Sequence[Any] | str | int) -> pa.StringArray:
    """Return ids, 32 hexadecimal digits, of records derived from others.

    ``origin`` (``copy``, ``classic``, ``synthetic``) is hashed in, so ids of two origins never meet.
    ``parts`` name the record within its origin: the parent's id or the model's digest, the stratum, the
    seed or ordinal. A scalar part holds for all records; at least one part is a sequence.
    """
    n_records = max(len(p) for p in parts if not isinstance(p, str | int))
    columns = [
        repeat(p, n_records)
        if isinstance(p, str | int)
        else p.to_pylist()
        if isinstance(p, pa.Array | pa.ChunkedArray)
        else p
        for p in parts
    ]
    # JSON keeps ("a", "b|c") apart from ("a|b", "c").
    encode = json.JSONEncoder(default=int).encode
    return pa.array(
        [
            blake2b(encode([origin, *row]).encode(), digest_size=16).hexdigest()
            for row in zip(*columns, strict=True)
        ],
        type=pa.string(),
    )


def record_digests(table: pa.Table, *, label: str) -> NDArray[Any]:
    """Return each record's content key, 16 bytes: the hash of its image's bytes, else of its values."""
    image = main_image(table.schema)
    if not image:
        return content_digests(table, exclude=[label])
    digests = [blake2b(data, digest_size=16).digest() for data in image_bytes(table[image])]
    return np.array(digests, dtype=KEY)


def record_keys(table: pa.Table, *, label: str) -> list[str]:
    """Return :func:`record_digests` as text."""
    return hex_column(record_digests(table, label=label)).to_pylist()  # type: ignore[no-any-return]


def record_variants(table: pa.Table, *, label: str) -> NDArray[Any]:
    """Return a sort key for records of one content key and label."""
    image = main_image(table.schema)
    if not image:
        return float_variants(table, exclude=[label])
    paths = pc.struct_field(table[image], "path")
    rest = table.drop_columns([image]).append_column(f"{image}.path", paths)
    return content_digests(rest, exclude=[label])
