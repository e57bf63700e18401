"""The program of an op: what it runs, beyond what a quick look of the command line shows."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import pytest
import torch

from bench import op as program
from bench.compare import CannotServe, Case, Op, Peer, Ready, Tensors
from bench.measure import memory
from pyenc.cli.arguments import parse


def peer(ran: list[tuple[str, int]], name: str, **facts: Any) -> Peer:
    def prepare(case: Case, inputs: Tensors) -> Ready:
        ran.append((name, len(inputs["x"])))
        if name == "broken":
            raise RuntimeError("no kernel image")
        return Ready(lambda: inputs["x"] * 2)

    return Peer(name, prepare, **facts)


@pytest.mark.parametrize("kind", [{}, {"op": "ragged"}])
def test_warming_runs_what_compiles_small_and_whole(
    kind: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, int]] = []
    case = Case("a", {**kind, "n": 8, "work": 8}, "float32", {"n": 2, "work": 2})
    peers = [
        peer(ran, "broken", compiles=True), peer(ran, "pyenc triton", ours=True),
        peer(ran, "quick"), peer(ran, "pyenc torch", ours=True),
        peer(ran, "compiled", compiles=True),
    ]  # fmt: skip
    if kind:
        peers.append(peer(ran, "padded", compiles=True, of="ragged"))
        peers.append(peer(ran, "equal", compiles=True, of="equal lengths"))

    def nothing(*args: Any) -> Tensors:
        raise AssertionError("nothing is checked or timed")

    op = Op(
        "an op", "", lambda quick, device: [case],
        lambda case, device: {"x": torch.ones(case.kind["n"])}, peers, nothing,
    )  # fmt: skip
    options = parse(["bench", "an-op", "--warm"])
    assert program.run(op, options, torch.device("cpu")) == 0
    names = ["broken", "pyenc triton", "compiled", *(["padded"] if kind else [])]
    assert ran == [(name, n) for n in (2, 8) for name in names]
    assert capsys.readouterr().out == ""


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    """The program of the op, started by itself: what it says is beyond inputs and results."""
    kind = {"tokens": 4096, "work": 4096}
    case = Case("rotary", kind, "float32", {"tokens": 37, "work": 37})
    found = memory.in_child(["rotary"], {"case": asdict(case), "peer": "torch, eager rotate_half"})
    # Eager code makes several tensors of the input's size on its way.
    assert found.keys() == {"extra_mb"}, found
    if sys.platform == "linux":
        assert found["extra_mb"] > 4096 * 12 * 64 * 4 / 1e6


def test_who_cannot_serve_in_that_process_says_why() -> None:
    """The whole case may be too large there, beside what the parent holds."""

    def prepare(case: Case, inputs: Tensors) -> Ready:
        if case.kind["n"] > 2:
            raise CannotServe("it needs about 13 GB")
        return Ready(lambda: inputs["x"])

    case = Case("a", {"n": 8, "work": 8}, "float32", {"n": 2, "work": 2})
    op = Op(
        "an op", "", lambda quick, device: [case],
        lambda case, device: {"x": torch.ones(case.kind["n"])}, [Peer("large", prepare)],
        lambda case, inputs, dtype: inputs,
    )  # fmt: skip
    found = program._measure_memory(op, {"case": asdict(case), "peer": "large"})
    assert found == {"error": "it needs about 13 GB"}
