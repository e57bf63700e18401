"""A bias of one's own that is no function of the distance: torch's blocks, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.ops import attention
from pyenc.ops.attention import own_bias
from tests.ops.attention.test_along import inputs
from tests.oracle import assert_right


class Unchanged:
    """A map that gives back the very scores it was given."""

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s


class Forgetful(nn.Module):
    """One that does not look at them: q and k get no gradient, what is learned does."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.3, 0.7]))

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return -self.slope[:, None, None] * (i[:, None] - 2 * j).abs()


class ForAllHeads(nn.Module):
    """A bias without a row a head, that also counts from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.2))

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.slope * (i[:, None] - j).abs()[None] * (1 + 0.1 * i[None, :, None])


@pytest.mark.parametrize("make", [Unchanged, Forgetful, ForAllHeads])
def test_blocks_against_the_oracle(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_bias, "BLOCK_ELEMENTS", 2000)
    lengths, bias = [37, 0, 1, 60], make()
    given = inputs(lengths) | {"window": (20, 31)}

    def answers(backend: str, dtype: torch.dtype) -> list[Tensor]:
        inputs_ = [x.to(dtype).requires_grad_() for x in given["qkv"]]
        learned = list(bias.to(dtype).parameters()) if isinstance(bias, nn.Module) else []
        out, lse = attention(
            *inputs_, torch.tensor([0, 37, 37, 38, 98]), bias=bias, window=given["window"],
            return_lse=True, backend=backend,
        )  # fmt: skip
        weighted = (out * given["grad"].to(dtype)).sum() + (lse * given["grad_lse"]).sum()
        grads = torch.autograd.grad(weighted, [*inputs_, *learned], materialize_grads=True)
        return [x.detach().clone() for x in (out, lse, *grads)]

    oracle = answers("reference", torch.float64)
    naive, got = answers("reference", torch.float32), answers("torch", torch.float32)
    for number, three in enumerate(zip(got, naive, oracle, strict=True)):
        assert_right(*three, gradient=number > 1, what=str(number))
