"""`int8_linear` against the float64 oracle, in integers where they tell, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyenc.errors import BackendError, InputError
from pyenc.ops import extension
from pyenc.ops.linear import int8, int8_rows, packs
from pyenc.ops.linear.int8 import int8_linear, quantize_weight
from pyenc.ops.linear.reference import int8_linear_reference
from tests.oracle import assert_right

onednn = pytest.mark.skipif(int8.why_not() is not None, reason=str(int8.why_not()))
BACKENDS = ["torch", pytest.param("onednn", marks=onednn)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def layer(c: int = 24, f: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    weight, scale = quantize_weight(torch.randn(f, c))
    return weight, scale, torch.randn(f)


@pytest.mark.parametrize("backend", [None, "reference", *BACKENDS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
@pytest.mark.usefixtures("poison")
def test_against_the_oracle(
    backend: str | None, dtype: torch.dtype, activation: str | None
) -> None:
    for shape, f, biased in (
        ((7, 24), 40, True),
        ((1, 1), 1, True),
        ((2, 3, 5, 17), 33, False),
        ((65,), 3, True),
        ((1030, 40), 24, True),
        ((0, 24), 40, True),
        ((3, 0, 24), 40, False),
    ):
        weight, scale, bias = layer(shape[-1], f)
        x = (torch.randn(shape) * 3 + 0.5).to(dtype)
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
        offset = bias if biased else None
        got = int8_linear(x, weight, scale, offset, activation, backend=backend)
        assert got.dtype == dtype
        oracle = int8_linear_reference(x, weight, scale.double(), offset, activation)
        plain = int8_linear_reference(x, weight, scale.double(), offset, None).to(dtype)
        naive = plain if activation is None else getattr(F, activation)(plain)
        # Of float64 too it is computed in float32.
        got = got.float() if dtype == torch.float64 else got
        assert_right(got, naive, oracle.double(), what=f"{shape}")


@onednn
@pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_few_rows_have_the_bits_of_many(
    dtype: torch.dtype, activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a kernel of their own, without a pack, where rows of the weight are in one piece."""
    made: list[int] = []
    plain = int8_rows.few_rows_in_one
    monkeypatch.setattr(
        int8_rows, "few_rows_in_one", lambda x, *rest: made.append(len(x)) or plain(x, *rest)
    )
    packs.forget_all()
    for rows, c, f in ((1, 40, 24), (64, 130, 97), (65, 130, 97)):
        weight, scale, bias = layer(c, f)
        x = torch.randn(rows, c).to(dtype)
        got = int8_linear(x, weight, scale, bias.to(dtype), activation)
        served = rows <= int8.ROWS and dtype != torch.float64
        assert made == [rows] * served
        assert (packs.held() == 0) == served
        made.clear()
        turned = weight.t().contiguous().t()
        other = int8_linear(x, turned, scale, bias.to(dtype), activation)
        assert torch.equal(got, other)
        assert not made
        packs.forget_all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_more_than_half_a_step_off(backend: str) -> None:
    """Of a float64 product with the same weights: an oracle that knows nothing of zero points."""
    for rows, c, f in ((3, 8, 5), (37, 384, 64), (11, 3072, 17)):
        weight, scale, _ = layer(c, f)
        x = torch.randn(rows, c) * torch.logspace(-3, 3, rows)[:, None] + torch.randn(rows, 1)
        wide = weight.double() * scale.double()[:, None]
        step = (x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)).double() / 191
        bound = 0.5 * step[:, None] * wide.abs().sum(1)
        off = (int8_linear(x, weight, scale, backend=backend) - x.double() @ wide.T).abs()
        assert (off <= bound * 1.001 + 1e-9).all()
        assert off.max() > 0, "it rounds"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("c", [1, 2, 31, 64, 383, 3072])
