"""The Triton kernels compile for every architecture and fit its card, without a GPU.

Never in the interpreter: kernels that are interpreted cannot be compiled.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest
import torch

pytest.importorskip("triton")

from pyenc_kernels import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="the kernels are interpreted")

from bench import aot
from bench.ahead_of_time import ARCHITECTURES, Compiled, compile_for
from bench.aot_work import Work, at_its_shape, compile_work, listed, shipped, wrong_with
from bench.tunables import TUNABLES
from pyenc_kernels import gated, norm
from pyenc_kernels.configs import Config

MATRIX = {"sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "v_mfma"}
MAIN = [at_its_shape(architecture, "alibi") for architecture in reversed(ARCHITECTURES)]
OTHERS = [
    at_its_shape("sm_90", op)
    for op in (
        "none", "alibi-whole", "t5", "t5-fixed", "gated", "gated_linear", "norm", "segment_mean",
    )
]  # fmt: skip
PRODUCTS = {kernel for kernel, tunable in TUNABLES.items() if tunable.op == "alibi"}

Compiling = dict[Work, Future[list[Compiled]]]


@pytest.fixture(scope="module")
def compiling() -> Iterator[Compiling]:
    """All of it at once, on two cores."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield {work: pool.submit(compile_work, work) for work in (*MAIN, *OTHERS)}


@pytest.mark.parametrize("work", MAIN, ids=lambda work: work.architecture)
def test_the_main_shape(work: Work, compiling: Compiling) -> None:
    found = compiling[work].result()
    assert {kernel.kernel for kernel in found} >= PRODUCTS | {"key_ranges", "query_hulls"}
    for kernel in found:
        assert wrong_with(work, kernel) is None
        if kernel.kernel in PRODUCTS:
            wanted = MATRIX.get(work.architecture, "mma.sync")
            assert any(x.startswith(wanted) for x in kernel.matrix_instructions), kernel


@pytest.mark.parametrize("work", OTHERS, ids=lambda work: work.op)
def test_the_other_ops(work: Work, compiling: Compiling) -> None:
    for kernel in compiling[work].result():
        assert wrong_with(work, kernel) is None
        if work.op == "gated_linear":
            assert kernel.matrix_instructions == ("wgmma.mma_async",)


def test_sizes_of_one() -> None:
    """Triton takes a number that is 1 for a constant, which is none of its values."""

    def call() -> None:
        x, weight = torch.zeros(1, 16), torch.zeros(2, 16)
        out = gated.linear_forward(x, weight, None, "relu", True)
        gated.linear_backward(out, x, weight, None, "relu", True)
        x, one = torch.zeros(1, 1), torch.ones(1)
        normed, _, stats = norm.forward(x, x, one, one, 1e-5, False)
        norm.backward(normed, None, x, one, one, stats, 1e-5, False)

    assert len(compile_for("sm_90", call, ("sm_90", "default"))) == 5


@pytest.mark.parametrize(
    ("op", "bounds"),
    [
        ("alibi", (128, 128)), ("alibi-fixed", (128, None)), ("asymmetric", (128, 128)),
        ("t5", (None, None)), ("none", (None, None)), ("window", (None, None)),
        ("alibi-positions", (None, None)), ("alibi-dropout", (None, None)), ("map", (None, None)),
    ],
)  # fmt: skip
def test_who_has_a_bound_on_sm_90(op: str, bounds: tuple[int | None, ...]) -> None:
    """Forward and dq of what was compiled with it; and never dk, dv, which would spill."""
    found = shipped(at_its_shape("sm_90", op))
    kernels = "attention_forward", "attention_grad_queries", "attention_grad_keys"
    got = [Config(*found[kernel]).maxnreg for kernel in kernels]
    assert got == [*bounds, None]


def test_every_shipped_configuration_has_been_compiled() -> None:
    """`make aot` has been run after configs.json was changed, and its table is in results/."""
    made = aot.read()
    missing = [
        work.key
        for work in listed()
        if work.key not in made or made[work.key]["configs"] != shipped(work)
    ]
    assert not missing, f"run `make aot`: {missing}"


def test_nothing_in_the_table_is_wrong() -> None:
    """Spills or serialised products at the main shapes, more shared memory than a card has. Of rows
    that today's kernels have made: an older one may lack a column."""
    made = {key: entry for key, entry in aot.read().items() if entry["sources"] == aot.sources()}
    assert not aot.all_wrong(made)


def test_a_configuration_that_was_never_compiled_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    work = at_its_shape("sm_90", "alibi")
    made = {work.key: {"configs": shipped(work) | {"attention_forward": [16, 16, 4, 1]}}}
    monkeypatch.setattr(aot, "read", lambda: made)
    with pytest.raises(AssertionError, match=r"run `make aot`.*sm_90/alibi/bfloat16/64"):
        test_every_shipped_configuration_has_been_compiled()
