"""Attention and layer norm without a gradient on a CPU, straight to what serves them: the same bits
as the ordinary way, and not where somebody would miss that.

Shapes: T packed tokens, H heads, D head dim, C channels.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyenc.errors import InputError
from pyenc.ops import (
    ALiBi,
    RelativePositionBias,
    add_layer_norm,
    add_rms_norm,
    alibi_slopes,
    attention,
    extension,
    gated_activation,
    gated_linear,
    linear,
    rms_norm_rotary,
    rotary,
    segment_mean,
)
from pyenc.ops.linear.int8 import int8_linear, quantize_weight

pytestmark = pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))

T, H, D, C = 37, 3, 16, 24

Call = Callable[..., Any]


class Fading:
    """A bias by distance of one's own."""

    def along(self, offsets: Tensor) -> Tensor:
        return -torch.arange(1, H + 1)[:, None] * offsets.abs().float().sqrt()


def attending(**rest: Any) -> Call:
    cu_seqlens = torch.tensor([0, 5, 5, T])
    return lambda q, k, v: attention(q, k, v, cu_seqlens, **rest)


def calls(dtype: torch.dtype) -> dict[str, tuple[Call, list[Tensor]]]:
    """By name: a call, and the tensors that it takes."""
    torch.manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    qkv = [made(T, 3 * H, D)[:, :H], made(T, H, D), made(H, T, D).transpose(0, 1)]
    biases = {
        "none": {}, "alibi": {"bias": ALiBi(alibi_slopes(H))},
        "t5": {"bias": RelativePositionBias(torch.randn(8, H), 20)}, "line": {"bias": Fading()},
        "window": {"window": (2, 5)}, "lse": {"return_lse": True, "scale": 0.3, "skip_eps": 0.0},
        "by name": {"backend": "cpu", "bias": ALiBi(alibi_slopes(H))},
    }  # fmt: skip
    return {
        **{f"attention {name}": (attending(**rest), qkv) for name, rest in biases.items()},
        "layer norm": (
            lambda x, r, w, b: add_layer_norm(x, r, w, b, 1e-5),
            [made(T, C), made(T, C), made(C), made(C)],
        ),
        "layer norm of rows": (
            lambda x, w: add_layer_norm(x, None, w, None, 1e-5),
            [made(2, 3, 2 * C)[..., ::2], made(C)],
        ),
        "layer norm by name": (
            lambda x, r, w: add_layer_norm(x, r, w, None, 1e-5, backend="cpu"),
            [made(T, C), made(T, C), made(C)],
        ),
    }  # fmt: skip


NAMES = tuple(calls(torch.float32))
DTYPES = (torch.float32, torch.bfloat16)


def flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def ordinary(patch: pytest.MonkeyPatch) -> None:
    """From now on nothing is plain."""
    for name in ("norm", "attention.straight_cpu"):
        module = importlib.import_module(f"pyenc.ops.{name}")
        patch.setattr(module, "plain", lambda *tensors: False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits(
    name: str, mode: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, given = calls(dtype)[name]
    with mode():
        found = flat(call(*given))
        ordinary(monkeypatch)
        wanted = flat(call(*given))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)
        assert one is given[0] or not one._is_view()


class Seeing(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += func.namespace == "pyenc"
        return func(*args, **(kwargs or {}))


def of_ours(name: str) -> bool:
    """Whether an op of ours serves it: of a layer norm torch's own does, unless asked otherwise."""
    return not name.startswith("layer norm") or name.endswith("by name")


@pytest.mark.parametrize("name", [name for name in NAMES if of_ours(name)])
def test_who_listens_hears(name: str) -> None:
    call, given = calls(torch.float32)[name]
    with torch.no_grad(), Seeing() as mode:
        call(*given)
    assert mode.seen
    leaves = [x.clone().requires_grad_() for x in given]
    sum(x.float().sum() for x in flat(call(*leaves))).backward()  # type: ignore[union-attr]
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in leaves)
    graphs = []

    def keep(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        found = flat(torch.compile(call, backend=keep, fullgraph=True)(*given))
        wanted = flat(call(*given))
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert any(target.startswith("pyenc.") for target in targets)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_are_told_as_ever(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, given = calls(torch.float32)[name]
    wrong = [
        [*given[:at], x, *given[at + 1 :]]
        for at, y in enumerate(given)
        for x in (y[..., :-1], y.int(), y[None, ..., 0], y.to("meta"))
    ]
    wrong += [[y[..., 0] for y in given], [y[None] for y in given], [y.int() for y in given]]
    told: list[list[str]] = []
    for _ in range(2):
        told.append([])
        with torch.no_grad():
            for them in wrong:
                try:
                    call(*them)
                except InputError as error:
                    told[-1].append(str(error))
                else:
                    told[-1].append("")
        ordinary(monkeypatch)
    assert told[0] == told[1]
    assert any(told[0])


@pytest.mark.parametrize(
    "rest",
    [
        {"scale": float("nan")}, {"scale": "1"}, {"scale": True}, {"skip_eps": 1.0},
        {"skip_eps": "0"}, {"window": (1,)}, {"window": [1, 2]}, {"window": (-2, 3)},
        {"window": (1.0, 2)}, {"window": (True, 2)}, {"bias": "alibi"}, {"bias": torch.ones(H)},
        {"bias": ALiBi(torch.ones(H + 1))}, {"bias": RelativePositionBias(torch.ones(8, H + 1))},
        {"backend": "gpu"}, {"bias": torch.ones(H, 32, 32)}, {"bias": torch.ones(H, 3, 3)},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_attention(rest: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of them, or computed, is said and computed of the ordinary way."""
    _, qkv = calls(torch.float32)["attention none"]
    found: list[Any] = []
    for _ in range(2):
        try:
            with torch.no_grad():
                found.append(attending(**rest)(*qkv))
        except Exception as error:
            found.append((type(error), str(error)))
        ordinary(monkeypatch)
    one, other = found
    assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("bounds", [[0, 5, T + 1], [0, 9, 8, T], [1, T], []])
def test_wrong_lengths_are_told(bounds: list[int]) -> None:
    _, qkv = calls(torch.float32)["attention none"]
    with torch.no_grad(), pytest.raises(InputError, match="cu_seqlens"):
        attention(*qkv, torch.tensor(bounds, dtype=torch.int64))


def many(lead: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of a product that is worth choosing for, with a weight of which there is no pack."""
    return torch.randn(*lead, 8, 512), torch.randn(4096, 512)


@pytest.mark.parametrize("lead", [(T,), (2, 3)])
def test_what_is_made_without_a_gradient_may_be_written_to(lead: tuple[int, ...]) -> None:
    """A view made under no_grad may not, and the ops' results are none."""
    x, w = torch.randn(*lead, C), torch.randn(C)
    turned, tables = torch.randn(T, H, D), torch.randn(2, T, D // 2)
    learned = torch.ones(1, requires_grad=True)
    for call in (
        lambda: add_rms_norm(x, None, w, 1e-5)[0],
        lambda: add_rms_norm(x, x, w, 1e-5)[1],
        lambda: add_layer_norm(x, x, w, w, 1e-5, backend="cpu")[0],
        lambda: gated_activation(x, x, "gelu"),
        lambda: gated_linear(x, torch.randn(8, C), None, "gelu"),
        lambda: linear(x, torch.randn(8, C), w[:8], "gelu"),
        lambda: linear(*many(lead)),
        lambda: linear(*many(lead), activation="gelu", backend="onednn"),
        lambda: int8_linear(x, *quantize_weight(torch.randn(8, C))),
        lambda: rotary(turned, *tables, torch.arange(T)),
        lambda: rms_norm_rotary(turned, torch.randn(D), *tables, torch.arange(T), 1e-6),
        lambda: segment_mean(x.flatten(0, -2), torch.tensor([0, math.prod(lead)])),
    ):
        with torch.no_grad():
            y = call()
        y.mul_(learned)
        assert y.requires_grad


@pytest.mark.parametrize(
    "cu_seqlens",
    [torch.zeros(2, 1, dtype=torch.long), torch.tensor([0, math.nan]), torch.tensor([0, 5j])],
    ids=["axes", "floats", "complex"],
)
def test_lengths_that_are_none_are_told_of_before_a_line_is_made(cu_seqlens: Tensor) -> None:
    q = torch.randn(5, H, D)
    with torch.no_grad(), pytest.raises(InputError, match="cu_seqlens must be"):
        attention(q, q, q, cu_seqlens, bias=Fading())
