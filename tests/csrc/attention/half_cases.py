"""What holds of attention in bfloat16, on matrix units and by pairs: run by emulated.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from pyenc.ops import ALiBi, attention, computed_share
from pyenc.ops.attention import cpu
from pyenc.ops.attention.terms import Terms
from tests.ops.attention import test_attention_cpu as whole
from tests.ops.attention import test_attention_skip as skip
from tests.ops.attention import test_dropped_weights as dropout
from tests.ops.attention.test_attention_cpu import KINDS, Case

# Around what a tile, two of them, a strip, a block and a tile of queries hold.
LENGTHS = [[1], [2], [15, 16, 17, 0, 31, 32, 33], [63, 64, 65, 48, 49], [127, 128, 129, 192, 3]]
DIMS = (1, 2, 16, 17, 33, 40, 64, 65, 96, 129, 256)
HIDDEN: list[dict[str, Any]] = [
    {"window": (20, 90)}, {"window": (0, 0)}, {"holes": True}, {"holes": True, "window": (40, -1)},
]  # fmt: skip


def case(lengths: list[int], kind: str, **options: Any) -> Case:
    return Case(lengths, kind, dtype=torch.bfloat16, **options)


def check(lengths: list[int], kind: str, **options: Any) -> None:
    """Forward and backward; ALiBi's backward is another where the slopes are learned."""
    one = case(lengths, kind, **options)
    one.check()
    one.check(gradient=True)
    if kind == "alibi":
        one.learned = False
        one.check(gradient=True)


def forward_and_backward(_: ModuleType) -> None:
    for lengths, kind in itertools.product(LENGTHS, KINDS):
        check(lengths, kind, dim=32)
    for dim, kind in itertools.product(DIMS, ("none", "alibi")):
        check([70, 1, 97], kind, dim=dim, heads=1)
    for options, kind in itertools.product(HIDDEN, KINDS):
        check([150, 37, 97], kind, dim=24, heads=1, **options)
    check([300], "alibi", heads=3, std=12.0)  # the maximum moves


def a_little(_: ModuleType) -> None:
    """For the sanitizers: odd sizes of everything, whatever is read or written."""
    for kind in KINDS:
        check([1, 17, 97], kind, dim=33, heads=1)
        check([130], kind, dim=7, heads=1, window=(20, 90), holes=True)
    check([70], "alibi", dim=256, heads=1)
    check([260], "alibi", dim=65, heads=1)
    dropout.Case([1, 17, 97], "t5", dtype=torch.bfloat16, dim=33, heads=1, window=(20, 90)).check()
    skip.check_shares("planted -16", torch.bfloat16)


def others(_: ModuleType) -> None:
    """What else holds of these kernels, and of the float ones beside them."""
    whole.main()
    not_finite()
    the_same_twice()
    pushed_down()
    cut_into_runs()
    strided()
    any_ranges()


def not_finite(make: Callable[..., Case] = case) -> None:
    """NaN and infinity show where they do in the oracle, and nowhere else."""
    for value, what in itertools.product((math.nan, math.inf, -math.inf), range(3)):
        one = make([300, 200], "alibi", heads=1)
        one.qkv[what][290, 0, 3] = value
        out, oracle = one.run("cpu")[0], one.run("reference", torch.float64)[0]
        if what < 2:
            assert torch.equal(out.isfinite(), oracle.isfinite())
        else:
            assert not bool((out.isfinite() < oracle.isfinite()).any())
        assert bool(out[300:].isfinite().all())


def pushed_down() -> None:
    """The most negative number hides a key. A row that has no other is not theirs to serve."""
    q, k, v = (torch.randn(120, 1, 8).bfloat16() for _ in range(3))
    bias = torch.randn(1, 120, 120)
    bias[0, 7, 3:] = torch.finfo(torch.float32).min
    bias[0, 9, 70:] = -math.inf
    bounds = torch.tensor([0, 120])
    out = attention(q, k, v, bounds, bias=bias, backend="cpu")
    oracle = attention(
        q.double(), k.double(), v.double(), bounds, bias=bias.double(), backend="reference"
    )
    assert isinstance(out, torch.Tensor)
    assert isinstance(oracle, torch.Tensor)
    assert (out.double() - oracle).abs().max() < 0.05


def the_same_twice() -> None:
    one = case([400, *range(1, 30)], "alibi", heads=3, learned=False)
    answers = []
    for count in (1, 2, 2, 3):
        one.threads = count
        answers.append((one.run("cpu"), one.run("cpu", gradient=True)))
    for again in answers[1:]:
        assert all(map(torch.equal, answers[0][0], again[0]))
    assert all(map(torch.equal, answers[1][1], answers[2][1]))


