"""What a call may leave out: launchers of the passes before the main kernels (ranges_kernel.py).

Shapes: T packed tokens, B sequences, H heads, D head dim, S slots of GRAIN tokens (slots.py).
"""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor

from .. import interpreting
from ..configs import FUSED, ranges_pay
from ..launching import Plan
from ..score_function import by_key
from ..slots import GRAIN, n_slots
from .call import Ranges, Terms, block_d_of, or_other
from .ranges_kernel import key_outer, key_ranges, key_reach, longest_first, query_hulls

BLOCK_S = 16
"""Grains that are looked at together in the passes before the main kernels."""
PLACES = 8
"""Of a turn of the search for the furthest grain that is met."""


def ranges(q: Tensor, k: Tensor, cu_seqlens: Tensor, terms: Terms) -> Ranges | None:
    """What a call may leave out; None where that is nothing, or is not looked for: its bias
    does not fade, eps 0, or texts too short for it to pay."""
    bias = terms.bias
    if bias is None or not bias.fades or terms.skip_eps <= 0 or terms.dense is not None:
        return None
    if terms.window != (-1, -1) or q.shape[0] <= GRAIN.value:
        return None
    heads, head_dim = q.shape[1:]
    n_sequences = cu_seqlens.shape[0] - 1
    if not ranges_pay(q.device, q.shape[0], n_sequences):
        return None
    slots = n_slots(q.shape[0], n_sequences, GRAIN.value)
    center = q.new_empty((n_sequences, heads, head_dim), dtype=torch.float32)
    reach = q.new_empty((heads, slots), dtype=torch.float32)
    _reach(head_dim)(
        (slots * heads,), (k, center, reach, cu_seqlens),
        (k.stride(0), k.stride(1), n_sequences, slots),
    )  # fmt: skip
    outer = q.new_empty((2, heads, slots), dtype=torch.float32)
    _outer()((n_sequences, heads), (reach, outer, cu_seqlens), (slots,))
    met = q.new_empty((heads, slots, 2), dtype=torch.int32)
    positions, params = or_other(terms.positions, q), or_other(terms.params, q)
    _key_ranges(bias.key, terms.positions is not None, head_dim, _range_block(q))(
        (slots * heads,), (q, k, center, reach, outer, met, cu_seqlens, positions, params),
        (
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), params.stride(0), n_sequences,
            slots, float(terms.scale), float(terms.skip_eps),
        ),
    )  # fmt: skip
    return ordered(met)


@functools.cache
def _reach(head_dim: int) -> Plan:
    block_d = block_d_of(head_dim)
    sizes = {"HEAD_DIM": head_dim, "BLOCK_D": block_d, "num_warps": 4 if block_d < 256 else 8}
    return Plan(key_reach, {**sizes, **FUSED})


@functools.cache
def _outer() -> Plan:
    return Plan(key_outer, {"BLOCK_S": 32, "num_warps": 1, **FUSED})


@functools.cache
def _key_ranges(key: str, has_positions: bool, head_dim: int, block: int) -> Plan:
    """key: of the bias's `ScoreFunction`."""
    bias = by_key(key)
    assert bias is not None
    return Plan(key_ranges, {
        "SCORE": bias.score, "DECAY": bias.decay, "TAIL": bias.tail,
        "MAPPED": bias.slope is not None, "HAS_POSITIONS": has_positions, "HEAD_DIM": head_dim,
        "BLOCK_D": block_d_of(head_dim), "BLOCK_S": PLACES, "PRECISION": "ieee", "BLOCK": block,
        "num_warps": 4, **FUSED,
    })  # fmt: skip


@functools.cache
def _longest() -> Plan:
    return Plan(longest_first, {"BLOCK_W": 16, "BLOCK_O": 512, **FUSED})


def ordered(met: Tensor) -> Ranges:
    """Ranges (H, S, 2) of what is met, with their order: falling by length, the same every time."""
    work = met.shape[0] * met.shape[1]
    order = met.new_empty((work,))
    _longest()((triton.cdiv(work, 16),), (met, order), (work,))
    return Ranges(met, order)


def hulls_of(keys: Ranges, cu_seqlens: Tensor) -> Ranges:
    """The queries between which all lie that met a grain of keys, for each of those."""
    heads, slots, _ = keys.met.shape
    hulls = torch.empty_like(keys.met)
    query_hulls[(slots * heads,)](
        keys.met,
        hulls,
        cu_seqlens,
        cu_seqlens.numel() - 1,
        slots,
        BLOCK_S=BLOCK_S,
        num_warps=1,
        **FUSED,
    )
    return ordered(hulls)


def computed_share(cu_seqlens: Tensor, met: Ranges | None) -> float:
    """The share of (query, key) grains that are met, in [0, 1]; waits for the device."""
    if met is None:
        return 1.0
    grains = -(-cu_seqlens.diff() // GRAIN.value)
    whole = int((grains * grains).sum()) * met.met.shape[0]
    return int((met.met[..., 1] - met.met[..., 0]).sum()) / whole if whole else 1.0


def _range_block(q: Tensor) -> int:
    """Rows that `key_ranges` looks at together: two blocks of them lie in shared memory."""
    if interpreting():
        return int(GRAIN.value)
    bytes_a_row = block_d_of(q.shape[2]) * q.element_size()
    return max(16, min(64, 16384 // bytes_a_row))
