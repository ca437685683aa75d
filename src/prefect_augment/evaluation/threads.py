"""One thread for numeric libraries, so that results do not depend on the machine's thread count."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_blas_users = 0
_blas_limit: Any = None
_controller: ThreadpoolController | None = None
_n_modules = 0


@contextmanager
def single_threaded() -> Iterator[None]:
    """Numeric libraries use one thread inside this block; blocks of several threads may overlap.

    OpenMP keeps its limit per calling thread, BLAS for the whole process. So the first block in limits BLAS and the
    last one out restores it; otherwise the first to leave would lift the limit of the others.
    """
    global _blas_users, _blas_limit
    with _lock:
        libraries = _find_libraries()
        if _blas_users == 0:
            _blas_limit = libraries.limit(limits=1, user_api="blas")
        _blas_users += 1
    try:
        with libraries.limit(limits=1, user_api="openmp"):
            yield
    finally:
        with _lock:
            _blas_users -= 1
            if _blas_users == 0 and _blas_limit is not None:
                _blas_limit.restore_original_limits()
                _blas_limit = None


def _find_libraries() -> ThreadpoolController:
    """The loaded libraries; they come with modules, and a search takes 5 ms."""
    global _controller, _n_modules
    if _controller is None or _n_modules != len(sys.modules):
        _controller, _n_modules = ThreadpoolController(), len(sys.modules)
    return _controller
