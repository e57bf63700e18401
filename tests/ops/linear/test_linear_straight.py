"""The straight way of a linear layer on a CPU: what the ordinary one would choose, to the bit."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.errors import InputError
from pyenc.ops import linear
from pyenc.ops.linear import activated, amx, few_rows
from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear import packs as linear_packs
from pyenc.ops.linear import wide as linear_wide
from tests.ops.linear.linear_support import pin

module = sys.modules["pyenc.ops.linear"]
straight_module = sys.modules["pyenc.ops.linear.straight"]

TABLES: list[dict[str, float | bool]] = [
    {}, {"onednn": 2.0}, {"onednn": 1.2}, {"onednn": True}, {"forward": 2.0},
    {"forward": 1.06, "onednn": 1.1}, {"onednn": 2.0, "forward": 2.1, "gelu_fused": 1.2},
    {"onednn": 1.2, "wide": 1.3}, {"wide": 2.0}, {"onednn": 1.2, "bf16x6": 2.0},
    {"onednn": 2.0, "bf16x3": 3.0}, {"unpacked": 2.0}, {"forward": 1.1, "few_rows": 1.6},
    {"forward": 2.0, "few_rows": 1.6}, {"onednn": 2.0, "few_rows": 3.0}, {"few_rows": 2.0},
    {"amx": 1.2}, {"amx": 1.6, "onednn": 1.1}, {"amx": 1.3, "few_rows": 2.1},
    {"amx_unpacked": 1.2}, {"amx": 1.2, "onednn": 1.6},
]  # fmt: skip
SHAPES = [(rows, 256, 256) for rows in (1, 2, 4, 16, 17, 64, 65, 257, 2049)]
"""Rows, channels out and in, on both sides of where a choice may turn."""


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    if reason := linear_onednn.why_not(dtype):
        pytest.skip(reason)
    return dtype


class Ways:
    """Who made a product."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[Any] = []
        self.wraps(patch, linear_onednn, "run", lambda x, w, *_: ("onednn", w.is_mkldnn))
        self.wraps(patch, amx, "run", lambda *_: "amx")
        self.wraps(patch, amx, "multiply", lambda *_: "amx, unpacked")
        self.wraps(patch, linear_wide, "linear", lambda *_: "wide")
        self.wraps(patch, activated, "linear", lambda *_: "one pass")
        self.wraps(patch, few_rows, "multiply", lambda *_: "few rows")

    def wraps(
        self, patch: pytest.MonkeyPatch, where: Any, name: str, said: Callable[..., Any]
    ) -> None:
        plain = getattr(where, name)

        def noting(*args: Any, **rest: Any) -> Any:
            self.seen.append(said(*args))
            return plain(*args, **rest)

        patch.setattr(where, name, noting)

    def take(self) -> list[Any]:
        seen, self.seen = self.seen, []
        return seen


