"""Sealed keys open under their secret alone, and a ledger of them is the same ledger."""

import hmac
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import IntegrityError
from prefect_augment.split.assignment import Shares, assign
from prefect_augment.split.ledger import ImageRows, Ledger
from prefect_augment.split.ledger_io import opened, read_ledger, sealed, with_keys, write_ledger
from prefect_augment.storage import Store, keep_apart, open_store
from prefect_augment.storage.keys import KEY, key_texts

RECORDS = np.array([b"\x00" * 16, b"a" * 15 + b"\x00", bytes(range(16))], dtype=KEY)
GROUPS = np.array(["anna", "", "zoë " * 9], dtype=object)
LABELS = ["x", "y", "x"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return keep_apart(open_store(str(tmp_path / "out")))


@pytest.mark.parametrize("keys", [RECORDS, GROUPS])
def test_the_secret_alone_opens_them(keys: np.ndarray) -> None:
    one, other = sealed(keys, b"one"), sealed(keys, b"other")
    assert one.equals(sealed(keys, b"one"))
    assert not set(one.to_pylist()) & set(other.to_pylist())
    is_text = keys.dtype == object
    assert opened(one, b"one", is_text=is_text).tolist() == keys.tolist()
    for wrong in (b"other", b""):
        with pytest.raises(IntegrityError, match="another workspace"):
            opened(one, wrong, is_text=is_text)


def test_they_begin_with_the_hmac_of_the_key() -> None:
    (text,) = sealed(np.array(["anna"], dtype=object), b"one").to_pylist()
    assert bytes.fromhex(text)[:16] == hmac.digest(b"one", b"anna", "sha256")[:16]


@pytest.mark.parametrize("unit", ["record", "group:patient", "near-duplicate"])
def test_a_ledger_comes_back_and_shows_no_key(store: Store, unit: str) -> None:
    keys = GROUPS if unit.startswith("group") else RECORDS
    images = ImageRows(RECORDS[::-1], np.arange(3)) if unit == "near-duplicate" else None
    images = images and ImageRows(images.clusters, images.levels, np.ones((3, 1024), np.int8))
    ledger = Ledger("salt", unit, keys, [0, 1, 0], LABELS, [0, 1, 2], images=images)
    path = write_ledger(store, ledger, prefix="_staging/ingest/k")
    assert read_ledger(store, path).digest == ledger.digest
    table = pq.read_table(store.open(path))
    shown = {
        t
        for name in ("key", "cluster")
        if name in table.column_names
        for t in table[name].to_pylist()
    }
    assert not shown & set(key_texts(keys))
    plain = with_keys(store, table, opens=True)
    assert plain["key"].to_pylist() == key_texts(keys)
    assert with_keys(store, plain, opens=False).equals(table)


def test_an_old_ledger_without_a_seal_is_read(store: Store) -> None:
    ledger = Ledger("salt", "record", RECORDS, [0, 1, 0], LABELS, [0, 1, 2])
    plain = open_store(f"{store.uri}-plain")
    path = write_ledger(plain, ledger, prefix="_staging/ingest/k")
    store.put(path, plain.read(path))
    assert read_ledger(store, path).digest == ledger.digest


def test_the_split_does_not_depend_on_the_secret(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = np.frombuffer(rng.bytes(16 * 300), dtype=KEY)
    parts = []
    for name in "ab":
        store = keep_apart(open_store(str(tmp_path / name)))
        ledger = Ledger("salt")
        for n in (200, 300):  # what is new in a second version
            split = assign(
                keys[:n],
                ["x", "y"] * (n // 2),
                ledger=ledger,
                shares=Shares(0.2, 0.2),
            )
            ledger = read_ledger(store, write_ledger(store, split.ledger, prefix=f"_staging/i/{n}"))
        parts.append(split.parts)
    np.testing.assert_array_equal(*parts)
