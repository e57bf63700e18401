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
from pyenc.ops import ALiBi, alibi_slopes, attention, computed_share, rotary
from pyenc.ops.gradient import gradient_of


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
    turned = _turning(case)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = turned(q), turned(k)
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
        # As a loss has it, whose backward does not import what torch.autograd.grad does.
        found = [out.detach(), *gradient_of(out, [*leaves, *learned], x["grad"])]
        return tuple(each for each in found if each is not None)

    return Ready(run_both, data.named)


def _turning(case: Case) -> Callable[[Tensor], Tensor]:
    """What is done to queries and keys (T, H, D) before."""
    if not case.kind["rotary"]:
        return lambda x: x
    tables = data.tables(case)
    return lambda x: rotary(x, *tables)


def share(case: Case, x: Tensors) -> float:
    """What our kernels say of themselves."""
    turned = _turning(case)
    with torch.no_grad():
        return computed_share(
            turned(x["q"]), turned(x["k"]), x["v"], x["cu_seqlens"], bias=data.module(case)  # type: ignore[arg-type]
        )  # fmt: skip


def flex(case: Case, x: Tensors) -> Ready:
    from torch.nn.attention.flex_attention import flex_attention

    if case.backward:
        raise CannotServe("forward only on a CPU")
    torch._dynamo.config.recompile_limit = 64
    score_mod, turned = _score_mod(case), _turning_in_graph(case)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(turned(q), turned(k), v, score_mod=score_mod)  # type: ignore[return-value]

    compiled = torch.compile(attend, dynamic=False)

    def run() -> Tensor:
        with torch.no_grad():
            return in_batches(case, x["q"], x["k"], x["v"], compiled)  # type: ignore[no-any-return]

    return Ready(run)


def _turning_in_graph(case: Case) -> Callable[[Tensor], Tensor]:
    """The same of (B, H, N, D), as torch operations that are compiled with the rest."""
    if not case.kind["rotary"]:
        return lambda x: x
    cos, sin, _ = data.tables(case)

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    return turned


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