def test_sums_are_exact_at_the_ends_of_the_range(backend: str, c: int) -> None:
    """Whole numbers that eight bits hold come out whole: pairs that would saturate among them."""
    signs = torch.tensor(list(itertools.product((-85, 85), repeat=2))).repeat(1, (c + 1) // 2)
    weight = torch.cat([signs[:, :c], torch.randint(-85, 86, (9, c))]).to(torch.int8)
    x = torch.randint(0, 192, (6, c))
    x[0], x[1, ::2], x[2, 1::2] = 191, 191, 191
    x[:, 0], x[0, -1] = 191, 191
    if c > 1:
        x[1:, -1] = 0
    got = int8_linear(x.float(), weight, torch.ones(len(weight)), backend=backend)
    truth = x @ weight.long().T
    if c > 1:  # with 0 and 191 in a row its steps are ones
        x = x[1:]
        got, truth = got[1:], truth[1:]
    assert (got.double() - truth).abs().max() <= 2e-7 * truth.abs().max() + 1e-3
    if truth.abs().max() < 2**24 and c > 1:
        assert torch.equal(got.long(), truth)


@pytest.mark.parametrize("backend", [None, "reference", *BACKENDS])
@pytest.mark.parametrize("c", [1029, 4096, 140_000])
def test_long_sums_are_exact(c: int, backend: str | None) -> None:
    """Beyond what float32 counts, and beyond 32 bits: rounded once, whatever rows there are."""
    weight = torch.randint(70, 86, (3, c)).to(torch.int8)
    weight[0], weight[1] = 85, -85
    x = torch.randint(0, 192, (70, c))
    x[:, 0], x[:, 1], x[0, 2:] = 191, 0, 191  # so that steps are ones
    truth = (x.double() @ weight.double().t()).float()
    if backend == "onednn" and c > int8.MOST:
        with pytest.raises(BackendError, match="131,586 channels"):
            int8_linear(x.float(), weight, torch.ones(3), backend=backend)
        return
    for rows in (slice(0, 1), slice(5, 12), slice(0, 70)):
        got = int8_linear(x[rows].float(), weight, torch.ones(3), backend=backend)
        assert torch.equal(got, truth[rows])


def test_it_would_be_found_out_if_it_saturated(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(steps: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
        products = steps.int()[:, None] * packed.int()[None]
        pairs = products.unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1)
        return pairs.sum(-1).float()

    monkeypatch.setattr(int8, "_pack", lambda weight: (weight, weight.sum(1)))
    monkeypatch.setattr(int8, "_product", saturating)
    assert int8._try() is None
    monkeypatch.setattr(int8, "LEVELS", 127)
    assert "wrong" in str(int8._try())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("f", [1, 3, 17, 130])
def test_a_row_does_not_depend_on_the_others(backend: str, dtype: torch.dtype, f: int) -> None:
    weight, scale, bias = layer(96, f)
    x = torch.randn(700, 96, dtype=dtype)
    x[5] *= 1e4
    whole = int8_linear(x, weight, scale, bias, backend=backend)
    for rows in (slice(0, 1), slice(4, 7), slice(130, 700), slice(511, 514)):
        part = int8_linear(x[rows], weight, scale, bias, backend=backend)
        assert torch.equal(part, whole[rows])


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_rows_of_zeros_and_of_what_is_not_finite(backend: str) -> None:
    weight, scale, bias = layer()
    x = torch.randn(6, 24)
    clean = int8_linear(x, weight, scale, bias, backend=backend)
    x[0], x[2, 3], x[4, 5], x[5, 6] = 0, torch.nan, torch.inf, -torch.inf
    got = int8_linear(x, weight, scale, bias, backend=backend)
    assert torch.equal(got[0], bias)
    assert torch.equal(got[[1, 3]], clean[[1, 3]])
    assert got[[2, 4, 5]].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_rounds_no_integers(cast: torch.dtype, dtype: torch.dtype, backend: str) -> None:
    weight, scale, bias = layer(96)
    for rows in (3, 70):
        x = torch.randn(rows, 96).to(dtype)
        wanted = int8_linear(x, weight, scale, bias, "relu", backend=backend)
        with torch.autocast("cpu", cast):
            got = int8_linear(x, weight, scale, bias, "relu", backend=backend)
        assert torch.equal(got, wanted)


def test_small_numbers_keep_their_share() -> None:
    weight, scale, _ = layer()
    x = torch.randn(4, 24) * 1e-30
    got = int8_linear(x, weight, scale) * 1e30
    assert torch.allclose(got, int8_linear(x * 1e30, weight, scale), rtol=1e-4, atol=1e-4)


def test_a_weight_is_quantised_to_the_nearest() -> None:
    wide = torch.randn(50, 300) * torch.logspace(-4, 4, 50)[:, None]
    wide[3], wide[4, 0] = 0, 100.0
    weight, scale = quantize_weight(wide)
    assert weight.dtype == torch.int8
    assert weight.abs().max() == 85
    assert scale[3] == 0
    off = (weight.double() * scale.double()[:, None] - wide).abs()
    assert (off <= wide.abs().amax(1, keepdim=True).double() / 170 * 1.00001).all()
    exact, one = quantize_weight(torch.tensor([[85.0, -5, 0], [-170, 2, 64]]))
    assert exact.tolist() == [[85, -5, 0], [-85, 1, 32]]
    assert one.tolist() == [1, 2]
    assert quantize_weight(torch.zeros(3, 0))[0].shape == (3, 0)


@pytest.mark.parametrize("size", [1e-36, 1e-38, 1e-41, 1e-43])
def test_a_small_channel_is_quantised_as_any_other(size: float) -> None:
    """Whose scale is subnormal, but for what a subnormal scale itself is rounded by."""
    wide = torch.tensor([[85.0, -5, 0, 40, 17]]).double() * size / 85
    weight, scale = quantize_weight(wide)
    least = 2.0**-149
    off = (weight.double() * scale.double()[:, None] - wide.float().double()).abs()
    assert scale > 0
    assert (off <= size / 170 * 1.00001 + 85 * least / 2).all()


@onednn
def test_a_changed_weight_is_packed_anew() -> None:
    weight, scale, _ = layer()
    x = torch.randn(int8.ROWS + 1, 24)
    packs.forget_all()
    int8_linear(x, weight, scale)
    assert packs.held() >= weight.numel()
    other, scale, _ = layer()
    weight.copy_(other)
    assert torch.equal(int8_linear(x, weight, scale), int8_linear(x, other, scale))
    del weight, other
    assert packs.held() == 0


def test_a_threads_first_call_may_be_compiled() -> None:
    weight, scale, bias = layer()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x: Tensor) -> Tensor:
        return int8_linear(x, weight, scale, bias, "gelu")

    x = torch.randn(9, 24)
    with torch.no_grad():
        assert torch.equal(compiled(x), int8_linear(x, weight, scale, bias, "gelu"))
    arguments = (x, weight, scale, bias, "gelu", "torch")
    torch.library.opcheck(torch.ops.pyenc.int8_linear.default, arguments)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": torch.ones(2, 25)}, "weight must be"),
        ({"x": torch.ones(2, 24, dtype=torch.int32)}, "x"),
        ({"weight": torch.ones(40, 24)}, "int8"),
        ({"weight": torch.ones(40, dtype=torch.int8)}, "weight must be"),
        ({"scale": torch.ones(39)}, "scale must be"),
        ({"scale": torch.ones(40).double()}, "float32"),
        ({"bias": torch.ones(39)}, "bias must be"),
        ({"activation": "tanh"}, "tanh"),
        ({"x": torch.ones(2, 24, requires_grad=True)}, "no gradient"),
        ({"x": torch.ones(2, 24).requires_grad_(), "backend": "reference"}, "no gradient"),
    ],
)
def test_what_is_refused(changes: dict[str, object], said: str) -> None:
    weight, scale, bias = layer()
    arguments = {"x": torch.ones(2, 24), "weight": weight, "scale": scale, "bias": bias}
    with pytest.raises(InputError, match=said):
        int8_linear(**(arguments | changes))  # type: ignore[arg-type]


