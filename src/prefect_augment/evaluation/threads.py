"""One thread for numeric libraries, so that results do not depend on the machine's thread count."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

__all__ = ["single_threaded"]

_lock = threading.Lock()
_blas_users = 0
_blas_limit: threadpool_limits | None = None


@contextmanager
def single_threaded() -> Iterator[None]:
    """Numeric libraries use one thread inside this block; blocks of several threads may overlap.

    OpenMP keeps its limit per calling thread, BLAS for the whole process. So the first block in
    limits BLAS and the last one out restores it; otherwise the one that leaves first would lift
    the limit of the others, and the last would leave its own behind.
    """
    global _blas_users, _blas_limit
    with _lock:
        if _blas_users == 0:
            _blas_limit = threadpool_limits(1, user_api="blas")
        _blas_users += 1
    try:
        with threadpool_limits(1, user_api="openmp"):
            yield
    finally:
        with _lock:
            _blas_users -= 1
            if _blas_users == 0 and _blas_limit is not None:
                _blas_limit.restore_original_limits()
                _blas_limit = None
