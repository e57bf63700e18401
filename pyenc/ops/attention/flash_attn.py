"""Attention through the `flash_attn` package, where it is installed: no bias, or ALiBi.

Dao, arXiv 2307.08691. Shapes: T packed tokens, B sequences, H heads, D head dim.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from ...errors import BackendError
from ..constant import constant_result
from .bias import ALiBi
from .shared_heads import repeated

MAX_HEAD_DIM = 256


def why_not(
    q: Tensor,
    bias: Any,
    positions: Tensor | None,
    scale: float,
    return_lse: bool,
    wants_gradient: bool,
) -> str | None:
    """Why the package cannot serve a call, or None."""
    if not _installed():
        return "flash_attn is not installed"
    if q.device.type != "cuda":
        return f"it does not serve {q.device.type} tensors"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it serves float16 and bfloat16, not {q.dtype}"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"head dim {q.shape[-1]} is more than {MAX_HEAD_DIM}"
    if bias is not None and not isinstance(bias, ALiBi):
        return f"it has no {type(bias).__name__}, only ALiBi"
    if bias is not None and bias.slopes.requires_grad and torch.is_grad_enabled():
        return "it has no gradient of ALiBi's slopes"
    if scale <= 0:
        return f"it takes positive scales, not {scale}"
    if positions is not None:
        return "it has no positions with holes"
    if return_lse and wants_gradient:
        return "it has no gradient through the log-sum-exp"
    return None


@constant_result
def _installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    slopes: Tensor | None,
    scale: float,
    window: tuple[int, int],
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """(out (T, H, D), log-sum-exp (T, H) float32, without a gradient).

    Waits for the device, since the package asks for the longest length. Its backward is made
    deterministic, as that of this library's own kernels is.
    """
    if q.shape[0] == 0:  # no numbers, and still a function of all three
        of_keys = repeated(k, q.shape[1]) + repeated(v, q.shape[1])
        return q + of_keys, q.new_empty(q.shape[:2], dtype=torch.float32)
    flash_attn = importlib.import_module("flash_attn")
    bounds = cu_seqlens.to(torch.int32)
    longest = int(bounds.diff().max()) if bounds.numel() > 1 else 0
    out, lse, _ = flash_attn.flash_attn_varlen_func(
        q, k, v, bounds, bounds, longest, longest, dropout_p=dropout_p, softmax_scale=scale,
        window_size=window, alibi_slopes=None if slopes is None else slopes.detach().float(),
        deterministic=True, return_attn_probs=True,
    )  # fmt: skip
    if lse.ndim != 2:
        raise BackendError(
            f"attention: this flash_attn gives a log-sum-exp {tuple(lse.shape)}, not (H, T); "
            "version 2.6 or later is wanted"
        )
    return out, lse.detach().t()
