"""What the machine can do at most, measured in the same run: products, a copy, registers."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from pyenc.ops import extension

Ceilings = dict[str, float | None]
"""Names of `NAMES` to rates; None where there is no such thing."""

NAMES = {
    "fma_gflops": "fp32 multiply-adds in registers",
    "bf16_dot_gflops": "bf16 dot products in registers",
    "gemm_gflops": "fp32 GEMM",
    "gemm_bf16_gflops": "bf16 GEMM",
    "copy_gbs": "copy",
}
"""As the tables name them; the last is in GB/s, read and written, the others in GFLOP/s."""


def ceilings(device: torch.device | None = None) -> Ceilings:
    """The best of a few tries each, within about two seconds.

    Products are torch's own, square, into a given output. A copy counts what is read and what is
    written; its memory is touched beforehand, so page faults are not in it. Registers: the C++
    extension's fma_peak, None without it and on a GPU.
    """
    device = torch.device("cpu") if device is None else device
    on_cpu = device.type == "cpu"
    module = extension.load() if on_cpu else None
    found: Ceilings = {"fma_gflops": None, "bf16_dot_gflops": None}
    if module is not None and hasattr(module, "fma_peak"):
        for name, kind in (("fma_gflops", "float32"), ("bf16_dot_gflops", "bfloat16")):
            rate = module.fma_peak(kind, threads=torch.get_num_threads(), seconds=0.5)
            found[name] = None if rate is None else rate / 1e9
    found["gemm_gflops"] = _gemm_gflops(torch.float32, device)
    found["gemm_bf16_gflops"] = _gemm_gflops(torch.bfloat16, device)
    found["copy_gbs"] = _copy_gbs(device)
    return found


def peak_for(dtype: str, found: Ceilings) -> float | None:
    """What kernels of this dtype are measured against, in GFLOP/s.

    On a CPU the registers' peak: bf16's own where there is an instruction for it, else fp32's,
    since bf16 is widened there. On a GPU the matrix product's.
    """
    half = dtype in ("bfloat16", "float16")
    if half and found.get("bf16_dot_gflops") is not None:
        return found["bf16_dot_gflops"]
    if found.get("fma_gflops") is not None:
        return found["fma_gflops"]
    return gemm_for(dtype, found)


def gemm_for(dtype: str, found: Ceilings) -> float | None:
    """The rate of torch's matrix product in this dtype (bf16's for fp16), in GFLOP/s."""
    return found.get("gemm_gflops" if dtype == "float32" else "gemm_bf16_gflops")


def _gemm_gflops(dtype: torch.dtype, device: torch.device) -> float:
    # Some processors multiply bf16 a hundred times slower than fp32, so sizes grow only while
    # there is time. What is slow at 256 is as slow at 2048.
    best = 0.0
    for n in (256, 2048) if device.type == "cpu" else (2048, 8192):
        a, b, product = (torch.randn(n, n, device=device).to(dtype) for _ in range(3))
        seconds = []
        for _ in range(6):
            start = _now(device)
            # As a linear layer has it: for bf16 the other order can be ten times slower.
            torch.mm(a, b.t(), out=product)
            seconds.append(_now(device) - start)
            if sum(seconds) > 1:
                break
        best = max(best, 2 * n**3 / min(seconds) / 1e9)
        if min(seconds) * (2048 / 256) ** 3 > 2:
            break
    return best


def _copy_gbs(device: torch.device) -> float:
    size = (128 if device.type == "cpu" else 2048) * 2**20
    source: Tensor = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.ones_like(source)
    best = 0.0
    for _ in range(6):
        start = _now(device)
        target.copy_(source)
        best = max(best, 2 * size / (_now(device) - start) / 1e9)
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
