"""What the Triton kernels leave out under a decaying bias stays within the promised share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.ops import ALiBi, AsymmetricALiBi, attention, computed_share
from pyenc.ops.attention.reference import attention_reference
from pyenc.ops.attention.terms import terms_of
from pyenc.ops.attention.triton import backward, forward
from pyenc_kernels import attention as kernels
from pyenc_kernels import configs
from pyenc_kernels.score_function import ALIBI
from tests.kernels.attention.attention_case import DTYPES
from tests.ops.attention.share_rule import check_row_shares
from tests.ops.attention.skip_inputs import SkipInputs
from tests.oracle import assert_right

N, D = 500, 16
SLOPES = torch.tensor([2.0**-0.5, 2.0**-3, 2.0**-6, -(2.0**-8)])
INPUTS = SkipInputs(N, SLOPES, D)


def run(
    qkv: list[Tensor], eps: float, device: str, slopes: Tensor = SLOPES
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.to(device) for x in qkv)
    terms = terms_of(q, ALiBi(slopes.to(device)), None, None, None)
    out, lse, met = forward(q, k, v, torch.tensor([0, N], device=device), terms, eps)
    return out.cpu().double(), lse.cpu().double(), met.cpu()


@pytest.mark.parametrize("name", INPUTS.builders)
def test_no_row_loses_more_than_its_share(name: str, device: str) -> None:
    cases = [(torch.float32, [2.0**-24, 0.1])]
    if name in ("plain", "planted -8", "level -12", "falling -8"):
        cases.append((torch.bfloat16, [2.0**-11]))
    for dtype, all_eps in cases:
        qkv = [x.to(dtype) for x in INPUTS.builders[name]()]
        oracle = attention_reference(
            *(x.double() for x in qkv), torch.tensor([0, N]), bias=ALiBi(SLOPES.double())
        )
        check_row_shares(
            lambda eps, qkv=qkv: run(qkv, eps, device)[:2],  # type: ignore[misc]
            qkv[2], oracle, all_eps,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_eps_is_as_if_it_were_not_there(dtype: torch.dtype, device: str) -> None:
    """And a range that holds everything gives the same bits."""
    q, k, v = (x.to(device, dtype) for x in INPUTS.plain())
    cu_seqlens = torch.tensor([0, N], device=device)
    terms = kernels.Terms(scale=0.25, bias=ALIBI, params=SLOPES.to(device)[:, None].contiguous())
    plain = kernels.forward(q, k, v, cu_seqlens, terms)
    assert kernels.ranges(q, k, cu_seqlens, terms) is None
    slots = N // 128 + 1
    whole = torch.tensor([0, -(-N // 128)], dtype=torch.int32, device=device)
    met = kernels.ordered(whole.expand(len(SLOPES), slots, 2).contiguous())
    for a, b in zip(plain, kernels.forward(q, k, v, cu_seqlens, terms, met), strict=True):
        assert torch.equal(a, b)


def test_what_is_left_out_and_what_never_is(device: str) -> None:
    qkv = INPUTS.plain()
    _, _, met = run(qkv, 2.0**-11, device)
    share = (met[..., 1] - met[..., 0]).sum(-1) / (-(-N // 128)) ** 2
    assert share[0] < 0.7  # each grain meets itself and its neighbours
    assert share[0] <= share[1] <= share[2] <= share[3] == 1
    _, _, met = run(qkv, 2.0**-11, device, torch.full_like(SLOPES, math.nan))
    assert bool((met == torch.tensor([0, -(-N // 128)])).all())
    qkv[1][N - 1] = math.nan
    out, _, met = run(qkv, 2.0**-11, device)
    assert bool((met[..., 1] == -(-N // 128)).all())
    assert bool(out.isnan().all())


def test_each_side_has_its_own_rate(device: str) -> None:
    q, k, v = (x.to(device) for x in INPUTS.plain())
    slopes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.1, 1.0]])
    terms = terms_of(q, AsymmetricALiBi(slopes.to(device)), None, None, None)
    cu_seqlens = torch.tensor([0, N], device=device)
    out, lse, met = forward(q, k, v, cu_seqlens, terms, 2.0**-24)
    last = -(-N // 128)
    own = torch.arange(last)
    met = met.cpu()
    assert met[0, -1].tolist()[1] == last
    assert bool((met[0, :, 1] == last).all())  # nothing falls off to the right
    assert bool((met[0, 2:, 0] >= own[2:] - 1).all())
    assert bool((met[1, :, 0] == 0).all())
    assert bool((met[1, :-2, 1] <= own[:-2] + 2).all())
    whole = forward(q, k, v, cu_seqlens, terms, 0.0)
    assert (out - whole[0]).abs().max() < 1e-5
    assert (lse - whole[1]).abs().max() < 1e-5


def test_short_texts_are_computed_whole(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below an average length nothing is looked for: the same bits as with eps 0, a share of 1, and
    the shapes that a graph was promised."""
    q, k, v = (x.to(device) for x in INPUTS.plain())
    slopes, more = SLOPES.to(device), {"backend": "triton", "bias": ALiBi(SLOPES.to(device))}
    rest = "alibi", slopes, 0, None, 0.25, -1, -1, 0.0, None, 2.0**-11, True, True, "triton"
    for bounds in ([0, N], [0, 1, 200, N]):
        cu_seqlens = torch.tensor(bounds, device=device)
        average = N / (len(bounds) - 1)
        for least in (average, average + 1):
            monkeypatch.setattr(configs, "_range_length", lambda keys, least=least: least)
            out, lse, met, _ = torch.ops.pyenc.attention(q, k, v, cu_seqlens, *rest)
            share = computed_share(q, k, v, cu_seqlens, **more)
            whole = attention(q, k, v, cu_seqlens, scale=0.25, skip_eps=0, return_lse=True, **more)
            if least > average:
                assert met.numel() == 0
                assert share == 1
                assert torch.equal(out, whole[0])
                assert torch.equal(lse, whole[1])
            else:
                assert met.shape == (4, N // 128 + len(bounds) - 1, 2)
                assert share < 1 or len(bounds) > 2
            fake = [x.to("meta") for x in (q, k, v, cu_seqlens)]
            promised = torch.ops.pyenc.attention(*fake, rest[0], slopes.to("meta"), *rest[2:])
            assert promised[2].shape == met.shape


@pytest.mark.parametrize("name", ["plain", "level -12", "planted -8", "shifted"])
def test_gradients_are_those_of_what_was_computed(name: str, device: str) -> None:
    """Exactly the pairs that the forward met: the oracle with all others hidden."""
    torch.manual_seed(3)
    qkv = INPUTS.builders[name]()
    eps, g, g_lse = 0.05, torch.randn(N, len(SLOPES), D), torch.randn(N, len(SLOPES))
    out, lse, met = run(qkv, eps, device)
    q, k, v = (x.to(device) for x in qkv)
    terms = terms_of(q, ALiBi(SLOPES.to(device)), None, None, None)
    cu = torch.tensor([0, N], device=device)
    got = backward(
        g.to(device), g_lse.to(device), q, k, v, cu, terms, out.float().to(device),
        lse.float().to(device), met.to(device), want_bias=True,
    )  # fmt: skip

    def by_formula(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in (*qkv, SLOPES)]
        at = torch.arange(N)
        score = torch.einsum("ihd,jhd->hij", *leaves[:2]) * D**-0.5
        score = score - leaves[3][:, None, None] * (at[:, None] - at).abs()
        first, last = (met[:, at // 128, side, None] * 128 for side in (0, 1))
        score = score.masked_fill((at < first) | (at >= last), -math.inf)
        made = torch.einsum("hij,jhd->ihd", score.softmax(-1), leaves[2])
        weights = [g.to(dtype), g_lse.to(dtype)]
        return torch.autograd.grad([made, score.logsumexp(-1).t()], leaves, weights)

    naive, oracle = by_formula(torch.float32), by_formula(torch.float64)
    for what, a, b, c in zip(("dq", "dk", "dv", "dslopes"), got, naive, oracle, strict=True):
        assert a is not None
        # The naive slopes' gradient is far off where large terms cancel, and allows nothing here.
        assert_right(a.cpu(), c if what == "dslopes" else b, c, gradient=True, what=what)
