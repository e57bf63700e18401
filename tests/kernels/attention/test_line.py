"""A bias by distance through the Triton kernels: a line of numbers that is looked up."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from pyenc.errors import BackendError, InputError
from pyenc.models.table_alibi import TableALiBi
from pyenc.ops import attention, check_score_bias, computed_share
from pyenc.ops.attention.along import Line, line_of
from pyenc_kernels.attention import launch_backward
from pyenc_kernels.score_function import line_params
from tests.kernels.attention.attention_case import SKIP_INPUTS
from tests.ops.attention.capture_watch import Watch
from tests.ops.attention.share_rule import check_row_shares
from tests.ops.attention.skip_inputs import SkipInputs
from tests.oracle import assert_right, naively


class Lopsided(nn.Module):
    """Steep to the left, a logarithm to the right."""

    def __init__(self, steep: float, learned: bool = False) -> None:
        super().__init__()
        slopes = steep * torch.tensor([0.1, 0.7])
        self.slopes = nn.Parameter(slopes, requires_grad=learned)

    def along(self, offsets: Tensor) -> Tensor:
        slope = self.slopes[:, None]
        back, on = (-offsets).clamp(min=0), offsets.clamp(min=0)
        return -slope * back - slope * 3 * on.to(slope.dtype).log1p()


def run(
    bias: nn.Module,
    qkv: list[Tensor],
    backend: str,
    dtype: torch.dtype,
    device: str,
    **more: object,
) -> list[Tensor]:
    inputs = [x.to(device, dtype).requires_grad_() for x in qkv]
    bounds = torch.tensor([0, 61, 61, 200], device=device)
    bias = bias.to(device, torch.promote_types(dtype, torch.float32))
    out, lse = attention(
        *inputs, bounds, bias=bias, backend=backend, skip_eps=0, return_lse=True, **more
    )  # type: ignore[arg-type]
    torch.manual_seed(5)
    weight = torch.randn(out.shape).to(device, dtype)
    grads = torch.autograd.grad((out * weight).sum() + lse.sum(), inputs)
    return [x.detach().cpu() for x in (out, lse, *grads)]


@pytest.mark.parametrize("holes", [False, True])
def test_against_the_oracle(holes: bool, device: str) -> None:
    bias, more = Lopsided(1.0), {}
    if holes:
        more["positions"] = torch.randint(1, 4, (200,)).cumsum(0).to(device)
    qkv = [2 * torch.randn(200, 2, 16), *(torch.randn(200, 2, 16) for _ in range(2))]
    got = run(bias, qkv, "triton", torch.float32, device, **more)
    naive = run(bias, qkv, "reference", torch.float32, device, **more)
    oracle = run(bias, qkv, "reference", torch.float64, device, **more)
    for number, three in enumerate(zip(got, naive, oracle, strict=True)):
        assert_right(*three, gradient=number > 1, what=str(number))


def test_far_keys_are_left_out(device: str) -> None:
    n, eps = 600, 2.0**-11
    q, k, v = (x.to(device) for x in (2 * torch.randn(n, 2, 16), *torch.randn(2, n, 2, 16)))
    bounds, bias = torch.tensor([0, n], device=device), Lopsided(3.0).to(device)
    share = computed_share(q, k, v, bounds, bias=bias, skip_eps=eps, backend="triton")
    assert share < 1
    out, lse = attention(
        q, k, v, bounds, bias=bias, skip_eps=eps, return_lse=True, backend="triton"
    )
    whole, all_of_it = attention(
        *(x.double() for x in (q, k, v)), bounds, bias=bias.double(), return_lse=True,
        backend="reference",
    )  # fmt: skip
    assert (all_of_it - lse).max() <= -math.log1p(-eps) + 1e-5
    assert (out - whole).abs().max() <= 2 * eps * v.abs().max() + 1e-5


class Bent(nn.Module):
    """Near distances above the query's own, which no rate from the query on bounds; slopes beyond;
    a few distances hidden."""

    affine_from = 30

    def __init__(self, slopes: list[float], hidden: bool = False) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor(slopes))
        self.table = nn.Parameter(2 * torch.rand(len(slopes), 61))
        self.hidden = hidden

    def along(self, offsets: Tensor) -> Tensor:
        line = self.table[:, offsets.clamp(-30, 30) + 30] - self.slopes[:, None] * offsets.abs()
        return line.masked_fill(self.hidden & (offsets.abs() % 7 == 3), -math.inf)


@pytest.mark.parametrize("name", SKIP_INPUTS)
def test_what_a_line_leaves_out_is_within_its_share(name: str, device: str) -> None:
    n, slopes = 500, [0.9, 0.2, 0.02, 0.0]
    cu_seqlens, bias = torch.tensor([0, n], device=device), Bent(slopes).to(device)
    q, k, v = (x.to(device) for x in SkipInputs(n, torch.tensor(slopes), 16).builders[name]())

    def of(eps: float) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            found = attention(
                q, k, v, cu_seqlens, bias=bias, skip_eps=eps, return_lse=True, backend="triton"
            )
        return found[0].cpu(), found[1].cpu()

    with torch.no_grad():
        oracle = attention(
            *(x.double() for x in (q, k, v)), cu_seqlens, bias=bias, return_lse=True,
            backend="reference",
        )  # fmt: skip
    check_row_shares(of, v.cpu(), [x.cpu() for x in oracle], [2.0**-24, 0.1])


def test_a_table_of_near_distances_does_not_keep_far_keys(device: str) -> None:
    """Nor do distances that are hidden; what is no number keeps all."""
    n = 700
    q, k, v = (0.5 * torch.randn(3, n, 2, 16)).to(device).unbind()
    bounds = torch.tensor([0, n], device=device)

    def share(bias: nn.Module) -> float:
        with torch.no_grad():
            return computed_share(
                q, k, v, bounds, bias=bias.to(device), skip_eps=2.0**-11, backend="triton"
            )

    for hidden in (False, True):
        assert share(Bent([0.3, 0.6], hidden)) < 0.5
    assert share(Bent([0.0, 0.0])) == 1
    assert share(Bent([math.nan, math.nan])) == 1


def test_no_rows_sum_is_in_an_order_of_its_own(device: str) -> None:
    """One head: its two sides are added up as rows, which torch does in one order."""
    line = -torch.rand(1, 2 * 300 + 1, device=device) * torch.arange(-300, 301).abs()
    wide = torch.cat([line, line - 1])
    one, two = line_params(line), line_params(wide)
    assert torch.equal(one[0], two[0])
    exact = line[0, 300 + 7 :].double().exp().sum().log()
    ends = one[0, 1 + 601 :]
    assert exact <= ends[300 + 7] <= exact + 1e-4 + 1e-5 * exact.abs()
    exact = line[0, : 300 - 7 + 1].double().exp().sum().log()
    assert exact <= ends[300 - 7] <= exact + 1e-4 + 1e-5 * exact.abs()
    assert line_params(line, tails=False).shape == (1, 1 + 601)


def grads_of_line(
    bias: nn.Module,
    backend: str,
    dtype: torch.dtype,
    device: str,
    bounds: list[int],
    draw: int = 11,
    **more: object,
) -> dict[str, Tensor]:
    """Through everything that a bias is made of."""
    torch.manual_seed(draw)
    n, wide = bounds[-1], torch.promote_types(dtype, torch.float32)
    q, k, v, g = (x * torch.randn(n, 2, 24) for x in (2, 1, 1, 1))
    inputs = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
    bias = bias.to(device, wide)
    out, lse = attention(
        *inputs,
        torch.tensor(bounds, device=device),
        bias=bias,
        backend=backend,
        return_lse=True,
        **more,
    )  # type: ignore[arg-type]
    named = dict(bias.named_parameters())
    torch.manual_seed(12)
    wanted = (out * g.to(device, dtype)).sum() + (lse * torch.randn(lse.shape).to(lse)).sum()
    grads = torch.autograd.grad(wanted, [*inputs, *named.values()])
    return {
        name: x.detach().cpu()
        for name, x in zip(("out", "dq", "dk", "dv", *named), (out, *grads), strict=True)
    }


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize(
    ("bounds", "more"),
    [
        ([0, 300], {}),
        ([0, 1, 1, 130, 131, 389], {}),
        ([0, *range(7, 7 * 41, 7)], {}),  # more sequences than a band's parts
        ([0, 5], {}),
        ([0, 300], {"window": (40, 3)}),
        ([0, 129, 300], {"window": (0, -1)}),
        ([0, 300], {"scale": -0.3}),
    ],
    ids=str,
)
def test_a_line_is_learned(
    straight: bool, bounds: list[int], more: dict[str, object], device: str
) -> None:
    bias = Bent([0.05, 0.01])
    if not straight:
        bias.affine_from = None  # type: ignore[assignment]
    more = {"skip_eps": 0, **more}
    got = grads_of_line(bias, "triton", torch.float32, device, bounds, **more)
    naive, oracle = naive_and_oracle(bias, device, bounds, **more)
    for name, mine in got.items():
        assert_right(mine, naive[name], oracle[name], gradient=name != "out", what=name)


def naive_and_oracle(
    bias: nn.Module, device: str, bounds: list[int], **more: object
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A slope's gradient is a sum of large terms that cancel, and what one naive sum is off is
    luck: it is the worst of sixteen draws."""
    both = []
    for draw in range(11, 27):
        call = device, bounds, draw
        with naively():
            naive = grads_of_line(bias, "reference", torch.float32, *call, **more)
        both.append((naive, grads_of_line(bias, "reference", torch.float64, *call, **more)))
    oracle = both[0][1]
    off = {
        name: max((naive[name] - right[name]).abs().max() for naive, right in both)
        for name in oracle
    }
    return {name: right + off[name] for name, right in oracle.items()}, oracle


