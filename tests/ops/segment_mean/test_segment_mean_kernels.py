"""The C++ kernels of the segment mean against a float64 oracle of their own.

Run as a script, this file checks those of the instruction set that PYENC_CPU_ISA names. Triton's:
tests/kernels/segment_mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pyenc.ops import extension
from pyenc.ops.segment_mean import cpu as segment_mean_cpu
from tests.instruction_sets import ISAS, run_on
from tests.scripts import run_script

LENGTHS = {
    "one": [1],
    "none": [],
    "empty": [0],
    "small": [1, 2, 3, 0, 17, 63, 64, 65],
    "chunks": [127, 128, 129, 0, 0, 256, 257],
    "uneven": [4001, *[1 + i % 9 for i in range(50)], 0],
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Case(NamedTuple):
    x: Tensor
    cu_seqlens: Tensor
    weights: Tensor | None
    grad_out: Tensor


def make_case(
    lengths: list[int], n_channels: int, dtype: torch.dtype, weighted: bool, device: str = "cpu"
) -> Case:
    generator = torch.Generator().manual_seed(len(lengths) * 1000 + n_channels)
    n_tokens = sum(lengths)
    x = torch.randn(n_tokens, n_channels, generator=generator) + 0.5
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)])
    weights = None
    if weighted:
        weights = 0.5 + torch.rand(n_tokens, generator=generator)
        weights[torch.rand(n_tokens, generator=generator) < 0.3] = 0
        if len(lengths) > 2:  # a segment that has tokens and no weight
            weights[int(cu_seqlens[1]) : int(cu_seqlens[2])] = 0
        weights = weights.to(device)
    grad_out = torch.randn(len(lengths), n_channels, generator=generator)
    index = torch.int64 if n_channels % 2 else torch.int32
    return Case(x.to(device, dtype), cu_seqlens.to(device, index), weights, grad_out.to(device))


def oracle(case: Case, normalize: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(out, grad_x, grad_weights) by the formula, a segment at a time, in float64."""
    x = case.x.double().requires_grad_()
    weights = None if case.weights is None else case.weights.double().requires_grad_()
    bounds = case.cu_seqlens.tolist()
    rows = []
    for first, last in itertools.pairwise(bounds):
        w = x.new_ones(last - first) if weights is None else weights[first:last]
        if not bool(w.sum()):
            rows.append(x.new_zeros(x.shape[1]))
            continue
        mean = (w[:, None] * x[first:last]).sum(0) / w.sum()
        rows.append(mean / mean.norm().clamp(min=1e-12) if normalize else mean)
    out = torch.stack(rows) if rows else x.new_zeros(0, x.shape[1])
    (out * case.grad_out.double()).sum().add(0 * x.sum()).backward()
    grad_weights = None
    if weights is not None:
        grad_weights = weights.new_zeros(weights.shape) if weights.grad is None else weights.grad
    assert x.grad is not None
    return out.detach(), x.grad, grad_weights


def assert_near(
    got: Tensor | None, want: Tensor | None, relative: float, floor: float = 1e-3
) -> None:
    """Largest error at most ``relative`` times max(largest |want|, floor); NaN fails."""
    assert (got is None) == (want is None)
    if got is None or want is None or want.numel() == 0:
        return
    assert got.shape == want.shape
    error = (got.double() - want).abs().max()
    assert error <= relative * want.abs().max().clamp(min=floor), f"error {error:.2e}"


# Half a step of the last place; the interpreter cuts off where hardware rounds.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def check(module: ModuleType, case: Case, normalize: bool, *, rounds: bool = True) -> None:
    want, want_x, want_weights = oracle(case, normalize)
    x, cu_seqlens, weights, grad_out = case
    out, stats = module.forward_saving(x, cu_seqlens, weights, normalize)
    assert out.dtype == torch.float32
    assert_near(out, want, 1e-6)
    assert torch.equal(out, module.forward(x, cu_seqlens, weights, normalize))

    def backward(**needs: bool) -> tuple[Tensor | None, Tensor | None]:
        return module.backward(grad_out, x, cu_seqlens, weights, normalize, out, stats, **needs)

    grad_x, grad_weights = backward(need_grad_weights=weights is not None)
    assert grad_x is not None
    assert grad_x.dtype == x.dtype
    # A rounding is half a step of its own number; the largest bounds them all.
    assert_near(grad_x, want_x, ROUNDING[x.dtype] * (1 if rounds else 2) + 2e-6)
    # Of one token alone it is zero, a difference of equal terms: the floor is their size.
    assert_near(grad_weights, want_weights, 4e-6, floor=1.0)
    again_x, _ = backward()
    assert again_x is not None
    assert torch.equal(grad_x, again_x)
    if weights is not None:
        only = backward(need_grad_x=False, need_grad_weights=True)
        assert only[0] is None
        assert only[1] is not None
        assert grad_weights is not None
        assert torch.equal(only[1], grad_weights)


