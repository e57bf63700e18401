"""What a bias of one's own may do, whatever backend serves it, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.errors import BackendError, InputError, InputTypeError
from pyenc.ops import ALiBi, alibi_slopes, attention, check_score_bias
from pyenc.ops.attention import own_bias
from tests.seeds import seed


class Largest:
    """The eight largest scores of a row alone."""

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        least = s.topk(min(8, s.shape[-1]), -1).values[..., -1:]
        return s.masked_fill(s < least, float("-inf"))


class Scaled:
    """By the root mean square of a row."""

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return 3 * s / s.square().mean(-1, keepdim=True).sqrt()


class ByLength:
    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s * torch.log(j[-1] + 2.0) * len(j) ** 0.25


class Normed:
    def block(self, i: Tensor, j: Tensor) -> Tensor:
        far = -0.05 * (i[:, None] - j).abs().float()
        return 3 * far.log_softmax(-1).expand(2, -1, -1)


def drawn(n: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(seed(n))
    return [torch.randn(n, 2, 16, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("n", [7, 512, 513, 1300])
@pytest.mark.parametrize("bias", [Largest(), Scaled(), ByLength(), Normed()], ids=lambda b: type(b))
@pytest.mark.parametrize("path", ["chosen", "torch", "dropout"])
def test_all_keys_are_there_at_once(bias: Any, n: int, path: str) -> None:
    """However many: what is said of one may be made of all."""
    qkv, bounds = drawn(n), torch.tensor([0, n])
    more = {"chosen": {}, "torch": {"backend": "torch"}, "dropout": {"dropout_p": 1e-12}}[path]
    out = attention(*qkv, bounds, bias=bias, **more)  # type: ignore[arg-type]
    wide = [x.detach().double().requires_grad_() for x in qkv]
    right = attention(*wide, bounds, bias=bias, backend="reference")
    assert isinstance(out, Tensor)
    assert isinstance(right, Tensor)
    torch.testing.assert_close(out.double(), right, rtol=1e-4, atol=1e-4)
    share = torch.randn(out.shape)
    got = torch.autograd.grad((out * share).sum(), qkv)
    wanted = torch.autograd.grad((right * share).sum(), wide)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("sequences", [1, 3])
def test_a_map_may_write_over_its_scores(backend: str, sequences: int) -> None:
    class Capped:
        def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s.div_(5).tanh_() * 5

    class Plain:
        def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return 5 * (s / 5).tanh()

    qkv, bounds = drawn(60), torch.arange(0, 61, 60 // sequences)
    found = []
    for bias in (Capped(), Plain()):
        out = attention(*qkv, bounds, bias=bias, backend=backend)  # type: ignore[arg-type]
        assert isinstance(out, Tensor)
        found.append((out, *torch.autograd.grad(out.square().sum(), qkv)))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_wide_with_a_gradient_too(dtype: torch.dtype) -> None:
    class Causal:
        def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s.masked_fill(j > i[:, None], torch.finfo(torch.float32).min)

    qkv = drawn(20, dtype)
    out = attention(*qkv, torch.tensor([0, 20]), bias=Causal())  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    with torch.no_grad():
        assert torch.equal(out, attention(*qkv, torch.tensor([0, 20]), bias=Causal()))  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("mapped", [False, True])
def test_positions_are_whole_numbers_of_64_bits(backend: str, mapped: bool) -> None:
    class Product:
        if mapped:

            def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return s + (i[:, None] * j) % 7
        else:

            def block(self, i: Tensor, j: Tensor) -> Tensor:
                return ((i[:, None] * j) % 7)[None].float()

    qkv, at = drawn(9), torch.arange(9, dtype=torch.int32) * 30_011
    given = {"bias": Product(), "backend": backend}
    short = attention(*qkv, torch.tensor([0, 9]), positions=at, **given)  # type: ignore[arg-type]
    long = attention(*qkv, torch.tensor([0, 9]), positions=at.long(), **given)  # type: ignore[arg-type]
    assert isinstance(short, Tensor)
    assert torch.equal(short, long)


def test_distances_beyond_32_bits() -> None:
    """Of positions of 32 bits, in every backend that serves them."""
    qkv = drawn(4)
    at = torch.tensor([-(2**31), -5, 7, 2**31 - 1], dtype=torch.int32)
    bias = ALiBi(alibi_slopes(2) * 1e-9)
    outs = [
        attention(*qkv, torch.tensor([0, 4]), bias=bias, positions=where, backend=backend)  # type: ignore[arg-type]
        for where in (at, at.long())
        for backend in (None, "torch", "reference")
    ]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0])


class Drops:
    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s.masked_fill((torch.rand(s.shape) < 0.3) & (i[:, None] != j), float("-inf"))


class Noise:
    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return torch.rand(2, len(i), len(j))


@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize(("bias", "named"), [(Drops(), "Drops.score"), (Noise(), "Noise.block")])
def test_random_numbers_have_no_gradient(bias: Any, named: str, backend: str | None) -> None:
    """The backward would draw others."""
    qkv, bounds = drawn(50), torch.tensor([0, 50])
    with pytest.raises(InputError, match=rf"{named} draws random numbers, and the backward"):
        attention(*qkv, bounds, bias=bias, backend=backend)  # type: ignore[arg-type]
    with torch.no_grad():
        assert isinstance(attention(*qkv, bounds, bias=bias, backend=backend), Tensor)  # type: ignore[arg-type]


def test_another_threads_random_numbers_are_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn while the object is asked, once."""
    drawn_, told = own_bias._drawn, []

    def states(device: torch.device) -> Tensor:
        told.append(1)
        return drawn_(device) + (len(told) == 2)

    monkeypatch.setattr(own_bias, "_drawn", states)
    qkv = drawn(20)
    assert isinstance(attention(*qkv, torch.tensor([0, 0, 20]), bias=Normed()), Tensor)  # type: ignore[arg-type]
    assert len(told) == 4


