"""`TableALiBi`: its formula, what it tells apart, and that an encoder has it by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import pyenc
from pyenc.loading import load_checkpoint, own_checkpoint, save_checkpoint
from pyenc.models import TableALiBi, call
from pyenc.models import attention as module
from pyenc.ops import alibi_slopes, attention, check_score_bias
from pyenc.ops.attention.along import Within
from tests.seeds import seed

CONFIG = {
    "vocab_size": 50, "hidden_size": 24, "num_layers": 2, "num_heads": 4, "intermediate_size": 32,
    "max_length": 600, "embedding_norm": True,
}  # fmt: skip


def drawn(heads: int, reach: int) -> TableALiBi:
    bias = TableALiBi(heads, reach)
    for parameter in bias.parameters():
        parameter.data += torch.randn_like(parameter)
    return bias


@pytest.mark.parametrize(("heads", "reach"), [(3, 1), (4, 32)])
def test_its_numbers(heads: int, reach: int) -> None:
    torch.manual_seed(seed(1))
    bias = drawn(heads, reach).double()
    for h in range(heads):
        for d in (-700, -reach - 1, -reach, -1, 0, 1, reach, reach + 1, 65):
            slope = bias.log_slopes[h, int(d > 0)].exp()
            wanted = bias.table[h, max(-reach, min(reach, d)) + reach] - slope * abs(d)
            got = bias.along(torch.tensor([d]))[h, 0]
            assert torch.allclose(got, wanted, rtol=1e-12), (h, d)


def test_it_begins_as_alibi() -> None:
    offsets = torch.arange(-90, 91)
    assert torch.allclose(
        TableALiBi(12).along(offsets), -alibi_slopes(12)[:, None] * offsets.abs(), rtol=1e-5
    )


def test_half_weights_give_no_half_bias() -> None:
    bias = TableALiBi(4).bfloat16()
    line = bias.along(torch.arange(-3000, 3001))
    assert line.dtype == torch.float32
    far = bias.log_slopes[:, 0].double().exp() * -3000.0
    assert torch.allclose(line[:, 0].double(), far, rtol=1e-6)


def test_the_check_of_biases_passes_it() -> None:
    torch.manual_seed(seed(2))
    assert check_score_bias(drawn(4, 20))


@pytest.mark.parametrize("reach", [0, -1, 2.0, True, "8"])
def test_another_reach_is_refused(reach: object) -> None:
    with pytest.raises(pyenc.InputError, match="reach must be an int of at least 1"):
        TableALiBi(4, reach)  # type: ignore[arg-type]
    with pytest.raises(pyenc.InputError, match="reach must be an int of at least 1"):
        pyenc.Encoder(
            pyenc.EncoderConfig(**CONFIG, position="table_alibi", position_fields={"reach": reach})
        )


def test_it_tells_a_text_from_the_same_backwards() -> None:
    """Which symmetric ALiBi, at its start, does not."""
    torch.manual_seed(seed(3))
    q, k, v = torch.randn(3, 40, 4, 8)
    bounds = torch.tensor([0, 40])

    def both(bias: TableALiBi) -> tuple[torch.Tensor, torch.Tensor]:
        forward = attention(q, k, v, bounds, bias=bias)
        backward = attention(q.flip(0), k.flip(0), v.flip(0), bounds, bias=bias).flip(0)
        return forward, backward

    with torch.no_grad():
        same, mirrored = both(TableALiBi(4))
        assert torch.allclose(same, mirrored, atol=1e-5)
        same, other = both(drawn(4, 8))
        assert float((same - other).abs().max()) > 0.1


@pytest.mark.parametrize("each", [False, True])
def test_an_encoder_has_it_by_its_name(tmp_path: Path, each: bool) -> None:
    torch.manual_seed(seed(4))
    config = pyenc.EncoderConfig(
        **CONFIG, position="table_alibi", position_fields={"reach": 9}, position_per_layer=each
    )
    encoder = pyenc.Encoder(config).eval()
    names = {n for n, _ in encoder.named_parameters() if n.endswith(("table", "log_slopes"))}
    assert len(names) == (4 if each else 2)
    for name, parameter in encoder.named_parameters():
        parameter.data += torch.randn_like(parameter) * (name in names)
    save_checkpoint(own_checkpoint(encoder), tmp_path / "saved")
    again = load_checkpoint(tmp_path / "saved", device="cpu").encoder
    assert again.config == config
    ids, bounds = torch.randint(50, (70,)), torch.tensor([0, 30, 70])
    with torch.inference_mode():
        ours = encoder.forward_packed(ids, bounds)
        assert torch.equal(again.forward_packed(ids, bounds), ours)
        encoder.backend = "reference"
        oracle = encoder.double().forward_packed(ids, bounds)
    assert torch.allclose(ours.double(), oracle, atol=1e-4)


def test_its_name_is_taken() -> None:
    with pytest.raises(
        pyenc.InputError, match=r"is pyenc\.models\.table_alibi\.TableALiBi already"
    ):
        pyenc.models.register_position("table_alibi", torch.nn.Identity)


@pytest.mark.parametrize(
    ("device", "span", "holes", "reach"),
    [
        ("cuda", 20, False, 19),
        ("cuda", 500, False, 69),  # a padded row is wider than all its tokens
        ("cuda", 500, True, 499),
        ("cuda", 1, False, 0),
        ("cuda", None, False, None),
        ("cpu", 20, True, None),  # whose values can be looked at
    ],
)
def test_a_card_hears_how_far_apart_tokens_are(
    device: str, span: int | None, holes: bool, reach: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a line would reach over all tokens of a batch, or its positions be waited for."""
    biases: list[Any] = []

    def heard(q: torch.Tensor, *_: object, bias: Any, **rest: object) -> torch.Tensor:
        biases.append(bias)
        return torch.empty_like(q)

    monkeypatch.setattr(module, "attention", heard)
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda _: None)
    config, alibi = pyenc.EncoderConfig(**CONFIG, position="table_alibi"), TableALiBi(4)
    with torch.no_grad(), FakeTensorMode(), torch.device(device):
        layer = module.Attention(config, 0)
        bounds = torch.empty(3, dtype=torch.int32)
        positions = torch.empty(70, dtype=torch.int64) if holes else None
        asked = call.Call(bounds, alibi, positions, span=span)
        layer(torch.empty(70, config.hidden_size), asked)
    (bias,) = biases
    assert (bias.reach if isinstance(bias, Within) else None) == reach
