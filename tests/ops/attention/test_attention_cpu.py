"""The C++ kernels of attention against the dense float64 oracle, forward and backward.

Run as a script, this file checks the kernels of the instruction set that PYENC_CPU_ISA names.
"""

from __future__ import annotations

import concurrent.futures
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyenc.ops import ALiBi, RelativePositionBias, alibi_slopes, attention, extension
from pyenc.ops.attention import cpu as attention_cpu
from pyenc.ops.attention.terms import Terms
from tests.instruction_sets import ISAS, run_on
from tests.oracle import assert_right, naively
from tests.seeds import seed

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

LENGTHS = {
    "none": [0],
    "one": [1],
    "small": [1, 2, 0, 3, 17],
    "about 64": [63, 64, 65],
    "about a block": [47, 48, 49, 95, 96, 97, 128],
    "odd": [257],
    "tiles": [1024],
}
UNEVEN = [4000, *[1 + i % 9 for i in range(50)]]
KINDS = ["none", "alibi", "t5", "dense"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Case:
    """Random inputs of one call, and its answers by oracle, naive computation and kernel."""

    threads: int | None = None
    """Of the kernel alone; None: as many as torch has."""

    def __init__(
        self,
        lengths: list[int],
        kind: str = "none",
        *,
        heads: int = 2,
        dim: int = 64,
        dtype: torch.dtype = torch.float32,
        window: tuple[int, int] | None = None,
        holes: bool = False,
        std: float = 2.0,
        learned: bool = True,
    ) -> None:
        tokens = sum(lengths)
        self.cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)])
        self.qkv = [torch.randn(tokens, heads, dim) for _ in range(3)]
        self.qkv[0] *= std
        self.qkv = [x.to(dtype) for x in self.qkv]
        self.grad_out = torch.randn(tokens, heads, dim).to(dtype)
        self.grad_lse = torch.randn(tokens, heads)
        self.kind, self.window = kind, window
        # Whether the bias's tensor has a gradient; a dense one never has here.
        self.learned = learned and kind != "dense"
        self.positions = torch.randint(1, 4, (tokens,)).cumsum(0) if holes else None
        side = max(lengths) + 3
        self.tensor = {
            "none": None,
            "alibi": alibi_slopes(heads),
            "t5": torch.randn(32, heads),
            "dense": torch.randn(heads, side, side),
        }[kind]

    def run(
        self, backend: str, dtype: torch.dtype | None = None, gradient: bool = False, **more: Any
    ) -> list[Tensor]:
        """[out, lse] and, if asked for, the gradients of q, k, v and the bias's tensor."""
        if backend != "cpu" or self.threads is None:
            return self._run(backend, dtype, gradient, **more)
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return self._run(backend, dtype, gradient, **more)
        finally:
            torch.set_num_threads(before)

    def _run(
        self, backend: str, dtype: torch.dtype | None, gradient: bool, **more: Any
    ) -> list[Tensor]:
        dtype = dtype or self.qkv[0].dtype
        inputs = [x.to(dtype).requires_grad_(gradient) for x in self.qkv]
        tensor = self.tensor
        if tensor is not None:
            tensor = tensor.to(torch.promote_types(dtype, torch.float32))
            inputs.append(tensor.requires_grad_(gradient and self.learned))
        bias: Any = tensor
        if self.kind == "alibi":
            bias = ALiBi(inputs[3])
        elif self.kind == "t5":
            bias = RelativePositionBias(inputs[3])
        answers = attention(
            *inputs[:3], self.cu_seqlens, bias=bias, positions=self.positions, window=self.window,
            return_lse=True, backend=backend, **more,
        )  # fmt: skip
        if gradient:
            out, lse = answers
            weighted = (out * self.grad_out.to(out.dtype)).sum()
            weighted = weighted + (lse * self.grad_lse.to(lse.dtype)).sum()
            return list(torch.autograd.grad(weighted, [x for x in inputs if x.requires_grad]))
        return [x.detach() for x in answers]

    def check(self, gradient: bool = False) -> None:
        """DESIGN's rule, with everything computed."""
        got = self.run("cpu", gradient=gradient, skip_eps=0)
        with naively():
            naive = self.run("reference", gradient=gradient)
        oracle = self.run("reference", torch.float64, gradient)
        names = ["dq", "dk", "dv", "dbias"] if gradient else ["out", "lse"]
        for name, a, b, c in zip(names, got, naive, oracle, strict=False):
            assert_right(a, b, c, gradient=gradient, what=f"{self.kind} {name}")


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_forward(lengths: list[int], kind: str, dtype: torch.dtype) -> None:
    Case(lengths, kind, dtype=dtype).check()


