"""Dropout of attention's weights in the C++ kernels: the mask is a function of seed and places
alone, written out here a second time, and both directions have it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyenc.errors import BackendError
from pyenc.ops import ALiBi, RelativePositionBias, alibi_slopes, attention, extension
from pyenc.ops.attention import backend_table
from pyenc.ops.attention.bias import relative_position_bucket
from pyenc.ops.backend import choose, explain
from tests.oracle import assert_right

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

P = 0.3
SEED = 5


def mixed(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def kept(seed: int, tokens: int, heads: int, p: float = P) -> Tensor:
    """(H, T, T): whether a query keeps a key's weight, as csrc/attention/dropout.h has it."""
    places = np.arange(tokens * heads, dtype=np.uint64).reshape(tokens, heads)
    queries = mixed(np.uint64(seed) ^ mixed(places)).T[:, :, None]
    keys = (mixed(~np.arange(tokens, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)
    x = queries.astype(np.uint32) ^ keys
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = x + (queries >> np.uint64(32)).astype(np.uint32)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return torch.from_numpy((x ^ (x >> np.uint32(16))) >= np.uint32(int(p * 2**32)))


def seed_of(number: int) -> int:
    """What `attention` draws after `torch.manual_seed`."""
    torch.manual_seed(number)
    return int(torch.randint(2**62, (), device="cpu"))


class Case:
    def __init__(
        self,
        lengths: list[int],
        kind: str = "none",
        *,
        heads: int = 2,
        dim: int = 24,
        dtype: torch.dtype = torch.float32,
        window: tuple[int, int] | None = None,
    ) -> None:
        self.bounds, self.kind, self.window = [0, *itertools.accumulate(lengths)], kind, window
        tokens = self.bounds[-1]
        self.qkv = [torch.randn(tokens, heads, dim).to(dtype) for _ in range(3)]
        self.grads = torch.randn(tokens, heads, dim).to(dtype), torch.randn(tokens, heads)
        side = max(lengths)
        self.tensor = {
            "none": None,
            "alibi": 0.05 * alibi_slopes(heads),
            "t5": torch.randn(16, heads),
            "dense": torch.randn(heads, side, side),
        }[kind]

    def inputs(self, dtype: torch.dtype) -> tuple[list[Tensor], Tensor | None]:
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in self.qkv]
        if self.tensor is None:
            return inputs, None
        tensor = self.tensor.to(torch.promote_types(dtype, torch.float32))
        if self.kind == "t5":
            inputs.append(tensor.requires_grad_())
        return inputs, tensor

    def answers(self, out: Tensor, lse: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        weight, weight_lse = self.grads
        whole = (out * weight.to(out.dtype)).sum() + (lse * weight_lse.to(lse.dtype)).sum()
        return [out.detach(), lse.detach(), *torch.autograd.grad(whole, inputs)]

    def got(self, skip_eps: float | None = 0) -> list[Tensor]:
        inputs, tensor = self.inputs(self.qkv[0].dtype)
        bias: Any = tensor
        if self.kind == "alibi":
            bias = ALiBi(tensor)
        elif self.kind == "t5":
            bias = RelativePositionBias(tensor, max_distance=40)
        torch.manual_seed(SEED)
        out, lse = attention(
            *inputs[:3], torch.tensor(self.bounds), bias=bias, window=self.window, dropout_p=P,
            skip_eps=skip_eps, return_lse=True, backend="cpu",
        )  # fmt: skip
        return self.answers(out, lse, inputs)

    def dense(self, dtype: torch.dtype) -> list[Tensor]:
        """By whole matrices, under the mask written out above."""
        (q, k, v, *learned), tensor = self.inputs(dtype)
        mask = kept(seed_of(SEED), len(q), q.shape[1])
        outs, sums = [], []
        for a, b in itertools.pairwise(self.bounds):
            at = torch.arange(b - a)
            ahead = at - at[:, None]  # j - i
            score = torch.einsum("ihd,jhd->hij", q[a:b], k[a:b]) * q.shape[-1] ** -0.5
            if self.kind == "alibi":
                score = score - tensor[:, None, None] * ahead.abs()
            elif self.kind == "t5":
                score = score + tensor[relative_position_bucket(ahead, 16, 40)].permute(2, 0, 1)
            elif self.kind == "dense":
                score = score + tensor[:, : b - a, : b - a]
            if self.window is not None:
                left, right = self.window
                score = score.masked_fill((ahead < -left) | (ahead > right), -torch.inf)
            weight = score.softmax(-1) * (mask[:, a:b, a:b] / (1 - P)).to(score.dtype)
            outs.append(torch.einsum("hij,jhd->ihd", weight.to(dtype), v[a:b]))
            sums.append(score.logsumexp(-1).t())
        return self.answers(torch.cat(outs), torch.cat(sums), [q, k, v, *learned])

    def check(self) -> None:
        dtype = self.qkv[0].dtype
        three = self.got(), self.dense(dtype), self.dense(torch.float64)
        for number, (got, naive, oracle) in enumerate(zip(*three, strict=True)):
            assert_right(got, naive, oracle, gradient=number > 1, what=f"{self.kind} {number}")


KINDS = ["none", "alibi", "t5", "dense"]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_against_whole_matrices(kind: str, dtype: torch.dtype) -> None:
    for lengths in ([1, 2, 17], [63, 0, 65, 49], [300, 97]):
        Case(lengths, kind, dtype=dtype).check()
    Case([150, 37], kind, dtype=dtype, window=(40, 7), dim=33, heads=1).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [1, 16, 40, 64, 80, 256])
def test_head_dims(dim: int, dtype: torch.dtype) -> None:
    Case([101, 38], "none", dim=dim, heads=3, dtype=dtype).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_may_be_left_out_is_still_what_does_not_show(dtype: torch.dtype) -> None:
    case = Case([1200], "alibi", heads=4, dtype=dtype)
    case.tensor = torch.tensor([1.0, 0.25, 0.05, 0.0])
    eps = 2.0**-24 if dtype == torch.float32 else 2.0**-11
    out, whole = case.got(None)[0], case.got(0)[0]
    room = 2 * eps / (1 - P) * float(case.qkv[2].abs().max())
    shown = torch.finfo(dtype).eps * whole.abs().clamp(min=1)
    assert ((out - whole).abs() <= room + shown).all()


def test_as_likely_as_asked_and_nothing_goes_together() -> None:
    """Neighbours, heads, rows, seeds: no places are kept together more often than by chance."""
    for p in (0.1, 0.5):
        mask = kept(seed_of(SEED), 400, 4, p)
        off = mask.double() - (1 - p)
        several = {
            "itself": off,
            "next key": off[:, :, 1:] * off[:, :, :-1],
            "next query": off[:, 1:] * off[:, :-1],
            "diagonal": off[:, 1:, 1:] * off[:, :-1, :-1],
            "next head": off[1:] * off[:-1],
            "turned": (off * off.transpose(1, 2))[:, *torch.triu_indices(400, 400, 1)],
            "a square": off[:, 1:, 1:] * off[:, :-1, :-1] * off[:, 1:, :-1] * off[:, :-1, 1:],
            "another seed": off * (kept(seed_of(SEED + 1), 400, 4, p).double() - (1 - p)),
        }
        for name, values in several.items():
            assert abs(values.mean()) < 5 * values.std() / values.numel() ** 0.5, (name, p)
        rows, columns = off.sum(2).square().mean(), off.sum(1).square().mean()
        for spread in (rows, columns):  # chi-square, 1,600 of them
            assert abs(spread / (400 * p * (1 - p)) - 1) < 0.2


def test_any_number_of_threads_and_every_time() -> None:
    case = Case([500, 3, 90], "alibi", heads=3)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found.append(case.got())
    finally:
        torch.set_num_threads(before)
    for again in found[1:]:
        assert torch.equal(found[0][0], again[0])
    assert all(map(torch.equal, found[1], found[3]))


def test_the_seed_is_torchs() -> None:
    q, bounds = torch.randn(60, 2, 8), torch.tensor([0, 20, 60])

    def once(number: int) -> Tensor:
        torch.manual_seed(number)
        out = attention(q, q, q, bounds, dropout_p=P)
        assert isinstance(out, Tensor)
        return out

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))
    whole = attention(q, q, q, bounds)
    assert isinstance(whole, Tensor)
    mean = torch.stack([once(i) for i in range(400)])
    error = mean.std(0) / 400**0.5
    assert ((mean.mean(0) - whole).abs() <= 6 * error + 1e-6).all()
    assert torch.equal(attention(q, q, q, bounds, dropout_p=0.0), whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["none", "t5"])
