"""The Triton kernels compile for every architecture and fit its card, without a GPU.

What a compiler makes of a source is the same each time, and takes minutes: rows that were made of
exactly these sources, by this Triton, with the configurations that are shipped, are read in
bench/results/aot.json. All others are compiled here, which after any change of a kernel is all of
them; and so is one work in each run, whose rows must come out as they stand there. With
PYENC_COMPILE_ALL=1 nothing is read.

Never in the interpreter: kernels that are interpreted cannot be compiled.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from pyenc_kernels import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="the kernels are interpreted")

from bench import aot
from bench.ahead_of_time import ARCHITECTURES, Compiled, compile_for
from bench.aot_work import Work, at_its_shape, compile_work, listed, shipped, wrong_with
from bench.tunables import TUNABLES
from pyenc_kernels import attention, gated, norm, norm_rotary, rotary
from pyenc_kernels.configs import Config
from pyenc_kernels.score_function import ALIBI

MATRIX = {"sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "v_mfma"}
MAIN = [at_its_shape(architecture, "alibi") for architecture in reversed(ARCHITECTURES)]
OTHERS = [
    at_its_shape("sm_90", op)
    for op in (
        "none", "alibi-whole", "t5", "t5-fixed", "disentangled", "embedding", "gated",
        "gated_linear", "norm", "norm_rotary", "rotary", "segment_mean",
    )
]  # fmt: skip
PRODUCTS = {kernel for kernel, tunable in TUNABLES.items() if tunable.op == "alibi"}

AGAIN = at_its_shape("sm_90", "gated")
COMPILE_ALL = os.environ.get("PYENC_COMPILE_ALL", "") not in ("", "0")

Compiling = dict[Work, Future[list[Compiled]]]


def recorded(work: Work) -> list[Compiled] | None:
    """Its rows of the table, if they are of these sources, this Triton and what is shipped."""
    entry = aot.read().get(work.key)
    if (
        entry is None
        or entry["sources"] != aot.sources(work.op)
        or entry["configs"] != shipped(work)
    ):
        return None
    return [Compiled.of(row) for row in entry["kernels"]]


@pytest.fixture(scope="module")
def compiling() -> Iterator[Compiling]:
    """All of it at once, on two cores."""
    works: Compiling = {}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for work in (*MAIN, *OTHERS):
            known = None if COMPILE_ALL or work == AGAIN else recorded(work)
            if known is None:
                works[work] = pool.submit(compile_work, work)
            else:
                works[work] = Future()
                works[work].set_result(known)
        yield works


def test_what_stands_in_the_table_comes_out_again(compiling: Compiling) -> None:
    known = recorded(AGAIN)
    if known is None:
        pytest.skip("its row is of other sources or another Triton: all were compiled")
    assert compiling[AGAIN].result() == known, (
        "bench/results/aot.json was not made of these sources: run `make aot`"
    )


def test_another_source_is_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    work = MAIN[0]
    entry = {"sources": aot.sources(work.op), "configs": shipped(work), "kernels": []}
    monkeypatch.setattr(aot, "read", lambda: {work.key: entry})
    assert recorded(work) == []
    assert recorded(MAIN[1]) is None
    for name, other in (("sources", "0"), ("configs", shipped(work) | {"x": [1]})):
        monkeypatch.setattr(aot, "read", lambda change={name: other}: {work.key: entry | change})
        assert recorded(work) is None
    monkeypatch.setattr(aot, "read", lambda: {work.key: entry})
    monkeypatch.setattr(aot.triton, "__version__", "0")
    assert recorded(work) is None


def test_an_op_is_made_of_its_own_folder_and_those_it_imports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "kernels"
    shutil.copytree(aot.PACKAGE, package)
    monkeypatch.setattr(aot, "PACKAGE", package)
    ops = (
        "alibi", "disentangled", "embedding", "gated_linear", "norm", "norm_rotary", "rotary",
        "segment_mean",
    )  # fmt: skip

    def changed_by(file: str) -> set[str]:
        before = {op: aot.sources(op) for op in ops}
        with (package / file).open("a", encoding="utf-8") as source:
            source.write("# another\n")
        return {op for op in ops if aot.sources(op) != before[op]}

    assert changed_by("slots.py") == set(ops)
    assert changed_by("attention/tiles.py") == {"alibi", "disentangled"}
    assert changed_by("disentangled/kernel.py") == {"disentangled"}
    assert changed_by("norm/kernel.py") == {"norm", "norm_rotary", "embedding"}
    assert changed_by("rotary/kernel.py") == {"rotary", "norm_rotary"}
    assert changed_by("gated/linear_kernel.py") == {"gated_linear"}


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
        if work.op in ("disentangled", "gated_linear"):
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
        rotary.turn(torch.zeros(1, 1, 2), one[None], one[None], torch.zeros(1, dtype=torch.int32))

        turn = one[None], one[None], torch.zeros(1, dtype=torch.int32), 1e-5, True
        x, two = torch.zeros(1, 1, 2), torch.zeros(2)
        norm_rotary.backward(norm_rotary.forward(x, two, two, 1, *turn), x, two, two, 1, *turn)

    assert len(compile_for("sm_90", call, ("sm_90", "default"))) == 9


def test_one_head_and_a_gradient_of_the_log_sum_exp() -> None:
    """In a kernel's branches no name may change its type, which the interpreter lets pass."""

    def call() -> None:
        q, cu_seqlens = torch.zeros(3, 1, 16), torch.tensor([0, 3], dtype=torch.int32)
        terms = attention.Terms(scale=1.0, bias=ALIBI, params=torch.ones(1, 1))
        out, lse = attention.forward(q, q, q, cu_seqlens, terms)
        attention.backward(
            q, lse, q, q, q, cu_seqlens, terms, None, out, lse, need_params=True
        )  # fmt: skip

    assert len(compile_for("sm_90", call, ("sm_90", "default"))) == 4


@pytest.mark.parametrize(
    ("op", "bounds"),
    [
        ("alibi", (128, 128)), ("alibi-fixed", (128, None)), ("asymmetric", (128, 128)),
        ("t5", (None, None)), ("none", (128, None)), ("window", (None, None)),
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
    assert not aot.all_wrong(aot.of_today(aot.read()))


def test_a_configuration_that_was_never_compiled_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    work = at_its_shape("sm_90", "alibi")
    made = {work.key: {"configs": shipped(work) | {"attention_forward": [16, 16, 4, 1]}}}
    monkeypatch.setattr(aot, "read", lambda: made)
    with pytest.raises(AssertionError, match=r"run `make aot`.*sm_90/alibi/bfloat16/64"):
        test_every_shipped_configuration_has_been_compiled()
