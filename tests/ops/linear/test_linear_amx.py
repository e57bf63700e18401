"""bfloat16 on matrix units: when it is taken, with a pack or without, compiled or not.

What it computes: tests/csrc/linear/bf16_cases.py. Here the kernel is stood in for, so that the
tests say the same on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc.errors import BackendError
from pyenc.ops import linear
from pyenc.ops.backend import explain
from pyenc.ops.constant import constant_result
from pyenc.ops.linear import amx, backend_table, by_parts, choices, packs, processor, product
from pyenc.ops.linear import onednn as linear_onednn
from tests.ops.linear.linear_support import layer, onednn, pin, the_same

ROWS, C, F_OUT = 700, 384, 512  # large enough to gain
HALF = torch.bfloat16

Made = list[tuple[str, int, int, int]]
"""Of each product on matrix units, whether a pack was there and M, N, K."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """On a processor that prefers them, also where a gradient is needed."""
    seen: Made = []
    monkeypatch.delenv(linear_onednn.VARIABLE, raising=False)
    pin(monkeypatch, {"amx": 1.6, "amx_unpacked": 1.1}, HALF)
    monkeypatch.setattr(amx, "unavailable", constant_result(lambda: None))

    def multiply(a: Tensor, b: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        seen.append(("unpacked", a.shape[0], b.shape[1], a.shape[1]))
        return product.by_torch(a, b, bias, activation)

    def run(
        x: Tensor, weight: Tensor, pack: Tensor, bias: Tensor | None, activation: str
    ) -> Tensor:
        assert torch.equal(pack, weight.detach())
        seen.append(("packed", math.prod(x.shape[:-1]), *weight.shape))
        return product.by_torch(x, weight.t(), bias, activation)

    monkeypatch.setattr(amx, "multiply", multiply)
    monkeypatch.setattr(amx, "run", run)
    monkeypatch.setattr(amx, "pack", Tensor.clone)
    yield seen
    packs.forget_all()


def test_the_choice(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    x, (weight, bias) = torch.randn(ROWS, C, dtype=HALF), layer(C, F_OUT, HALF)

    def serves(x: Tensor = x, weight: Tensor = weight, bias: Tensor | None = bias) -> str:
        return explain(backend_table(x, weight, bias))["amx"]

    few = "the product is too small to gain"
    assert serves() == "serves"  # with an operand packed on the way
    assert serves(x[:511]) == few
    assert serves(x.float()) == "it is of bfloat16"
    assert serves(x.to("meta")) == "the tensors are on meta"
    assert "plain tensors" in serves(x.as_subclass(type("Other", (Tensor,), {})))
    with torch.no_grad():
        assert serves() == serves(x[:16]) == "serves"  # with a pack
        assert serves(x[:4]) == few
        assert serves(weight=weight * 2) == "serves"
        assert serves(x[:16], weight=weight * 2) == few  # no pack is kept of it
        with torch.autocast("cpu", HALF):
            assert serves() == "autocast makes another product"
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.mkldnn, "enabled", False)
            assert serves() == "serves"
        pin(monkeypatch, {"amx": 1.3})
        assert serves(x[:16]) == few
        assert (
            serves(weight=weight * 2)
            == "the weight is no parameter, so its pack may serve only once"
        )
        pin(monkeypatch, {"amx": 1.2, "onednn": 1.3})
        assert serves() == "choices.json prefers onednn to it (default)"
        pin(monkeypatch, {"amx": 1.3, "onednn": 1.2})
        assert explain(backend_table(x, weight))["onednn"] == (
            "choices.json prefers amx to it (default)"
        )
        pin(monkeypatch, {"amx": True, "onednn": True})
        assert serves() == "serves"
        pin(monkeypatch, {"amx": 1.1})
        assert serves() == "choices.json has 1.10x F.linear, needs 1.15x (default)"
    assert serves() == "a gradient is needed"
    pin(monkeypatch, {"amx_unpacked": 1.1, "unpacked": 1.2})
    assert serves() == "a gradient is needed"
    assert made == []


def test_which_products_gain_though_an_operand_is_packed_in_each() -> None:
    """None of few rows or channels, and none of little work in all."""
    assert amx.gains(512, 512, 256)
    assert amx.gains(2**14, 64, 64)
    for few in ((511, 2048, 2048), (2**14, 63, 512), (2**14, 512, 63), (512, 511, 256)):
        assert not amx.gains(*few)


def test_what_is_made(made: Made) -> None:
    """With a pack where no gradient is needed; else of every product, also of the gradient's."""
    x, (weight, bias) = torch.randn(2, ROWS, C, dtype=HALF), layer(C, F_OUT, HALF)
    for _ in range(2):
        with torch.inference_mode():
            linear(x, weight, bias, "gelu")
            linear(x[:1, :16], weight, bias)
    whole = ("packed", 2 * ROWS, F_OUT, C)
    assert made == [whole, ("packed", 16, F_OUT, C)] * 2
    assert packs.held() == weight.nbytes
    made.clear()
    x.requires_grad_()
    linear(x, weight, bias, "gelu").sum().backward()
    unpacked = [(2 * ROWS, F_OUT, C), (2 * ROWS, C, F_OUT), (F_OUT, C, 2 * ROWS)]
    assert made == [("unpacked", *sizes) for sizes in unpacked]
    assert weight.grad is not None
    assert weight.grad.is_contiguous()


