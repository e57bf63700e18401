"""What torch looks through: derivatives forward, transforms, traces. A kernel cannot be, so torch's
own ops are taken, or the call is refused: a derivative is never silently zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from pyenc.errors import BackendError, InputError
from pyenc.ops import (
    ALiBi,
    add_layer_norm,
    add_rms_norm,
    alibi_slopes,
    attention,
    embedding_norm,
    experts,
    extension,
    gated_activation,
    gated_linear,
    linear,
    rms_norm_rotary,
    rotary,
    segment_mean,
)
from pyenc.ops.linear.int8 import int8_linear, quantize_weight
from tests.seeds import seed

T, C = 6, 8
torch.manual_seed(seed(1))
X, W, W2, BIAS = torch.randn(T, C), torch.randn(4, C), torch.randn(8, C), torch.randn(4)
UP, DOWN = torch.randn(3, 5, C), torch.randn(3, 5, C)
CHOSEN, SHARES = torch.tensor([[0, 2], [2, 1], [1, 0], [2, 0], [2, 1], [0, 2]]), torch.rand(T, 2)
GAIN, TURN = torch.rand(C) + 0.5, torch.rand(9, C // 2)
IDS, BOUNDS = torch.tensor([0, 3, 2]), torch.tensor([0, 2, 2, T])

Call = Callable[[Tensor, Any], Any]
OPS: dict[str, Call] = {
    "linear": lambda x, b: linear(x, W, BIAS, "gelu", backend=b),
    "gated_activation": lambda x, b: gated_activation(x, x * 2, "silu", backend=b),
    "gated_linear": lambda x, b: gated_linear(x, W2, None, "gelu", backend=b),
    "add_layer_norm": lambda x, b: add_layer_norm(x, 2 * X, GAIN, None, 1e-5, backend=b)[0],
    "add_rms_norm": lambda x, b: add_rms_norm(x, None, GAIN, 1e-5, backend=b)[0],
    "embedding_norm": lambda x, b: embedding_norm(IDS, x, GAIN, None, 1e-5, backend=b),
    "experts": lambda x, b: experts(x, CHOSEN, SHARES, UP, DOWN, backend=b),
    "rotary": lambda x, b: rotary(x[:, None], TURN, 1 - TURN, torch.arange(T), backend=b),
    "rms_norm_rotary": lambda x, b: rms_norm_rotary(
        x[:, None],
        GAIN,
        TURN,
        1 - TURN,
        torch.arange(T),
        1e-5,
        k_weight=GAIN,
        k_heads=1,
        plus_one=True,
        backend=b,
    ),
    "segment_mean": lambda x, b: segment_mean(x, BOUNDS, None, True, backend=b),
}


def right(name: str) -> tuple[Tensor, Tensor]:
    """A direction, and the derivative along it, by differences of the oracle in double."""
    along, step = torch.randn(T, C, dtype=torch.float64), 1e-5
    with pytest.MonkeyPatch.context() as patch:
        for known in ("X", "W", "W2", "BIAS", "GAIN", "TURN", "UP", "DOWN", "SHARES"):
            patch.setitem(globals(), known, globals()[known].double())
        up, down = (OPS[name](X + sign * step * along, "reference") for sign in (1, -1))
    return along, (up - down) / (2 * step)


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
@pytest.mark.parametrize("name", OPS)
def test_derivatives_forward(name: str, backend: str | None) -> None:
    along, wanted = right(name)
    _, slope = torch.func.jvp(lambda x: OPS[name](x, backend), (X,), (along.float(),))
    torch.testing.assert_close(slope.double(), wanted, rtol=1e-3, atol=1e-4)
    with forward_ad.dual_level():
        out = OPS[name](forward_ad.make_dual(X, along.float()), backend)
        slope = forward_ad.unpack_dual(out).tangent
    assert slope is not None
    torch.testing.assert_close(slope.double(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(OPS.keys() - {"experts", "linear", "gated_linear"}))
def test_a_kernel_asked_for_by_name_is_refused(name: str) -> None:
    """Of experts and linear layers "cpu" is none: torch's product, or one that stands aside."""
    with pytest.raises(BackendError, match="a derivative goes forward through it"):
        torch.func.jvp(lambda x: OPS[name](x, "cpu"), (X,), (X,))


