"""A kernel that somebody adds is found by itself, and has to be compiled ahead of time and tuned.

Kernels are read from their sources, so that one which nobody imports yet is found too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("triton")

import pyenc_kernels
from bench import aot_work, tunables
from pyenc_kernels import configs, interpreting

PACKAGE = Path(pyenc_kernels.__file__).parent


def entry_kernels(sources: Iterable[str]) -> set[str]:
    """The @triton.jit functions that the host launches.

    Those that are launched or planned by name, kernel[grid](...) and Plan(kernel, ...), wherever
    that stands; and those that ask for their program_id and that no other one calls, however they
    are launched.
    """
    trees = [ast.parse(source) for source in sources]
    jitted = {
        node.name: node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any("jit" in ast.unparse(each).split("(")[0] for each in node.decorator_list)
    }
    launched = {
        called(node.func.value)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    }
    launched |= {
        called(node.args[0])
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node.func) in ("Plan", "Plans") and node.args
    }
    inside = {
        name: {called(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
        for name, function in jitted.items()
    }
    by_others = {callee for name, callees in inside.items() for callee in callees - {name}}
    asking = {name for name, callees in inside.items() if "program_id" in callees}
    return set(jitted) & (launched | (asking - by_others))


def called(function: ast.expr) -> str:
    """The last name of what is called: `f`, or `f` of `module.f`."""
    return ast.unparse(function).rpartition(".")[2]


KERNELS = entry_kernels(path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py")))


def test_they_are_found() -> None:
    assert {"attention_forward", "key_ranges", "gated_backward", "segment_mean_sum"} <= KERNELS
    helpers = {"tile_of_program", "sequence_of_slot", "activate", "load_rows", "pair_scores"}
    assert not KERNELS & helpers


@pytest.mark.skipif(interpreting(), reason="the kernels are interpreted")
def test_every_kernel_is_compiled_ahead_of_time() -> None:
    work = [aot_work.at_its_shape("sm_90", op) for op in aot_work.SHAPES]
    launched = set().union(*(aot_work.launched(each) for each in work))
    lost = KERNELS - launched - set(aot_work.LEFT_OUT)
    assert not lost, f"no call in bench/aot_calls.py launches {sorted(lost)}: add one to its `call`"
    stale = set(aot_work.LEFT_OUT) & launched | set(aot_work.LEFT_OUT) - KERNELS
    assert not stale, f"LEFT_OUT of bench/aot_work.py has {sorted(stale)}"


def test_every_kernel_is_tuned() -> None:
    rows, fixed = set(map(tunables.kernel_of, tunables.TUNABLES)), set(tunables.FIXED)
    lost = KERNELS - rows - fixed
    assert not lost, f"no row in TUNABLES of bench/tunables.py, nor in FIXED: {sorted(lost)}"
    assert not rows & fixed
    assert not (rows | fixed) - KERNELS, "rows of kernels that there are not"
    assert all(tunables.FIXED.values())


def test_every_kernel_that_is_tuned_has_a_default_tile() -> None:
    defaults = {name for name, of in configs.table()["default"].items() if isinstance(of, dict)}
    assert defaults == set(map(tunables.kernel_of, tunables.TUNABLES))
    assert {tunable.op for tunable in tunables.TUNABLES.values()} <= set(aot_work.SHAPES)


NEW = """
import triton
import triton.language as tl

@triton.jit
def helper(x):
    return x + tl.program_id(0)

@triton.jit
def {name}(p_x, n):
    tl.store(p_x, helper(n))

def launch(x, kernel={name}):
    {launch}
"""


@pytest.mark.parametrize(
    ("launch", "found"),
    [
        ("new[(1,)](x, 1, num_warps=4)", {"new"}),
        ("kernels.new[grid](x, 1)", {"new"}),
        ("launching.Plan(new, {})((1,), (x,), (1,))", {"new"}),
        ("kept = Plans(kernels.new, constants)", {"new"}),
        ("if x:\n        new[lambda meta: (1,)](x, 1)", {"new"}),
        ("kernel[(1,)](x, 1)", set()),
    ],
)
def test_a_new_one_is_found(launch: str, found: set[str]) -> None:
    assert entry_kernels([NEW.format(name="new", launch=launch)]) == found


@pytest.mark.parametrize("decorator", ["triton.jit", "triton.jit(noinline=True)", "jit"])
def test_one_that_is_launched_by_another_name_is_found(decorator: str) -> None:
    source = (
        f"@{decorator}\ndef new(p):\n    i = tl.program_id(0)\n\ndef f(x, k=new):\n    k[x](1)\n"
    )
    assert entry_kernels([source]) == {"new"}
    tuned = "@triton.autotune(configs=[])\n@triton.jit\ndef new(p):\n    i = tl.program_id(0)\n"
    assert entry_kernels([tuned]) == {"new"}


def test_a_new_one_without_rows_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "KERNELS", KERNELS | {"new"})
    with pytest.raises(AssertionError, match=r"bench/tunables.py.*\['new'\]"):
        test_every_kernel_is_tuned()
    if not interpreting():
        with pytest.raises(AssertionError, match=r"launches \['new'\]"):
            test_every_kernel_is_compiled_ahead_of_time()
