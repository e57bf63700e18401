"""Attention over packed sequences: the launchers of the kernels, tensors in, tensors out.

Shapes: T packed tokens, B sequences, H heads, D head dim, S slots of GRAIN tokens (slots.py).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .. import interpreting
from ..configs import FUSED, Config, average_length, config_for, ranges_pay
from ..launching import Known, Launch, Plan, Plans
from ..score_function import ScoreFunction, by_key
from ..slots import GRAIN, n_slots
from .forward_kernel import attention_forward
from .grad_dense_kernel import attention_grad_dense
from .grad_keys_kernel import attention_grad_keys
from .grad_queries_kernel import attention_delta, attention_grad_queries
from .ranges_kernel import key_outer, key_ranges, key_reach, longest_first, query_hulls

MAX_HEAD_DIM = 256
UNBOUNDED = 2**30
"""A window side no shorter than this hides nothing; it keeps sums with places in 32 bits."""
BLOCK_S = 16
"""Grains that are looked at together in the passes before the main kernels."""
PLACES = 8
"""Of a turn of the search for the furthest grain that is met."""


class Terms(NamedTuple):
    """What a call adds to the scores and hides of them.

    bias and params (H, row) float32 go together; dense (H, side, side), any float dtype, indexed by
    place in the sequence; positions (T,) int32 or int64, increasing in each sequence; window (left,
    right), -1 unbounded; seed: of dropout.
    """

    scale: float
    bias: ScoreFunction | None = None
    params: Tensor | None = None
    dense: Tensor | None = None
    positions: Tensor | None = None
    window: tuple[int, int] = (-1, -1)
    dropout_p: float = 0.0
    seed: int = 0
    skip_eps: float = 0.0


class Ranges(NamedTuple):
    """Which grains of the others each grain meets, [first, last) in (H, S, 2) int32, and the slots
    (H S,) int32 in the order that takes the longest first."""

    met: Tensor
    order: Tensor


def ranges(q: Tensor, k: Tensor, cu_seqlens: Tensor, terms: Terms) -> Ranges | None:
    """What a call may leave out; None where that is nothing, or is not looked for: no decay of its
    bias, eps 0, or texts too short for it to pay."""
    bias = terms.bias
    if bias is None or bias.decay is None or terms.skip_eps <= 0 or terms.dense is not None:
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
    positions, params = _or(terms.positions, q), _or(terms.params, q)
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
    block_d = _block_d(head_dim)
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
        "SCORE": bias.score, "DECAY": bias.decay, "MAPPED": bias.slope is not None,
        "HAS_POSITIONS": has_positions, "HEAD_DIM": head_dim, "BLOCK_D": _block_d(head_dim),
        "BLOCK_S": PLACES, "PRECISION": "ieee", "BLOCK": block, "num_warps": 4, **FUSED,
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


def _hulls(keys: Ranges, cu_seqlens: Tensor) -> Ranges:
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


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, terms: Terms, met: Ranges | None = None,
    config: Config | None = None, lse: Tensor | None = None, known: Known | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(scale * q k^T + bias) v, each sequence attending to itself alone.

    q, k, v (T, H, D) float32, bfloat16 or float16, D at most 256, last axis contiguous; cu_seqlens
    (B + 1,) int32 or int64, from 0 to T and not decreasing; met: as `ranges` gave it; lse: where to
    write that, as it would be made here; known: of calls with these terms.
    Returns (out (T, H, D) in q's dtype, log-sum-exp (T, H) float32).

    Nothing is checked here, and nothing waits for the device; pyenc.ops.attention checks.
    """
    tokens, heads, _ = q.shape
    out = torch.empty_like(q) if q.is_contiguous() else q.new_empty(q.shape)
    if lse is None:
        lse = q.new_empty((tokens, heads), dtype=torch.float32)
    if tokens == 0:
        return out, lse
    positions, params, dense = terms.positions, terms.params, terms.dense
    pointers = (
        q, k, v, out, lse, cu_seqlens, q if positions is None else positions,
        q if params is None else params, q if dense is None else dense,
        q if met is None else met.met, q if met is None else met.order,
    )  # fmt: skip
    if known and (launch := known.get(attention_forward)) is not None:
        launch(pointers)
        return out, lse
    tensors, form, programs = _common(q, cu_seqlens, terms, met)
    if config is None:
        length = int(average_length(tokens, cu_seqlens.shape[0] - 1))
        config = config_for(
            "attention_forward", q, form[-1], length, whole=True, variant=_form_variant(*form)
        )
    plan = _FORWARD.of(config, *form)
    grid = (programs * (GRAIN.value // config.block_m),)
    strides = *q.stride()[:2], *k.stride()[:2], *v.stride()[:2]
    numbers = *strides, *tensors.strides, *tensors.numbers
    plan(grid, pointers, numbers)
    if known is not None:
        known[attention_forward] = Launch(plan, grid, numbers)
    return out, lse


@functools.cache
def _form_variant(*form: Any) -> str | None:
    return _variant(_flags(*form), False)


def _forward_constants(config: Config, *form: Any) -> dict[str, Any]:
    return {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, **_flags(*form)}


_FORWARD = Plans(attention_forward, _forward_constants)


def backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor,
    terms: Terms, met: Ranges | None, out: Tensor, lse: Tensor, *,
    need_params: bool = False, need_dense: bool = False, configs: dict[str, Config] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of q, k, v (T, H, D), of the bias's learned params (H, n_learned) float32 and of
    the dense bias, in its dtype, as asked for; over exactly the pairs that the forward met.

    Arguments as given to `forward`; out and lse as it returned them; grad_out with a contiguous
    last axis, grad_lse contiguous. The same call gives the same bits: no atomics.
    """
    tokens, heads, head_dim = q.shape
    dq, dk, dv = (q.new_empty(q.shape) for _ in range(3))
    n_learned = terms.bias.n_learned if terms.bias is not None and need_params else 0
    if tokens == 0:
        learned = q.new_zeros((heads, n_learned), dtype=torch.float32) if need_params else None
        dense = None
        if need_dense and terms.dense is not None:
            dense = torch.zeros_like(terms.dense)
        return dq, dk, dv, learned, dense
    rows = lse.new_empty((2, heads, tokens))
    block_d = _block_d(head_dim)
    attention_delta[(triton.cdiv(tokens, 64), heads)](
        out, grad_out, _or(grad_lse, lse), lse, rows, *grad_out.stride()[:2], tokens, heads,
        HAS_GRAD_LSE=grad_lse is not None, HEAD_DIM=head_dim, BLOCK_T=64, BLOCK_D=block_d, **FUSED,
    )  # fmt: skip
    bias = terms.bias
    slope = None if bias is None else bias.slope

    tensors, form, programs = _common(q, cu_seqlens, terms, met)
    flags = _flags(*form)
    config = _config("attention_grad_queries", q, cu_seqlens, flags, configs, n_learned > 0)
    parts = GRAIN.value // config.block_m
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *grad_out.stride()[:2])
    block_l = max(triton.next_power_of_2(max(n_learned, 1)), 1)
    corrected = _corrected(bias) if n_learned else 0
    shares = lse
    if n_learned:
        shares = q.new_empty((heads, programs // heads * parts, block_l), dtype=torch.float32)
    attention_grad_queries[(programs * parts,)](
        q, k, v, grad_out, rows, _or(grad_lse, lse), dq, shares,
        cu_seqlens, tensors.positions, tensors.params, tensors.dense,
        q if met is None else met.met, q if met is None else met.order,
        *strides, *tensors.strides, tokens, *tensors.numbers,
        SLOPE=slope, PARAMETER=bias.parameter if bias is not None and n_learned else None,
        LOOKUP=bias.lookup if bias is not None and n_learned else None,
        FLAT=bias is not None and bias.flat, N_LEARNED=n_learned,
        N_LOOKED=bias.looked_up if bias is not None and n_learned else 0, BLOCK_L=block_l,
        BLOCK_C=triton.next_power_of_2(max(corrected, 1)), CORRECTED=corrected > 0,
        HAS_GRAD_LSE=grad_lse is not None,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, **flags, **config.launch,
    )  # fmt: skip

    config = _config("attention_grad_keys", q, cu_seqlens, flags, configs)
    hulls = None if met is None else _hulls(met, cu_seqlens)
    attention_grad_keys[(programs * (GRAIN.value // config.block_n),)](
        q, k, v, grad_out, rows, dk, dv,
        cu_seqlens, tensors.positions, tensors.params, tensors.dense,
        q if met is None else met.met, q if hulls is None else hulls.met,
        q if hulls is None else hulls.order,
        *strides, *tensors.strides, tokens, *tensors.numbers,
        SLOPE=slope, BLOCK_M=config.block_m, BLOCK_N=config.block_n, **flags, **config.launch,
    )  # fmt: skip
    learned = shares.sum(1)[:, :n_learned] if n_learned else None
    dense = None
    if need_dense and terms.dense is not None:
        dense = _grad_dense(grad_out, q, k, v, cu_seqlens, terms, rows)
    return dq, dk, dv, learned, dense


MOST_CORRECTED = 4
"""Sums that a row of queries keeps beside its own."""


def _corrected(bias: ScoreFunction | None) -> int:
    """Of how many learned numbers the gradient is corrected for the rounding of delta: of those by
    formula, all or none.

    ds is off by p times the same number in all of a row. A formula such as |i - j| makes that grow
    with the distance; a table only sorts it. To take it back from a table a row would keep a sum
    for each of its numbers, or know the true delta beforehand: another walk over its keys.
    """
    if bias is None or bias.parameter is None:
        return 0
    number = bias.n_learned - bias.looked_up
    return number if number <= MOST_CORRECTED else 0


def _grad_dense(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, terms: Terms,
    rows: Tensor,
) -> Tensor:  # fmt: skip
    """(H, side, side): the sum of ds over the sequences, in the bias's dtype. rows: as
    `attention_delta` writes them."""
    assert terms.dense is not None
    heads, side, _ = terms.dense.shape
    grad = torch.empty_like(terms.dense, memory_format=torch.contiguous_format)
    tensors, form, _ = _common(q, cu_seqlens, terms, None)
    flags = dict(_flags(*form))
    config = _config("attention_grad_keys", q, cu_seqlens, flags)
    for name in ("GATHERS", "BY_DISTANCE", "HAS_RANGES", "HAS_ORDER"):
        del flags[name]
    n_sequences, _, *numbers = tensors.numbers
    tiles = triton.cdiv(side, config.block_m), triton.cdiv(side, config.block_n)
    attention_grad_dense[(*tiles, heads)](
        q, k, v, grad_out, rows, grad, cu_seqlens, tensors.positions, tensors.params,
        tensors.dense, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *grad_out.stride()[:2],
        *tensors.strides, side, q.shape[0], n_sequences, *numbers,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, **flags, **config.launch,
    )  # fmt: skip
    return grad


def _config(
    kernel: str, q: Tensor, cu_seqlens: Tensor, flags: dict[str, Any],
    given: dict[str, Config] | None = None, learned: bool = False,
) -> Config:  # fmt: skip
    """By head dim and an average sequence: shapes tell, and nothing waits for the device."""
    if given and (config := given.get(kernel)) is not None:
        return config
    length = int(average_length(q.shape[0], cu_seqlens.numel() - 1))
    variant = _variant(flags, learned)
    return config_for(kernel, q, q.shape[2], length, whole=True, variant=variant)


def _variant(flags: dict[str, Any], learned: bool) -> str | None:
    """The forms whose registers are known: affine by the distance, from a number a head (ALiBi) or
    from one that a pair near the diagonal looks up (T5)."""
    if flags["AFFINE_FROM"] is None or not flags["BY_DISTANCE"] or flags["HAS_DROPOUT"]:
        return None
    if flags["GATHERS"] != 0:
        return "gathered" if flags["GATHERS"] == 1 else None
    return "affine-learned" if learned else "affine"


class _Tensors(NamedTuple):
    positions: Tensor
    params: Tensor
    dense: Tensor
    strides: tuple[int, ...]
    numbers: tuple[int | float, ...]


def _common(
    q: Tensor, cu_seqlens: Tensor, terms: Terms, met: Ranges | None
) -> tuple[_Tensors, tuple[Any, ...], int]:
    """What every main kernel takes: tensors and numbers, what decides its flags (`_flags`), and its
    programs if each had a whole grain."""
    tokens, heads, head_dim = q.shape
    n_sequences = cu_seqlens.shape[0] - 1
    slots = n_slots(tokens, n_sequences, GRAIN.value)
    bias, params, dense, positions = terms.bias, terms.params, terms.dense, terms.positions
    left, right = terms.window
    left, right = -1 if left >= UNBOUNDED else left, -1 if right >= UNBOUNDED else right
    tensors = _Tensors(
        _or(positions, q), _or(params, q), _or(dense, q),
        (
            0 if params is None else params.stride(0),
            *((0, 0) if dense is None else dense.stride()[:2]),
        ),
        (
            n_sequences, slots, heads, float(terms.scale), left, right, float(terms.dropout_p),
            terms.seed,
        ),
    )  # fmt: skip
    form = (
        None if bias is None else bias.key, left >= 0 or right >= 0, dense is not None,
        positions is not None, terms.dropout_p > 0, met is not None, terms.scale >= 0, head_dim,
    )  # fmt: skip
    return tensors, form, heads * slots


@functools.cache
def _flags(
    key: str | None, windowed: bool, has_dense: bool, has_positions: bool, has_dropout: bool,
    has_ranges: bool, scale_positive: bool, head_dim: int,
) -> dict[str, Any]:  # fmt: skip
    """Flags known at compilation, for readers alone; key: of the bias's `ScoreFunction`."""
    bias = None if key is None else by_key(key)
    everywhere = not windowed and not has_dense
    gathers = bias.gathers if bias is not None else int(has_dense)
    return {
        "SCORE": None if bias is None else bias.score,
        "GATHERS": gathers,
        "AFFINE_FROM": bias.affine_from if bias is not None and everywhere else None,
        "BY_DISTANCE": bias is not None and bias.by_distance and not has_positions,
        "PLAIN": bias is None and everywhere and scale_positive,
        "HAS_POSITIONS": has_positions,
        "HAS_DENSE": has_dense,
        "HAS_WINDOW": windowed,
        "HAS_DROPOUT": has_dropout,
        "HAS_RANGES": has_ranges,
        "HAS_ORDER": has_ranges,
        "HEAD_DIM": head_dim,
        "BLOCK_D": _block_d(head_dim),
        "PRECISION": "ieee",
    }


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer for an argument that the kernel will not look at."""
    return other if tensor is None else tensor


def _range_block(q: Tensor) -> int:
    """Rows that `key_ranges` looks at together: two blocks of them lie in shared memory."""
    if interpreting():
        return int(GRAIN.value)
    bytes_a_row = _block_d(q.shape[2]) * q.element_size()
    return max(16, min(64, 16384 // bytes_a_row))


def _block_d(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))
