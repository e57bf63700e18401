"""The straight way of ops to the launchers, in the interpreter or on a card: the same numbers as
the ordinary one, and not taken where somebody would miss the ordinary one.

Shapes: T packed tokens, H heads, D head dim, C channels, F feed-forward.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

pytest.importorskip("triton")

from pyenc.errors import BackendError, InputError
from pyenc.ops import (
    ALiBi,
    add_layer_norm,
    add_rms_norm,
    alibi_slopes,
    attention,
    gated_linear,
    registered,
    rotary,
)

T, H, D, C, F = 37, 2, 16, 32, 48

Call = Callable[..., Any]


def calls(device: str) -> dict[str, tuple[Call, list[Tensor]]]:
    """By op: a call, and the tensors that it takes."""

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    cu_seqlens = torch.tensor([0, 5, 5, T], device=device, dtype=torch.int32)
    alibi = ALiBi(alibi_slopes(H).to(device))
    qkv = [made(T, H, D) for _ in range(3)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return attention(q, k, v, cu_seqlens, bias=alibi, return_lse=True, backend="triton")

    def norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return add_layer_norm(x, residual, weight, bias, 1e-5, backend="triton")

    def rms(x: Tensor, weight: Tensor) -> Any:
        return add_rms_norm(x, None, weight, 1e-5, backend="triton")

    def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return gated_linear(x, weight, bias, "gelu", False, backend="triton")

    angles, places = made(T, D // 2), torch.arange(T, device=device)
    cos, sin = angles.cos(), angles.sin()

    def turn(x: Tensor) -> Any:
        return rotary(x, cos, sin, places, backend="triton")

    return {
        "attention": (attend, qkv),
        "layer norm": (norm, [made(T, C), made(T, C), made(C), made(C)]),
        "rms norm": (rms, [made(T, C), made(C)]),
        "gated": (gated, [made(T, C), made(2 * F, C), made(2 * F)]),
        "gated apart": (gated, [made(T, C + 1), made(2 * F, C + 1), made(2 * F)]),
        "rotary": (turn, [made(T, 3 * H, D)[:, : 2 * H]]),
    }


NAMES = ("attention", "layer norm", "rms norm", "gated", "gated apart", "rotary")
OPS = {"attention": "attention", "layer norm": "add_norm", "rms norm": "add_norm",
       "gated": "gated_linear", "gated apart": "gated_halves", "rotary": "rotary"}  # fmt: skip


def flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


class Counting(torch.utils._python_dispatch.TorchDispatchMode):
    """Which ops of ours the dispatcher is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pyenc":
            self.seen.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of our ops whose implementation was reached through the dispatcher."""
    seen: list[str] = []
    for name in set(OPS.values()):
        op = getattr(torch.ops.pyenc, name)

        def noting(*args: Any, _op: Any = op, _name: str = name) -> Any:
            seen.append(_name)
            return _op(*args)

        monkeypatch.setattr(torch.ops.pyenc, name, noting)
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits(name: str, device: str, dispatched: list[str]) -> None:
    call, given = calls(device)[name]
    with torch.inference_mode():
        found = flat(call(*given))
        assert dispatched == []
        with pytest.MonkeyPatch.context() as patch:
            for module in ("norm", "gated", "rotary", "attention.straight"):
                ops = importlib.import_module(f"pyenc.ops.{module}")
                patch.setattr(ops, "plain", lambda *tensors: False)
            wanted = flat(call(*given))
        assert dispatched == [OPS[name]]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_gradient_nothing_is_a_view(name: str, device: str) -> None:
    """A view made under no_grad may not be written to where gradients are on."""
    call, given = calls(device)[name]
    with torch.no_grad():
        for out in flat(call(*given)):
            assert out is given[0] or not out._is_view()


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_goes_through_the_op(name: str, device: str, dispatched: list[str]) -> None:
    call, given = calls(device)[name]
    given = [x.requires_grad_() for x in given]
    out = flat(call(*given))[0]
    assert dispatched == [OPS[name]]
    out.sum().backward()
    assert all(x.grad is not None for x in given)


@pytest.mark.parametrize("name", NAMES)
def test_a_mode_sees_the_op(name: str, device: str) -> None:
    call, given = calls(device)[name]
    with torch.inference_mode(), Counting() as mode:
        call(*given)
    assert mode.seen == [OPS[name]]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("attention", "rotary")])
def test_fake_tensors_launch_nothing(name: str, device: str) -> None:
    call, given = calls(device)[name]
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(x) for x in given]
    with torch.inference_mode():
        real = flat(call(*given))
    with torch.no_grad(), mode:
        found = flat(call(*fakes))
    assert all(isinstance(x, FakeTensor) for x in found)
    assert [x.shape for x in found] == [x.shape for x in real]


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_graph_has_the_op(name: str, device: str) -> None:
    call, given = calls(device)[name]
    graphs = []

    def keep(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        found = flat(torch.compile(call, backend=keep, fullgraph=True)(*given))
        wanted = flat(call(*given))
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum(target.startswith(f"pyenc.{OPS[name]}") for target in targets) == 1
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_what_plain_is_not(device: str) -> None:
    x = torch.ones(3, device=device)

    class Own(Tensor):
        pass

    with torch.no_grad():
        assert registered.plain(x, nn.Parameter(x))
        assert not registered.plain(x, x.as_subclass(Own))
        imaginary = torch.ones(3, dtype=torch.complex64, device=device).conj().imag
        assert imaginary.is_neg()
        assert not registered.plain(imaginary)
        assert not registered.plain(None)  # type: ignore[arg-type]
        with torch.autograd.forward_ad.dual_level():
            assert not registered.plain(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not registered.plain(x)
        with torch.profiler.profile():
            assert not registered.plain(x)
        with FakeTensorMode():
            assert not registered.plain(x)
        with torch.device("meta"):
            assert not registered.plain(x)
        said = []
        torch.func.vmap(lambda y: said.append(registered.plain(x)) or y)(x)
        torch.jit.trace(lambda y: said.append(registered.plain(x)) or y, x, check_trace=False)
        assert said
        assert not any(said)
    assert not registered.plain(x)
    with torch.inference_mode():
        assert registered.plain(x)


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_are_told_as_ever(name: str, device: str) -> None:
    call, given = calls(device)[name]
    with torch.inference_mode():
        for at, x in enumerate(given):
            wrongs: list[Any] = [x[..., :-1], x.int()]
            wrongs += [x.double(), [1.0]] if not at else []
            wrongs += [x.double(), x[None], x[:-1]] if name == "attention" else []
            for wrong in wrongs:
                with pytest.raises((InputError, BackendError), match=r"must|cannot serve|float64"):
                    call(*given[:at], wrong, *given[at + 1 :])


@pytest.mark.parametrize("bounds", [[0, 5, T + 1], [0, 9, 8, T], [1, T]])
def test_wrong_lengths_are_told(bounds: list[int], device: str) -> None:
    """Of a card they are not read."""
    if device != "cpu":
        pytest.skip("taken on trust")
    _, qkv = calls(device)["attention"]
    with torch.inference_mode(), pytest.raises(InputError, match="cu_seqlens"):
        attention(*qkv, torch.tensor(bounds), backend="triton")


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": float("nan")}, {"scale": "big"}, {"scale": torch.tensor(0.3)}, {"skip_eps": 1.0},
        {"dropout_p": None}, {"backend": "none"},
    ],
)  # fmt: skip
def test_wrong_options_are_told(wrong: dict[str, Any], device: str) -> None:
    _, qkv = calls(device)["attention"]
    cu_seqlens = torch.tensor([0, T], device=device)
    with torch.inference_mode(), pytest.raises((InputError, BackendError)):
        attention(*qkv, cu_seqlens, **{"backend": "triton", **wrong})
