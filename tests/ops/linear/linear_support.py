"""What the tests of `linear` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.ops import linear
from pyenc.ops.linear import choices, processor
from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear.reference import linear_reference
from tests.oracle import assert_right

onednn = pytest.mark.skipif(
    linear_onednn.why_not(torch.float32) is not None,
    reason=str(linear_onednn.why_not(torch.float32)),
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pin(
    monkeypatch: pytest.MonkeyPatch, gains: dict[str, float | bool], *dtypes: torch.dtype
) -> None:
    """As if the table had these gains for these dtypes (default: all), and nothing for others."""
    of_dtypes = {str(dtype).removeprefix("torch."): gains for dtype in dtypes or DTYPES}
    pin_table(monkeypatch, {"default": {"source": "a test", **of_dtypes}})


def pin_table(
    monkeypatch: pytest.MonkeyPatch,
    table: dict[str, Any],
    kind: processor.Processor | None = None,
) -> None:
    """As if choices.json were this table, on that kind of processor (default: an unknown one)."""
    on = kind or processor.Processor()
    monkeypatch.setattr(choices, "choice", lambda dtype: choices.lookup(table, on, dtype))


def faster(monkeypatch: pytest.MonkeyPatch, gain: float = 2.0) -> None:
    """As if oneDNN had been measured that many times faster, in one pass with GELU too."""
    pin(monkeypatch, {"onednn": gain, "gelu_fused": gain})


def layer(c: int = 24, f: int = 40, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return nn.Parameter(torch.randn(f, c, dtype=dtype)), nn.Parameter(torch.randn(f, dtype=dtype))


def packed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return linear(x, weight, bias, backend="onednn")


def check(got: Tensor, *inputs: Tensor | None, activation: str | None = None) -> None:
    """`got` is right for these x, weight and bias as they are now."""
    values = [None if t is None else t.detach() for t in inputs]
    wide = [None if t is None else t.double() for t in values]
    naive, oracle = (linear_reference(*(*three, None)[:3], activation) for three in (values, wide))
    assert_right(got, naive, oracle)


def the_same(
    ways: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    x: Tensor,
    leaves: list[Tensor],
    grad: bool,
    made: list[Any],
) -> list[Any]:
    """What both ways note in `made`, which is the same, as are their answers and gradients."""
    found = []
    for way in ways:
        made.clear()
        with torch.set_grad_enabled(grad):
            y = way(x)
            of = torch.autograd.grad(y.square().sum(), leaves) if grad else ()
        found.append((list(made), y, *of))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        assert torch.equal(one, other)
    return list(found[0][0])