@pytest.mark.skipif(extension.load() is None, reason=str(extension.missing()))
@pytest.mark.parametrize("name", OPS)
def test_transforms_of_a_kernel_asked_for_by_name(name: str) -> None:
    """Are refused where they take a derivative, and it is by what the kernel reads."""

    def summed(x: Tensor) -> Tensor:
        made: Tensor = OPS[name](x, "cpu").sum()
        return made

    if name in ("experts", "linear", "segment_mean"):  # which torch's own ops serve then
        torch.func.grad(summed)(X)
        return
    for transform in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(BackendError, match=r"torch\.func takes a derivative through it"):
            transform(summed)(X)
    torch.testing.assert_close(torch.func.vmap(summed)(X[None])[0], summed(X))
    slope = torch.func.grad(lambda y: (y * summed(X)).sum())(X)
    torch.testing.assert_close(slope, summed(X).expand(X.shape))


@pytest.mark.parametrize("name", OPS)
def test_transforms(name: str) -> None:
    share = torch.randn_like(OPS[name](X, None))
    leaf = X.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((OPS[name](leaf, None) * share).sum(), leaf)
    got = torch.func.grad(lambda x: (OPS[name](x, None) * share).sum())(X)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_transforms_in_a_graph(name: str, inside: bool) -> None:
    """Whether the transform is compiled, or something that has it inside."""
    share = torch.randn_like(OPS[name](X, None))
    leaf = X.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((OPS[name](leaf, None) * share).sum(), leaf)
    slope = torch.func.grad(lambda x: (OPS[name](x, None) * share).sum())
    torch._dynamo.reset()
    run = torch.compile((lambda x: slope(x) * 1) if inside else slope, backend="aot_eager")
    torch.testing.assert_close(run(X), wanted, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_eight_bits_have_none() -> None:
    weight, scale = quantize_weight(torch.randn(6, C))
    with pytest.raises(InputError, match="have no gradient"):
        torch.func.jvp(lambda x: int8_linear(x, weight, scale), (X,), (X,))
    with pytest.raises(InputError, match="C must be at least 1"):
        int8_linear(torch.randn(3, 0), torch.zeros(4, 0, dtype=torch.int8), torch.ones(4))


@pytest.mark.parametrize("backend", [None, "cpu", "torch"])
def test_a_trace_of_values_holds_all_of_a_linear_layer(backend: str | None) -> None:
    w, b, x = torch.randn(96, 64), torch.randn(96), torch.randn(5, 64)
    graph = make_fx(lambda x: linear(x, w, b, "gelu", backend=backend))(x)
    other = torch.randn(5, 64)
    torch.testing.assert_close(graph(other), F.gelu(F.linear(other, w, b)), rtol=1e-4, atol=1e-4)


class _Doubled(torch.overrides.TorchFunctionMode):
    """Changes what `F.linear` gives."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return 2 * out if func is F.linear else out


def test_a_mode_sees_the_whole_of_it() -> None:
    w, b, x = torch.randn(96, 64), torch.randn(96), torch.randn(5, 64)
    with _Doubled():
        got = linear(x, w, b, "relu")
    wanted = F.linear(x, w, b).relu()
    assert any(torch.allclose(got, k * wanted, rtol=1e-4, atol=1e-4) for k in (1, 2))


def test_what_has_no_values_is_refused() -> None:
    """An op of some tensors on meta would be its fake: memory that nobody wrote."""
    weight, scale = quantize_weight(torch.randn(6, C))
    meta = {"device": "meta"}
    calls: list[Callable[[], Any]] = [
        lambda: rotary(X[:, None], TURN, TURN, torch.arange(T, **meta)),  # type: ignore[call-overload]
        lambda: segment_mean(X, torch.tensor([0, T], **meta)),  # type: ignore[arg-type]
        lambda: int8_linear(X, weight.to("meta"), scale),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"is on meta, the other tensors on cpu"):
            call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide_weights", [False, True])
def test_gradients_of_a_norms_parameters_are_added_up_wide(
    dtype: torch.dtype, wide_weights: bool
) -> None:
    """Of halves, as torch's own layer norm adds them up, they are off by a tenth."""
    torch.manual_seed(seed(2))
    rows, columns = 4099, 96
    x, onto = torch.randn(rows, columns).to(dtype), torch.randn(rows, columns).to(dtype)
    weight, bias = torch.randn(columns), torch.randn(columns)
    if not wide_weights:
        weight, bias = weight.to(dtype), bias.to(dtype)
    exact = [t.double().requires_grad_() for t in (weight, bias)]
    out = F.layer_norm(x.double(), (columns,), *exact, 1e-5)
    wanted = torch.autograd.grad(out, exact, onto.double())
    for trained in (True, False):
        given = [t.clone().requires_grad_() for t in (weight, bias)]
        normed, _ = add_layer_norm(x.clone().requires_grad_(trained), None, *given, 1e-5)
        for got, right in zip(torch.autograd.grad(normed, given, onto), wanted, strict=True):
            assert (got.double() - right).norm() <= 0.01 * right.norm()


def test_transposed_sequences_in_a_graph() -> None:
    torch._dynamo.reset()
    run = torch.compile(lambda y: segment_mean(y.t(), torch.tensor([0, 2, 5])), backend="inductor")
    found = []
    for function in (run, lambda y: segment_mean(y.t(), torch.tensor([0, 2, 5]))):
        y = torch.arange(35.0).view(7, 5).requires_grad_()
        function(y).square().sum().backward()
        found.append(y.grad)
    torch.testing.assert_close(*found)
    torch._dynamo.reset()


def test_nothing_turned() -> None:
    cos = torch.ones(9, 2)
    for x in (torch.randn(0, 4, 2).transpose(1, 2), torch.randn(5, 4, 0).transpose(1, 2)):
        assert rotary(x, cos, cos, torch.arange(len(x))).shape == x.shape


def test_the_oracle_far_out() -> None:
    gate = torch.tensor([-100.0, -1000.0], requires_grad=True)
    out = gated_activation(gate, torch.ones(2), "silu", backend="reference")
    (grad,) = torch.autograd.grad(out.sum(), gate)
    assert torch.equal(grad, torch.zeros(2))
    nan = torch.tensor([float("nan")])
    assert gated_activation(nan, torch.ones(1), "relu", backend="reference").isnan().all()
    with pytest.raises(IndexError):
        embedding_norm(torch.tensor([-1]), X, GAIN, None, 1e-5, backend="reference")


NOTHING: Any = None
PLACES, ENDS = torch.arange(T), torch.tensor([0, T])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: embedding_norm(NOTHING, X, GAIN, None, 1e-5),
            "input_ids must be an int32 or int64",
        ),
        (lambda: embedding_norm(PLACES, NOTHING, GAIN, None, 1e-5), "word must be a tensor"),
        (lambda: gated_linear(X, NOTHING, None, "gelu"), "weight must be a tensor"),
        (lambda: gated_activation(NOTHING, X, "gelu"), "gate must be a tensor"),
        (lambda: segment_mean(NOTHING, ENDS), "segment_mean: x must be a tensor"),
        (lambda: rotary(X[:, None], NOTHING, TURN, PLACES), "cos must be a tensor"),
        (lambda: attention(X[:, None], X[:, None], NOTHING, ENDS), "v must be a tensor"),
        (lambda: int8_linear(X, NOTHING, GAIN), "int8_linear: weight must be a tensor"),
        (lambda: linear(X, None), "linear: weight must be a tensor, got NoneType"),  # type: ignore[arg-type]
        (lambda: add_layer_norm(X, None, None, None, 1e-5), "weight must be a tensor"),  # type: ignore[arg-type]
        (lambda: add_rms_norm(torch.tensor(1.0), None, GAIN, 1e-5), "got a single number"),
        (lambda: rotary(X[:, None], TURN, TURN, [0]), "positions must be a tensor, got list"),  # type: ignore[arg-type]
    ],
)
def test_types_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_columns_first_in_a_graph() -> None:
    """What an op gives lies in memory as its fake says."""
    torch._dynamo.reset()
    bounds = torch.tensor([0, 5, 20])
    bias = ALiBi(alibi_slopes(2))

    def heads_first(y: Tensor, backend: str) -> Any:
        z = y.sin().transpose(0, 1).contiguous().transpose(0, 1)
        return attention(z, z, z, bounds, bias=bias, backend=backend) * 2  # type: ignore[operator]

    def columns_first(y: Tensor, backend: str) -> Any:
        z = y.flatten(1).t().contiguous().t()
        return segment_mean(z, bounds, backend=backend)

    for function in (heads_first, columns_first):
        for backend in ("cpu", "torch"):
            y = torch.randn(20, 2, 16, requires_grad=True)
            run = torch.compile(lambda y, f=function, b=backend: f(y, b))
            ours, eager = run(y), function(y, backend)
            torch.testing.assert_close(ours, eager)
            torch.testing.assert_close(
                *(torch.autograd.grad(out.square().sum(), y)[0] for out in (ours, eager))
            )
    torch._dynamo.reset()


