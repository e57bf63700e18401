"""Attention in plain torch: linear memory in both directions, on any device, for any bias.

Sequences of equal length are served together. Where the bias depends on j - i alone, its values
are a vector of 2n - 1 numbers a head, and torch's own fused kernel reads it through a Toeplitz
view: with q flipped along n, entry [r, j] of the view is f[r + j], so no (n, n) mask exists.
Everything else (dropout, log-sum-exp, gradients of the bias, holes, dense biases, half precision
on a GPU) goes block of queries by block of queries, each with all of its keys, so that the
softmax is exact and the backward recomputes it without anything saved.

Shapes: T packed tokens, b sequences of one length n, H heads, D head dim, i queries of a block.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bias import relative_position_bucket
from .far import far_bias, far_rows, fitting
from .groups import FAINTEST, Group, groups_of, query_blocks
from .terms import Terms

BY_DISTANCE = ("alibi", "t5", "line")
LOG2E = math.log2(math.e)

# What `scaled_dot_product_attention` itself calls on a CPU. Called directly since it returns the
# log-sum-exp, and since autograd is out of reach inside a registered op; should a torch come
# without it, the blocks below serve.
_FLASH_CPU: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_FLASH_CPU_BACKWARD: Any = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None
)


def forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: list[int], terms: Terms, return_lse: bool
) -> tuple[Tensor, Tensor]:
    """out (T, H, D) in q's dtype; log-sum-exp (T, H) in float32 (float64), or (0, H) if unasked."""
    work = _work_dtype(q)
    out = torch.empty_like(q)
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = q.new_empty((q.shape[0] if return_lse else 0, q.shape[1]), dtype=lse_dtype)
    fused = _fused(q, terms, bounds) and (q.device.type == "cpu" or not return_lse)
    generator = torch.Generator(device=q.device).manual_seed(terms.seed)
    for group in groups_of(bounds):
        q_bhnd, k_bhnd, v_bhnd = (group.take(x).to(work) for x in (q, k, v))
        if fused:
            o_bhnd, flash_lse = _flash(q_bhnd, k_bhnd, v_bhnd, terms)
            group.put(out, o_bhnd)
            if return_lse and flash_lse is not None:
                group.put(lse.unsqueeze(-1), flash_lse.unsqueeze(-1))
            continue
        o_bhnd = torch.empty_like(q_bhnd)
        lse_bhn = q_bhnd.new_empty(q_bhnd.shape[:3], dtype=lse_dtype)
        for block in query_blocks(group, q_bhnd):
            weight, top = _weights(_scores(block, group, q_bhnd, k_bhnd, terms))
            total = weight.sum(-1, keepdim=True)
            # A row of hidden keys has -inf, as in every backend, where its weights are no numbers.
            whole = (top + total.log()).masked_fill_(top == -math.inf, -math.inf)
            lse_bhn[:, :, block] = whole.squeeze(-1)
            if terms.dropout_p > 0:
                weight *= keep_factor(weight, terms.dropout_p, generator)
            o_bhnd[:, :, block] = torch.matmul(weight.to(work), v_bhnd) / total
        group.put(out, o_bhnd)
        if return_lse:
            group.put(lse.unsqueeze(-1), lse_bhn.unsqueeze(-1))
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: list[int],
    terms: Terms,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v, and of the bias's tensor where wanted; recomputes, saves nothing."""
    work = _work_dtype(q)
    grads = tuple(torch.empty_like(x) for x in (q, k, v))
    grad_bias: Tensor | None = None
    if want_bias and terms.tensor is not None:
        wide = torch.promote_types(terms.tensor.dtype, torch.float32)
        grad_bias = torch.zeros_like(terms.tensor, dtype=wide)
    fused = (
        _fused(q, terms, bounds)
        and q.device.type == "cpu"
        and grad_lse is None
        and grad_bias is None
    )
    generator = torch.Generator(device=q.device).manual_seed(terms.seed)
    for group in groups_of(bounds):
        q_bhnd, k_bhnd, v_bhnd, do_bhnd = (group.take(x).to(work) for x in (q, k, v, grad_out))
        parts = _flash_backward(do_bhnd, q_bhnd, k_bhnd, v_bhnd, terms) if fused else None
        if parts is None:
            dlse_bhn1 = None if grad_lse is None else group.take(grad_lse.unsqueeze(-1))
            parts = _blocked_backward(
                do_bhnd, dlse_bhn1, (q_bhnd, k_bhnd, v_bhnd), group, terms, grad_bias, generator
            )
        for grad, part in zip(grads, parts, strict=True):
            group.put(grad, part)
    if grad_bias is not None and terms.tensor is not None:
        grad_bias = grad_bias.to(terms.tensor.dtype)
    return grads[0], grads[1], grads[2], grad_bias


