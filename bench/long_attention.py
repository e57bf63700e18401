"""Attention's memory at 32,768 tokens, beyond inputs and outputs: `pyenc bench models --long`."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from bench.measure import machine, memory, record
from pyenc.ops import ALiBi, alibi_slopes, attention


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """The child's side: attention beyond its inputs and what it returns."""
    n, heads, dim = task["tokens"], 8, 64
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(n, heads, dim) for _ in range(4))
    bias = ALiBi(alibi_slopes(heads))
    backward = task["backward"]

    def run(size: int) -> list[torch.Tensor]:
        parts = [x[:size].detach().requires_grad_(backward) for x in (q, k, v)]
        out = attention(*parts, torch.tensor([0, size]), bias=bias)
        assert isinstance(out, torch.Tensor)
        if backward:
            out.backward(grad[:size])
        return [out.detach(), *(x.grad for x in parts if x.grad is not None)]

    run(64)
    start = time.perf_counter()
    growth = memory.growth_mb(lambda: run(n))
    returned = (4 if backward else 1) * q.nbytes / 1e6
    beyond = None if growth is None else growth - returned
    return {"peak_mb": beyond, "seconds": time.perf_counter() - start}


def main(options: argparse.Namespace) -> int:
    n = 4096 if options.quick else 32768
    result: dict[str, Any] = {"environment": machine.environment(), "tokens": n, "cases": {}}
    dense = 8 * n * n * 4 / 1e6
    print(f"attention at {n:,} tokens, 8 heads of 64, symmetric ALiBi, fp32: peak memory beyond")
    print(f"inputs and outputs. One dense (8, n, n) matrix would take {dense:,.0f} MB.\n")
    for what in ("forward", "forward + backward"):
        task = {"long": True, "tokens": n, "backward": what != "forward"}
        found = memory.in_child(["models"], task, timeout=3600)
        result["cases"][what] = found
        if "error" in found:
            print(f"  {what:20} {found['error']}")
        else:
            took = f"{found['seconds']:.1f} s"
            print(f"  {what:20} {found['peak_mb'] or float('nan'):8,.0f} MB {took:>10}")
    path = record.result_file("long-attention", options.out)
    record.write_result(path, result)
    print(f"\nwritten: {path.name}")
    return int(any("error" in found for found in result["cases"].values()))
