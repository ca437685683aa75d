"""What the machine's processor can do, without loading what computes on it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

__all__ = ["cpu_multiplies_bf16"]

# Flags of CPUs that multiply bf16 in hardware: Intel and AMD (AVX-512, AMX), Arm.
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@lru_cache(maxsize=1)
def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bf16 instructions; elsewhere bf16 is emulated and slower than float32."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return any(
        not _BF16_FLAGS.isdisjoint(line.split())
        for line in text.splitlines()
        if line.startswith(("flags", "Features"))
    )