class Numbers(nn.Module):
    """Each distance's number, learned by itself."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        far = torch.arange(-reach, reach + 1).abs()
        self.numbers = nn.Parameter(-torch.tensor([[0.1], [0.3]]) * far)
        self.reach = reach

    def along(self, offsets: Tensor) -> Tensor:
        return self.numbers[:, (offsets + self.reach).clamp(0, 2 * self.reach)]


@pytest.mark.parametrize("reach", [0, 5, 70])
def test_the_ends_of_a_line_are_those_of_all_beyond(reach: int, device: str) -> None:
    q, k, v, g = torch.randn(4, 230, 2, 16)
    numbers, bounds = torch.randn(2, 2 * reach + 1), torch.tensor([0, 200, 230])

    def grad(backend: str, where: str) -> Tensor:
        line = numbers.to(where).requires_grad_()
        given = (x.to(where) for x in (q, k, v))
        out = attention(*given, bounds.to(where), bias=Line(line), backend=backend, skip_eps=0)  # type: ignore[arg-type]
        return torch.autograd.grad(out, line, g.to(where))[0].cpu()  # type: ignore[arg-type]

    torch.testing.assert_close(grad("triton", device), grad("torch", "cpu"), rtol=1e-4, atol=1e-4)


def test_a_line_is_learned_where_far_keys_are_left_out(device: str) -> None:
    """Its numbers there get no gradient, and others what they would get."""
    bounds, bias = [0, 200, 900], Numbers(1000)
    got, whole = (
        grads_of_line(bias, "triton", torch.float32, device, bounds, skip_eps=eps)
        for eps in (2.0**-24, 0.0)
    )
    for name, mine in got.items():
        assert_right(mine, whole[name], whole[name].double(), gradient=True, what=name)
    far = 1000 + 600
    assert bool((whole["numbers"][0, far] != 0).all())
    assert bool((got["numbers"][:, far:] == 0).all())
    assert bool((whole["numbers"][:, 1000 + 700 :] == 0).all())


def test_dropout_of_a_learned_line(device: str) -> None:
    """By the formula in float64, with the weights kept that the kernels keep: unit vectors for
    values read them off."""
    n, p = 40, 0.4
    q, k, v, g = torch.randn(4, n, 2, 16, device=device)
    bounds, bias = torch.tensor([0, 13, n], device=device), Bent([0.05, 0.2]).to(device)

    def dropped(values: Tensor) -> Tensor:
        torch.manual_seed(3)
        pad = (0, values.shape[-1] - 16)
        wide_q, wide_k = (nn.functional.pad(x, pad) for x in (q, k))
        out = attention(
            wide_q, wide_k, values, bounds, bias=bias, dropout_p=p, scale=0.25, backend="triton"
        )
        assert isinstance(out, Tensor)
        return out

    units = nn.functional.pad(torch.eye(n, device=device), (0, 64 - n))
    kept = dropped(units[:, None].expand(n, 2, 64))[..., :n].permute(1, 0, 2) != 0
    at = torch.arange(n, device=device)
    own = (at[:, None] < 13) == (at < 13)
    assert not bool(kept[:, ~own].any())
    assert abs(kept[:, own].float().mean() - (1 - p)) < 4 * (p * (1 - p) / (2 * own.sum())) ** 0.5

    learned = [bias.slopes, bias.table]
    got = torch.autograd.grad((dropped(v) * g).sum(), learned)
    score = torch.einsum("ihd,jhd->hij", q.double(), k.double()) * 0.25
    slopes, table = (x.detach().double().requires_grad_() for x in learned)
    offsets = at - at[:, None]
    line = table[:, offsets.clamp(-30, 30) + 30] - slopes[:, None, None] * offsets.abs()
    weight = (score + line).masked_fill(~own, -math.inf).softmax(-1) * kept / (1 - p)
    out = torch.einsum("hij,jhd->ihd", weight, v.double())
    torch.testing.assert_close(dropped(v).double(), out, rtol=0, atol=1e-5)
    wanted = torch.autograd.grad((out * g).sum(), [slopes, table])
    for mine, right in zip(got, wanted, strict=True):
        bound = 1e-5 * max(1.0, right.abs().max().item())
        torch.testing.assert_close(mine.double(), right, rtol=0, atol=bound)


def test_with_holes_a_learned_line_is_refused_by_name(device: str) -> None:
    q = torch.randn(5, 2, 16, device=device)
    bias, bounds = Lopsided(1.0, learned=True).to(device), torch.tensor([0, 5], device=device)
    call = {"bias": bias, "backend": "triton", "positions": 2 * torch.arange(5, device=device)}
    with pytest.raises(BackendError, match=r"Lopsided has no method kernel\(\), and a line"):
        attention(q, q, q, bounds, **call)
    with torch.no_grad():
        attention(q, q, q, bounds, **call)
    attention(q, q, q, bounds, bias=bias).sum().backward()  # type: ignore[union-attr]
    assert bias.slopes.grad is not None


def test_where_a_line_is_straight_is_checked(device: str) -> None:
    bias = Bent([0.3, 0.1])
    assert "along, affine_from=30 agree" in check_score_bias(bias, span=400)
    bias.affine_from = 29  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"Bent: affine_from=29 promises .* straight line from"):
        check_score_bias(bias, span=400)
    for wrong in (-1, 2.0, True):
        bias.affine_from = wrong  # type: ignore[assignment]
        with pytest.raises(InputError, match=r"Bent\.affine_from must be an int of at least 0"):
            attention(*torch.randn(3, 9, 2, 16), torch.tensor([0, 9]), bias=bias)


def test_the_librarys_own_line(device: str) -> None:
    """`TableALiBi`, of which `check_score_bias` says what it is."""
    bias = TableALiBi(2, reach=20)
    nn.init.normal_(bias.table)
    assert "affine_from=20" in check_score_bias(bias)
    got = grads_of_line(bias, "triton", torch.bfloat16, device, [0, 90, 300], skip_eps=0)
    with naively():
        naive = grads_of_line(bias, "reference", torch.bfloat16, device, [0, 90, 300])
    oracle = grads_of_line(bias, "reference", torch.float64, device, [0, 90, 300])
    for name, mine in got.items():
        assert_right(mine, naive[name], oracle[name], gradient=name != "out", what=name)


@pytest.mark.parametrize("tails", [False, True])
def test_a_graph_may_capture_it(tails: bool) -> None:
    """Nothing of the library's own line is read on the host, or comes from there: it is made of
    tensors without values, on one device."""
    nowhere = torch.device("meta")
    bias = TableALiBi(4, reach=9).to(nowhere)
    with Watch() as watch, torch.no_grad():
        made = line_of(bias, 4, 300, nowhere)
        row = line_params(made.numbers, tails)
    assert watch.calls
    assert not watch.found
    assert row.device == nowhere
    assert row.shape == (4, 1 + 601 * (1 + tails))


@pytest.mark.parametrize(
    ("reach", "window", "sides"),
    [
        (199, None, [(199, 0), (199, 0)]),
        (40, None, [(40, 1), (40, 1)]),
        (70, (20, -1), [(20, 0), (70, 1)]),
        (0, None, [(0, 1), (0, 1)]),
        (0, (0, 0), [(0, 0), (0, 0)]),
    ],
    ids=str,
)
def test_a_reach_bounds_the_bands(
    reach: int, window: tuple[int, int] | None, sides: list[tuple[int, int]], device: str
) -> None:
    """Of 200 tokens; sides: how far bands go, and whether one more has all that is beyond."""
    numbers = torch.randn(2, 2 * reach + 1, device=device, requires_grad=True)
    q, g = torch.randn(2, 200, 2, 16, device=device)
    cu_seqlens = torch.tensor([0, 90, 200], device=device)
    with mock.patch.object(launch_backward, "attention_grad_line") as kernel:
        given = {"bias": Line(numbers), "window": window, "skip_eps": 0, "backend": "triton"}
        out = attention(q, q, q, cu_seqlens, **given)  # type: ignore[arg-type]
        torch.autograd.grad(out, numbers, g)  # type: ignore[arg-type]
    (((bands, *_),), _) = kernel.__getitem__.call_args
    block = kernel.__getitem__.return_value.call_args.kwargs["BLOCK"]
    assert bands == 1 + sum(math.ceil(distance / block) + more for distance, more in sides)
