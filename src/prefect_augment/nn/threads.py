"""One thread for numeric libraries: results do not depend on the machine's cores, and workers do not fight for them."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import OpenBLASController, ThreadpoolController

_lock = threading.Lock()
_n_blocks = 0
_before: dict[str, tuple[Any, int]] = {}  # by path: a BLAS, and its threads before the first block
_libraries: ThreadpoolController | None = None
_n_modules = 0


@contextmanager
def single_threaded() -> Iterator[None]:
    """Numeric libraries use one thread inside this block; blocks of several threads may overlap.

    OpenMP keeps its limit per calling thread, BLAS for the whole process: the last block out restores it. A limit of
    threadpoolctl, and so of scikit-learn, restores every library that its controller knows, also those that it did not
    limit. One that ends beside a block sets BLAS back, so each block limits BLAS anew, and OpenMP by itself.
    """
    global _n_blocks, _libraries, _n_modules
    with _lock:
        # Libraries come with modules, and a search for them takes 5 ms.
        if _libraries is None or _n_modules != len(sys.modules):
            _libraries, _n_modules = ThreadpoolController(), len(sys.modules)
        libraries = _libraries
        for library in libraries.select(user_api="blas").lib_controllers:
            _before.setdefault(library.filepath, (library, library.num_threads))
            _set_threads(library, 1)
        _n_blocks += 1
    try:
        with libraries.select(user_api="openmp").limit(limits=1):
            yield
    finally:
        with _lock:
            _n_blocks -= 1
            if _n_blocks == 0:
                for library, n_threads in _before.values():
                    _set_threads(library, n_threads)
                _before.clear()


def _set_threads(library: Any, n_threads: int) -> None:
    """Set a BLAS, also where threadpoolctl would let another thread alone do it: the first one to have set OpenBLAS."""
    if isinstance(library, OpenBLASController):
        library.clear_controlling_thread(force=True)
    library.set_num_threads(n_threads)
    if isinstance(library, OpenBLASController):
        library.clear_controlling_thread(force=True)
