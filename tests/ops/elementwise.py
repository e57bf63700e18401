"""What the tests of elementwise ops share: results and gradients against the float64 oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracle import assert_right, naively

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CPU_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Around the widths of the vectors (4, 8, 16), and what a model has.
WIDTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 257, 768]


def check(op: Callable[..., Any], dtype: torch.dtype, tensors: list[Tensor], *rest: object) -> None:
    """Outputs and gradients of `op(*tensors, *rest)`: the backend in `dtype` against the oracle."""
    tensors = [t.to(dtype) for t in tensors]
    results = []
    for backend, working in ((None, dtype), ("reference", dtype), ("reference", torch.float64)):
        leaves = [t.detach().to(working).requires_grad_() for t in tensors]
        with naively():
            outs = op(*leaves, *rest, backend=backend)
        outs = list(outs) if isinstance(outs, tuple) else [outs]
        generator = torch.Generator().manual_seed(3)
        grads = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outs]
        results.append([o.detach() for o in outs] + list(torch.autograd.grad(outs, leaves, grads)))
    for i, parts in enumerate(zip(*results, strict=True)):
        assert_right(*parts, gradient=i >= len(outs), what=f"result {i}")


def compare(
    op: Callable[..., Any], tensors: list[Tensor], dtype: torch.dtype, backend: str = "cpu"
) -> None:
    """Results and gradients of `op(backend, *tensors)`: the kernel, naive, and in float64."""
    results = []
    # torch: the plain form written for each of the dtypes; the reference overflows in float16.
    for name, working in ((backend, dtype), ("torch", dtype), ("reference", torch.float64)):
        leaves = [t.to(dtype).to(working).requires_grad_() for t in tensors]
        outs = op(name, *leaves)
        outs = outs if isinstance(outs, tuple) else (outs,)
        generator = torch.Generator().manual_seed(3)
        grads = [torch.randn(o.shape, generator=generator).to(dtype).to(o.dtype) for o in outs]
        results.append((outs, torch.autograd.grad(outs, leaves, grads)))
    for i, three in enumerate(zip(*(r[0] for r in results), strict=True)):
        assert_right(*(x.detach() for x in three), what=f"result {i}")
    for i, three in enumerate(zip(*(r[1] for r in results), strict=True)):
        assert_right(*three, gradient=True, what=f"gradient {i}")


def same_with_any_number_of_threads(run: Callable[[], list[Tensor]]) -> None:
    """The same bits with one thread and with many, and every time."""
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 8, 2):
            torch.set_num_threads(threads)
            runs.append(run())
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)
