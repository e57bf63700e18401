"""`pyenc bench variants`: every example is right, and what makes a compiler start is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench import attention_data, variants
from bench import variant_data as data
from bench.check import Checks, Wrong
from bench.compare import Case, Op, Peer
from bench.peers import variant_attention
from examples.variants import VARIANTS

CPU = torch.device("cpu")


def op() -> Op:
    return Op(
        "variants", "", data.cases, attention_data.inputs, variants.PEERS, data.oracle,
        data.sampled_oracle, data.sample,
    )  # fmt: skip


def tiny(name: str, backward: bool) -> Case:
    case = data.case_of(name, 40, backward)
    return replace(case, small={"lengths": [30], "work": 900})


@pytest.mark.parametrize("name", data.EXAMPLES)
def test_every_example_is_right(name: str) -> None:
    """All results on a small case, and some rows on the one that is timed."""
    checks = Checks(op(), CPU, quick=True)
    for backward in (False, True):
        case = tiny(name, backward)
        for peer in variants.PEERS[:3]:
            _, verdict = checks.check(peer, case, attention_data.inputs(case, CPU))
            assert verdict.right, (peer.name, verdict)


def test_all_examples_are_there_at_all_lengths() -> None:
    assert {variant for variant, _ in data.EXAMPLES.values()} == set(VARIANTS)
    cases = data.cases(False, CPU)
    assert len({case.name for case in cases}) == len(cases) == 7 * 2 * 3
    assert {case.kind["lengths"][0] for case in cases} == {512, 2048, 8192}


def test_another_function_is_told() -> None:
    wrong = Peer("wrong", variant_attention.alibi)
    case = tiny("kerple log", False)
    with pytest.raises(Wrong, match="off by"):
        Checks(op(), CPU, quick=True).check(wrong, case, attention_data.inputs(case, CPU))


@pytest.mark.parametrize("name", ["kerple log", "soft-capped alibi", "rope + alibi"])
def test_no_length_compiles_anything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "FIRST", 120)
    assert variants.first_result(name, True, variants.OURS, 100)["compiled"] == 0


def test_compilations_are_counted() -> None:
    """Which a graph a length is, and one for all lengths once."""
    x = torch.randn(9)
    for dynamic, wanted in ((False, 3), (True, 1)):
        torch._dynamo.reset()
        doubled = torch.compile(lambda x: x * 2, backend="eager", dynamic=dynamic)
        count = variants.compilations(lambda f=doubled: [f(x[:n]) for n in (3, 5, 7)])  # type: ignore[misc]
        assert count == wanted


def test_what_is_promised_is_checked() -> None:
    fast = {"first": 0.1, "second": 0.1, "compiled": 0}
    assert variants.shortfalls("x", fast) == []
    assert "took 2.50 s" in variants.shortfalls("x", fast | {"first": 2.5})[0]
    assert "3 compilations" in variants.shortfalls("x", fast | {"compiled": 3})[0]
