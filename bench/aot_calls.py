"""The calls that `make aot` compiles: each launches the kernels of an op, forward and backward, in
every branch that they have, on tensors that nobody looks into.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

from pyenc.ops import ALiBi, AsymmetricALiBi, RelativePositionBias, SoftCap, alibi_slopes
from pyenc.ops.attention import triton as attention_triton
from pyenc.ops.attention.along import Line
from pyenc.ops.attention.terms import terms_of
from pyenc_kernels import (
    attention,
    configs,
    disentangled,
    embedding,
    gated,
    norm,
    norm_rotary,
    rotary,
    segment_mean,
)

HEADS, TOKENS = 2, 256


@dataclass(frozen=True)
class Variant:
    """A call of attention: a bias and what else its kernels are specialised by."""

    bias: Any = None
    window: tuple[int, int] | None = None
    positions: bool = False
    dropout_p: float = 0.0
    grad_lse: bool = False
    scale: float | None = None
    skip_eps: float = 2.0**-11
    learned: bool = True
    dtype: torch.dtype = torch.int32
    """Of cu_seqlens."""


ALIBI = ALiBi(alibi_slopes(HEADS))
T5 = RelativePositionBias(torch.zeros(32, HEADS))
LINE = Line(torch.zeros(HEADS, 2 * TOKENS - 1))
STRAIGHT = Line(torch.zeros(HEADS, 2 * TOKENS - 1), 64)
VARIANTS = {
    "none": Variant(),
    "alibi": Variant(ALIBI),
    "t5": Variant(T5),
    "dense": Variant(torch.zeros(HEADS, 1, 1)),
    "window": Variant(window=(64, 64)),
    "t5-window": Variant(T5, window=(64, 64)),
    "asymmetric": Variant(AsymmetricALiBi(torch.ones(HEADS, 2))),
    "map": Variant(SoftCap(torch.ones(HEADS))),
    "negative-scale": Variant(scale=-1.0),
    "alibi-positions": Variant(ALIBI, positions=True),
    "alibi-dropout": Variant(ALIBI, dropout_p=0.1),
    "alibi-lse": Variant(ALIBI, grad_lse=True),
    "alibi-whole": Variant(ALIBI, skip_eps=0.0),
    "alibi-fixed": Variant(ALIBI, learned=False),
    "alibi-fixed-whole": Variant(ALIBI, learned=False, skip_eps=0.0),
    "alibi-int64": Variant(ALIBI, learned=False, dtype=torch.int64),
    "t5-fixed": Variant(T5, learned=False),
    "line": Variant(LINE),
    "line-straight": Variant(STRAIGHT),
    "line-fixed": Variant(STRAIGHT, learned=False),
    "line-fixed-whole": Variant(STRAIGHT, learned=False, skip_eps=0.0),
}
"""Attention's; at head dim 64 in bfloat16 but for ALiBi. whole: without ranges, as `skip_eps=0` and
short texts are; fixed: nothing learns the bias."""


def call(op: str, dtype: torch.dtype, width: int, tokens: int) -> None:
    """Launches the kernels of an op, or of a variant of attention."""
    cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32)
    if op == "disentangled":
        _call_disentangled(dtype, tokens, width, cu_seqlens)
    elif op == "embedding":
        _call_embedding(dtype, tokens, width)
    elif op == "gated":
        halves = torch.zeros(tokens, 2 * width, dtype=dtype).chunk(2, -1)
        grads = torch.zeros(tokens, 2 * width, dtype=dtype).chunk(2, -1)
        for activation in gated.ACTIVATIONS:
            gated.backward(gated.forward(*halves, activation), *halves, activation, *grads)
        alone = gated.forward(halves[0], None, "gelu")
        gated.backward(alone, halves[0], None, "gelu", grads[0], None)
    elif op == "gated_linear":
        _call_gated_linear(dtype, tokens, width)
    elif op == "norm":
        _call_norm(dtype, tokens, width)
    elif op == "norm_rotary":
        _call_norm_rotary(dtype, tokens, width)
    elif op == "rotary":
        _call_rotary(dtype, tokens, width)
    elif op == "segment_mean":
        x, weights = torch.zeros(tokens, width, dtype=dtype), torch.ones(tokens)
        out, stats = segment_mean.forward_saving(x, cu_seqlens, weights, True)
        segment_mean.backward(out, x, cu_seqlens, weights, True, out, stats, need_grad_weights=True)
        out, stats = segment_mean.forward_saving(x, cu_seqlens)
        segment_mean.backward(out, x, cu_seqlens, None, False, out, stats)
    else:
        _call_attention(VARIANTS[op], dtype, tokens, width, cu_seqlens)


def _call_disentangled(
    dtype: torch.dtype, tokens: int, width: int, cu_seqlens: torch.Tensor
) -> None:
    """Both terms, as DeBERTa has them, and either; positions; rows that fill no alignment."""
    q = torch.zeros(tokens, HEADS, width, dtype=dtype)
    line = torch.zeros(2 * (128 + disentangled.MARGIN) + 1, dtype=torch.int32)

    def call(rows: int, which: str, positions: torch.Tensor | None = None) -> None:
        table = torch.zeros(rows, HEADS, width, dtype=dtype)
        tables = (table if name in which else None for name in ("keys", "queries"))
        disentangled.forward(q, q, q, cu_seqlens, *tables, line, 0.1, positions)

    call(512, "keys, queries")
    call(512, "keys, queries", torch.arange(tokens))
    call(255, "keys")
    call(512, "queries")


def _call_embedding(dtype: torch.dtype, tokens: int, width: int) -> None:
    def rows(count: int, of: torch.dtype = torch.int64) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(tokens, dtype=of), torch.empty(count, width, dtype=dtype)

    word, types, positions, none = rows(30528), rows(2), rows(512), (None, None)
    parameter = torch.zeros(width, dtype=dtype)
    embedding.forward(*word, *types, *positions, parameter, parameter, 1e-12, False)
    embedding.forward(*word, None, types[1], *none, parameter, parameter, 1e-12, False)
    embedding.forward(*rows(30528, torch.int32), *none, *none, parameter, None, 1e-6, True)


def _call_gated_linear(dtype: torch.dtype, tokens: int, width: int) -> None:
    """Of the activations the one that takes most registers; "gated" has all of them."""

    def both(columns: int, bias: bool, gate_first: bool) -> None:
        x = torch.zeros(tokens, columns, dtype=dtype)
        weight = torch.zeros(2 * width, columns, dtype=dtype)
        call = x, weight, weight[:, 0].contiguous() if bias else None, "gelu", gate_first
        gated.linear_backward(gated.linear_forward(*call), *call)

    both(width // 4, False, True)
    both(width // 4, True, False)
    both(width // 4 + 16, False, True)


def _call_norm(dtype: torch.dtype, tokens: int, width: int) -> None:
    x, parameter = torch.zeros(tokens, width, dtype=dtype), torch.zeros(width, dtype=dtype)
    for residual, bias, rms in ((x, parameter, False), (None, None, False), (x, None, True)):
        normed, total, stats = norm.forward(x, residual, parameter, bias, 1e-5, rms)
        total = x if total is None else total
        grad_total = None if residual is None else x
        norm.backward(normed, grad_total, total, parameter, bias, stats, 1e-5, rms)
    norm.forward(x, x, parameter, None, 1e-5, True, plus_one=True)


def _call_norm_rotary(dtype: torch.dtype, tokens: int, width: int) -> None:
    """q and fewer k beside v as in Qwen 3, of wide heads as in Gemma; heads of one weight."""
    weight = torch.zeros(2, 2 * width, dtype=dtype)
    for heads, k_heads, dim, plus_one in ((16, 8, width, False), (3, 1, 2 * width, True),
                                          (12, 0, width, False)):  # fmt: skip
        x = torch.zeros(tokens, heads + 2 * k_heads, dim, dtype=dtype)[:, : heads + k_heads]
        tables = torch.zeros(2, tokens, dim // 2, dtype=torch.float32)
        weights = weight[0, :dim], weight[1, :dim] if k_heads else None
        call = *weights, k_heads, *tables, torch.arange(tokens), 1e-6, plus_one
        norm_rotary.backward(norm_rotary.forward(x, *call), x, *call)


def _call_rotary(dtype: torch.dtype, tokens: int, width: int) -> None:
    """q and k beside v, both ways; heads that fill no power of two, of which each lies apart."""
    for heads, dim, places in ((12, width, torch.int64), (HEADS, width * 3 // 2, torch.int32)):
        qkv = torch.zeros(tokens, 3 * heads, dim, dtype=dtype)
        tables = torch.zeros(2, tokens, dim // 2, dtype=torch.float32)
        positions = torch.arange(tokens, dtype=places)
        turned = rotary.turn(qkv[:, : 2 * heads], *tables, positions)
        rotary.turn(turned, *tables, positions, back=True)


def _call_attention(
    variant: Variant, dtype: torch.dtype, tokens: int, width: int, cu_seqlens: torch.Tensor
) -> None:
    q, k, v, g = (torch.empty(tokens, HEADS, width, dtype=dtype) for _ in range(4))
    cu_seqlens = cu_seqlens.to(variant.dtype)
    positions = torch.arange(tokens) if variant.positions else None
    bias = variant.bias
    if isinstance(bias, torch.Tensor):  # dense: as long as the sequence
        bias = torch.empty(HEADS, tokens, tokens)
    terms = terms_of(q, bias, positions, variant.scale, variant.window)
    terms = replace(terms, dropout_p=variant.dropout_p)
    # Not of a dense bias's numbers, which nobody has written.
    with mock.patch.object(attention_triton, "_far", return_value=False):
        with mock.patch.object(configs, "_range_length", return_value=0):
            if bias is None and terms.dropout_p == 0:  # families whose heads share those of keys
                shared = k[:, : HEADS // 2]
                own = attention_triton.kernel_terms(terms, HEADS, 0.0)
                attention.forward(q, shared, shared, cu_seqlens, own, want_lse=False)
            attention_triton.forward(q, k, v, cu_seqlens, terms, variant.skip_eps, False)
            out, lse, met = attention_triton.forward(q, k, v, cu_seqlens, terms, variant.skip_eps)
        grad_lse = torch.zeros_like(lse) if variant.grad_lse else None
        attention_triton.backward(
            g, grad_lse, q, k, v, cu_seqlens, terms, out, lse, met,
            want_bias=variant.learned and variant.bias is not None,
        )  # fmt: skip