class Partly(nn.Module):
    """One parameter, and numbers that another module made."""

    def __init__(self, made: Tensor) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.rand(2, 1, 1))
        self.made = made

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.slope * (i[:, None] - j).abs() + self.made * (i[:, None] > j)


class PartlyListed(Partly):
    def parameters(self, recurse: bool = True) -> Any:
        return [self.slope, self.made]


def test_a_tensor_that_is_not_listed_is_named() -> None:
    """Were it passed over, it would never learn, and nobody would know."""
    network = nn.Linear(3, 2)
    qkv, bounds = drawn(30), torch.tensor([0, 30])
    made = network(torch.ones(3))[:, None, None]
    with pytest.raises(InputError, match=r"Partly wants a gradient of a tensor of shape \(2"):
        attention(*qkv, bounds, bias=Partly(made))  # type: ignore[arg-type]
    grads = []
    for backend in (None, "reference"):
        torch.manual_seed(seed(3))
        bias = PartlyListed(network(torch.ones(3))[:, None, None])
        out = attention(*qkv, bounds, bias=bias, backend=backend)  # type: ignore[arg-type]
        assert isinstance(out, Tensor)
        grads.append(torch.autograd.grad(out.square().sum(), [bias.slope, *network.parameters()]))
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


class Gives:
    def __init__(self, method: str, made: Any) -> None:
        setattr(self, method, made if callable(made) else lambda *_: made)


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize(
    ("method", "made", "got"),
    [
        ("score", torch.zeros(2, 1, 40), r"score must give .*\(H, i, j\), as .*got \(2, 1, 40\)"),
        ("score", None, "score must give .*got NoneType"),
        ("block", None, "block must give .*got NoneType"),
        ("block", 1.5, "block must give .*got float"),
        ("block", torch.zeros(3, 1, 40), r"block must give .*got \(3, 1, 40\)"),
        ("block", torch.zeros(1, 2, 1, 40), r"block must give .*got \(1, 2, 1, 40\)"),
        ("block", torch.ones(2, 1, 1, device="meta"), "block gave .* on meta, expected one on cpu"),
        ("score", lambda s, *_: s.to("meta"), "score gave a tensor on meta, expected one on cpu"),
    ],
)
def test_what_it_gives_is_looked_at(backend: str, method: str, made: Any, got: str) -> None:
    q = torch.randn(40, 2, 8)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises((InputError, BackendError)) as caught:
            attention(q, q, q, torch.tensor([0, 40]), bias=Gives(method, made), backend=backend)
        if isinstance(caught.value, InputError):
            assert caught.match(f"attention: Gives.{got}")


