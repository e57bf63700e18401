"""A bias of one's own that is no function of the distance, under torch.compile: one graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyenc.errors import InputError
from pyenc.ops import attention
from pyenc.ops.attention import own_op

BOUNDS = torch.tensor([0, 9, 9, 30])


class Capped(nn.Module):
    """A learned cap, and a number that no parameter holds."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.cap = nn.Parameter(torch.tensor([2.0, 5.0]))

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        cap = self.cap[:, None, None]
        return cap * ((s - self.slope * (i[:, None] - j).abs()) / cap).tanh()


class Unlisted:
    def __init__(self) -> None:
        self.slope = torch.ones(2, 1, 1, requires_grad=True)

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.slope * (i[:, None] - j).abs()


class Added(Capped):
    """What merely adds to the scores: the C++ kernels', where they are there."""

    score = None  # type: ignore[assignment]

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.slope * (i[:, None] - 0.9 * j).abs() * self.cap[:, None, None]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: object) -> tuple[Tensor, Tensor]:
    return attention(q, k, v, BOUNDS, bias=bias, return_lse=True)  # type: ignore


@pytest.mark.parametrize("make", [Capped, Added])
def test_one_graph_gives_what_eager_gives(make: type[Capped]) -> None:
    """Forward and backward, for whichever object it is called with, in either precision; with the
    graph's own backward, and nothing lost in silence."""
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    first, second = make(0.1), make(0.9)
    for bias, dtype in ((first, torch.float32), (second, torch.bfloat16)):
        qkv = [torch.randn(30, 2, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
        both = []
        for run in (attend, compiled):
            out, lse = run(*qkv, bias)
            loss = out.float().square().sum() + lse.sum()
            both.append([out, lse, *torch.autograd.grad(loss, [*qkv, *bias.parameters()])])
        for ours, eager in zip(*both, strict=True):
            torch.testing.assert_close(ours, eager, rtol=0, atol=0)
    with pytest.raises(InputError, match="no method parameters"):
        compiled(*qkv, Unlisted())


def test_an_object_that_is_gone_is_named() -> None:
    q = torch.randn(30, 2, 8)
    key = id(bias := Capped(0.1))
    own_op._remember(bias)
    del bias
    with pytest.raises(InputError, match="that this graph was compiled with is gone"):
        torch.ops.pyenc.attention_own(
            q, q, q, BOUNDS, [], None, None, key, 1.0, -1, -1, 0.0, False, False
        )
