"""A registered variant as an encoder's positions: in every layout, on every backend."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pyenc.models import Encoder, register_position, straight_cpu
from tests.models.own_positions import CONFIGS, Blocks, Kerple, batch, registered, shape
from tests.oracle import assert_right

__all__ = ["registered"]


@pytest.mark.parametrize("more", CONFIGS.values(), ids=CONFIGS.keys())
def test_against_the_oracle(more: dict[str, Any]) -> None:
    """Hidden states and the gradient of every parameter, the variant's own among them."""
    encoder = Encoder(shape(**more), skip_eps=0)
    oracle = copy.deepcopy(encoder).double()
    oracle.backend = "reference"
    naive = copy.deepcopy(encoder)
    naive.backend = "torch"
    ids, mask = batch()
    weight = torch.randn(*ids.shape, 24)
    results = []
    for model in (encoder, naive, oracle):
        used = {n: p for n, p in model.named_parameters() if not n.startswith("lm_head")}
        hidden = model(ids, mask)
        grads = torch.autograd.grad((hidden * weight).sum(), list(used.values()))
        results.append([hidden, *grads])
    names = ["hidden", *used]
    assert sum("position_bias" in name for name in names) == (
        4 if more.get("position_per_layer") else 2
    )
    for name, three in zip(names, zip(*results, strict=True), strict=True):
        assert_right(*three, gradient=name != "hidden", what=name)
        if "position_bias" in name:
            assert three[2].abs().min() > 0, name


def test_the_bias_is_what_it_says() -> None:
    """Without any bias the answer is another; with its numbers as a dense bias it is the same."""
    encoder = Encoder(shape(num_layers=1), skip_eps=0)
    module = encoder.position_bias
    assert isinstance(module, Kerple)
    seen: list[Any] = []
    from pyenc.models import attention as called

    whole = called.attention
    place = torch.arange(7)

    def dense(*args: Any, **named: Any) -> Any:
        seen.append(named["bias"])
        table = module.along((place[None, :] - place[:, None]).reshape(-1)).view(3, 7, 7)
        return whole(*args, **named | {"bias": table.detach()})

    ids = torch.randint(0, 60, (2, 7))
    with torch.no_grad():
        wanted = encoder(ids)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(straight_cpu, "_serves", lambda *_: False)  # which asks no module
            patch.setattr(called, "attention", dense)
            patch.setattr(straight_cpu, "_serves", lambda *given: False)  # which does not call it
            got = encoder(ids)
        module.outer.mul_(3)
        other = encoder(ids)
    assert seen == [module]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert (other - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("variant", [Kerple, Blocks])
def test_the_layout_does_not_matter(variant: type[nn.Module]) -> None:
    """Packed, padded right or left, in another order: the same states of the same tokens."""
    register_position("other", variant)
    encoder = Encoder(shape(position="other")).eval()
    texts = [torch.randint(0, 60, (n,)) for n in (5, 1, 8)]
    bounds = torch.tensor([0, 5, 6, 14])
    with torch.no_grad():
        packed = encoder.forward_packed(torch.cat(texts), bounds).split([5, 1, 8])
        order = [2, 0, 1]
        permuted = encoder.forward_packed(
            torch.cat([texts[i] for i in order]), torch.tensor([0, 8, 13, 14])
        ).split([8, 5, 1])
        for left in (False, True):
            ids, mask = torch.zeros(2, 3, 11, dtype=torch.long)
            for row, text in enumerate(texts):
                at = slice(11 - len(text), 11) if left else slice(0, len(text))
                ids[row, at], mask[row, at] = text, 1
            rows = encoder(ids, mask)
            assert not rows[mask == 0].any()
            for row, wanted in enumerate(packed):
                torch.testing.assert_close(rows[row][mask[row] == 1], wanted, rtol=1e-5, atol=1e-5)
    for i, got in zip(order, permuted, strict=True):
        torch.testing.assert_close(got, packed[i], rtol=1e-5, atol=1e-5)


def test_line_and_blocks_agree() -> None:
    register_position("blocks", Blocks)
    line = Encoder(shape(), skip_eps=0)
    blocks = Encoder(shape(position="blocks"))
    blocks.load_state_dict(line.state_dict())
    ids, mask = batch()
    torch.testing.assert_close(blocks(ids, mask), line(ids, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_compiled_whole(masked: bool) -> None:
    torch._dynamo.reset()
    encoder = Encoder(shape(position_per_layer=True))
    ids, mask = batch()
    given = (ids, mask) if masked else (ids,)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        run = torch.compile(encoder, fullgraph=True, backend="aot_eager")
        pairs = []
        for model in (run, encoder):
            hidden = model(*given)
            used = [p for n, p in encoder.named_parameters() if "position_bias" in n]
            pairs.append([hidden, *torch.autograd.grad(hidden.square().sum(), used)])
    for got, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()
