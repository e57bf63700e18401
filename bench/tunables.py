"""The Triton kernels whose tile sizes are data, and a call of each with given ones.

Shapes are written as configs.json has them: "64x2048", head dim 64 and sequences of 2,048 tokens;
"3072", so many columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyenc.ops import DistanceRows, alibi_slopes
from pyenc.ops.disentangled.triton import line_of, same_from
from pyenc_kernels import (
    attention,
    disentangled,
    embedding,
    gated,
    norm,
    norm_rotary,
    rotary,
    segment_mean,
)
from pyenc_kernels.configs import Config
from pyenc_kernels.score_function import ALIBI

HEADS, TOKENS = 12, 16384

Call = Callable[[Config], Any]


@dataclass(frozen=True)
class Tunable:
    """One kernel."""

    op: str
    """The call that launches it, as bench/aot_work.py names it."""
    shapes: tuple[str, ...]
    """Those that are tuned unless others are asked for."""
    candidates: Callable[[str], list[Config]]
    """What has a chance, for a dtype."""
    call: Callable[[str, str, int, int, torch.device], Call]
    """(kernel, dtype, width, length, device) -> a call of its launcher."""
    variant: str | None = None
    """What that call's kernel is specialised to, where this has entries of its own: those of other
    forms want other tiles."""


def kernel_of(row: str) -> str:
    """The kernel that a row of `TUNABLES` is about: one may have several, a variant each."""
    return row.partition("/")[0]


def numbers(shape: str, otherwise: int = TOKENS) -> tuple[int, int]:
    """(width, length) of a shape, with another length where it has none."""
    width, _, length = shape.partition("x")
    return int(width), int(length or otherwise)


def _attention_candidates(dtype: str) -> list[Config]:
    """Blocks that divide a grain."""
    sides = (16, 32, 64) if dtype == "float32" else (32, 64, 128)
    sizes = itertools.product(sides, sides, (4, 8), (1, 2, 3, 4), registers())
    return [
        Config(*size)
        for size in sizes
        if size[0] * size[1] >= 1024
        and not (size[2] == 8 and size[0] * size[1] < 4096)
        and not (size[4] is not None and size[0] * size[1] < 4096)  # small blocks take fewer
    ]


def _forward_candidates(dtype: str) -> list[Config]:
    """The same blocks, with a shift that stands still and without; the former also with keys'
    numbers out of the product."""
    plain = _plain_candidates(dtype)
    return plain + [
        replace(config, columns_in_product=True) for config in plain if config.fixed_shift
    ]


def _plain_candidates(dtype: str) -> list[Config]:
    return [
        replace(config, fixed_shift=fixed)
        for config in _attention_candidates(dtype)
        for fixed in (False, True)
    ]


def registers() -> tuple[int | None, ...]:
    """Bounds of a thread's registers to try: with 128, 16 warps find room on a multiprocessor."""
    return (None,) if torch.version.hip else (None, 128)