@onednn
def test_packs_of_two_kinds(made: Made) -> None:
    """One weight's pack for the one is never given to the other."""
    x, (weight, bias) = torch.randn(ROWS, C, dtype=HALF), layer(C, F_OUT, HALF)
    if reason := linear_onednn.why_not(HALF):
        pytest.skip(reason)
    with torch.no_grad():
        exact = F.linear(x.double(), weight.double(), bias.double())
        for name in ("amx", "onednn", "amx", "onednn"):
            got = linear(x, weight, bias, backend=name)
            torch.testing.assert_close(got.double(), exact, rtol=0.01, atol=0.05)
    assert len(made) == 2


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_the_same_compiled_or_not(made: Made, activation: str | None) -> None:
    """Also where a call's size decides; and with gradients, whose products have few channels here,
    and so are torch's."""
    weight, bias = layer(C, 256, HALF)

    def forward(x: Tensor) -> Tensor:
        return linear(x, weight, bias, activation)

    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (ROWS, 511, 16, 4):
        x = torch.randn(rows, C, dtype=HALF)
        for grad in (False, True):
            found = the_same((compiled, forward), x, [weight, bias], grad, made)
            least, way = (ROWS, "unpacked") if grad else (16, "packed")
            assert found == ([(way, rows, 256, C)] if rows >= least else [])


def test_asked_for_by_name(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then whatever the size, also of its gradients."""
    x, (weight, bias) = torch.randn(9, 24, dtype=HALF), layer(dtype=HALF)
    linear(x, weight, bias, backend="amx").sum().backward()
    assert made == [("unpacked", 9, 40, 24), ("unpacked", 40, 24, 9)]
    made.clear()
    pin(monkeypatch, {})
    with torch.no_grad():
        monkeypatch.setenv(linear_onednn.VARIABLE, "amx")
        linear(x, weight, bias)
        linear(x.float(), weight.float(), bias.float())  # which it has not
        assert made == [("packed", 9, 40, 24)]
        assert linear(x[:0], weight, bias, backend="amx").shape == (0, 40)
        monkeypatch.setattr(amx, "unavailable", lambda: "there are no units")
        with pytest.raises(BackendError, match="'amx' backend cannot serve linear: there are no"):
            linear(x, weight, bias, backend="amx")


def test_a_table_without_the_units(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the kernel is not there, what it gains does not keep another from serving, and few
    rows, which were measured with it, have none of their own."""
    kind = processor.Processor("GenuineIntel", "6", "143", "avx512_core_amx", "AVX512")
    file = tmp_path / "choices.json"
    file.write_text(
        '{"default": {"source": "a test", "bfloat16": {"amx": 2.0, '
        '"amx_unpacked": 1.5, "onednn": 1.3, "few_rows": 1.2, "unpacked": 1.2}}}',
        "utf-8",
    )
    monkeypatch.setattr(choices, "FILE", file)
    monkeypatch.setattr(processor, "here", lambda: kind)
    ways = ("amx", "amx_unpacked", "onednn", "few_rows", "unpacked")
    for missing, wanted in (
        (None, ("amx", "amx_unpacked", "few_rows")),
        ("there is no compiler", ("onednn", "unpacked")),
    ):
        monkeypatch.setattr(amx, "unavailable", lambda missing=missing: missing)
        found = choices.choice(HALF)
        assert tuple(way for way in ways if found.prefers(way)) == wanted


def test_a_weight_is_packed_once_and_no_rows_are_kept(made: Made) -> None:
    """Products of it do not ask for many rows at a time, as those do that pack in every call."""
    assert not by_parts(torch.randn(4, C, dtype=HALF))
    weight = nn.Parameter(torch.randn(F_OUT, C, dtype=HALF))
    with torch.no_grad():
        linear(torch.randn(ROWS, C, dtype=HALF), weight)
        before = packs.kept(weight, amx.pack)
        linear(torch.randn(ROWS, C, dtype=HALF), weight)
        assert packs.kept(weight, amx.pack) is before
        weight.mul_(2)
        assert packs.kept(weight, amx.pack) is None
        assert packs.kept(weight, linear_onednn.pack) is None