@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
@pytest.mark.parametrize(
    ("gains", "forced"),
    [
        *((gains, "") for gains in TABLES),
        ({"onednn": 2.0}, "torch"),
        ({}, "onednn"),
        ({"few_rows": 2.0}, "torch"),
        ({"few_rows": 2.0}, "onednn"),
        ({}, "few_rows"),
    ],
    ids=str,
)
def test_the_same_choice(
    gains: dict[str, Any], forced: str, activation: str | None, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    pin(monkeypatch, gains, dtype)
    if forced:
        monkeypatch.setenv(linear_onednn.VARIABLE, forced)
    ways, went = Ways(monkeypatch), []
    for rows, f, c in SHAPES:
        x, strided = torch.randn(rows, c, dtype=dtype), torch.randn(2 * f, dtype=dtype)[::2]
        made = torch.randn(f, c, dtype=dtype)
        # There is no pack of what is no parameter.
        for weight, bias in itertools.product((nn.Parameter(made), made), (None, strided)):
            with torch.inference_mode():
                linear(x, weight, bias, activation)  # which makes a pack where one is wanted
                ways.take()
                found = linear(x, weight, bias, activation)
                taken = ways.take()
                with monkeypatch.context() as patch:
                    patch.setattr(module, "straight", lambda *_: None)
                    wanted = linear(x, weight, bias, activation)
                assert taken == ways.take(), (rows, taken)
                assert torch.equal(found, wanted)
                assert found.stride() == wanted.stride()
                went.append(straight_module.straight(x, weight, bias, activation) is not None)
    if not forced:
        assert any(went), "no product went straight"
    elif forced == "torch" and dtype == torch.float32:
        assert all(went)
    linear_packs.forget_all()


@pytest.mark.parametrize("switch", ["variable", "mkldnn", "precision"])
def test_what_is_switched_since_is_heard(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, {"onednn": 2.0, "bf16x3": 3.0}, torch.float32)
    if linear_onednn.why_not(torch.float32):
        pytest.skip("no oneDNN")
    weight, x = nn.Parameter(torch.randn(256, 256)), torch.randn(64, 256)
    ways = Ways(monkeypatch)

    def way() -> list[Any]:
        with torch.inference_mode():
            linear(x, weight)
        return ways.take()

    way()
    assert way() == [("onednn", True)]
    if switch == "variable":
        monkeypatch.setenv(linear_onednn.VARIABLE, "torch")
        assert way() == []
    elif switch == "mkldnn":
        with torch.backends.mkldnn.flags(enabled=False):
            assert way() == []
    else:
        monkeypatch.setattr(linear_onednn, "precision", lambda: "tf32")
        monkeypatch.setattr(linear_onednn, "_tried", {(torch.float32, "tf32"): None})
        # By parts, from so many on; here too few for any, and a pack is no choice of small ones.
        assert straight_module.sizes_of(torch.float32).pack == float("inf")


@pytest.mark.parametrize(
    ("gains", "gain"),
    [
        ({}, False), ({"onednn": 1.2}, False), ({"onednn": 1.6}, True), ({"few_rows": 2.0}, True),
        ({"forward": 1.1, "few_rows": 1.2}, True), ({"few_rows": 1.2, "few_packed": 1.3}, False),
        ({"onednn": 2.0, "bf16x6": 2.5}, False),
    ],
    ids=str,
)  # fmt: skip
def test_whether_few_rows_gain(
    gains: dict[str, Any], gain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, gains, torch.float32)
    if linear_onednn.why_not(torch.float32):
        pytest.skip("no oneDNN")
    assert straight_module.few_rows_gain(torch.float32) == gain
    assert not straight_module.few_rows_gain(torch.float64)


def test_a_weight_that_changes_is_packed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, {"onednn": 2.0}, torch.float32)
    if linear_onednn.why_not(torch.float32):
        pytest.skip("no oneDNN")
    weight, x = nn.Parameter(torch.randn(256, 256)), torch.randn(64, 256)
    with torch.no_grad():
        first = linear(x, weight)
        assert torch.equal(first, linear(x, weight))
        weight.mul_(2)
        assert straight_module.straight(x, weight, None, None) is None
        assert torch.allclose(linear(x, weight), 2 * first)
        weight.data = weight.data / 2
        assert straight_module.straight(x, weight, None, None) is None
        assert torch.allclose(linear(x, weight), first)


class Own(Tensor):
    pass


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, w, b: (x.double(), w, b),
        lambda x, w, b: (x, w.double(), b),
        lambda x, w, b: (x, w, b.double()),
        lambda x, w, b: (x[:, :-1], w, b),
        lambda x, w, b: (x, w[0], b),
        lambda x, w, b: (x, w, b[:-1]),
        lambda x, w, b: (x, w, b[None]),
        lambda x, w, b: (torch.tensor(1.0), w, b),
        lambda x, w, b: (x, w, b.to("meta")),
    ],
)
def test_mistakes_are_told_as_ever(wrong: Callable[..., Any]) -> None:
    x, weight, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    with torch.inference_mode():
        given = wrong(x, weight, bias)
        assert straight_module.straight(*given, None) is None
        with pytest.raises(InputError):
            linear(*given)
        with pytest.raises(InputError, match="activation"):
            linear(x, weight, bias, "swish")


def test_who_is_no_plain_call_goes_the_ordinary_way() -> None:
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    assert straight_module.straight(x, weight, None, None) is None  # gradients are on
    with torch.no_grad():
        assert straight_module.straight(x, weight, None, None) is not None
        assert straight_module.straight(x.as_subclass(Own), weight, None, None) is None
        assert straight_module.straight(x.to_sparse(), weight, None, None) is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert straight_module.straight(x, weight, None, None) is None
        with torch.autograd.forward_ad.dual_level():
            assert straight_module.straight(x, weight, None, None) is None
