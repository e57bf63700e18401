"""`linear` never multiplies with a pack that the weight has outlived."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from pyenc.ops import linear
from pyenc.ops.backend import explain
from pyenc.ops.linear import backend_table
from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear import packs as linear_packs
from tests.ops.linear.linear_support import check, layer, onednn, packed, pin


def step(optimizer: type[torch.optim.Optimizer], **options: object) -> Callable[[Tensor], None]:
    def update(weight: Tensor) -> None:
        weight.grad = torch.randn_like(weight)
        optimizer([weight], lr=0.1, **options).step()  # type: ignore[call-arg]

    return update


def load(weight: Tensor) -> None:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = weight
    module.load_state_dict({"weight": torch.randn_like(weight)})


def swap_back_and_forth(weight: Tensor) -> None:
    """Another storage that may well lie where the first one lay."""
    weight.data = torch.randn(weight.shape)
    weight.data = torch.randn(weight.shape)


@torch.no_grad()
def in_place(weight: Tensor) -> None:
    weight.mul_(2)


@torch.no_grad()
def through_a_view(weight: Tensor) -> None:
    weight[1:2].add_(1)


def to_bfloat16_and_back(weight: Tensor) -> None:
    weight.data = weight.data.bfloat16().float()


CHANGES: dict[str, Callable[[Tensor], None]] = {
    "in place": in_place,
    "through a view": through_a_view,
    "load_state_dict": load,
    "another .data": swap_back_and_forth,
    "in place through .data": lambda w: w.data.mul_(-1),
    "through numpy": lambda w: w.detach().numpy().__imul__(3),
    ".to(dtype) and back": to_bfloat16_and_back,
    "transposed": lambda w: setattr(w, "data", w.data.t().contiguous().t()),
    "SGD": step(torch.optim.SGD),
    "AdamW": step(torch.optim.AdamW),
    "AdamW, fused": step(torch.optim.AdamW, fused=True),
    "AdamW, foreach": step(torch.optim.AdamW, foreach=True),
}


@onednn
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_packed_anew(change: str) -> None:
    x, (weight, bias) = torch.randn(9, 40), layer(40, 40)
    for _ in range(3):
        check(packed(x, weight, bias), x, weight, bias)
        assert linear_packs.held() == weight.numel() * 4
        CHANGES[change](weight)


@onednn
def test_one_element_by_an_optimizer() -> None:
    """Torch's fused optimizers count no version, and a sample need not see one element."""
    x, (weight, _) = torch.randn(9, 384), layer(384, 768)
    packed(x, weight)
    weight.grad = torch.zeros_like(weight)
    weight.grad[5, 7] = 1.0
    torch.optim.SGD([weight], lr=1.0, fused=True).step()
    check(packed(x, weight), x, weight)


@onednn
def test_a_pack_goes_with_its_weight_and_with_its_storage() -> None:
    x, (weight, _) = torch.randn(9, 24), layer()
    packed(x, weight)
    assert linear_packs.held() > 0
    weight.data = weight.data.double()
    assert linear_packs.held() == 0
    weight.data = weight.data.float()
    packed(x, weight)
    del weight
    gc.collect()
    assert linear_packs.held() == 0
    for _ in range(20):
        packed(x, layer()[0])
    gc.collect()
    assert linear_packs.held() == 0


@onednn
def test_copies_carry_no_pack() -> None:
    x, module = torch.randn(9, 24), nn.Linear(24, 40)
    expected = packed(x, module.weight, module.bias)
    size = 24 * 40 * 4
    assert linear_packs.held() == size
    for copied in (copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))):
        twin = copied(module)
        assert linear_packs.held() == size
        assert torch.equal(packed(x, twin.weight, twin.bias), expected)
        with torch.no_grad():
            twin.weight.zero_()
        assert torch.equal(packed(x, twin.weight, twin.bias), twin.bias.detach().expand(9, 40))
        assert torch.equal(packed(x, module.weight, module.bias), expected)
        del twin


@onednn
def test_many_threads_one_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    packs = []
    pack = linear_onednn.pack
    monkeypatch.setattr(linear_onednn, "pack", lambda w: packs.append(1) or pack(w))
    weights, x = [layer(64, 64) for _ in range(4)], torch.randn(50, 64)
    work = [pair for pair in weights for _ in range(25)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda pair: packed(x, *pair), work))
    for pair, y in zip(work, got, strict=True):
        check(y, x, *pair)
    assert len(packs) == len(weights)


@onednn
def test_inference_mode() -> None:
    """Ordinary weights serve there, and their packs after it; inference tensors tell no changes."""
    x, (weight, bias) = torch.randn(9, 24), layer()
    with torch.inference_mode():
        inside = linear(x, weight, bias, "gelu", backend="onednn")
        born = nn.Parameter(torch.randn(40, 24))
        held = linear_packs.held()
        for _ in range(2):
            check(linear(x, born, backend="onednn"), x, born)
            check(torch.ops.pyenc.linear(x, born, None, ""), x, born)
            born.mul_(-2)
        assert linear_packs.held() == held
    with torch.no_grad():
        assert torch.equal(linear(x, weight, bias, "gelu", backend="onednn"), inside)
    y = linear(x.requires_grad_(), weight, bias, backend="onednn")
    y.sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(9, 24))


@onednn
def test_there_is_no_pack_of_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, {"onednn": 2.0})
    x, weight = torch.randn(3, 24), nn.Parameter(torch.randn(40, 24).share_memory_(), False)
    for _ in range(2):
        check(linear(x, weight, backend="onednn"), x, weight)
        weight.data.mul_(-2)
    assert linear_packs.held() == 0
    assert "shared memory" in explain(backend_table(x, weight))["onednn"]