def test_a_scale_that_is_a_symbol() -> None:
    """Of a graph of symbolic shapes, which not only torch.compile makes."""

    def run(q: Tensor) -> Any:
        return attention(q, q, q, ENDS, scale=q.shape[-1] ** -0.5)

    traced = make_fx(run, tracing_mode="symbolic", _allow_non_fake_inputs=True)(X[:, None])
    torch.testing.assert_close(traced(X[:, None]), run(X[:, None]))


@pytest.mark.parametrize("own", [False, True])
def test_attention_refuses_transforms_by_name(own: bool) -> None:
    class Bias:
        def block(self, i: Tensor, j: Tensor) -> Tensor:
            return 0.1 * (j[None, :] - i[:, None])

    def run(q: Tensor, backend: str | None = None) -> Any:
        bias = Bias() if own else ALiBi(alibi_slopes(1))
        return attention(q, q, q, ENDS, bias=bias, backend=backend)  # type: ignore[arg-type]

    q = X[:, None]
    with pytest.raises(BackendError, match=r"transforms of torch\.func .* backend=\"reference\""):
        torch.func.grad(lambda x: run(x).sum())(q)
    with pytest.raises(BackendError, match=r"transforms of torch\.func .* backend=\"reference\""):
        torch.func.grad(lambda x: torch.func.vmap(run)(x[None]).sum())(q)
    for made in (lambda x: x, lambda x: x.sin()):  # an argument itself, or what is made of it
        slope = torch.func.grad(lambda x, made=made: run(made(x)).sum())
        for full, error in ((False, BackendError), (True, Exception)):
            torch._dynamo.reset()
            with pytest.raises(error, match=r"transforms of torch\.func .* backend=\"reference\""):
                torch.compile(slope, backend="aot_eager", fullgraph=full)(q)
    torch._dynamo.reset()
    leaf = q.clone().requires_grad_()
    right = torch.autograd.grad(run(leaf).square().sum(), leaf)[0]
    found = torch.func.grad(lambda x: run(x, "reference").square().sum())(q)
    torch.testing.assert_close(found, right)


