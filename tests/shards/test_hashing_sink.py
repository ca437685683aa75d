import hashlib
import os
import threading
from pathlib import Path

import pytest

from prefect_augment.shards.base import WAITING, HashedSink
from prefect_augment.storage import Store, open_store


def test_the_digest_is_that_of_all_pieces_in_their_order(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    pieces = [os.urandom(n % 5000) for n in range(0, 97 * 5 * WAITING, 97)]
    with store.draft("d") as draft:
        with HashedSink(draft) as sink:
            for piece in pieces:
                sink.write(piece)
        store.put("d/x", draft)
    assert store.read("d/x") == b"".join(pieces)
    assert sink.sha256 == hashlib.sha256(b"".join(pieces)).hexdigest()


def write_half(store: Store) -> None:
    with store.draft("d") as draft, HashedSink(draft) as sink:
        sink.write(b"half")
        raise RuntimeError("broken")


def test_an_error_while_writing_ends_the_thread_too(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="broken"):
        write_half(store)
    assert threading.active_count() == before