def any_ranges() -> None:
    """A backward is right whatever keys its ranges begin and end with; those few weigh nothing."""
    n, edge = 201, 5
    q, k, v, g = torch.randn(4, n, 2, 40)
    q[..., 0] = 30
    k[..., 0] = 0
    k[:edge, :, 0] = k[-edge:, :, 0] = -40
    q, k, v, g = (x.bfloat16() for x in (q, k, v, g))
    terms, bounds = Terms("none", None, 0, None, -1, -1, 0.15, 0.0, 0), torch.tensor([0, n])
    out, lse, ranges, *_ = cpu.forward(q, k, v, bounds, terms, 0.0, want_lse=True, want_ranges=True)
    assert lse is not None
    assert ranges is not None

    def grads(first: int, last: int) -> list[torch.Tensor]:
        ranges[..., 0], ranges[..., 1] = first, last
        found = cpu.backward(g, None, q, k, v, bounds, terms, 0.0, out, lse, ranges)
        return [x.float() for x in found[:3]]

    whole = grads(0, n)
    for first, last in itertools.product((-3, 0, 1, 4, edge), (n - edge, n - 2, n - 1, n, n + 9)):
        for one, other in zip(grads(first, last), whole, strict=True):
            assert (one - other).norm() <= 0.01 * other.norm(), (first, last)


def cut_into_runs() -> None:
    """One head of the backward on several threads, with sums of their own."""
    one = case([1500], "none", heads=1, dim=16)
    one.threads = 4
    one.check(gradient=True)


def strided() -> None:
    """Inputs are read as they lie, also where a row begins at an odd address."""
    one = case([70, 30], "none", dim=40)
    expected = one.run("cpu")[0]
    joined = torch.cat([torch.randn(100, 2, 1).bfloat16(), *one.qkv], dim=2)
    parts = joined[..., 1:].split(40, dim=2)
    assert torch.equal(attention(*parts, one.cu_seqlens, backend="cpu"), expected)


def dropped(_: ModuleType) -> None:
    """Weights under dropout, in every dtype."""
    for kind, dtype in itertools.product(KINDS, whole.DTYPES):
        dropout.Case([150, 1, 37], kind, dtype=dtype, dim=33).check()
    dropout.Case([97], "alibi", dtype=torch.bfloat16, window=(40, 7)).check()


def is_emulated(module: ModuleType) -> bool:
    """Whether the instructions are plain C++ here, and slow."""
    return bool(module.isa() == "emulated")


def left_out(module: ModuleType) -> None:
    """The skip rule keeps its promise, and leaves out what it does elsewhere."""
    more = () if is_emulated(module) else ("level -12", "shifted")
    for name in ("plain", "planted -16", *more):
        skip.check_shares(name, torch.bfloat16)
    skip.test_the_default_cannot_be_seen(torch.bfloat16)
    q, k, v = (x.bfloat16() for x in skip.plain())
    bounds = torch.tensor([0, skip.N])
    shares = []
    for slope in (0.5, 2.0**-4, 2.0**-6, 0.0):
        bias = ALiBi(torch.full((skip.HEADS,), slope))
        shares.append(computed_share(q, k, v, bounds, bias=bias, backend="cpu"))
    assert shares[0] < 0.25
    assert shares == sorted(shares)
    assert shares[-1] == 1
    k[skip.N - 1] = math.nan
    before = shares[0]
    bias = ALiBi(torch.full((skip.HEADS,), 0.5))
    assert computed_share(q, k, v, bounds, bias=bias, backend="cpu") > before


# Of the instructions in amx_trap.cpp: the order of its counters.
CONFIGURED, RELEASED, ZEROED, LOADED, STORED, MULTIPLIED, LIVE = range(7)


def trapped(module: ModuleType) -> None:
    """By the instructions themselves; and every thread that took tiles gives them back."""
    for lengths, dim, kind in (([70, 37, 1], 64, "alibi"), ([70], 33, "t5"), ([130], 96, "dense")):
        one = case(lengths, kind, dim=dim, heads=1, learned=False)
        for gradient in (False, True):
            before = [module.trapped(i) for i in range(7)]
            one.check(gradient=gradient)
            count = [module.trapped(i) - before[i] for i in range(7)]
            assert count[CONFIGURED] == count[RELEASED] > 0, count
            assert min(count[LOADED], count[STORED], count[MULTIPLIED]) > 0, count
            assert module.trapped(LIVE) == 0
    # float32 takes them in the forward alone, and other dtypes have nothing to do with tiles.
    before = [module.trapped(i) for i in range(7)]
    Case([300], "alibi", heads=1, dim=40).check()
    count = [module.trapped(i) - before[i] for i in range(7)]
    assert count[CONFIGURED] == count[RELEASED] > 0, count
    assert min(count[LOADED], count[STORED], count[MULTIPLIED]) > 0, count
    assert module.trapped(LIVE) == 0
    before = [module.trapped(i) for i in range(7)]
    Case([100, 37], "alibi", dtype=torch.float16).check(gradient=True)
    assert before == [module.trapped(i) for i in range(7)]


CASES: dict[str, Callable[[ModuleType], None]] = {
    "halves": forward_and_backward,
    "halves a little": a_little,
    "halves others": others,
    "halves dropped": dropped,
    "halves skip": left_out,
    "halves trapped": trapped,
}