def _tiles(
    areas: Iterable[int], widths: Iterable[int], stages: Iterable[int] = (1,)
) -> Callable[[str], list[Config]]:
    """Tiles of so many elements and columns, mostly for kernels that have no pipeline."""
    sizes = [
        Config(area // width, width, warps, n_stages)
        for area, width, warps, n_stages in itertools.product(areas, widths, (4, 8), stages)
        if area >= width
    ]
    return lambda dtype: sizes


def _attention_call(kernel: str, dtype: str, width: int, length: int, device: torch.device) -> Call:
    """ALiBi with the published slopes, or no bias, everything computed: what a tile costs, not how
    many."""
    shape = TOKENS, HEADS, width
    q, k, v, g = (torch.randn(shape, device=device).to(getattr(torch, dtype)) for _ in range(4))
    bounds = [*range(0, TOKENS, min(length, TOKENS)), TOKENS]
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
    params = alibi_slopes(HEADS).to(device)[:, None].contiguous()
    terms = attention.Terms(scale=width**-0.5, bias=ALIBI, params=params)
    if kernel.endswith("/plain"):
        terms = attention.Terms(scale=width**-0.5)
    if kernel_of(kernel) == "attention_forward":
        return lambda config: attention.forward(q, k, v, cu_seqlens, terms, None, config, False)
    out, lse = attention.forward(q, k, v, cu_seqlens, terms)
    return lambda config: attention.backward(
        g, None, q, k, v, cu_seqlens, terms, None, out, lse, need_params=True,
        configs={kernel: config},
    )  # fmt: skip


def _gated_call(kernel: str, dtype: str, width: int, length: int, device: torch.device) -> Call:
    def halves() -> Any:
        both = torch.randn(TOKENS, 2 * width, device=device).to(getattr(torch, dtype))
        return both.chunk(2, -1)

    gate, value = halves()
    if kernel == "gated_forward":
        return lambda config: gated.forward(gate, value, "gelu", config)
    grad_out = torch.randn(TOKENS, width, device=device).to(gate.dtype)
    grads = halves()
    return lambda config: gated.backward(grad_out, gate, value, "gelu", *grads, config)


def _gated_linear_call(
    kernel: str, dtype: str, width: int, length: int, device: torch.device
) -> Call:
    """Four times as wide as what it reads, as feed-forward layers are."""
    of = getattr(torch, dtype)
    x = torch.randn(TOKENS, width // 4, device=device).to(of)
    weight = (torch.randn(2 * width, width // 4, device=device) * (width // 4) ** -0.5).to(of)
    call = x, weight, weight[:, 0].contiguous(), "gelu", True
    if kernel == "gated_linear_forward":
        return lambda config: gated.linear_forward(*call, config)
    grad_out = torch.randn(TOKENS, width, device=device).to(of)
    return lambda config: gated.linear_backward(grad_out, *call, config)


def _gated_linear_candidates(dtype: str) -> list[Config]:
    """Blocks of rows and of each half's columns."""
    rows, columns = ((32, 64), (16, 32, 64)) if dtype == "float32" else ((64, 128), (32, 64, 128))
    sizes = itertools.product(rows, columns, (4, 8), (2, 3, 4))
    return [Config(*size) for size in sizes if not (size[2] == 8 and size[0] * size[1] < 4096)]


def _norm_call(kernel: str, dtype: str, width: int, length: int, device: torch.device) -> Call:
    def rows() -> Any:
        return torch.randn(TOKENS, width, device=device).to(getattr(torch, dtype))

    x, residual, weight, bias = rows(), rows(), *rows()[:2]
    if kernel == "norm_forward":
        return lambda config: norm.forward(x, residual, weight, bias, 1e-5, False, {kernel: config})
    normed, total, stats = norm.forward(x, residual, weight, bias, 1e-5, False)
    return lambda config: norm.backward(
        normed, residual, total, weight, bias, stats, 1e-5, False, {kernel: config}
    )


def _disentangled_call(
    kernel: str, dtype: str, width: int, length: int, device: torch.device
) -> Call:
    """Both terms, and the rows of DeBERTa-v3."""
    shape = TOKENS, HEADS, width
    q, k, v = (torch.randn(shape, device=device).to(getattr(torch, dtype)) for _ in range(3))
    rows = DistanceRows(256, 256, 512)
    tables = torch.randn(2, rows.count, HEADS, width, device=device).to(q.dtype)
    bounds = [*range(0, TOKENS, min(length, TOKENS)), TOKENS]
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
    line = line_of(rows, same_from(rows) + disentangled.MARGIN, device)
    call = q, k, v, cu_seqlens, *tables, line, (3 * width) ** -0.5, None
    return lambda config: disentangled.forward(*call, config)


def _embedding_call(kernel: str, dtype: str, width: int, length: int, device: torch.device) -> Call:
    """BERT's tables."""

    def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.randint(count, (TOKENS,), dtype=torch.int64, device=device)
        return ids, torch.randn(count, width, device=device).to(getattr(torch, dtype))

    tables = *rows(30528), *rows(2), *rows(512)
    weight, bias = rows(2)[1]
    return lambda config: embedding.forward(*tables, weight, bias, 1e-12, False, config)


def _rotary_call(kernel: str, dtype: str, width: int, length: int, device: torch.device) -> Call:
    """q and k of a product with v, as a model turns them."""
    qkv = torch.randn(TOKENS, 3 * HEADS, width, device=device).to(getattr(torch, dtype))
    positions = torch.arange(TOKENS, dtype=torch.int64, device=device)
    cos, sin = torch.randn(2, TOKENS, width // 2, dtype=torch.float32, device=device)
    turned = qkv[:, : 2 * HEADS], cos, sin, positions
    return lambda config: rotary.turn(*turned, config=config)


def _norm_rotary_call(
    kernel: str, dtype: str, width: int, length: int, device: torch.device
) -> Call:
    """q and half as many k of a product with v, as a model norms and turns them."""
    of = getattr(torch, dtype)
    x = torch.randn(TOKENS, 2 * HEADS, width, device=device).to(of)
    k_heads = HEADS // 2
    x = x[:, : HEADS + k_heads]
    weight, k_weight = torch.randn(2, width, device=device).to(of)
    positions = torch.arange(TOKENS, dtype=torch.int64, device=device)
    cos, sin = torch.randn(2, TOKENS, width // 2, dtype=torch.float32, device=device)
    call = x, weight, k_weight, k_heads, cos, sin, positions, 1e-6, False
    if kernel == "norm_rotary_forward":
        return lambda config: norm_rotary.forward(*call, {kernel: config})
    grad_out = torch.randn(x.shape, device=device).to(of)
    return lambda config: norm_rotary.backward(grad_out, *call, {kernel: config})


def _segment_mean_call(
    kernel: str, dtype: str, width: int, length: int, device: torch.device
) -> Call:
    x = torch.randn(TOKENS, width, device=device).to(getattr(torch, dtype))
    bounds = [*range(0, TOKENS, min(length, TOKENS)), TOKENS]
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
    if kernel != "segment_mean_backward":
        return lambda config: segment_mean.forward_saving(
            x, cu_seqlens, None, True, {kernel: config}
        )
    out, stats = segment_mean.forward_saving(x, cu_seqlens, None, True)
    return lambda config: segment_mean.backward(
        out, x, cu_seqlens, None, True, out, stats, configs={kernel: config}
    )


def _attention(
    variant: str, candidates: Callable[[str], list[Config]] = _attention_candidates
) -> Tunable:
    op = "none" if variant == "plain" else "alibi"
    return Tunable(op, ("64x512", "64x8192"), candidates, _attention_call, variant)


_gated = Tunable(
    "gated", ("3072",), _tiles((1024, 2048, 4096, 8192), (256, 512, 1024)), _gated_call
)
_gated_linear = Tunable("gated_linear", ("3072",), _gated_linear_candidates, _gated_linear_call)
_norm = Tunable("norm", ("768",), _tiles((1024, 2048, 4096, 8192), (1024,)), _norm_call)

_norm_rotary = Tunable(
    "norm_rotary", ("128",), _tiles((512, 1024, 2048, 4096), (64, 128, 256, 512)),
    _norm_rotary_call,
)  # fmt: skip

TUNABLES = {  # a kernel, or one of its variants where it has several rows
    "attention_forward": _attention("affine", _forward_candidates),
    "attention_forward/plain": _attention("plain", _plain_candidates),
    "attention_grad_queries": _attention("affine-learned"),
    "attention_grad_keys": _attention("affine"),
    "disentangled_forward": Tunable(
        "disentangled", ("64x512", "64x8192"), _attention_candidates, _disentangled_call
    ),
    "embedding_norm": Tunable(
        "embedding", ("768",), _tiles((1024, 2048, 4096, 8192), (1024,)), _embedding_call
    ),
    "gated_forward": _gated,
    "gated_backward": _gated,
    "gated_linear_forward": _gated_linear,
    "gated_linear_backward": _gated_linear,
    "norm_forward": _norm,
    "norm_backward": Tunable(
        "norm", ("768",), _tiles((1024, 2048, 4096, 8192), (1024,), (1, 2, 3)), _norm_call
    ),
    "norm_parameters": Tunable(
        "norm", ("768",), _tiles((1024, 2048, 4096), (16, 32, 64)), _norm_call
    ),
    "norm_rotary_forward": _norm_rotary,
    "norm_rotary_backward": _norm_rotary,
    "rotary_turn": Tunable(
        "rotary", ("64",), _tiles((512, 1024, 2048, 4096), (64, 128, 256, 512)), _rotary_call
    ),
    "segment_mean_sum": Tunable(
        "segment_mean", ("768x512",), _tiles((2048, 4096, 8192), (64, 128, 256)), _segment_mean_call
    ),
    "segment_mean_finish": Tunable(
        "segment_mean", ("768x512",), _tiles((1024, 4096, 8192), (1024,)), _segment_mean_call
    ),
    "segment_mean_backward": Tunable(
        "segment_mean", ("768x512",), _tiles((1024, 4096, 8192), (1024,)), _segment_mean_call
    ),
}

FIXED = {
    "attention_delta": "reads each number once: any block is as fast",
    "attention_grad_dense": "takes the tiles of attention_grad_keys",
    "attention_grad_table": "takes the tiles of attention_grad_queries: it has what those left",
    "attention_grad_line": "takes the smaller side of the tiles of attention_grad_keys",
    "key_reach": "a grain a program: what may be left out is told by grains",
    "key_ranges": "its scores are bounds, whatever the card, so its tile is part of what it proves",
    "key_outer": "a few numbers a program",
    "query_hulls": "a few integers a program",
    "longest_first": "a few integers a program",
    "_probe": "check_score_bias calls it on a few pairs",
    "_probe_lookup": "check_score_bias calls it on a few pairs",
    "_probe_decay": "check_score_bias calls it on a few numbers",
    "_probe_tail": "check_score_bias calls it on a few numbers",
}
"""Kernels whose tile is no data of configs.json, and why. A kernel is here or in `TUNABLES`."""