@pytest.mark.parametrize("kind", KINDS)
def test_one_long_sequence_among_many_short_ones(kind: str) -> None:
    Case(UNEVEN, kind, heads=1, dim=32).check()


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("lengths", [[1], [1, 2, 0, 3, 17], [63, 64, 65, 97], [400, 129]], ids=str)
def test_backward(lengths: list[int], kind: str, dtype: torch.dtype) -> None:
    Case(lengths, kind, dtype=dtype).check(gradient=True)


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dim", [1, 16, 17, 32, 40, 80, 96, 128, 256])
@pytest.mark.parametrize("heads", [1, 3])
def test_head_dims(dim: int, heads: int, gradient: bool) -> None:
    Case([100, 37], "alibi", heads=heads, dim=dim).check(gradient)


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("window", [(0, 0), (5, 3), (-1, 100), (70, -1), (250, 250)], ids=str)
@pytest.mark.parametrize("kind", KINDS[:3])
def test_windows(window: tuple[int, int], kind: str, gradient: bool) -> None:
    Case([300, 77], kind, window=window).check(gradient)


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("window", [None, (40, 7)], ids=str)
@pytest.mark.parametrize("kind", KINDS[:3])
def test_positions_with_holes(window: tuple[int, int] | None, kind: str, gradient: bool) -> None:
    Case([250, 1, 77], kind, window=window, holes=True).check(gradient)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 210), min_size=1, max_size=6),
    kind=st.sampled_from(KINDS[:3]),
    heads=st.integers(1, 4),
    dim=st.sampled_from([8, 24, 33, 64]),
    dtype=st.sampled_from(DTYPES),
    holes=st.booleans(),
    left=st.integers(-1, 120),
    right=st.integers(-1, 120),
    gradient=st.booleans(),
)
def test_any_shape(
    lengths: list[int], kind: str, heads: int, dim: int, dtype: torch.dtype, holes: bool,
    left: int, right: int, gradient: bool,
) -> None:  # fmt: skip
    torch.manual_seed(sum(lengths))
    options: dict[str, Any] = {"heads": heads, "dim": dim, "dtype": dtype, "holes": holes}
    Case(lengths, kind, window=(left, right), **options).check(gradient)


@pytest.mark.parametrize("kind", ["bf16", "f16", "f64"])
def test_a_dense_bias_of_another_dtype(kind: str) -> None:
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}[kind]
    case = Case([33, 100], "dense")
    assert case.tensor is not None
    case.tensor = case.tensor.to(dtype)
    terms = Terms("dense", case.tensor, 0, None, -1, -1, 0.125, 0.0, 0)
    out = attention_cpu.forward(*case.qkv, case.cu_seqlens, terms, 0.0)[0]
    case.tensor = case.tensor.double()
    assert_right(out, *(case.run("reference", d)[0] for d in (torch.float32, torch.float64)))


def test_strided_inputs_are_read_as_they_lie() -> None:
    case = Case([70, 30])
    joined = torch.cat(case.qkv, dim=1).requires_grad_()
    parts = joined.split(2, dim=1)
    turned = [x.transpose(0, 2).contiguous().transpose(0, 2) for x in case.qkv]
    expected = case.run("cpu")[0]
    assert torch.equal(attention(*parts, case.cu_seqlens, backend="cpu"), expected)
    assert torch.equal(attention(*turned, case.cu_seqlens, backend="cpu"), expected)
    out = attention(*parts, case.cu_seqlens, backend="cpu")
    assert isinstance(out, Tensor)
    ones = out.sum(0, keepdim=True).detach()
    grad = torch.autograd.grad(out, joined, ones.expand_as(out))[0]
    plain = [x.detach().requires_grad_() for x in case.qkv]
    again = attention(*plain, case.cu_seqlens, backend="cpu")
    assert isinstance(again, Tensor)
    grads = torch.autograd.grad(again, plain, ones.expand_as(out).contiguous())
    assert torch.equal(grad, torch.cat(grads, dim=1))


def test_the_same_bits_for_any_number_of_threads_and_every_time() -> None:
    case = Case([700, *range(1, 30)], "alibi", heads=3)
    forward, backward = [], []
    for count in (1, 2, 3, 7, 2):
        case.threads = count
        forward.append(case.run("cpu"))
        backward.append(case.run("cpu", gradient=True))
    for answers in forward[1:]:
        assert all(map(torch.equal, forward[0], answers))
    assert all(map(torch.equal, backward[1], backward[4]))


def test_fewer_heads_than_threads() -> None:
    """One head is then cut into runs of queries, each with sums of its own."""
    for kind in KINDS[:3]:
        case = Case([1500], kind, heads=1, dim=32)
        case.threads = 4
        case.check(gradient=True)


