"""What the machine can do at most, measured in the same run: products, a copy, registers, tiles."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.measure.machine import cpu_flags
from pyenc.ops import extension

Ceilings = dict[str, float | None]
"""Names of `NAMES` to rates; None where there is no such thing."""

NAMES = {
    "fma_gflops": "fp32 multiply-adds in registers",
    "bf16_dot_gflops": "bf16 dot products in registers",
    "bf16_tile_gflops": "bf16 GEMM on AMX tiles, best size",
    "gemm_gflops": "fp32 GEMM",
    "gemm_bf16_gflops": "bf16 GEMM",
    "copy_gbs": "copy",
}
"""As the tables name them; the last is in GB/s, read and written, the others in GFLOP/s."""


def ceilings(device: torch.device | None = None) -> Ceilings:
    """The best of a few tries each, within about two seconds.

    Products are torch's own, square, into a given output. A copy counts what is read and what is
    written; its memory is touched beforehand, so page faults are not in it. Registers: the C++
    extension's fma_peak, None without it and on a GPU. Tiles: a processor with AMX multiplies bf16
    in a unit of its own, an order faster than its registers do; the best of torch's products stands
    for it, where it is faster than they are, which says that it was used.
    """
    device = torch.device("cpu") if device is None else device
    on_cpu = device.type == "cpu"
    module = extension.load() if on_cpu else None
    found: Ceilings = {"fma_gflops": None, "bf16_dot_gflops": None, "bf16_tile_gflops": None}
    if module is not None and hasattr(module, "fma_peak"):
        for name, kind in (("fma_gflops", "float32"), ("bf16_dot_gflops", "bfloat16")):
            rate = module.fma_peak(kind, threads=torch.get_num_threads(), seconds=0.5)
            found[name] = None if rate is None else rate / 1e9
    found["gemm_gflops"] = _gemm_gflops(torch.float32, device)
    found["gemm_bf16_gflops"] = _gemm_gflops(torch.bfloat16, device)
    if on_cpu and "amx_bf16" in cpu_flags():
        found["bf16_tile_gflops"] = _tile_gflops(found, device)
    found["copy_gbs"] = _copy_gbs(device)
    return found


def _tile_gflops(found: Ceilings, device: torch.device) -> float | None:
    """None where products are no faster than registers, as with ONEDNN_MAX_CPU_ISA below AMX."""
    rate = max(found["gemm_bf16_gflops"] or 0.0, _gemm_gflops(torch.bfloat16, device, (1024, 4096)))
    registers = max(found["bf16_dot_gflops"] or 0.0, found["fma_gflops"] or 0.0)
    return rate if rate > registers else None


def peak_key(dtype: str, found: Ceilings) -> str | None:
    """Which ceiling kernels of this dtype are measured against, a name of `NAMES`.

    On a CPU the unit that multiplies: for bf16 AMX tiles, else the registers' dot products where
    there are such instructions, else fp32's multiply-adds, since it is widened there. On a GPU the
    matrix product.
    """
    keys = ["fma_gflops", gemm_key(dtype)]
    if dtype in ("bfloat16", "float16"):
        keys = ["bf16_dot_gflops", *keys]
    if dtype == "bfloat16":
        keys = ["bf16_tile_gflops", *keys]
    return next((key for key in keys if found.get(key) is not None), None)


def gemm_key(dtype: str) -> str:
    """torch's matrix product in this dtype (bf16's for fp16)."""
    return "gemm_gflops" if dtype == "float32" else "gemm_bf16_gflops"


def peak_for(dtype: str, found: Ceilings) -> float | None:
    """The rate of `peak_key`, in GFLOP/s."""
    key = peak_key(dtype, found)
    return None if key is None else found[key]


def gemm_for(dtype: str, found: Ceilings) -> float | None:
    """The rate of `gemm_key`, in GFLOP/s."""
    return found.get(gemm_key(dtype))


def _gemm_gflops(
    dtype: torch.dtype, device: torch.device, sizes: Sequence[int] | None = None
) -> float:
    # Some processors multiply bf16 a hundred times slower than fp32, so sizes grow only while
    # there is time. What is slow at 256 is as slow at 2048.
    best = 0.0
    sizes = sizes or ((256, 2048) if device.type == "cpu" else (2048, 8192))
    for n in sizes:
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
        if min(seconds) * (max(sizes) / n) ** 3 > 2:
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
