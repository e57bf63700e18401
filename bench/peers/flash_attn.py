"""The flash-attn package."""

from __future__ import annotations

from torch import Tensor

from bench import attention_data as data
from bench.compare import CannotServe, Case, Ready, Tensors
from bench.peers.attention_call import ready


def attention(case: Case, x: Tensors) -> Ready:
    from flash_attn import flash_attn_varlen_func

    if case.kind["bias"] == "t5":
        raise CannotServe("flash-attn has no bias but ALiBi")
    slopes = None
    if case.kind["bias"] == "alibi":
        slopes = data.slopes(case.kind["heads"], x["q"].device)
    bounds, longest = x["cu_seqlens"], max(case.kind["lengths"])

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attn_varlen_func(  # type: ignore[no-any-return]
            q, k, v, bounds, bounds, longest, longest,
            window_size=data.window(case) or (-1, -1), alibi_slopes=slopes,
        )  # fmt: skip

    return ready(case, x, forward)
