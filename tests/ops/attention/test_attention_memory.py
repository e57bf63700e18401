"""Attention's memory at 4,096 to 16,384 tokens, in a process of its own.

At 32,768, with 8 heads of 64, a dense bias alone would take 34 GB; forward is to stay within one,
with the backward within two. What memory there is goes with the number of heads and of tokens, and
so one head of half as many is held to a sixteenth of the bound, in a thirtieth of the time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyenc.ops import ALiBi, alibi_slopes, attention, extension
from tests.scripts import run_script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")

TENSOR = 32768 * 8 * 64 * 4


def extra(mode: str, tokens: int, backend: str = "torch", heads: int = 8) -> int:
    """Bytes that the process grew by, outputs included."""
    done = run_script(__file__, mode, str(tokens), backend, str(heads))
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


class Own:
    def __init__(self, heads: int) -> None:
        self.heads = heads

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -0.1 * (i[:, None] - j[None, :]).abs().float().expand(self.heads, -1, -1)


class Read(Own):
    """A gather has no step: its numbers are read."""

    table = torch.arange(20000) * -0.1

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return self.table[(i[:, None] - j[None, :]).abs()].expand(self.heads, -1, -1)


def peak() -> int:
    # Not getrusage: it begins with the peak of the process that started this one, below which
    # nothing would show.
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def measure(mode: str, n: int, backend: str, heads: int) -> int:
    q, k, v = (torch.randn(n, heads, 64, requires_grad=mode != "forward") for _ in range(3))
    slopes = alibi_slopes(heads).requires_grad_(mode == "slopes")
    before = peak()
    own = {"own": Own, "own, read": Read}.get(mode)
    bias = own(heads) if own else ALiBi(slopes)
    out = attention(q, k, v, torch.tensor([0, n]), bias=bias, backend=backend)
    assert isinstance(out, Tensor)
    if mode != "forward":
        out.backward(torch.ones_like(out))
    return 1024 * (peak() - before)


def main() -> None:
    mode, tokens, backend, heads = sys.argv[1:]
    # There each takes a copy of one head's keys.
    torch.set_num_threads(2 if backend == "cpu" else 1)
    measure(mode, 256, backend, int(heads))  # what the libraries take for themselves
    print(measure(mode, int(tokens), backend, int(heads)))


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
def test_the_cpu_kernels_take_little_and_linearly_more() -> None:
    """Below 64 MB beyond what is returned at 8,192 tokens; at twice as many at most twice that, for
    as many heads as there are threads. Of less than 16 MB the system's own pages are too much of
    what is measured; one head's pairs would take 1 GB."""
    for mode, returned in (("forward", 1), ("backward", 5)):
        small, large = (
            extra(mode, tokens, "cpu", heads) - returned * TENSOR * tokens * heads // (32768 * 8)
            for tokens, heads in ((8192, 8), (16384, 2))
        )
        assert small < 64e6
        assert large < 2 * max(small, 16e6)


@pytest.mark.slow
def test_forward_within_a_gigabyte() -> None:
    assert extra("forward", 16384, heads=1) - TENSOR // 16 < 10**9 // 16


@pytest.mark.slow
def test_forward_and_backward_within_two_gigabytes() -> None:
    # Outputs: out, its gradient, and the gradients of q, k and v.
    assert extra("backward", 16384, heads=1) - 5 * TENSOR // 16 < 2 * 10**9 // 16


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
@pytest.mark.parametrize(("mode", "most"), [("own", 50e6), ("own, read", 125e6)])
def test_a_bias_of_ones_own_takes_slabs(mode: str, most: float) -> None:
    """A copy of the keys, and the sums of their gradients; where its numbers are read, 64 or 128
    queries of them at a time. One head's pairs would take 67 MB more at 4,096 tokens, and four
    times that at 8,192."""
    small, large = (
        extra(mode, tokens, "cpu", heads) - 5 * TENSOR * tokens * heads // (32768 * 8)
        for tokens, heads in ((4096, 8), (8192, 2))
    )
    assert small < most
    assert large < 2 * small


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["slopes", "own"])
def test_the_other_paths_are_linear_too(mode: str) -> None:
    """Learned slopes, a bias of one's own: half the heads' scores alone would be 268 MB, three
    times over."""
    assert extra(mode, 4096, heads=4) - 5 * TENSOR // 16 < 25 * 10**7


if __name__ == "__main__":
    main()
