"""Layers in eager inference on a CPU: the numbers of the ordinary way, which listeners get."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.loading import load_checkpoint
from pyenc.models import Encoder, EncoderConfig, straight_cpu
from pyenc.models import encoder as module
from pyenc.ops import extension
from tests.conftest import CHECKPOINTS, read_golden

pytestmark = pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))

ORDINARY = ("jina_qk", "gemma")
"""Goldens whose layers have what is not computed here: norms of queries and keys, or of terms."""


def forward(
    model: Encoder, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...] = (7, 30, 1)
) -> tuple[Tensor, list[bool]]:
    """Hidden states, and which layers went straight."""
    went: list[bool] = []

    def noted(way: Any) -> Any:
        def noting(*given: Any) -> Any:
            found = way(*given)
            went.append(found is not None)
            return found

        return noting

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (sum(lengths),), generator=generator)
    with monkeypatch.context() as patch:
        for name in ("straight", "straight_pre_norm"):
            patch.setattr(module, name, noted(getattr(module, name)))
        hidden = model.forward_packed(ids, torch.tensor((0, *lengths)).cumsum(0))
    return hidden, went


def ordinary(
    model: Encoder, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...] = (7, 30, 1)
) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(straight_cpu, "_serves", lambda *given: False)
        hidden, went = forward(model, monkeypatch, lengths)
    assert not any(went)
    return hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [n for n in CHECKPOINTS if not n.endswith("_real")])
def test_the_same_bits(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_checkpoint(read_golden(name).folder).encoder.to(dtype)
    with torch.inference_mode():
        for _ in range(2):  # packs, where there are some, are made the first time
            found, went = forward(model, monkeypatch)
            assert went == len(model.layers) * [not name.startswith(ORDINARY)]
            assert torch.equal(found, ordinary(model, monkeypatch))


def small(**fields: Any) -> Encoder:
    torch.manual_seed(0)
    config = {
        "vocab_size": 50, "hidden_size": 32, "num_layers": 3, "num_heads": 2,
        "intermediate_size": 64, "position": "alibi", "max_length": 512,
    }  # fmt: skip
    return Encoder(EncoderConfig(**(config | fields))).eval()


@pytest.mark.parametrize("per_layer", [False, True])
def test_positions_of_a_line(per_layer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(
        position="table_alibi", position_fields={"reach": 3}, position_per_layer=per_layer
    )
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    lengths = (7, 400, 1)
    with torch.no_grad():
        found, went = forward(model, monkeypatch, lengths)
        assert went == [True] * 3
        assert torch.equal(found, ordinary(model, monkeypatch, lengths))


class Pairs(nn.Module):
    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -(i[:, None] - j).abs().float()[None].expand(2, -1, -1)


@pytest.mark.parametrize("per_layer", [False, True])
def test_positions_pair_by_pair_go_the_ordinary_way(
    per_layer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    for owner in model.layers if per_layer else [model]:
        place = owner.attention if per_layer else owner
        place.position_bias = Pairs()
    monkeypatch.setattr(Encoder, "_bias", lambda self, device: self.position_bias)
    with torch.no_grad():
        _, went = forward(model, monkeypatch)
    assert went == [False] * 3


@pytest.mark.parametrize("how", ["grad", "train", "autocast", "backend", "holes", "wide", "hook"])
def test_who_is_asked_itself(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lengths = small(hidden_dropout=0.1), (7, 30, 1)
    with torch.no_grad():
        assert forward(model, monkeypatch)[1] == [True] * 3
        if how == "grad":
            with torch.enable_grad():
                hidden, went = forward(model, monkeypatch)
            assert hidden.requires_grad
        elif how == "train":
            _, went = forward(model.train(), monkeypatch)
        elif how == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                _, went = forward(model, monkeypatch)
        elif how == "backend":
            model.backend = "cpu"
            _, went = forward(model, monkeypatch)
        elif how == "holes":
            at = torch.tensor([0, 2, 3])
            seen: list[Any] = []
            plain = module.straight
            monkeypatch.setattr(module, "straight", lambda *a: seen.append(plain(*a)))
            model.forward_packed(at, torch.tensor([0, 3]), positions=at)
            went = [found is not None for found in seen]
        elif how == "wide":
            monkeypatch.setattr(straight_cpu, "CPU_BYTES", 64 * 4 * 37)
            _, went = forward(model, monkeypatch)
            assert went == [False] * 3
            _, went = forward(model, monkeypatch, (7, 30))
            assert went == [True] * 3
            return
        else:
            heard: list[int] = []
            model.layers[1].feed_forward.up.register_forward_hook(lambda *_: heard.append(1))
            _, went = forward(model, monkeypatch, lengths)
            assert heard
            assert went == [True, False, True]
            return
    assert went == [False] * 3


def test_weights_that_change_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(hidden_size=512, intermediate_size=1024, num_heads=8)
    with torch.inference_mode():
        for _ in range(3):
            forward(model, monkeypatch)
    for step in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                if step == 1:
                    parameter.data = parameter.data * 0.9
                else:
                    parameter.mul_(0.9)
        with torch.inference_mode():
            found, went = forward(model, monkeypatch)
            assert all(went)
            assert torch.equal(found, ordinary(model, monkeypatch))