def _blocked_backward(
    do_bhnd: Tensor,
    dlse_bhn1: Tensor | None,
    qkv: tuple[Tensor, Tensor, Tensor],
    group: Group,
    terms: Terms,
    grad_bias: Tensor | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """With P = softmax(S), O = (P * keep) V: dS = P * (dP - sum(P * dP) + dlse)."""
    q_bhnd, k_bhnd, v_bhnd = qkv
    wide = torch.promote_types(q_bhnd.dtype, torch.float32)
    dq = torch.empty_like(q_bhnd)
    dk = torch.zeros_like(k_bhnd, dtype=wide)
    dv = torch.zeros_like(v_bhnd, dtype=wide)
    for block in query_blocks(group, q_bhnd):
        prob, _ = _weights(_scores(block, group, q_bhnd, k_bhnd, terms))
        prob /= prob.sum(-1, keepdim=True)
        do_bhid = do_bhnd[:, :, block]
        dprob = torch.matmul(do_bhid, v_bhnd.transpose(-1, -2)).to(wide)
        kept = prob
        if terms.dropout_p > 0:
            keep = keep_factor(prob, terms.dropout_p, generator)
            dprob *= keep
            kept = prob * keep
        dv += torch.matmul(kept.to(v_bhnd.dtype).transpose(-1, -2), do_bhid)
        shift = (prob * dprob).sum(-1, keepdim=True)
        if dlse_bhn1 is not None:
            shift -= dlse_bhn1[:, :, block]
        dscore = dprob.sub_(shift).mul_(prob)
        if grad_bias is not None:
            _add_bias_grad(grad_bias, dscore, block, group, terms)
        dscore = dscore.mul_(terms.scale).to(q_bhnd.dtype)
        dq[:, :, block] = torch.matmul(dscore, k_bhnd)
        dk += torch.matmul(dscore.transpose(-1, -2), q_bhnd[:, :, block])
    return dq, dk, dv


def _work_dtype(q: Tensor) -> torch.dtype:
    """CPUs multiply halves slowly or inexactly: float32 there; a GPU keeps its tensor cores."""
    return torch.float32 if q.device.type == "cpu" and q.dtype != torch.float64 else q.dtype


def _fused(q: Tensor, terms: Terms, bounds: list[int]) -> bool:
    """Can torch's own kernel serve? On a GPU a mask would be rounded to half, and materialised."""
    if terms.dropout_p > 0:
        return False
    if q.device.type != "cpu":
        return terms.bare
    if not terms.by_distance or _FLASH_CPU is None or _FLASH_CPU_BACKWARD is None:
        return False
    # Its backward makes weights of a log-sum-exp.
    longest = max(map(operator.sub, bounds[1:], bounds), default=0)
    return not far_bias(terms.kind, terms.tensor, terms.max_distance, longest)


# ---- torch's fused kernels --------------------------------------------------------------------


def _flash(
    q_bhnd: Tensor, k_bhnd: Tensor, v_bhnd: Tensor, terms: Terms
) -> tuple[Tensor, Tensor | None]:
    """out (b, H, n, D) and, on the CPU alone, log-sum-exp (b, H, n)."""
    if q_bhnd.device.type != "cpu":
        out = F.scaled_dot_product_attention(q_bhnd, k_bhnd, v_bhnd, scale=terms.scale)
        return out, None
    mask = None if terms.bare else _toeplitz(q_bhnd, k_bhnd, terms)
    if mask is not None:
        q_bhnd = q_bhnd.flip(2)
    out, lse_bhn = _FLASH_CPU(q_bhnd, k_bhnd, v_bhnd, attn_mask=mask, scale=terms.scale)
    return (out, lse_bhn) if mask is None else (out.flip(2), lse_bhn.flip(2))


def _flash_backward(
    do_bhnd: Tensor, q_bhnd: Tensor, k_bhnd: Tensor, v_bhnd: Tensor, terms: Terms
) -> tuple[Tensor, ...] | None:
    """None where rows are far, of whose log-sum-exp it would make their weights."""
    mask = None if terms.bare else _toeplitz(q_bhnd, k_bhnd, terms)
    if mask is not None:
        q_bhnd, do_bhnd = q_bhnd.flip(2), do_bhnd.flip(2)
    out, lse = _FLASH_CPU(q_bhnd, k_bhnd, v_bhnd, attn_mask=mask, scale=terms.scale)
    if far_rows(lse):
        return None
    dq, dk, dv = _FLASH_CPU_BACKWARD(
        do_bhnd, q_bhnd, k_bhnd, v_bhnd, out, lse, 0.0, False, attn_mask=mask, scale=terms.scale
    )
    return (dq if mask is None else dq.flip(2)), dk, dv


def _toeplitz(q_bhnd: Tensor, k_bhnd: Tensor, terms: Terms) -> Tensor:
    """(1, H, n, n) view of one vector a head: row r stands for query n - 1 - r (q is flipped)."""
    heads, n = q_bhnd.shape[1:3]
    ahead = torch.arange(-(n - 1), n, device=q_bhnd.device)
    line = torch.zeros(heads, len(ahead), device=q_bhnd.device, dtype=q_bhnd.dtype)
    if terms.kind != "none":
        line += _distance_bias(ahead, terms, q_bhnd.dtype)
        _hide_faint(line, q_bhnd, k_bhnd, terms.scale)
    _window(line, ahead, terms)
    return line.as_strided((1, heads, n, n), (0, 2 * n - 1, 1, 1))


def _hide_faint(line: Tensor, q_bhnd: Tensor, k_bhnd: Tensor, scale: float) -> None:
    """Hide the distances at which every weight is below FAINTEST, whatever key stands there.

    A score less its bias is at most |q_i| max|k|, and the row's largest at least that of its own
    key. line (H, 2n - 1), in place. A NaN is never hidden.
    """
    n = q_bhnd.shape[2]
    own = line[:, n - 1 : n]
    if not bool((line - own < math.log(FAINTEST)).any()):
        return
    longest = k_bhnd.norm(dim=-1).amax(-1, keepdim=True)
    above = abs(scale) * q_bhnd.norm(dim=-1) * longest - scale * (q_bhnd * k_bhnd).sum(-1)
    reach = above.amax(-1).amax(0).unsqueeze(-1)
    line.masked_fill_(line - own + reach < math.log(FAINTEST), -math.inf)


# ---- blocks of queries ------------------------------------------------------------------------


def _scores(block: slice, group: Group, q_bhnd: Tensor, k_bhnd: Tensor, terms: Terms) -> Tensor:
    """scale * q k^T + bias of one block, (b, H, i, n), in float32 or wider; ours to overwrite."""
    wide = torch.promote_types(q_bhnd.dtype, torch.float32)
    score = torch.matmul(q_bhnd[:, :, block], k_bhnd.transpose(-1, -2)).to(wide).mul_(terms.scale)
    if terms.bare:
        return score
    if terms.kind == "dense" and terms.tensor is not None:
        score += fitting(terms.tensor[:, block, : group.n], wide)
    if terms.kind in BY_DISTANCE or terms.window_left >= 0 or terms.window_right >= 0:
        for b, ahead in _ahead(block, group, q_bhnd.device, terms):
            if terms.kind in BY_DISTANCE:
                score[b] += _distance_bias(ahead, terms, wide)
            _window(score[b], ahead, terms)
    return score


def _weights(score: Tensor) -> tuple[Tensor, Tensor]:
    """e^(score - top), in place, the faint ones 0; and top, the largest of each row (..., 1)."""
    top = score.amax(-1, keepdim=True)
    return powers(score, top, score), top


def powers(score: Tensor, top: Tensor, into: Tensor) -> Tensor:
    """e^(score - top), the faint ones 0, written into a tensor of the scores' shape.

    By powers of two: torch's exp2 takes as long for -inf as for a number, its exp four times as
    long. Only the difference is scaled, for scores may be as large as numbers are.
    """
    torch.sub(score, top, out=into).mul_(LOG2E)
    # Before the exponential, whose results may be subnormal; a NaN is not below and stays one.
    return torch.threshold_(into, math.log2(FAINTEST), -math.inf).exp2_()


def _ahead(
    block: slice, group: Group, device: torch.device, terms: Terms
) -> Iterator[tuple[int | slice, Tensor]]:
    """j - i of a block (i, n), for each sequence, or once for all where positions are places."""
    if terms.positions is None:
        at = torch.arange(group.n, device=device)
        yield slice(None), at[None, :] - at[block, None]
        return
    for b, start in enumerate(group.starts):
        at = terms.positions[start : start + group.n].long()
        yield b, at[None, :] - at[block, None]


def _distance_bias(ahead: Tensor, terms: Terms, dtype: torch.dtype) -> Tensor:
    """Bias of signed distances j - i, any shape (...): (H, ...)."""
    assert terms.tensor is not None
    tensor = fitting(terms.tensor, dtype)
    if terms.kind == "alibi":
        return -tensor.view(-1, *[1] * ahead.ndim) * ahead.abs()
    if terms.kind == "line":
        reach = terms.max_distance
        return tensor[:, ahead.clamp(-reach, reach) + reach]
    buckets = relative_position_bucket(ahead, tensor.shape[0], terms.max_distance)
    return tensor.t()[:, buckets]


def _window(score: Tensor, ahead: Tensor, terms: Terms) -> Tensor:
    """Hide, in place, the keys that the window leaves out."""
    if terms.window_left >= 0:
        score.masked_fill_(-ahead > terms.window_left, float("-inf"))
    if terms.window_right >= 0:
        score.masked_fill_(ahead > terms.window_right, float("-inf"))
    return score


def keep_factor(like: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """The dropout factor of a block, 0 or 1/(1-p).

    Forward and backward walk the blocks in one order, so one seed gives both the same factors.
    """
    kept = torch.rand(like.shape, generator=generator, dtype=torch.float32, device=like.device) >= p
    return kept.to(like.dtype) / (1 - p)


def _add_bias_grad(grad: Tensor, dscore: Tensor, block: slice, group: Group, terms: Terms) -> None:
    """Accumulate the gradient of the bias's tensor from one block's dS (b, H, i, n)."""
    if terms.kind == "dense":
        grad[:, block, : group.n] += dscore.sum(0)
        return
    for b, ahead in _ahead(block, group, dscore.device, terms):
        ds_hij = dscore[b].sum(0) if isinstance(b, slice) else dscore[b]
        if terms.kind == "alibi":
            grad -= (ds_hij * ahead.abs()).sum((1, 2))
        elif terms.kind == "line":
            place = ahead.clamp(-terms.max_distance, terms.max_distance) + terms.max_distance
            grad.index_add_(1, place.reshape(-1), ds_hij.flatten(1).to(grad.dtype))
        else:
            buckets = relative_position_bucket(ahead, grad.shape[0], terms.max_distance)
            grad.index_add_(0, buckets.reshape(-1), ds_hij.flatten(1).t().to(grad.dtype))
