"""What calls of one forward have in common is made once, and never outlives it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.models import Encoder, EncoderConfig, straight_cpu
from pyenc.ops import sharing

LAYERS = 3


def small(**rest: Any) -> Encoder:
    torch.manual_seed(0)
    config = {
        "vocab_size": 50, "hidden_size": 32, "num_layers": LAYERS, "num_heads": 2,
        "intermediate_size": 64, "position": "table_alibi", "position_fields": {"reach": 3},
        "max_length": 512,
    }  # fmt: skip
    return Encoder(EncoderConfig(**(config | rest))).eval()


def forward(model: Encoder, lengths: tuple[int, ...] = (7, 40, 1)) -> Tensor:
    ids = torch.arange(sum(lengths)) % 50
    return model.forward_packed(ids, torch.tensor((0, *lengths)).cumsum(0))


class Counted:
    """How often a position's `along` is asked."""

    def __init__(self, model: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        for module in model.modules():
            if hasattr(module, "along"):
                monkeypatch.setattr(module, "along", self.of(module.along))

    def of(self, along: Any) -> Any:
        def counted(offsets: Tensor) -> Tensor:
            self.times += 1
            numbers: Tensor = along(offsets)
            return numbers

        return counted


def test_nothing_is_kept_without_a_scope_or_after_it() -> None:
    key, one, made = "key", object(), []

    def make() -> int:
        made.append(1)
        return len(made)

    assert [sharing.shared(make, key, one) for _ in range(2)] == [1, 2]
    with sharing.sharing():
        assert [sharing.shared(make, key, one) for _ in range(3)] == [3, 3, 3]
        assert sharing.shared(make, key, object()) == 4
        assert sharing.shared(make, "another", one) == 5
        with torch.inference_mode():
            assert sharing.shared(make, key, one) == 6
        with sharing.sharing():
            assert sharing.shared(make, key, one) == 7
        assert sharing.shared(make, key, one) == 3
    assert sharing.shared(make, key, one) == 8
    with pytest.raises(ValueError, match="lost"), sharing.sharing():
        raise ValueError("lost")
    assert sharing.shared(make, key, one) == 9


def test_objects_that_come_and_go_are_told_apart() -> None:
    """An object's id is another's as soon as it is gone."""
    with sharing.sharing():
        seen = [sharing.shared(lambda n=n: n, "key", torch.empty(3)) for n in range(50)]
    assert seen == list(range(50))


def test_a_tensor_that_is_written_to_is_another() -> None:
    with torch.inference_mode():
        uncounted = torch.zeros(2)
    given, made = torch.zeros(2), []

    def make() -> int:
        made.append(1)
        return len(made)

    with sharing.sharing():
        assert [sharing.shared(make, "key", given, uncounted) for _ in range(2)] == [1, 1]
        given[0] = 1
        assert [sharing.shared(make, "key", given, uncounted) for _ in range(2)] == [2, 2]


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_line_is_made_once_a_forward(
    per_layer: bool, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(position_per_layer=per_layer)
    with mode():
        counted = Counted(model, monkeypatch)
        first = forward(model)
        assert counted.times == (LAYERS if per_layer else 1)
        assert torch.equal(first, forward(model))
        assert counted.times == 2 * (LAYERS if per_layer else 1)
        forward(model, (3,))
    with mode(), monkeypatch.context() as alone:
        alone.setattr(straight_cpu, "_serves", lambda *_: False)  # whose layers share terms
        for name in ("pyenc.ops.attention", "pyenc.ops.attention.cpu"):
            alone.setattr(sys.modules[name], "shared", lambda make, *_: make())
        # Layers that go straight keep more than that for one another.
        alone.setattr(straight_cpu, "_serves", lambda *given: False)
        counted.times = 0
        assert torch.equal(first, forward(model))
        assert counted.times == LAYERS


def test_a_table_that_changes_is_read_again() -> None:
    model = small()
    with torch.inference_mode():
        before = forward(model)
        model.position_bias.table.copy_(torch.randn(2, 7))  # type: ignore[union-attr, operator]
        after = forward(model)
        model.position_bias.table.zero_()  # type: ignore[union-attr, operator]
        assert torch.equal(before, forward(model))
    assert (before - after).abs().max() > 1e-3


def test_what_a_call_is_given_is_what_it_computes() -> None:
    """Layers with windows of their own, and other encoders in between."""
    local = {"local": (True, False, True), "window": 4}
    models = small(**local), small(num_heads=4), small(position="alibi", position_fields={})
    with torch.no_grad():
        wanted = [forward(model) for model in models]
    with torch.no_grad(), sharing.sharing():
        again = [forward(model) for model in (*models, *models)]
    assert all(torch.equal(a, b) for a, b in zip((*wanted, *wanted), again, strict=True))


@pytest.mark.parametrize("per_layer", [False, True])
def test_layers_that_somebody_computes_again(per_layer: bool) -> None:
    """`torch.utils.checkpoint` around single layers, which finds in the backward what it found."""
    from torch.utils.checkpoint import checkpoint

    model = small(position_per_layer=per_layer).train()
    forward(model).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for layer in model.layers:
        plain = layer.forward
        layer.forward = lambda *a, plain=plain, **k: checkpoint(plain, *a, use_reentrant=False, **k)
    forward(model).square().sum().backward()
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert any("table" in name for name in got)
