"""Which way `linear` takes: what the table has, what was asked for, what fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyenc.errors import BackendError
from pyenc.ops import linear
from pyenc.ops.backend import explain
from pyenc.ops.linear import backend_table
from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear import packs as linear_packs
from pyenc.ops.linear import wide as linear_wide
from tests.ops.linear.linear_support import check, faster, layer, onednn, pin


@onednn
def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (weight, bias) = torch.randn(700, 384), layer(384, 384)

    def serves(x: Tensor = x, weight: Tensor = weight) -> str:
        return explain(backend_table(x, weight, bias))["onednn"]

    pin(monkeypatch, {"onednn": 1.2})
    assert serves() == "a gradient is needed"
    with torch.no_grad():
        faster(monkeypatch, 1.1)
        assert serves() == "choices.json has 1.10x F.linear, needs 1.15x (default)"
        pin(monkeypatch, {"onednn": 1.2, "wide": 1.3})
        assert serves() == "choices.json prefers float32 to it (default)"
        pin(monkeypatch, {})
        assert serves() == "choices.json does not prefer it (default)"
        pin(monkeypatch, {"onednn": True})
        assert serves() == "serves"
        faster(monkeypatch, 1.2)
        assert serves() == "serves"
        assert serves(x[:1]) == "the product is too small to gain"
        assert "no parameter" in serves(weight=weight * 2)
        linear(x[:1], weight, bias)
        assert linear_packs.held() == 0
        linear(x, weight, bias)
        assert linear_packs.held() == weight.numel() * 4
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.mkldnn, "enabled", False)
            assert serves() == "torch.backends.mkldnn is disabled"
        monkeypatch.setenv(linear_onednn.VARIABLE, "torch")
        assert serves() == "PYENC_LINEAR=torch"
        monkeypatch.setenv(linear_onednn.VARIABLE, "onednn")
        faster(monkeypatch, 0.1)
        assert serves(x[:1]) == "serves"
        monkeypatch.setenv(linear_onednn.VARIABLE, "mkl")
        with pytest.raises(
            BackendError,
            match="must be auto, bf16x6, bf16x3, amx, few_rows, onednn or torch, got 'mkl'",
        ):
            serves()


def broken(*_: object) -> Tensor:
    raise RuntimeError("no such processor\nstack")


def only_of_packs(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    y = F.linear(x, weight if weight.is_contiguous() else weight * 2, bias)
    return F.gelu(y) if activation == "gelu" else y


@pytest.mark.parametrize(
    ("name", "instead", "says"),
    [
        ("pack", broken, "this torch or processor cannot: no such processor"),
        ("_op", lambda x, *_: x.new_full((5, 48), 3.0), "its answers are wrong here"),
        ("_op", lambda x, *_: x.new_full((5, 48), float("nan")), "answers are wrong"),
        ("_op", only_of_packs, "answers are wrong here"),
    ],
)
def test_where_the_private_op_fails_torch_serves(
    name: str, instead: Callable[..., Tensor], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster(monkeypatch)
    monkeypatch.setattr(linear_onednn, "_tried", {})
    if name == "_op":
        monkeypatch.setattr(linear_onednn, "pack", lambda weight: weight)
    monkeypatch.setattr(linear_onednn, name, instead)
    x, (weight, bias) = torch.randn(999, 384), layer(384, 384)
    with torch.no_grad():
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
        assert torch.equal(torch.ops.pyenc.linear(x, weight, bias, ""), F.linear(x, weight, bias))
        with pytest.raises(BackendError, match=says):
            linear(x, weight, bias, backend="onednn")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_of_halves_are_kept_wider(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed as they are, eight channels at a time, they are right where there are few."""

    def narrow(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        y = bias.expand(len(x), -1)
        for part in range(0, x.shape[1], 8):
            y = (
                y.double() + x[:, part : part + 8].double() @ weight.t()[part : part + 8].double()
            ).to(dtype)
        return F.gelu(y) if activation == "gelu" else y

    def wide(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        y = F.linear(x.double(), weight.double(), bias.double()).to(dtype)
        return F.gelu(y) if activation == "gelu" else y

    monkeypatch.setattr(linear_onednn, "pack", lambda weight: weight)
    monkeypatch.setattr(linear_onednn, "_tried", {})
    monkeypatch.setattr(linear_onednn, "_op", wide)
    assert linear_onednn.why_not(dtype) is None
    monkeypatch.setattr(linear_onednn, "_tried", {})
    monkeypatch.setattr(linear_onednn, "_op", narrow)
    assert "answers are wrong here" in str(linear_onednn.why_not(dtype))


WIDENED = [torch.bfloat16, torch.float16]
assert set(WIDENED) == set(linear_wide.DTYPES)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at each product that is made in float32 and rounded."""
    calls: list[int] = []
    plain = linear_wide.linear
    monkeypatch.setattr(linear_wide, "linear", lambda *a: calls.append(1) or plain(*a))
    return calls


@pytest.mark.parametrize("dtype", WIDENED)
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
def test_halves_are_widened_where_the_table_says_so(
    dtype: torch.dtype, activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, (weight, bias) = torch.randn(2, 1100, 96).to(dtype), layer(96, 200, dtype=dtype)
    widened = counted(monkeypatch)
    for gain, times in ((1.1, 0), (1.2, 1)):
        pin(monkeypatch, {"wide": gain})
        with torch.no_grad():
            check(linear(x, weight, bias, activation), x, weight, bias, activation=activation)
        assert len(widened) == times
    linear(x, weight, bias)  # with a gradient
    with torch.no_grad():
        linear(x[0, :63], weight, bias)
        linear(x.float(), weight.float())
        with torch.autocast("cpu", torch.bfloat16):
            linear(x, weight, bias)
        monkeypatch.setenv(linear_onednn.VARIABLE, "torch")
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert len(widened) == 1


@pytest.mark.parametrize("dtype", WIDENED)
def test_of_oneDNN_and_float32_the_faster(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on processors that have instructions for halves, and with both ways open."""
    x, (weight, bias) = torch.randn(1100, 96).to(dtype), layer(96, 200, dtype=dtype)
    widened = counted(monkeypatch)
    monkeypatch.setattr(linear_onednn, "_tried", dict.fromkeys((d, "ieee") for d in WIDENED))
    monkeypatch.setattr(linear_onednn, "pack", lambda weight: weight.clone())
    monkeypatch.setattr(linear_onednn, "run", lambda x, packed, bias, _: F.linear(x, packed, bias))
    for gains, packs, times in (
        ({"onednn": 1.3, "wide": 1.2}, 1, 0),
        ({"onednn": 1.2, "wide": 1.3}, 0, 1),
        ({"onednn": True}, 1, 1),
    ):
        linear_packs.forget_all()
        pin(monkeypatch, gains)
        with torch.no_grad():
            check(linear(x, weight, bias), x, weight, bias)
        assert linear_packs.held() == packs * 2 * weight.numel()
        assert len(widened) == times


@pytest.mark.parametrize(
    ("gains", "dtype", "activation"),
    [
        ({"wide": 2.0}, torch.bfloat16, "silu"),
        ({"wide": 2.0}, torch.float16, None),
        pytest.param({"onednn": 1.4}, torch.float32, "gelu", marks=onednn),
        pytest.param({"onednn": 2.0}, torch.float32, "relu", marks=onednn),
        pytest.param({"onednn": 2.0, "gelu_fused": 2.0}, torch.float32, "gelu", marks=onednn),
        ({}, torch.bfloat16, "gelu"),
    ],
)
def test_the_same_choice_compiled_or_not(
    gains: dict[str, float],
    dtype: torch.dtype,
    activation: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And whichever came first, also where a call's size decides."""
    pin(monkeypatch, gains)
    widened = counted(monkeypatch)
    weight, bias = layer(128, 1100, dtype=dtype)

    def forward(x: Tensor) -> Tensor:
        return linear(x, weight, bias, activation)

    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (200, 63, 3, 130):
        x = torch.randn(rows, 128).to(dtype)
        ways = []
        with torch.no_grad():
            for way in (compiled, forward):
                before = len(widened)
                linear_packs.forget_all()
                ways.append((way(x), len(widened) - before, linear_packs.held()))
        (got, *how), (expected, *plainly) = ways
        assert how == plainly, rows
        assert torch.equal(got, expected), rows
        large = rows * weight.numel() >= (
            linear_onednn.min_work(dtype) if "onednn" in gains else linear_onednn.MIN_WORK
        )
        assert how == [
            int("wide" in gains and large),
            4 * weight.numel() * ("onednn" in gains and large),
        ]
    x = torch.randn(200, 128).to(dtype)
    assert torch.equal(compiled(x), forward(x))  # with a gradient


def test_widened_products_pass_opcheck() -> None:
    weight, bias = layer(96, 200, dtype=torch.bfloat16)
    x = torch.randn(2, 70, 96, dtype=torch.bfloat16)
    for given in ((x, weight.detach(), bias.detach(), "gelu"), (x, weight.detach(), None, "")):
        torch.library.opcheck(torch.ops.pyenc.linear_wide.default, given)
