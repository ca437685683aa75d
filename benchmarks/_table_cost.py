"""What a piece of work costs: CPU seconds of this process and the growth of its peak memory.

Imported under both interpreters, ours and the peers'.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator

__all__ = ["THREADS", "cost"]

# What every cell's process is started with: one thread in every pool. ctgan's transformer would start
# workers by joblib's.
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
THREADS = dict.fromkeys(POOLS, "1")


@contextlib.contextmanager
def cost() -> Iterator[dict[str, float]]:
    """Measure ``cpu`` and ``wall`` seconds and ``mib``, by which the peak memory grew."""
    used: dict[str, float] = {}
    peak, cpu, wall = _peak_mib(), time.process_time(), time.perf_counter()
    yield used
    used["cpu"] = time.process_time() - cpu
    used["wall"] = time.perf_counter() - wall
    used["mib"] = _peak_mib() - peak


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