def test_exp2_is_as_exact_as_it_says() -> None:
    """Within 2.2 units in the last place (csrc/shared/simd.h), over all of its range."""
    module = extension.load()
    assert module is not None
    x = torch.cat([torch.linspace(-126, 127, 2_000_003), torch.randn(100_000), torch.zeros(1)])
    y = torch.empty_like(x)
    module.attention_exp2(x.data_ptr(), len(x), y.data_ptr())
    exact = x.double().exp2()
    unit = torch.ldexp(torch.ones_like(exact), exact.log2().floor() - 23)
    assert ((y - exact).abs() / unit).max() <= 2.2
    special = torch.tensor([0.0, -0.0, -128.0, -1e30, -torch.inf, torch.nan])
    got = torch.empty_like(special)
    module.attention_exp2(special.data_ptr(), len(special), got.data_ptr())
    assert got[:5].tolist() == [1, 1, 0, 0, 0]
    assert got[5].isnan()


def test_what_is_not_finite_shows_where_it_does_in_the_oracle() -> None:
    for value, what in itertools.product((torch.nan, torch.inf), range(3)):
        case = Case([600], "alibi", heads=1)
        case.qkv[what][590, 0, 3] = value
        out, oracle = case.run("cpu")[0], case.run("reference", torch.float64)[0]
        if what < 2:
            assert torch.equal(out.isfinite(), oracle.isfinite())
        else:
            # A value that is left out cannot show: weight zero is no weight.
            assert not bool((out.isfinite() < oracle.isfinite()).any())


def test_a_row_whose_every_key_is_pushed_down_is_an_average() -> None:
    """As torch and the oracle have it: the most negative number hides a key from others alone."""
    q, k, v = (torch.randn(120, 1, 8).requires_grad_() for _ in range(3))
    bias = torch.randn(1, 120, 120)
    bias[0, 5] = torch.finfo(torch.float32).min
    bias[0, 7, 3:] = torch.finfo(torch.float32).min
    outs = [
        attention(q, k, v, torch.tensor([0, 120]), bias=bias, backend=b) for b in ("cpu", "torch")
    ]
    assert isinstance(outs[0], Tensor)
    assert isinstance(outs[1], Tensor)
    assert torch.allclose(outs[0], outs[1], atol=1e-5)
    grads = torch.autograd.grad(outs[0].sum(), (q, k, v))
    assert all(bool(x.isfinite().all()) for x in grads)


@pytest.mark.parametrize("options", [{}, {"window": (30, 20)}, {"holes": True}], ids=str)
def test_gradients_under_a_dense_bias(options: dict[str, Any]) -> None:
    """Of q, k and v: the bias itself has none here."""
    Case([130, 50], "dense", **options).check(gradient=True)


def test_relative_positions_that_saturate_late_take_no_more_memory_than_there_are_keys() -> None:
    q, k, v = (torch.randn(70, 2, 8, requires_grad=True) for _ in range(3))
    table = torch.randn(8, 2, requires_grad=True)
    found = []
    for backend in ("cpu", "reference"):
        bias = RelativePositionBias(table, 10**9)
        out = attention(q, k, v, torch.tensor([0, 20, 70]), bias=bias, backend=backend)
        assert isinstance(out, Tensor)
        found.append(torch.autograd.grad(out.square().sum(), table)[0])
    assert torch.allclose(*found, atol=1e-4)


def test_calls_from_several_threads_at_once() -> None:
    case = Case([300, 40], "alibi")
    q, k, v = case.qkv

    def run(_: int) -> Tensor:
        out = attention(q, k, v, case.cu_seqlens, bias=ALiBi(alibi_slopes(2)), backend="cpu")
        assert isinstance(out, Tensor)
        return out

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(40)))
    assert all(torch.equal(x, found[0]) for x in found)


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(isa: str) -> None:
    run_on(isa, __file__)


def main() -> None:
    """A little of everything above."""
    torch.manual_seed(seed(1))
    torch.set_num_threads(1)
    for lengths in ([1, 2, 0, 3, 17], [63, 64, 65], [300, 97]):
        for kind, dtype in itertools.product(KINDS, DTYPES):
            Case(lengths, kind, dtype=dtype).check()
        for kind, dtype in itertools.product(KINDS[:3], DTYPES[:2]):
            Case(lengths, kind, dtype=dtype, dim=40).check(gradient=True)
    Case([300, 77], "t5", window=(40, 7), holes=True, dim=17).check(gradient=True)
    print(extension.isa())


if __name__ == "__main__":
    main()
