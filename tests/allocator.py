"""Memory that stays with the process: oracles make and drop tensors of a hundred megabytes.

glibc maps what is large anew each time, and to have every page of it cleared by the kernel takes
longer than to compute what lies in it: attention's oracle in float64 takes 2.5 times as long.
"""

from __future__ import annotations

import ctypes
import sys

# Of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1

KEEPING = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={NEVER}"}
"""The same for a process of its own, as its environment."""


def keep_memory() -> None:
    """From now on this process hands no memory back; where the allocator is glibc's."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
