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

from pyenc import forking
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


class Own(Tensor):
    pass


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
        {"backend": "gpu"}, {"backend": "torch"}, {"backend": "reference"},
        {"bias": torch.ones(H, 32, 32)}, {"bias": torch.ones(H, 3, 3)},
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


FLOAT, BF16 = torch.float32, torch.bfloat16
ODD: dict[
    str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[torch.dtype, ...]]
] = {
    "float64": ((T, H, D), (T, H, D), (T, H, D), (torch.float64,) * 3),
    "float16": ((T, H, D), (T, H, D), (T, H, D), (torch.float16,) * 3),
    "queries in bfloat16": ((T, H, D), (T, H, D), (T, H, D), (BF16, FLOAT, FLOAT)),
    "values in bfloat16": ((T, H, D), (T, H, D), (T, H, D), (FLOAT, FLOAT, BF16)),
    "a head for all": ((T, H, D), (T, 1, D), (T, 1, D), (FLOAT,) * 3),
    "a head of keys for all": ((T, H, D), (T, 1, D), (T, H, D), (FLOAT,) * 3),
    "a head of values for all": ((T, H, D), (T, H, D), (T, 1, D), (FLOAT,) * 3),
    "heads that do not go round": ((T, H, D), (T, 2, D), (T, 2, D), (FLOAT,) * 3),
    "no head for all": ((T, H, D), (T, 0, D), (T, 0, D), (FLOAT,) * 3),
    "keys without heads": ((T, H, D), (T, D), (T, D), (FLOAT,) * 3),
    "more keys": ((T, H, D), (T + 1, H, D), (T + 1, H, D), (FLOAT,) * 3),
    "one token": ((1, H, D), (1, H, D), (1, H, D), (FLOAT,) * 3),
    "no token": ((0, H, D), (0, H, D), (0, H, D), (FLOAT,) * 3),
    "one head": ((T, 1, D), (T, 1, D), (T, 1, D), (FLOAT,) * 3),
    "no head": ((T, 0, D), (T, 0, D), (T, 0, D), (FLOAT,) * 3),
    "one channel": ((T, H, 1), (T, H, 1), (T, H, 1), (FLOAT,) * 3),
    "no channel": ((T, H, 0), (T, H, 0), (T, H, 0), (FLOAT,) * 3),
    "as many channels as may be": ((T, H, 256), (T, H, 256), (T, H, 256), (FLOAT,) * 3),
    "more": ((T, H, 257), (T, H, 257), (T, H, 257), (FLOAT,) * 3),
    "four axes": ((T, H, D, 1), (T, H, D, 1), (T, H, D, 1), (FLOAT,) * 3),
}
STRAIGHT = {
    "float16", "a head for all", "one token", "one head", "one channel",
    "as many channels as may be",
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_odd_heads(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of them, and straight where that is possible."""
    *shapes, dtypes = ODD[odd]
    qkv = [torch.randn(s).to(d) for s, d in zip(shapes, dtypes, strict=True)]
    cu_seqlens = torch.tensor([0, shapes[0][0]])
    module = importlib.import_module("pyenc.ops.attention")
    plain, went = module.straight_cpu, []

    def noting(*given: Any) -> Any:
        went.append(plain(*given))
        return went[-1]

    monkeypatch.setattr(module, "straight_cpu", noting)
    found: list[Any] = []
    for _ in range(2):
        try:
            with torch.no_grad():
                found.append(attention(*qkv, cu_seqlens, return_lse=True))
        except InputError as error:
            found.append(str(error))
        ordinary(monkeypatch)
    assert [one is not None for one in went] == [odd in STRAIGHT, False]
    assert isinstance(found[0], str) == isinstance(found[1], str)
    if isinstance(found[0], str):
        assert found[0] == found[1]
    else:
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to_sparse_csr(),
        lambda x: torch.cat([x, x], 2)[..., ::2],
        lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
        lambda x: torch._neg_view(x),
        lambda x: x.as_subclass(Own),
        lambda x: x.to("meta"),
    ],
    ids=["sparse", "every other channel", "channel by channel", "sign", "subclass", "meta"],
)
def test_odd_memory_goes_the_ordinary_way(
    change: Call, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, qkv = calls(torch.float32)["attention none"]
    qkv[at] = change(qkv[at])
    module = importlib.import_module("pyenc.ops.attention.straight_cpu")
    rest = None, None, None, None, None, False, lambda bias: bias
    with torch.no_grad():
        assert module.straight_cpu(*qkv, torch.tensor([0, T]), *rest) is None


def test_what_is_not_there_goes_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    _, qkv = calls(torch.float32)["attention none"]
    module = importlib.import_module("pyenc.ops.attention.straight_cpu")
    rest = None, None, None, None, None, False, lambda bias: bias
    bounds = torch.tensor([0, T])
    with torch.no_grad():
        assert module.straight_cpu(*qkv, bounds, *rest) is not None
        assert module.straight_cpu(*qkv, bounds.to("meta"), *rest) is None
        monkeypatch.setattr(extension, "missing", lambda: "it is not built")
        assert module.straight_cpu(*qkv, bounds, *rest) is None


def test_more_tokens_than_have_places_go_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    _, qkv = calls(torch.float32)["attention none"]
    module = importlib.import_module("pyenc.ops.attention.straight_cpu")
    given = *qkv, torch.tensor([0, T]), None, None, None, None, None, False, lambda bias: bias
    with torch.no_grad():
        for most, straight in ((T, True), (T - 1, False)):
            monkeypatch.setattr(module, "MAX_SPAN", most)
            assert (module.straight_cpu(*given) is not None) == straight


def test_a_forked_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _, qkv = calls(torch.float32)["attention none"]
    for name, value in {"_child": True, "_dismissed": True, "_untold": 4}.items():
        monkeypatch.setattr(forking, name, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with torch.no_grad(), pytest.warns(forking.ForkWarning, match="computed on 4 threads"):
        attending()(*qkv)


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
