"""Attention in torch: SDPA with its masks, FlexAttention, the plain formula, FlashAttention.

None gets a padded batch that it need not have. Biases are made once, before anything is timed; they
are in the memory that is measured. Equal lengths go as one batch of views on the packed tensors,
ragged ones a sequence at a time.

Shapes: T packed tokens, B sequences, H heads, N their length, D head dim.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import attention_data as data
from bench.compare import CannotServe, Case, Ready, Tensors
from bench.peers.attention_call import in_batches, ready

MOST_NUMBERS = 2**31
"""Of a mask on a GPU: beyond it offsets leave 32 bits, and a kernel's failure ends the process."""


def _toeplitz(by_distance: Tensor, n: int) -> Tensor:
    """(1, H, n, n) whose row i is the bias of query n - 1 - i: a view of 2N - 1 numbers a head."""
    heads, width = by_distance.shape
    middle = (width + 1) // 2
    near = by_distance[:, middle - n :]
    return near.as_strided((1, heads, n, n), (0, width, 1, 1), near.storage_offset())


def _bias_by_distance(case: Case, x: Tensors) -> Tensor:
    if not data.has_bias(case):
        raise CannotServe("there is no bias in this case; see the row without")
    longest = max(case.kind["lengths"])
    return data.by_distance(case, longest, x["q"].device).to(x["q"].dtype)


def _check_mask(numbers: int, x: Tensors) -> None:
    if x["q"].is_cuda and numbers >= MOST_NUMBERS:
        raise CannotServe(f"its mask has {numbers / 1e9:.1f}e9 numbers")


def sdpa_dense(case: Case, x: Tensors) -> Ready:
    bias = _bias_by_distance(case, x)
    _check_mask(case.kind["heads"] * max(case.kind["lengths"]) ** 2, x)
    dense = _toeplitz(bias, (bias.shape[1] + 1) // 2).flip(2)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[2]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=dense[:, :, :n, :n])

    return ready(case, x, lambda q, k, v: in_batches(case, q, k, v, attend))


def sdpa_padded(case: Case, x: Tensors) -> Ready:
    """A ragged batch as most programs hold it; padding before and unpadding after is not timed."""
    lengths = case.kind["lengths"]
    bias, longest = _bias_by_distance(case, x), max(lengths)
    _check_mask(len(lengths) * case.kind["heads"] * longest**2, x)
    sizes = torch.tensor(lengths, device=x["q"].device)
    real = torch.arange(longest, device=sizes.device)[None] < sizes[:, None]
    padded = []
    for name in ("q", "k", "v"):
        rows = x[name].new_zeros(len(lengths), longest, *x[name].shape[1:])
        rows[real] = x[name]
        padded.append(rows.transpose(1, 2))
    mask = _toeplitz(bias, longest).flip(2).masked_fill(~real[:, None, None], float("-inf"))

    def run() -> Tensor:
        with torch.no_grad():
            return F.scaled_dot_product_attention(*padded, attn_mask=mask)

    return Ready(run, lambda out: {"out": out.transpose(1, 2)[real]})


def sdpa_toeplitz(case: Case, x: Tensors) -> Ready:
    """Linear memory: queries from last to first make the bias a view that overlaps itself."""
    if x["q"].is_cuda:
        raise CannotServe("left out on a GPU, whose kernels want masks that do not overlap")
    bias = _bias_by_distance(case, x)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = _toeplitz(bias, q.shape[2])
        return F.scaled_dot_product_attention(q.flip(2), k, v, attn_mask=mask).flip(2)

    return ready(case, x, lambda q, k, v: in_batches(case, q, k, v, attend))


def sdpa_no_bias(case: Case, x: Tensors) -> Ready:
    attend = F.scaled_dot_product_attention
    return ready(case, x, lambda q, k, v: in_batches(case, q, k, v, attend))


def eager(case: Case, x: Tensors) -> Ready:
    """softmax(Q K^T + bias) V as the formula reads, a score for every pair in memory."""
    lengths = case.kind["lengths"]
    batch = len(lengths) if len(set(lengths)) == 1 else 1
    scores = batch * case.kind["heads"] * max(lengths) ** 2 * x["q"].element_size()
    if 4 * scores > 0.8 * _free_bytes(x["q"].device):
        raise CannotServe(f"it needs about {4 * scores / 1e9:,.0f} GB")
    dense = None
    if data.has_bias(case):
        bias = _bias_by_distance(case, x)
        dense = _toeplitz(bias, (bias.shape[1] + 1) // 2).flip(2)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[2]
        score = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        if dense is not None:
            score = score + dense[:, :, :n, :n]
        return score.softmax(-1) @ v

    return ready(case, x, lambda q, k, v: in_batches(case, q, k, v, attend))


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        import psutil

        return float(psutil.virtual_memory().available)
    except ImportError:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))


@functools.cache
def _flex_alibi(heads: int, device: torch.device) -> Callable[..., Tensor]:
    """One function object a head count: torch.compile compiles each anew."""
    slopes = data.slopes(heads, device)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes[h] * (i - j).abs()

    return score_mod


def flex(case: Case, x: Tensors) -> Ready:
    from torch.nn.attention.flex_attention import flex_attention

    cuda = x["q"].device.type == "cuda"
    if case.kind["bias"] != "alibi" or len(set(case.kind["lengths"])) > 1:
        raise CannotServe("left out: it compiles for each shape; timed with ALiBi, equal lengths")
    if case.backward and not cuda:
        raise CannotServe("forward only on a CPU")
    if cuda and case.dtype == "float32":
        raise CannotServe("left out: it compiles for each shape; timed in bfloat16")
    torch._dynamo.config.recompile_limit = 64
    compiled = torch.compile(flex_attention, dynamic=False)
    score_mod = _flex_alibi(case.kind["heads"], x["q"].device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(q, k, v, score_mod=score_mod)  # type: ignore[no-any-return]

    return ready(case, x, lambda q, k, v: in_batches(case, q, k, v, attend))


def aten_flash(case: Case, x: Tensors) -> Ready:
    """FlashAttention-2 inside torch, whose builds may have ALiBi compiled out; the check tells."""
    if x["q"].device.type != "cuda":
        raise CannotServe("CUDA only")
    if case.kind["bias"] != "alibi" or case.backward:
        raise CannotServe("timed with ALiBi, forward")
    slopes = data.slopes(case.kind["heads"], x["q"].device)
    bounds, longest = x["cu_seqlens"], max(case.kind["lengths"])

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, bounds, bounds, longest, longest, 0.0, False, False, alibi_slopes=slopes
        )[0]
        return out

    return ready(case, x, forward)
