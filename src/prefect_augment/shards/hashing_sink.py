"""A sink that hashes its bytes in a thread while they are written."""

import hashlib
from queue import Queue
from threading import Thread
from typing import Any

from prefect_augment.storage import Draft

# Pieces (of about 1 MiB) that may wait to be hashed, which takes about as long as writing them.
WAITING = 16


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
