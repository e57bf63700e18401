"""Programs for packed sequences: who owns which tile, without asking the device for lengths.

Tiles of `BLOCK` tokens are numbered so that sequence b owns the slots from
cu_seqlens[b] // BLOCK + b on. That leaves it one at least and never too few; a slot may stay
unused. There are T // BLOCK + B of them, which shapes alone tell. A program finds its sequence by
bisection.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sequence_of_slot(p_cu, i_slot, n_sequences, BLOCK: tl.constexpr):
    """(its sequence, that one's first token and the token after its last, the slot's tile in it).

    A slot is unused where the tile begins beyond the sequence's end.
    """
    low = i_slot * 0
    high = low + n_sequences
    while high - low > 1:
        middle = (low + high) // 2
        starts = tl.load(p_cu + middle).to(tl.int64) // BLOCK + middle
        low = tl.where(starts <= i_slot, middle, low)
        high = tl.where(starts <= i_slot, high, middle)
    begin = tl.load(p_cu + low).to(tl.int64)
    end = tl.load(p_cu + low + 1).to(tl.int64)
    return low, begin, end, i_slot - (begin // BLOCK + low)


GRAIN = tl.constexpr(128)
"""Tokens of a slot of the attention kernels, whose blocks divide it: what was left out in one of
them is left out in all."""


@triton.jit
def tile_of_program(
    p_cu, p_order, n_sequences, n_slots, HAS_ORDER: tl.constexpr, BLOCK: tl.constexpr
):
    """(head, slot, number among all tiles, first token and length of the sequence, first row).

    Programs are numbered by head, slot of GRAIN tokens, tile in it; p_order (H S,) says which slot
    of which head comes when. A tile whose first row is not below the length is unused.
    """
    n_parts: tl.constexpr = GRAIN // BLOCK
    i_program = tl.program_id(0)
    i_work = i_program // n_parts
    if HAS_ORDER:
        i_work = tl.load(p_order + i_work).to(tl.int32)
    i_part = i_program % n_parts
    i_head = i_work // n_slots
    i_slot = i_work % n_slots
    _, begin, end, i_tile = sequence_of_slot(p_cu, i_slot, n_sequences, GRAIN)
    first_row = i_tile.to(tl.int32) * GRAIN + i_part * BLOCK
    return i_head, i_slot, i_work * n_parts + i_part, begin, (end - begin).to(tl.int32), first_row


def n_slots(n_tokens: int, n_sequences: int, block: int) -> int:
    """How many slots tiles of `block` tokens take, at most."""
    return n_tokens // block + n_sequences