@pytest.fixture
def _poisoned() -> Iterator[None]:
    """torch.empty gives NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def cpu() -> ModuleType:
    if extension.load() is None:
        pytest.skip(extension.why_missing())
    from pyenc.ops.segment_mean import cpu as segment_mean_cpu

    return segment_mean_cpu


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("normalize", [False, True], ids=["mean", "unit"])
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_channels", [1, 33, 100, 384])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_cpu_agrees_with_the_oracle(
    cpu: ModuleType,
    lengths: list[int],
    n_channels: int,
    dtype: torch.dtype,
    weighted: bool,
    normalize: bool,
) -> None:
    check(cpu, make_case(lengths, n_channels, dtype, weighted), normalize)


def test_cpu_stays_exact_over_a_hundred_thousand_tokens(cpu: ModuleType) -> None:
    case = make_case([100_003], 8, torch.float32, True)
    want, _, _ = oracle(case, False)
    assert_near(cpu.forward(case.x, case.cu_seqlens, case.weights), want, 2e-7)


def test_cpu_gives_the_same_bits_for_any_number_of_threads(cpu: ModuleType) -> None:
    case = make_case(LENGTHS["uneven"], 384, torch.float32, True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            out, stats = cpu.forward_saving(case.x, case.cu_seqlens, case.weights, True)
            grads = cpu.backward(case.grad_out, *case[:3], True, out, stats, need_grad_weights=True)
            results.append((out, stats, *grads))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_cpu_reads_and_writes_every_sixteen_bit_number(cpu: ModuleType, dtype: torch.dtype) -> None:
    every = torch.arange(65536).to(torch.uint16).view(dtype)[:, None]
    alone = torch.arange(65537)
    out, stats = cpu.forward_saving(every, alone)
    assert torch.equal(out.nan_to_num(nan=7.0), every.float().nan_to_num(nan=7.0))
    assert torch.equal(out.isnan(), every.isnan())
    # Back again, and the midpoints between neighbours, which round to even.
    steps = out[out.isfinite()].sort().values
    floats = torch.cat([steps, (steps[1:] / 2 + steps[:-1] / 2), steps * 1.0001, out[:, 0]])
    floats = torch.cat([floats, torch.tensor([65519.0, 65520.0, 1e38, -1e38, 1e-30])])[:, None]
    x = torch.zeros(len(floats), 1, dtype=dtype)
    alone = torch.arange(len(floats) + 1)
    out, stats = cpu.forward_saving(x, alone)
    grad_x, _ = cpu.backward(floats, x, alone, None, False, out, stats)
    assert grad_x is not None
    assert torch.equal(grad_x.nan_to_num(nan=7.0), floats.to(dtype).nan_to_num(nan=7.0))


def test_cpu_normalises_a_tiny_and_a_zero_mean(cpu: ModuleType) -> None:
    x = torch.tensor([[3e-13, 4e-13], [0.0, 0.0], [3e-30, 4e-30], [3e18, 4e18]])
    out = cpu.forward(x, torch.arange(5), None, True)
    want = torch.tensor([[0.3, 0.4], [0.0, 0.0], [3e-18, 4e-18], [0.6, 0.8]])
    torch.testing.assert_close(out, want, rtol=1e-6, atol=0)


def test_cpu_gives_zeros_without_weight_whatever_the_tokens_hold(cpu: ModuleType) -> None:
    x = torch.full((3, 4), torch.nan)
    x[2] = torch.inf
    for normalize in (False, True):
        out = cpu.forward(x, torch.tensor([0, 0, 3]), torch.zeros(3), normalize)
        assert torch.equal(out, torch.zeros(2, 4))


def main() -> None:
    for dtype in DTYPES:
        for lengths in LENGTHS.values():
            check(segment_mean_cpu, make_case(lengths, 100, dtype, True), True)
    print(extension.isa())


@pytest.mark.parametrize("isa", ISAS)
def test_cpu_serves_with_each_instruction_set(cpu: ModuleType, isa: str) -> None:
    run_on(isa, __file__)


def test_an_instruction_set_that_is_not_there_is_refused(cpu: ModuleType) -> None:
    module = extension.load()
    assert module is not None
    lacking = [isa for isa in ISAS if isa not in module.available_isas()] + ["x86-64-v9"]
    result = run_script(__file__, PYENC_CPU_ISA=lacking[0])
    assert result.returncode != 0
    assert f"PYENC_CPU_ISA={lacking[0]} cannot serve here" in result.stderr


if __name__ == "__main__":
    main()
