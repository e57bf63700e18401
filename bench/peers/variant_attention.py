"""Attention with an example variant: ours, and FlexAttention compiled.

Shapes: T packed tokens, H heads, N tokens of the one sequence, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import variant_data as data
from bench.compare import CannotServe, Case, Ready, Tensors
from bench.peers.attention_call import in_batches
from pyenc.ops import ALiBi, alibi_slopes, attention, computed_share


def ours(skip_eps: float | None = None) -> Callable[[Case, Tensors], Ready]:
    """As a user calls it: the backend that attention chooses, gradients of the parameters too."""

    def prepare(case: Case, x: Tensors) -> Ready:
        bias: Any = data.module(case)
        return _ready(case, x, lambda: bias, list(bias.parameters()), skip_eps)

    return prepare


def alibi(case: Case, x: Tensors) -> Ready:
    """What is built in, its slopes learned as the variants' are, by their logarithms."""
    log_slopes = alibi_slopes(case.kind["heads"]).log().requires_grad_()
    return _ready(case, x, lambda: ALiBi(log_slopes.exp()), [log_slopes], 0.0)


def _ready(
    case: Case,
    x: Tensors,
    bias: Callable[[], Any],
    learned: list[Tensor],
    skip_eps: float | None,
) -> Ready:
    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attention(q, k, v, x["cu_seqlens"], bias=bias(), skip_eps=skip_eps)
        assert isinstance(out, Tensor)
        return out

    if not case.backward:

        def run() -> Tensor:
            with torch.no_grad():
                return forward(x["q"], x["k"], x["v"])

        return Ready(run)
    leaves = [x[name].detach().requires_grad_() for name in ("q", "k", "v")]

    def run_both() -> tuple[Tensor, ...]:
        out = forward(*leaves)
        return out.detach(), *torch.autograd.grad(out, [*leaves, *learned], x["grad"])

    return Ready(run_both, data.named)


def share(case: Case, x: Tensors) -> float:
    """What our kernels say of themselves."""
    with torch.no_grad():
        return computed_share(
            x["q"], x["k"], x["v"], x["cu_seqlens"], bias=data.module(case)  # type: ignore[arg-type]
        )  # fmt: skip


def flex(case: Case, x: Tensors) -> Ready:
    from torch.nn.attention.flex_attention import flex_attention

    if case.backward:
        raise CannotServe("forward only on a CPU")
    torch._dynamo.config.recompile_limit = 64
    compiled = torch.compile(flex_attention, dynamic=False)
    score_mod = _score_mod(case)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(q, k, v, score_mod=score_mod)  # type: ignore[no-any-return]

    def run() -> Tensor:
        with torch.no_grad():
            return in_batches(case, x["q"], x["k"], x["v"], attend)  # type: ignore[no-any-return]

    return Ready(run)


def _score_mod(case: Case) -> Callable[..., Tensor]:
    """The variant as FlexAttention takes it: a line of its numbers, made before, or its formula."""
    bias: Any = data.module(case).requires_grad_(False)
    (n,) = case.kind["lengths"]
    if hasattr(bias, "along"):
        line = bias.along(torch.arange(-(n - 1), n)).float().contiguous()

        def by_distance(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s + line[h, j - i + (n - 1)]

        return by_distance
    slopes, caps = bias.log_slopes.exp(), bias.log_caps.exp()

    def capped(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return caps[h] * torch.tanh((s - slopes[h] * (i - j).abs()) / caps[h])

    return capped