def test_compiled(kind: str) -> None:
    case = Case([70, 30], kind)
    plain = case.got()
    torch._dynamo.reset()
    inputs, tensor = case.inputs(torch.float32)
    bias = None if tensor is None else RelativePositionBias(tensor, max_distance=40)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return attention(
            q, k, v, torch.tensor([0, 70, 100]), bias=bias, dropout_p=P, skip_eps=0,
            return_lse=True, backend="cpu",
        )  # fmt: skip

    torch.manual_seed(SEED)
    for a, b in zip(plain, case.answers(*compiled(*inputs[:3]), inputs), strict=True):
        assert torch.equal(a, b)


class Fixed:
    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return (j - i).expand(2, -1, -1) * 0.1


def test_what_it_does_not_serve_goes_by_torch() -> None:
    q, bounds = torch.randn(20, 2, 8), torch.tensor([0, 20])
    slopes = alibi_slopes(2).requires_grad_()

    def chosen(bias: Any) -> tuple[str, str]:
        table = backend_table(q, q, q, bias, P)
        return choose("attention", None, table), explain(table)["cpu"]

    learned = "it has no gradient of ALiBi's slopes under dropout"
    assert chosen(ALiBi(slopes)) == ("torch", learned)
    with pytest.raises(BackendError, match=learned):
        attention(q, q, q, bounds, bias=ALiBi(slopes), dropout_p=P, backend="cpu")
    with torch.no_grad():
        assert chosen(ALiBi(slopes)) == ("cpu", "serves")
    assert chosen(ALiBi(slopes.detach())) == ("cpu", "serves")
    assert chosen(Fixed()) == ("torch", "it has no dropout under a bias of one's own pair by pair")
