"""Lengths and positions whose values nobody can look at (fake, traced): the ops look themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pyenc.ops import ALiBi, attention, extension, rms_norm_rotary, rotary

BACKENDS = [None, "torch"] + (["cpu"] if extension.load() is not None else [])


class Falling:
    """A bias by distance."""

    def along(self, offsets: Tensor) -> Tensor:
        return -0.1 * offsets.abs().float().expand(2, -1)


def with_positions(x: Tensor, ends: Tensor, at: Tensor, backend: str | None) -> Any:
    bias = ALiBi(x.new_ones(2))
    return attention(x, x, x, ends, bias=bias, positions=at, window=(5, 3), backend=backend)


def by_distance(x: Tensor, ends: Tensor, at: Tensor, backend: str | None) -> Any:
    return attention(x, x, x, ends, bias=Falling(), backend=backend)


def turned(x: Tensor, ends: Tensor, at: Tensor, backend: str | None) -> Any:
    angles = at.new_ones(100, 4).float()
    return rotary(x, angles.cos(), angles.sin(), at, backend=backend)


def normed_and_turned(x: Tensor, ends: Tensor, at: Tensor, backend: str | None) -> Any:
    angles, gain = at.new_ones(100, 4).float(), at.new_ones(8).float()
    return rms_norm_rotary(x, gain, angles.cos(), angles.sin(), at, 1e-6, backend=backend)


@pytest.mark.parametrize("call", [with_positions, by_distance, turned, normed_and_turned])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_that_nobody_can_look_at(call: Callable[..., Any], backend: str | None) -> None:
    def run(x: Tensor, ends: Tensor, at: Tensor) -> Any:
        return call(x, ends, at, backend)

    given = torch.randn(9, 2, 8), torch.tensor([0, 3, 9]), torch.arange(9) * 2
    right = run(*given)
    with FakeTensorMode() as mode:
        fake = run(*map(mode.from_tensor, given))
    assert fake.shape == right.shape
    assert fake.dtype == right.dtype
    for tracing in ("real", "fake", "symbolic"):
        traced = make_fx(run, tracing_mode=tracing)(*given)
        torch.testing.assert_close(traced(*given), right)
    # The graph still looks at what it is given.
    with pytest.raises((IndexError, ValueError)):
        traced(given[0], given[1] + 1, given[2] + 1000)
