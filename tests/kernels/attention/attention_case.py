"""One call of attention: its inputs, and its answers by oracle, naive computation and kernels."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pyenc.ops import ALiBi, AsymmetricALiBi, RelativePositionBias, SoftCap, alibi_slopes
from pyenc.ops.attention.reference import attention_reference
from pyenc.ops.attention.terms import terms_of
from pyenc.ops.attention.triton import backward, forward
from pyenc_kernels import interpreting
from tests.ops.attention.skip_inputs import SkipInputs
from tests.oracle import assert_right

DRAWS = 1 if interpreting() else 3
"""How often the same case is drawn anew; in the interpreter, which is slow, see PYENC_TEST_SEED."""

SKIP_INPUTS = tuple(SkipInputs(8, torch.ones(1), 16).builders)
"""Which of them a bias is tried with; in the interpreter all are ALiBi's alone."""
if interpreting():
    SKIP_INPUTS = (
        *("plain", "planted -16", "planted 3", "opposed"),
        *("level -12", "falling -8", "shifted", "clustered"),
    )

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Case:
    """Random inputs of one call, and its answers by oracle, naive computation and kernel."""

    def __init__(
        self,
        lengths: list[int],
        kind: str,
        device: str,
        *,
        heads: int = 2,
        dim: int = 32,
        dtype: torch.dtype = torch.float32,
        window: tuple[int, int] | None = None,
        holes: bool = False,
        skip_eps: float = 0.0,
        std: float = 2.0,
        scale: float | None = None,
    ) -> None:
        tokens = sum(lengths)
        self.cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], device=device)
        self.qkv = [torch.randn(tokens, heads, dim, device=device) for _ in range(3)]
        self.qkv[0] *= std
        self.qkv = [x.to(dtype) for x in self.qkv]
        self.grad_out = torch.randn(tokens, heads, dim, device=device).to(dtype)
        self.grad_lse = torch.randn(tokens, heads, device=device)
        self.window, self.skip_eps, self.kind = window, skip_eps, kind
        self.scale = dim**-0.5 if scale is None else scale
        self.positions = None
        if holes:
            steps = torch.randint(1, 4, (tokens,), device=device)
            self.positions = steps.cumsum(0)
        self.tensor: Tensor | None = None
        if kind == "alibi":
            self.tensor = alibi_slopes(heads).to(device)
        elif kind == "t5":
            self.tensor = torch.randn(8, heads, device=device)
        elif kind == "asymmetric":
            self.tensor = torch.rand(heads, 2, device=device)
        elif kind == "cap":
            caps = [50.0, 0.7, 3.0, 1e4, 1e7]
            self.tensor = torch.tensor(caps, device=device)[:heads, None]
        elif kind == "dense":
            side = max(lengths) + 3
            self.tensor = torch.randn(heads, side, side, device=device)

    def bias(self, tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        if self.kind == "alibi":
            return ALiBi(tensor)
        if self.kind == "asymmetric":
            return AsymmetricALiBi(tensor)
        if self.kind == "cap":
            return SoftCap(tensor[:, 0])
        return RelativePositionBias(tensor, 16) if self.kind == "t5" else tensor

    def by_reference(self, dtype: torch.dtype) -> list[Tensor]:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        leaves = [x.to(dtype).requires_grad_() for x in self.qkv]
        tensor = None if self.tensor is None else self.tensor.to(wide).requires_grad_()
        out, lse = attention_reference(
            *leaves, self.cu_seqlens, bias=self.bias(tensor), positions=self.positions,
            window=self.window or (-1, -1),
            scale=self.scale,
        )  # fmt: skip
        wanted = leaves if tensor is None else [*leaves, tensor]
        grads = torch.autograd.grad(
            [out, lse], wanted, [self.grad_out.to(out.dtype), self.grad_lse.to(lse.dtype)]
        )
        return [out, lse, *grads]

    def by_kernel(self) -> list[Tensor]:
        q, k, v = self.qkv
        terms = terms_of(q, self.bias(self.tensor), self.positions, self.scale, self.window)
        out, lse, met = forward(q, k, v, self.cu_seqlens, terms, self.skip_eps)
        dq, dk, dv, dbias = backward(
            self.grad_out, self.grad_lse, q, k, v, self.cu_seqlens, terms, out, lse, met,
            want_bias=self.tensor is not None,
        )  # fmt: skip
        return [out, lse, dq, dk, dv, *([] if dbias is None else [dbias])]

    def check(self) -> None:
        oracle, naive = self.by_reference(torch.float64), self.by_reference(self.qkv[0].dtype)
        names = ["out", "lse", "dq", "dk", "dv", "dbias"]
        for i, (a, b, c) in enumerate(zip(self.by_kernel(), naive, oracle, strict=True)):
            assert_right(a, b, c.detach(), gradient=i > 1, what=f"{self.kind} {names[i]}")
