"""When an answer is right: DESIGN's rule against the float64 oracle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

_margin = [1.0]


@contextmanager
def margin(times: float) -> Iterator[None]:
    """Inside, `assert_right` wants errors so many times smaller than it allows."""
    _margin.append(times)
    try:
        yield
    finally:
        _margin.pop()


@contextmanager
def naively() -> Iterator[None]:
    """Within, `backend="reference"` computes in the dtype it is given, as naive code does."""
    with mock.patch("pyenc.ops.oracle.widen", lambda x: x):
        yield


def assert_right(
    got: Tensor, naive: Tensor, oracle: Tensor, *, gradient: bool = False, what: str = ""
) -> None:
    """At most `1e-5 * max(1, max|oracle|)` off, or 2x (gradients 3x) what the naive form is off.

    `naive` is the reference computed in `got`'s dtype (`naively`), `oracle` the one in float64.
    """
    assert got.shape == oracle.shape, f"{what}: shape {tuple(got.shape)} for {tuple(oracle.shape)}"
    if got.numel() == 0:
        return
    assert torch.isfinite(got).all(), f"{what}: not finite"
    off = (got.double() - oracle).abs().max().item()
    naive_off = (naive.double() - oracle).abs().max().item()
    scale = max(1.0, oracle.abs().max().item())
    floor = 1e-12 if got.dtype == torch.float64 else 1e-5
    allowed = max(floor * scale, (3 if gradient else 2) * naive_off)
    assert off * _margin[-1] <= allowed, (
        f"{what}: off by {off:.3g}, allowed {allowed:.3g} (naive {naive_off:.3g})"
        + (f", with a margin of {_margin[-1]:g}" if len(_margin) > 1 else "")
    )
