"""Programs for packed sequences: who owns which tile, without asking the device for lengths.

Tiles of `BLOCK` tokens are numbered so that sequence b owns the slots from
cu_seqlens[b] // BLOCK + b on. That leaves it one at least and never too few; a slot may stay
unused. There are T // BLOCK + B of them, which shapes alone tell. A program finds its sequence by
a search of WIDE places a turn: each turn waits for memory once, and bisection takes seven for one.
"""

from __future__ import annotations

import triton
import triton.language as tl

WIDE = tl.constexpr(128)


@triton.jit
def sequence_of_slot(p_cu, i_slot, n_sequences, BLOCK: tl.constexpr):
    """(its sequence, that one's first token and the token after its last, the slot's tile in it).

    A slot is unused where the tile begins beyond the sequence's end.
    """
    low = i_slot * 0
    n_left = low + n_sequences
    while n_left > 1:
        step = (n_left + WIDE - 1) // WIDE
        o_part = tl.arange(0, WIDE) * step
        m_part = o_part < n_left
        b_start = tl.load(p_cu + low + o_part, mask=m_part, other=0).to(tl.int64) // BLOCK
        b_before = m_part & (b_start + low + o_part <= i_slot)
        first = (tl.sum(b_before.to(tl.int32), 0) - 1) * step  # the first of them always is
        low += first
        n_left = tl.minimum(step, n_left - first)
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