class ByOneNumber:
    """Learned by a number without an axis."""

    def __init__(self, number: Tensor) -> None:
        self.number = number

    def along(self, offsets: Tensor) -> Tensor:
        return -self.number * offsets.abs().float()[None]

    def parameters(self) -> list[Tensor]:
        return [self.number]


def test_attention_of_what_is_not_derived_by() -> None:
    """And of what is mapped over, where torch calls an op of its own accord for each."""
    q, bias = X[:, None], ALiBi(alibi_slopes(1))  # type: Tensor, Any

    def run(x: Tensor) -> Any:
        return attention(x, x, x, ENDS, bias=bias)

    slope = torch.func.grad(lambda x: (x * run(q)).sum())
    torch._dynamo.reset()
    for function in (slope, torch.compile(slope, backend="aot_eager", fullgraph=True)):
        torch.testing.assert_close(function(q), run(q))
    torch._dynamo.reset()
    bias = ByOneNumber(torch.tensor(0.3, requires_grad=True))
    doubled = torch.compile(lambda w: torch.func.vmap(lambda s: s * run(q))(w), backend="aot_eager")
    torch.testing.assert_close(doubled(torch.tensor([2.0]))[0], 2 * run(q))
    torch._dynamo.reset()
    bias = ALiBi(alibi_slopes(1))
    torch.testing.assert_close(
        torch.func.vmap(run)(torch.stack([q, -q])), torch.stack([run(q), run(-q)])
    )
