"""Properties of the processor and of the image classifier that need no torch."""

from functools import lru_cache
from pathlib import Path

# Flags of CPUs that multiply bf16 in hardware: Intel and AMD (AVX-512, AMX), Arm.
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

_CLASSIFIER_SIDES = (8, 64)  # smallest and largest resolution of the classifier
_SIDE_STEP = 4
NARROW_BELOW = 2_000  # records: half of the channels learn as much from so few, in less time


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


def classifier_size(common_size: tuple[int, int]) -> int:
    """Resolution of the image classifier: the longer side, rounded up to 4, within 8 and 64 pixels.

    More resolution costs many times the seconds for little.

    >>> classifier_size((28, 28)), classifier_size((200, 130)), classifier_size((5, 6))
    (28, 64, 8)
    """
    low, high = _CLASSIFIER_SIDES
    return min(high, max(low, -(-max(common_size) // _SIDE_STEP) * _SIDE_STEP))