class Far:
    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -0.1 * (i[:, None] - j).abs().float()[None]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_second_derivative_is_refused(backend: str) -> None:
    """Also where it would be of what was given, on no path to which the gradient's own lies."""
    q, k, v = drawn(10)
    out = attention(q, k, v, torch.tensor([0, 10]), bias=Far(), backend=backend)
    assert isinstance(out, Tensor)
    (grad,) = torch.autograd.grad(out.square().sum(), [q], create_graph=True)
    with pytest.raises(BackendError, match="second derivative"):
        torch.autograd.grad(out.square().sum() + grad.square().sum(), [q])


@pytest.mark.parametrize("bias", [None, Far()], ids=["none", "own"])
@pytest.mark.parametrize("backend", [None, "cpu", "torch"])
def test_a_derivative_forward_is_the_oracles(bias: Any, backend: str | None) -> None:
    q, k, v = (x.detach() for x in drawn(10))
    bounds, along = torch.tensor([0, 10]), torch.randn(10, 2, 16)

    def of(q: Tensor, backend: str | None = backend) -> Tensor:
        out = attention(q, k, v, bounds, bias=bias, backend=backend)
        assert isinstance(out, Tensor)
        return out

    with pytest.raises(BackendError, match=r"derivative (goes )?forward"):
        torch.func.jvp(of, (q,), (along,))
    value, slope = torch.func.jvp(lambda q: of(q, "reference"), (q,), (along,))
    step = 1e-3
    apart = (of(q + step * along) - of(q - step * along)) / (2 * step)
    torch.testing.assert_close(slope, apart, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(value, of(q), rtol=1e-5, atol=1e-5)


class Line:
    def along(self, offsets: Tensor) -> Tensor:
        return -0.1 * offsets.abs().float().expand(2, -1)


def test_positions_of_a_line_in_a_graph() -> None:
    """No value tells there how long the line must be."""
    torch._dynamo.reset()
    run = torch.compile(attention, fullgraph=True, backend="aot_eager")
    qkv, bounds, at = drawn(12), torch.tensor([0, 7, 12]), torch.arange(12) * 3
    got = run(*qkv, bounds, bias=Line(), positions=at)
    torch.testing.assert_close(got, attention(*qkv, bounds, bias=Line(), positions=at))  # type: ignore[arg-type]
    torch._dynamo.reset()


def test_a_map_in_a_graph_of_dynamic_shapes() -> None:
    torch._dynamo.reset()
    run = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (12, 17):
        qkv, bounds, bias = drawn(n), torch.tensor([0, 5, n]), Scaled()
        got = run(*qkv, bounds, bias=bias)
        torch.testing.assert_close(got, attention(*qkv, bounds, bias=bias))  # type: ignore[arg-type]
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"positions": [0, 1, 2]}, "positions must be a tensor"),
        ({"scale": "1"}, "scale must be a number or None, got '1'"),
        ({"skip_eps": "a"}, "skip_eps must be a number or None, got 'a'"),
    ],
)
def test_types_are_named(given: dict[str, Any], message: str) -> None:
    q = torch.randn(3, 2, 8)
    with pytest.raises(InputTypeError, match=message):
        attention(q, q, q, torch.tensor([0, 3]), **given)


def test_bounds_without_values() -> None:
    q = torch.randn(3, 2, 8)
    with pytest.raises(InputError, match="cu_seqlens is on meta, the other tensors on cpu"):
        attention(q, q, q, torch.tensor([0, 3], device="meta"))


def test_half_a_line_is_not_approved() -> None:
    class Half:
        def along(self, offsets: Tensor) -> Tensor:
            return -0.1 * offsets.abs().half().expand(2, -1)

    with pytest.raises(InputError, match="along must give float32"):
        check_score_bias(Half(), span=96, device="cpu")
