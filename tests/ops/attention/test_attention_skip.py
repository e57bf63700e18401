"""What ALiBi lets the kernels leave out stays within the promised share of each row.

The inputs of skip_inputs.py are built against the rule of csrc/attention/bound.h.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.ops import ALiBi, alibi_slopes, attention, computed_share, extension
from pyenc.ops.attention.terms import SKIP_EPS
from tests.instruction_sets import ISAS, run_on
from tests.ops.attention.share_rule import check_row_shares
from tests.ops.attention.skip_inputs import SkipInputs
from tests.oracle import assert_right
from tests.seeds import seed

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

N, D = 1100, 16
EPS = [2.0**-24, 2.0**-11, 1e-2, 0.3]
SLOPES = torch.tensor([2.0**-e for e in (0.5, 1, 2, 3, 4, 5, 6, 7, 8)] + [0.0, -(2.0**-8)])
HEADS = len(SLOPES)


INPUTS = SkipInputs(N, SLOPES, D)
BUILDERS, plain = INPUTS.builders, INPUTS.plain


def run(qkv: list[Tensor], backend: str, eps: float | None, wide: bool = False) -> list[Tensor]:
    inputs = [x.double() if wide else x for x in qkv]
    bias = ALiBi(SLOPES.double() if wide else SLOPES)
    answers = attention(
        *inputs, torch.tensor([0, N]), bias=bias, skip_eps=eps, return_lse=True, backend=backend
    )
    return list(answers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BUILDERS)
def test_no_row_loses_more_than_its_share(name: str, dtype: torch.dtype) -> None:
    check_shares(name, dtype)


def check_shares(name: str, dtype: torch.dtype) -> None:
    qkv = [x.to(dtype) for x in BUILDERS[name]()]
    oracle = run(qkv, "reference", None, wide=True)
    check_row_shares(lambda eps: run(qkv, "cpu", eps), qkv[2], oracle, EPS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_default_cannot_be_seen(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in plain())
    bounds, bias = torch.tensor([0, N]), ALiBi(SLOPES)
    whole = attention(q, k, v, bounds, bias=bias, skip_eps=0, backend="cpu")
    default = attention(q, k, v, bounds, bias=bias, backend="cpu")
    named = attention(q, k, v, bounds, bias=bias, skip_eps=SKIP_EPS[dtype], backend="cpu")
    assert isinstance(whole, Tensor)
    assert isinstance(default, Tensor)
    assert isinstance(named, Tensor)
    assert torch.equal(default, named)
    # One unit in the last place of the largest output, at most.
    top = whole.float().abs().max().item()
    unit = torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(top))
    assert (whole.float() - default.float()).abs().max() <= max(unit, 2e-6)


def test_what_is_left_out_and_what_never_is() -> None:
    q, k, v = plain()
    bounds = torch.tensor([0, N])

    def share(slope: float, eps: float | None = None, **options: Any) -> float:
        bias = ALiBi(torch.full((HEADS,), slope))
        return computed_share(q, k, v, bounds, bias=bias, skip_eps=eps, backend="cpu", **options)

    assert share(0.5) < 0.25
    assert share(0.5, 1e-2) < share(0.5, 2.0**-24)
    assert share(0.5) <= share(2.0**-4) <= share(2.0**-6)
    for never in (0.0, -0.5, math.nan):
        assert share(never) == 1
    assert share(0.5, 0.0) == 1
    assert computed_share(q, k, v, bounds) == 1
    # The slope bounds even a key that the norms say nothing of: a NaN has to be met.
    before = share(0.5)
    k[N - 1] = math.nan
    assert share(0.5) > before


def test_a_mean_key_costs_nothing() -> None:
    q, k, v = plain()
    bounds, bias = torch.tensor([0, N]), ALiBi(SLOPES)
    shares = [
        computed_share(q, k + mean, v, bounds, bias=bias)
        for mean in (torch.zeros(D), 30 * torch.randn(HEADS, D))
    ]
    assert abs(shares[0] - shares[1]) < 0.02


def test_short_sequences_and_other_biases_are_computed_whole() -> None:
    q, k, v = plain()
    short = torch.arange(0, N + 1, 100)
    assert computed_share(q, k, v, short, bias=ALiBi(SLOPES), skip_eps=0.3) == 1
    dense = torch.zeros(HEADS, N, N)
    assert computed_share(q, k, v, torch.tensor([0, N]), bias=dense, skip_eps=0.3) == 1


@pytest.mark.parametrize("name", ["plain", "planted -8", "level -12", "shifted"])
def test_gradients_stay_within_the_bound(name: str) -> None:
    """The weights of a row differ by 2 * 1.5 eps in all (what is missing, and by how much that
    makes the others heavier), and delta by 2 eps max|dp|; so with G = max_j |g_i v_j| the row of ds
    by 8 eps G, and each gradient by what multiplies p or ds in it. For the slopes that is the
    distance: of what is missing at most the longest, of the others the mean."""
    qkv = BUILDERS[name]()
    g = torch.randn(N, HEADS, D)

    def grads(eps: float) -> list[Tensor]:
        inputs = [x.detach().requires_grad_() for x in (*qkv, SLOPES)]
        out = attention(
            *inputs[:3], torch.tensor([0, N]), bias=ALiBi(inputs[3]), skip_eps=eps, backend="cpu"
        )
        assert isinstance(out, Tensor)
        return [x.double() for x in torch.autograd.grad((out * g).sum(), inputs)]

    q, k, v = (x.double() for x in qkv)
    whole, scale = grads(0.0), D**-0.5
    largest = torch.einsum("ihd,jhd->hij", g.double(), v).abs().amax(-1).t()  # (N, H): G
    lengths = [x.norm(dim=-1) for x in (q, k)]
    at = torch.arange(N, dtype=torch.float64)
    away = (at[:, None] - at).abs()
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale - SLOPES.double()[:, None, None] * away
    mean_away = (scores.softmax(-1) * away).sum(-1).t()  # (N, H)
    moved = largest * (3 * away.amax(-1)[:, None] + 8 * mean_away)
    off_by_rounding = [1e-5 * max(1.0, x.abs().max().item()) for x in whole]
    for eps in (2.0**-11, 1e-2, 0.1):
        dq, dk, dv, dslopes = ((a - b).abs() for a, b in zip(grads(eps), whole, strict=True))
        row = 8 * eps * largest
        limit_dq = scale * row * lengths[1].amax(0)
        assert bool((dq.norm(dim=-1) <= limit_dq + D * off_by_rounding[0]).all())
        # Together over all keys, which a bound for each key alone would be far from.
        limit_dk = scale * (row * lengths[0]).sum(0)
        assert bool((dk.norm(dim=-1).sum(0) <= limit_dk + N * off_by_rounding[1]).all())
        limit_dv = 3 * eps * g.double().norm(dim=-1).sum(0)
        assert bool((dv.norm(dim=-1).sum(0) <= limit_dv + N * off_by_rounding[2]).all())
        assert bool((dslopes <= eps * moved.sum(0) + off_by_rounding[3]).all())


COMBINED: dict[str, dict[str, Any]] = {
    "window": {"window": (300, 500)},
    "holes": {"holes": True},
    "holes and window": {"holes": True, "window": (700, -1)},
    "several": {"lengths": [700, 1, 0, 250, 193, 191, 500]},
    "odd depth": {"dim": 17},
    "float16": {"dtype": torch.float16},
    "sign of the scale": {"scale": -0.3},
}


@pytest.mark.parametrize("name", COMBINED)
def test_skipping_beside_everything_else(name: str) -> None:
    options = COMBINED[name]
    lengths, dtype = options.get("lengths", [N]), options.get("dtype", torch.float32)
    tokens = sum(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v = (torch.randn(tokens, HEADS, options.get("dim", D)).to(dtype) for _ in range(3))
    q = 2 * q
    positions = torch.randint(1, 5, (tokens,)).cumsum(0) if "holes" in options else None

    def run(eps: float, backend: str = "cpu", wide: bool = False) -> Tensor:
        qkv = [x.double() for x in (q, k, v)] if wide else [q, k, v]
        out = attention(
            *qkv, bounds, bias=ALiBi(SLOPES.double() if wide else SLOPES), positions=positions,
            window=options.get("window"), scale=options.get("scale"), skip_eps=eps, backend=backend,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out.double()

    oracle = run(0, "reference", wide=True)
    off, most = (run(0) - oracle).abs().max(), v.double().abs().amax((0, 2))
    for eps in (2.0**-24, 2.0**-11, 1e-2):
        share = computed_share(
            q, k, v, bounds, bias=ALiBi(SLOPES), positions=positions,
            window=options.get("window"), scale=options.get("scale"), skip_eps=eps,
        )  # fmt: skip
        assert share < 1
        wrong = (run(eps) - oracle).abs().amax((0, 2))
        assert bool((wrong <= 2 * eps * most + 2 * off + 1e-6).all()), eps


def test_a_key_that_is_not_finite_is_met_wherever_the_oracle_sees_it() -> None:
    for value in (math.nan, math.inf):
        q, k, v = plain()
        k[N - 1, :, 2] = value
        bias, bounds = ALiBi(torch.full((HEADS,), 0.5)), torch.tensor([0, N])
        out, oracle = (
            attention(q, k, v, bounds, bias=bias, backend=b) for b in ("cpu", "reference")
        )
        assert isinstance(out, Tensor)
        assert isinstance(oracle, Tensor)
        assert torch.equal(out.isnan(), oracle.isnan())


def test_gradients_of_the_default_are_those_of_the_oracle() -> None:
    qkv = plain()
    weight = torch.randn(N, HEADS, D)

    def grads(backend: str, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in (*qkv, alibi_slopes(HEADS))]
        out = attention(*inputs[:3], torch.tensor([0, N]), bias=ALiBi(inputs[3]), backend=backend)
        assert isinstance(out, Tensor)
        return list(torch.autograd.grad((out * weight.to(dtype)).sum(), inputs))

    got = grads("cpu", torch.float32)
    naive, oracle = (grads("reference", d) for d in (torch.float32, torch.float64))
    for a, b, c in zip(got, naive, oracle, strict=True):
        assert_right(a, b, c, gradient=True)


@pytest.mark.parametrize("isa", ISAS)
def test_the_shares_on_each_instruction_set(isa: str) -> None:
    run_on(isa, __file__)


def main() -> None:
    torch.manual_seed(seed(1))
    torch.set_num_threads(1)
    for name in ("planted -16", "level -12", "falling -12"):
        check_shares(name, torch.float32)
    check_shares("plain", torch.bfloat16)
    print(extension.isa())


if __name__ == "__main__":
    main()
