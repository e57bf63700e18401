"""Projected rows of distances that are kept stand for what their weights hold, and the same call
gives the same bits whether they are there or not."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pyenc.models import Disentangled, Encoder, kept_rows
from pyenc.models.distances import DistanceTable
from pyenc.models.modules import Linear, SplitLinear
from pyenc.ops.linear import packs
from tests.models.shapes import DISTANCES, OWN_DISTANCES

WIDE = dataclasses.replace(
    DISTANCES, hidden_size=96, num_heads=4, convolution=None,
    disentangled=Disentangled(64, 64, 200, norm=True),
)  # fmt: skip
BARE = dataclasses.replace(WIDE, disentangled=Disentangled(40, position_to_content=False))
CONFIGS = {"shared": WIDE, "no norm, one term": BARE, "own": OWN_DISTANCES}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    packs.forget_all()
    yield
    packs.forget_all()


def encoder_of(config: Any = WIDE, dtype: torch.dtype = torch.float32) -> Encoder:
    encoder = Encoder(config).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder.to(dtype)


def split(encoder: Encoder) -> Encoder:
    """As an encoder that has another model's parameters."""
    width = encoder.config.num_heads * encoder.config.head_dim
    for layer in encoder.layers:
        qkv: Any = layer.attention.qkv
        parts = []
        for place in range(3):
            rows = slice(place * width, (place + 1) * width)
            part = Linear(qkv.in_features, width)
            part.weight = nn.Parameter(qkv.weight.detach()[rows].clone())
            part.bias = nn.Parameter(qkv.bias.detach()[rows].clone())
            parts.append(part)
        layer.attention.qkv = SplitLinear(parts)
    return encoder


def ids_of(tokens: int) -> Tensor:
    return (torch.arange(tokens) * 7 % 50)[None]


@torch.no_grad()
def answer(encoder: Encoder, tokens: int = 9) -> Tensor:
    return encoder(ids_of(tokens))


def cold(encoder: Encoder, tokens: int = 9) -> Tensor:
    """The same of a process in which nothing is kept."""
    packs.forget_all()
    return answer(encoder, tokens)


def unkept(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tokens: int = 9) -> Tensor:
    """The same with each layer's rows projected in the call."""
    with monkeypatch.context() as patch:
        patch.setattr(DistanceTable, "_whole", lambda *_: None)
        return answer(encoder, tokens)


def rows_kept() -> int:
    """Entries of more than one weight; packs of products are of one."""
    return sum(len(entry.states) > 1 for entry in packs._entries.values())


