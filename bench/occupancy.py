"""How many blocks of a kernel a multiprocessor of NVIDIA's holds at once.

By "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide. A warp is
given registers by 256, all of one of the multiprocessor's four quarters.
"""

from __future__ import annotations

from bench.ahead_of_time import SHARED_LIMIT

RESIDENT = {
    "sm_80": (64, 32),
    "sm_86": (48, 16),
    "sm_89": (48, 24),
    "sm_90": (64, 32),
    "sm_100": (64, 32),
}
"""(warps, blocks) of a multiprocessor, at the most."""
QUARTERS, REGISTERS, UNIT, THREADS = 4, 16384, 256, 32
"""Of a multiprocessor; of a quarter; that a warp is given at a time; of a warp."""
RESERVED = 1024
"""Bytes of shared memory that the system takes of each block. A multiprocessor has as many more
than one block may have."""


def blocks(architecture: str, registers: int, warps: int, shared: int) -> int:
    """Of so many warps, registers a thread and bytes of shared memory each; 0 where not one fits.

    Raises:
        KeyError: an architecture that `RESIDENT` has not.
    """
    most_warps, most_blocks = RESIDENT[architecture]
    of_a_warp = -(-registers * THREADS // UNIT) * UNIT
    by_registers = QUARTERS * (REGISTERS // max(of_a_warp, UNIT))
    by_shared = (SHARED_LIMIT[architecture] + RESERVED) // (shared + RESERVED)
    return min(by_registers // warps, most_warps // warps, by_shared, most_blocks)
