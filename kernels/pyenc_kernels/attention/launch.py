"""Attention forward: the launcher of its kernel, tensors in, tensors out.

Shapes: T packed tokens, B sequences, H heads, D head dim, S slots of GRAIN tokens (slots.py).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..configs import Config
from ..launching import Known, Launch, Plans
from ..slots import GRAIN
from .call import Ranges, Terms, common, config_of, constants_of, flags_of, variant_of
from .forward_kernel import attention_forward


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, terms: Terms, met: Ranges | None = None,
    config: Config | None = None, want_lse: bool = True, known: Known | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """softmax(scale * q k^T + bias) v, each sequence attending to itself alone.

    q (T, H, D) float32, bfloat16 or float16, D at most 256, and k, v (T, a divisor of H, D) of its
    dtype, last axes contiguous; cu_seqlens (B + 1,) int32 or int64, from 0 to T and not decreasing;
    met: as `ranges` gave it, None where heads are shared; known: of calls with these terms and
    heads.
    Returns (out (T, H, D) in q's dtype, log-sum-exp (T, H) float32, None if nobody wants it: what
    is right for out alone may take fewer instructions).

    Nothing is checked here, and nothing waits for the device; pyenc.ops.attention checks.
    """
    tokens, heads, _ = q.shape
    out = torch.empty_like(q) if q.is_contiguous() else q.new_empty(q.shape)
    lse = q.new_empty((tokens, heads), dtype=torch.float32) if want_lse else None
    if tokens == 0:
        return out, lse
    positions, params, dense = terms.positions, terms.params, terms.dense
    pointers = (
        q, k, v, out, out if lse is None else lse, cu_seqlens,
        q if positions is None else positions, q if params is None else params,
        q if dense is None else dense, q if met is None else met.met,
        q if met is None else met.order,
    )  # fmt: skip
    if known and (launch := known.get((attention_forward, want_lse))) is not None:
        launch(pointers)
        return out, lse
    tensors, form, programs = common(q, cu_seqlens, terms, met)
    if config is None:
        config = config_of("attention_forward", q, cu_seqlens, _form_variant(*form))
    plan = _FORWARD.of(config, want_lse, *form)
    grid = (programs * (GRAIN.value // config.block_m),)
    strides = *q.stride()[:2], *k.stride()[:2], *v.stride()[:2]
    numbers = *strides, heads // k.shape[1], *tensors.strides, *tensors.numbers
    plan(grid, pointers, numbers)
    if known is not None:
        known[attention_forward, want_lse] = Launch(plan, grid, numbers)
    return out, lse


@functools.cache
def _form_variant(*form: Any) -> str | None:
    return variant_of(flags_of(*form), False)


def _constants(config: Config, want_lse: bool, *form: Any) -> dict[str, Any]:
    """With a configuration's ways to walk beside the diagonal, where the call has tiles there."""
    constants, flags = constants_of(config, *form), flags_of(*form)
    beside = flags["PLAIN"] or flags["AFFINE_FROM"] is not None
    return constants | {
        "FIXED_SHIFT": config.fixed_shift and beside and not want_lse,
        "HAS_LSE": want_lse,
        "COLUMNS_IN_PRODUCT": config.columns_in_product and flags["SLANTS"],
    }


_FORWARD = Plans(attention_forward, _constants)
