"""The sums of the C++ kernels hold their rule with a margin of three, whatever numbers are drawn.

Where most of a sum cancels, what is left, and with it what it may be off, is as small as chance has
it; a kernel that is right by luck of the draw shows here. Single precision alone: of a half's error
most is the rounding of the answer itself.

PYENC_TEST_SEEDS=50 draws more of them. Run as a script with a range of seeds, this file checks the
kernels of the instruction set that PYENC_CPU_ISA names.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

from pyenc.ops import ACTIVATIONS, extension
from pyenc.ops.segment_mean import cpu as segment_mean_cpu
from tests.instruction_sets import ISAS, run_on
from tests.ops.attention.test_attention_cpu import KINDS
from tests.ops.attention.test_attention_cpu import Case as AttentionCase
from tests.ops.elementwise import WIDTHS
from tests.ops.gated.test_gated_cpu import check_gated
from tests.ops.norm import test_norm_cpu
from tests.ops.norm.test_norm_cpu import check_norm
from tests.ops.norm_rotary.test_norm_rotary_cpu import check_norm_rotary
from tests.ops.rotary.test_rotary_cpu import check_rotary
from tests.ops.segment_mean import test_segment_mean_kernels as segment_mean
from tests.oracle import margin, naively

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

MARGIN = 3.0
SEEDS = int(os.environ.get("PYENC_TEST_SEEDS", "2"))


def check_attention() -> None:
    for lengths in ([1, 2, 0, 3, 17], [63, 64, 65], [300, 97]):
        for kind in KINDS:
            AttentionCase(lengths, kind).check()
        for kind in KINDS[:3]:
            AttentionCase(lengths, kind, dim=40).check(gradient=True)
    # One head alone: no other, larger gradient lends its size to what this one may be off.
    for dim in (1, 17, 64, 256):
        AttentionCase([100, 37], "alibi", heads=1, dim=dim).check(gradient=True)
    holes = {"window": (40, 7), "holes": True, "dim": 17}
    for kind in KINDS[1:3]:
        AttentionCase([300, 77], kind, **holes).check(gradient=True)
    # The slopes' gradient is made from the numbers that halves stand for, before any is rounded.
    halves = AttentionCase([130, 37], "alibi", dtype=torch.bfloat16)
    with naively():
        got, naive, oracle = (
            halves.run(backend, dtype, gradient=True)[-1].double()
            for backend, dtype in (("cpu", None), ("reference", None), ("reference", torch.float64))
        )
    assert MARGIN * (got - oracle).abs().max() <= (naive - oracle).abs().max().clamp(min=1e-3)


def check_elementwise() -> None:
    for i, width in enumerate(WIDTHS[3:]):
        activation = ACTIVATIONS[i % len(ACTIVATIONS)]
        check_gated(3, width, activation, torch.float32)
        check_norm_rotary(5, 3, 1, width, torch.float32)
        check_rotary(5, 2, width, torch.float32)
        for rms in (False, True):
            check_norm(150, width, torch.float32, rms=rms)
    test_norm_cpu.test_norms_of_hard_rows()


def check_segment_mean() -> None:
    for normalize in (False, True):
        case = segment_mean.make_case([1, 700, 129, 0, 33], 100, torch.float32, True)
        case = case._replace(x=torch.randn(863, 100) + 0.5, grad_out=torch.randn(5, 100))
        out, stats = segment_mean_cpu.forward_saving(*case[:3], normalize)
        grads = segment_mean_cpu.backward(
            case.grad_out, *case[:3], normalize, out, stats, need_grad_weights=True
        )
        want = segment_mean.oracle(case, normalize)
        # As check() there has them.
        for got, right, relative, floor in zip(
            (out, *grads), want, (1e-6, 4e-6, 4e-6), (1e-3, 1e-3, 1.0), strict=True
        ):
            segment_mean.assert_near(got, right, relative / MARGIN, floor)


def check_seeds(first: int, last: int) -> None:
    for seed in range(first, last):
        torch.manual_seed(seed)
        try:
            with margin(MARGIN):
                check_attention()
                check_elementwise()
            check_segment_mean()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("isa", ISAS)
def test_seeds(isa: str) -> None:
    run_on(isa, __file__, "0", str(SEEDS), only_others=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_seeds(int(sys.argv[1]), int(sys.argv[2]))
    print(extension.isa())