def attention(encoder: Encoder, index: int = 0) -> Any:
    return encoder.layers[index].attention


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", [*CONFIGS.values(), None], ids=[*CONFIGS, "split"])
def test_the_same_bits_after_whichever_texts(
    config: Any, dtype: torch.dtype, inference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = (split(encoder_of()) if config is None else encoder_of(config)).to(dtype)
    lengths = (3, 40, 9, 90, 1, 200)
    with torch.inference_mode(inference):
        alone = [cold(encoder, n) for n in lengths]
        assert rows_kept() > 0
        packs.forget_all()
        for order in (lengths, lengths[::-1]):
            for n in order:
                assert torch.equal(answer(encoder, n), alone[lengths.index(n)])
        held = packs.held()
        assert torch.equal(answer(encoder, 90), alone[3])
        assert packs.held() == held
        if dtype == torch.float64:
            for n, right in zip(lengths, alone, strict=True):
                found = unkept(encoder, monkeypatch, n)
                torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


def test_outside_inference_mode_after_it() -> None:
    """What is kept is no inference tensor, and counts who writes to it."""
    encoder = encoder_of()
    with torch.inference_mode():
        inside = answer(encoder)
    assert torch.equal(answer(encoder), inside)
    entries = [entry for entry in packs._entries.values() if len(entry.states) > 1]
    assert entries
    assert not any(entry.pack.is_inference() or entry.pack.requires_grad for entry in entries)


def test_memory() -> None:
    """2 R F numbers a layer, R C for all; with the encoder they go."""
    encoder = encoder_of(dtype=torch.float64)  # whose products have no packs
    answer(encoder)
    assert packs.held() == 8 * 128 * 96 * (2 * encoder.config.num_layers + 1)
    del encoder
    gc.collect()
    assert packs.held() == 0


def step(optimizer: type[torch.optim.Optimizer], **options: Any) -> Callable[[Tensor], None]:
    def update(weight: Tensor) -> None:
        weight.grad = torch.randn_like(weight)
        optimizer([weight], lr=0.1, **options).step()  # type: ignore[call-arg]

    return update


def through_a_view(weight: Tensor) -> None:
    with torch.no_grad():
        middle = weight[len(weight) // 2 :][:1]
        middle.add_(torch.randn_like(middle))


def another(weight: Tensor) -> None:
    """Another storage that may well lie where the first one lay."""
    weight.data = torch.randn(weight.shape)
    weight.data = torch.randn(weight.shape)


def in_place(weight: Tensor) -> None:
    with torch.no_grad():
        weight.add_(torch.randn_like(weight))


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "in place": in_place,
    "through a view": through_a_view,
    "another .data": another,
    "in place through .data": lambda w: w.data.neg_(),
    "through numpy": lambda w: w.detach().numpy().__iadd__(np.arange(w.shape[-1], dtype="f4")),
    "to bfloat16 and back": lambda w: setattr(w, "data", w.data.bfloat16().float()),
    "SGD": step(torch.optim.SGD),
    "AdamW": step(torch.optim.AdamW),
    "AdamW, fused": step(torch.optim.AdamW, fused=True),
}
WEIGHTS = [
    "distances.table.weight", "distances.norm.weight", "distances.norm.bias",
    "layers.0.attention.qkv.weight", "layers.1.attention.qkv.bias",
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_changed_weight(name: str, change: str) -> None:
    encoder = encoder_of()
    before = answer(encoder)
    for turn in range(2):
        CHANGES[change](encoder.get_parameter(name))
        found = answer(encoder)
        assert torch.equal(found, cold(encoder))
        # The second time nothing is left to round.
        assert not torch.equal(found, before) or (turn and change == "to bfloat16 and back")
        before = found


@pytest.mark.parametrize("name", ["parts.0.weight", "parts.1.bias"])
def test_a_changed_part(name: str) -> None:
    encoder = split(encoder_of())
    before = answer(encoder)
    attention(encoder).qkv.get_parameter(name).data.mul_(-1)
    found = answer(encoder)
    assert torch.equal(found, cold(encoder))
    assert not torch.equal(found, before)


def test_a_changed_projection_of_its_own() -> None:
    encoder = encoder_of(OWN_DISTANCES)
    before = answer(encoder)
    attention(encoder).distances.query.weight.data.mul_(-1)
    found = answer(encoder)
    assert torch.equal(found, cold(encoder))
    assert not torch.equal(found, before)


def swapped(encoder: Encoder) -> None:
    module = attention(encoder).qkv
    module.weight = nn.Parameter(module.weight.detach().flip(0))


def other_eps(encoder: Encoder) -> None:
    assert encoder.distances is not None
    assert encoder.distances.norm is not None
    encoder.distances.norm.eps = 0.5


@pytest.mark.parametrize(
    "change",
    [
        swapped,
        other_eps,
        lambda e: e.load_state_dict(encoder_of().state_dict()),
        lambda e: e.load_state_dict(encoder_of().state_dict(), assign=True),
        lambda e: e.to(torch.bfloat16),
        lambda e: e.to(torch.float64),
        lambda e: setattr(e.distances, "norm", None),
    ],
    ids=["a parameter", "eps", "load_state_dict", "assigned", "bfloat16", "float64", "no norm"],
)
def test_a_changed_encoder(change: Callable[[Encoder], Any]) -> None:
    encoder = encoder_of()
    before = answer(encoder)
    change(encoder)
    found = answer(encoder)
    assert torch.equal(found, cold(encoder))
    assert found.dtype != before.dtype or not torch.equal(found, before)


class Adapter(nn.Module):
    """Twice what a module gives."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: Any, **named: Any) -> Any:
        found = self.module(*given, **named)
        return tuple(2 * y for y in found) if isinstance(found, tuple) else 2 * found


def twice(module: nn.Module, given: Any, found: Any) -> Any:
    return tuple(2 * y for y in found) if type(found) is tuple else 2 * found


def put(owner: Any, name: str) -> None:
    setattr(owner, name, Adapter(getattr(owner, name)))


def upside_down(module: nn.Module, given: Any, found: Any) -> Any:
    return found.flip(0)


def backwards(module: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    return nn.functional.linear(x, module.weight.flip(0), module.bias)


def other_table(module: nn.Module, given: Any, found: Any) -> Any:
    return found._replace(table_RC=2 * found.table_RC)


TOUCHED: dict[str, Callable[[Encoder], Any]] = {
    "adapter of the projection": lambda e: put(attention(e), "qkv"),
    "hook on the projection": lambda e: attention(e).qkv.register_forward_hook(twice),
    "forward of its own": lambda e: setattr(
        attention(e).qkv, "forward", functools.partial(backwards, attention(e).qkv)
    ),
    "adapter of the norm": lambda e: put(e.distances, "norm"),
    "hook on the norm": lambda e: e.distances.norm.register_forward_hook(twice),  # type: ignore[union-attr]
    "hook on the table": lambda e: e.distances.table.register_forward_hook(upside_down),  # type: ignore[union-attr]
    "hook on the whole": lambda e: e.distances.register_forward_hook(other_table),  # type: ignore[union-attr]
    "hook on what is projected": lambda e: attention(e).distances.register_forward_hook(twice),
    "parametrized": lambda e: nn.utils.parametrize.register_parametrization(
        attention(e).qkv, "weight", nn.Softplus()
    ),
}


@pytest.mark.parametrize("how", TOUCHED)
def test_what_is_put_on_a_module_counts(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(dtype=torch.float64)
    before = answer(encoder)
    TOUCHED[how](encoder)
    found = answer(encoder)
    right = unkept(encoder, monkeypatch)
    torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(found, before)
    assert torch.equal(found, cold(encoder))


@pytest.mark.parametrize(
    "how", ["grad", "autocast", "torch", "reference", "dropout", "counted", "shared", "large"]
)
def test_where_nothing_is_kept(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(dataclasses.replace(WIDE, hidden_dropout=0.1))
    if how == "grad":
        encoder(ids_of(9)).sum().backward()
        assert encoder.distances.table.weight.grad is not None  # type: ignore[union-attr]
    elif how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer(encoder)
    elif how in ("torch", "reference"):
        encoder.backend = how
        answer(encoder)
    elif how == "dropout":
        assert not torch.equal(answer(encoder.train()), answer(encoder))
    elif how == "counted":
        with FlopCounterMode(display=False) as counter:
            answer(encoder)
        assert counter.get_total_flops() > 0
    elif how == "shared":
        answer(encoder.share_memory())
    else:
        monkeypatch.setattr(kept_rows, "ROWS", 127)
        answer(encoder)
    projected = [e for e in packs._entries.values() if isinstance(e.made_by, kept_rows._Projected)]
    assert not projected


def test_of_an_encoder_that_was_made_in_inference_mode() -> None:
    with torch.inference_mode():
        encoder = encoder_of()
        before = answer(encoder)
        assert rows_kept() == 0
        attention(encoder).qkv.weight.mul_(-1)
        assert not torch.equal(answer(encoder), before)


def test_a_gradient_after_a_call_without() -> None:
    """Its own rows are projected, whatever is kept."""
    encoder = encoder_of(dtype=torch.float64)
    twin = copy.deepcopy(encoder)
    answer(encoder)
    for each in (encoder, twin):
        each(ids_of(9)).square().sum().backward()
    for (name, found), right in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        assert found.grad is not None, name
        assert torch.equal(found.grad, right.grad), name  # type: ignore[arg-type]


def test_copies_carry_nothing() -> None:
    encoder = encoder_of()
    bare = len(pickle.dumps(encoder))
    right = answer(encoder)
    held = packs.held()
    assert len(pickle.dumps(encoder)) == bare
    for copied in (copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))):
        twin = copied(encoder)
        assert packs.held() == held
        assert torch.equal(answer(twin), right)
        twin.distances.table.weight.data.mul_(-1)
        assert not torch.equal(answer(twin), right)
        assert torch.equal(answer(encoder), right)
        del twin
        gc.collect()


@pytest.mark.parametrize("way", ["torch", "few_rows", "onednn"])
def test_another_way_of_products(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that one has made are not read where another is asked for."""
    encoder = encoder_of()
    answer(encoder)
    monkeypatch.setenv("PYENC_LINEAR", way)
    assert torch.equal(answer(encoder), cold(encoder))
    monkeypatch.delenv("PYENC_LINEAR")
    assert torch.equal(answer(encoder), cold(encoder))


def test_many_threads_make_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    product = kept_rows.linear
    monkeypatch.setattr(
        kept_rows, "linear", lambda *given, **named: made.append(1) or product(*given, **named)
    )
    encoder = encoder_of()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: answer(encoder, 5 + n % 3), range(24)))
    assert len(made) == encoder.config.num_layers
    for n, each in enumerate(found):
        assert torch.equal(each, answer(encoder, 5 + n % 3))