def test_weights_that_are_refused() -> None:
    for bad in (torch.ones(3), torch.tensor([[1.0, torch.nan]]), torch.ones(2, 2).int()):
        with pytest.raises(InputError, match="quantize_weight"):
            quantize_weight(bad)


@pytest.mark.skipif(extension.missing() is not None, reason="no C++ extension")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("c", [1, 3, 15, 16, 17, 96, 389])
def test_one_pass_has_the_same_steps(dtype: torch.dtype, c: int) -> None:
    """The extension's quantising and torch's, to the bit; ties and rows of no finite range too."""
    x = torch.randn(67, c) * torch.logspace(-20, 4, 67)[:, None] + torch.randn(67, 1)
    x[0], x[1], x[2, 0], x[3, -1] = 0, 7, torch.nan, torch.inf
    x[4] = torch.arange(c) * 0.5 % 191
    x = x.to(dtype)
    for ours, torchs in zip(int8_rows.quantize_in_one(x), int8_rows.quantize(x), strict=True):
        assert torch.equal(ours[4:], torchs[4:])
        assert torch.equal(ours[:2], torchs[:2])
    assert int8_rows.quantize_in_one(x)[1][2:4].isnan().all()


@pytest.mark.skipif(extension.missing() is not None, reason="no C++ extension")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "silu", "relu"])
@pytest.mark.usefixtures("poison")
def test_one_pass_finishes_as_torch_does(dtype: torch.dtype, activation: str | None) -> None:
    for rows, f, biased in ((1, 1, True), (5, 17, False), (33, 130, True)):
        y, sums = torch.randn(rows, f) * 40, torch.randn(f) * 3
        step, zero = torch.rand(rows) * 0.1, torch.randint(0, 192, (rows,)).float()
        bias = torch.randn(f) if biased else None
        out, naive = torch.empty(2, rows, f, dtype=dtype)
        int8_rows.finish_in_one(y, step, zero, sums, bias, activation, out)
        int8_rows.finish(y.clone(), step, zero, sums, bias, activation, naive)
        wide = [None if t is None else t.double() for t in (y, step, zero, sums, bias)]
        exact = torch.empty(rows, f, dtype=torch.float64)
        int8_rows.finish(*wide, activation, exact)  # type: ignore[arg-type]
        assert_right(out, naive, exact, what=f"{rows} x {f}")
