"""What only a card can show: a thousand times the same bits, the sanitizer, flash_attn."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyenc.errors import BackendError
from pyenc.ops import ALiBi, add_layer_norm, alibi_slopes, attention
from tests.oracle import assert_right, naively

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

ROOT = Path(__file__).resolve().parents[2]

SMALL = """
import torch
from pyenc.ops import (
    ALiBi, DistanceRows, add_layer_norm, alibi_slopes, attention, disentangled_attention,
    embedding_norm, gated_linear, rms_norm_rotary, rotary,
)
from pyenc.ops.attention.along import Line
from tests.kernels.attention.attention_case import Case
x, weight = (torch.randn(n, 80, device="cuda", requires_grad=True) for n in (37, 66))
angles, places = torch.randn(40, 5, device="cuda"), torch.arange(37, device="cuda")
for dtype in (torch.float32, torch.bfloat16):
    heads = x.to(dtype).unflatten(1, (8, 10))[:, 1:6]
    rotary(heads, angles.cos(), angles.sin(), places, backend="triton").square().sum().backward()
    call = x.to(dtype), weight.to(dtype)
    sums = add_layer_norm(call[0], call[0], *call[1][:2], 1e-5, backend="triton")
    out = gated_linear(sums[0], call[1], call[1][:, 0], "gelu", backend="triton")
    (out.square().sum() + sums[1].sum()).backward()
    weights = call[1][:2, :10]
    turned = rms_norm_rotary(
        heads, weights[0], angles.cos(), angles.sin(), places, 1e-6, k_weight=weights[1], k_heads=2,
        backend="triton",
    )
    turned.square().sum().backward()
    ends, many = torch.tensor([0, 5, 37], device="cuda"), torch.randn(3, 290, 4, 16, device="cuda")
    bounds, many = torch.tensor([0, 33, 290], device="cuda"), many.to(dtype)
    numbers = torch.randn(4, 41, device="cuda", requires_grad=True)
    for line in (Line(numbers), Line(numbers, 9)):
        attention(*many, bounds, bias=line, backend="triton").square().sum().backward()
    with torch.no_grad():
        tables = torch.randn(2, 18, 5, 10, device="cuda").to(dtype)
        for keys, queries in (tables, (tables[0], None), (None, tables[1])):
            disentangled_attention(
                heads, heads, heads, ends, position_keys=keys, position_queries=queries,
                rows=DistanceRows(9), backend="triton",
            )
        embedding_norm(
            places, call[0], *call[1][:2], 1e-5, token_type_ids=places % 2, token_type=call[1],
            position_ids=places, position=call[0], backend="triton",
        )
        for bias in (None, ALiBi(alibi_slopes(4).cuda()), Line(numbers, 9)):
            attention(*many, bounds, bias=bias, backend="triton")
        attention(many[0], *many[1:, :, :2], bounds, window=(20, 0), backend="triton")
for kind in ("alibi", "t5", "dense", "asymmetric"):
    Case([1, 130, 77], kind, "cuda", dtype=torch.bfloat16, skip_eps=2.0**-11).by_kernel()
    Case([150], kind, "cuda", window=(40, 7), holes=True).by_kernel()
torch.cuda.synchronize()
"""


def test_a_thousand_times_the_same_bits() -> None:
    from tests.kernels.attention.attention_case import Case

    case = Case([1000, 1, 333], "alibi", "cuda", dtype=torch.bfloat16, skip_eps=2.0**-11, dim=64)
    first = case.by_kernel()
    for _ in range(1000):
        assert all(torch.equal(a, b) for a, b in zip(first, case.by_kernel(), strict=True))


def test_a_thousand_times_the_same_gradients_of_parameters() -> None:
    x, weight, bias = (torch.randn(n, 768, device="cuda") for n in (3001, 1, 1))

    def gradients() -> list[Tensor]:
        leaves = [t.bfloat16().requires_grad_() for t in (x, weight[0], bias[0])]
        normed, _ = add_layer_norm(leaves[0], None, leaves[1], leaves[2], 1e-5, backend="triton")
        return list(torch.autograd.grad(normed, leaves, x.bfloat16()))

    first = gradients()
    for _ in range(1000):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        pytest.skip("compute-sanitizer is not installed")
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    # What torch and Triton try at their start, and may fail at, is not the kernels'.
    options = ["--report-api-errors", "no"] if tool == "memcheck" else []
    changes = {"PYTHONPATH": os.pathsep.join(paths), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", *options, sys.executable, "-c", SMALL],
        env=os.environ | changes,
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs flash_attn")
@pytest.mark.parametrize("biased", [False, True])
def test_flash_attn_agrees(biased: bool) -> None:
    n, heads = 300, 4
    q, k, v = (torch.randn(n, heads, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    cu_seqlens = torch.tensor([0, 77, n], device="cuda")
    bias = ALiBi(alibi_slopes(heads).cuda()) if biased else None

    def run(backend: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out = attention(*leaves, cu_seqlens, bias=bias, backend=backend)
        assert isinstance(out, Tensor)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)]

    got = run("flash_attn", torch.bfloat16)
    with naively():
        naive, oracle = (run("reference", dtype) for dtype in (torch.bfloat16, torch.float64))
    for i, three in enumerate(zip(got, naive, oracle, strict=True)):
        assert_right(*three, gradient=i > 0, what=("out", "dq", "dk", "dv")[i])
    slopes = alibi_slopes(heads).cuda().requires_grad_()
    with pytest.raises(BackendError, match="no gradient of ALiBi's slopes"):
        attention(q, k, v, cu_seqlens, bias=ALiBi(slopes), backend="flash_attn")
