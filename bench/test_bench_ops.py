"""The cases of the quick look under pytest-benchmark, to follow one machine from commit to commit.

    pytest bench --benchmark-autosave
    pytest bench --benchmark-compare --benchmark-compare-fail=median:10%

`make test` does not collect this folder. Each peer is checked against the oracle beforehand.
"""

from __future__ import annotations

import pytest
import torch

from bench.check import Checks, Wrong, why
from bench.compare import Case, Op, Peer
from bench.measure import clock
from bench.ops import (
    attention,
    disentangled,
    experts,
    gated,
    linear,
    norm,
    norm_rotary,
    rotary,
    segment_mean,
)

CPU = torch.device("cpu")
MODULES = (
    attention, disentangled, experts, gated, linear, norm, norm_rotary, rotary, segment_mean
)  # fmt: skip
OPS = [module.op(CPU) for module in MODULES]
CHECKS = {op.name: Checks(op, CPU, quick=True) for op in OPS}
RUNS = [
    pytest.param(op, case, peer, id=f"{op.name}: {case.name}, {case.dtype}: {peer.name}")
    for op in OPS
    for case in op.cases(True, CPU)
    for peer in op.peers
    if peer.of in ("", case.kind.get("op")) and not peer.compiles
]


@pytest.fixture(scope="session", autouse=True)
def freed_memory_is_kept() -> None:
    clock.keep_freed_memory()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Not the tests' rule here: as many threads as torch takes by itself."""


@pytest.mark.parametrize(("op", "case", "peer"), RUNS)
def test_op(op: Op, case: Case, peer: Peer, benchmark: object) -> None:
    benchmark.group = f"{op.name}: {case.name}, {case.dtype}"  # type: ignore[attr-defined]
    try:
        ready, verdict = CHECKS[op.name].check(peer, case, op.inputs(case, CPU))
    except Wrong:
        raise
    except Exception as error:  # a peer that cannot serve is skipped with its reason
        pytest.skip(why(error))
    finally:
        CHECKS[op.name].forget()
    assert verdict.right, f"off by {verdict.error:.1e}, allowed {verdict.allowed:.1e}"
    benchmark(ready.run)  # type: ignore[operator]
