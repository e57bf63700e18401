"""Heads of an encoder's attention: norms of q and k, rotary, keys that several heads share, and
which keys a query sees, against the formula written out in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.models import Encoder, EncoderConfig
from pyenc.models.attention import Attention
from pyenc.models.call import call_of
from pyenc.models.modules import Linear, SplitLinear
from pyenc.models.rotary import Rotary
from tests.seeds import seed

THETA = 50.0


def config_of(**given: Any) -> EncoderConfig:
    shape: dict[str, Any] = {
        "vocab_size": 9, "hidden_size": 24, "num_layers": 1, "num_heads": 4, "head_size": 6,
        "intermediate_size": 8, "position": "rotary", "max_length": 99, "norm_eps": 1e-3,
    }  # fmt: skip
    shape |= given
    if shape["position"] == "rotary":
        shape["rotary"] = Rotary(THETA)
    else:
        shape.pop("local_rotary", None)
    return EncoderConfig(**shape)


def normed(x: Tensor, norm: Any, config: EncoderConfig) -> Tensor:
    gain = norm.weight.double() + (1 if config.norm_plus_one else 0)
    if config.norm == "rms":
        return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * gain
    x = x - x.mean(-1, keepdim=True)
    shift = 0 if norm.bias is None else norm.bias.double()
    return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * gain + shift


def written_out(module: Any, config: EncoderConfig, x: Tensor, lengths: list[int]) -> Tensor:
    heads, kept, dim = config.num_heads, config.kv_heads, config.head_dim
    y = x.double() @ module.qkv.weight.double().T + module.qkv.bias.double()
    q, k, v = y.split((heads * dim, kept * dim, kept * dim), -1)
    if config.qk_norm:
        q, k = normed(q, module.q_norm, config), normed(k, module.k_norm, config)
    q, k, v = (z.reshape(len(x), -1, dim) for z in (q, k, v))
    if config.head_norm:
        q, k = normed(q, module.q_norm, config), normed(k, module.k_norm, config)
    outs = []
    for begin, n in zip([0, *torch.tensor(lengths).cumsum(0).tolist()], lengths, strict=False):
        at = slice(begin, begin + n)
        angles = torch.arange(n).double()[:, None, None] * THETA ** (
            -torch.arange(0, dim, 2).double() / dim
        )
        log = torch.tensor(float(n)).double().log() / torch.tensor(5.0).double().log()

        def turned(z: Tensor, angles: Tensor = angles) -> Tensor:
            if config.rotary is None:
                return z
            one, two = z.chunk(2, -1)
            c, s = angles.cos(), angles.sin()
            return torch.cat([one * c - two * s, two * c + one * s], -1)

        qs, ks = turned(q[at]), turned(k[at])
        ahead = torch.arange(n) - torch.arange(n)[:, None]
        reach = config.window if any(config.local) and config.window is not None else n
        hidden = (-ahead > reach) | (ahead > (0 if config.causal else reach))
        if config.log_length:
            qs = qs * log
        for h in range(heads):
            shared = h // (heads // kept)
            scores = qs[:, h] @ ks[:, shared].T * dim**-0.5
            p = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            outs.append((at, h, p @ v[at][:, shared]))
    whole = torch.zeros(len(x), heads, dim, dtype=torch.float64)
    for at, h, out in outs:
        whole[at, h] = out
    return whole.flatten(1) @ module.out.weight.double().T + module.out.bias.double()


@pytest.mark.parametrize("kept", [None, 1, 2])
@pytest.mark.parametrize("position", ["rotary", "absolute"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"qk_norm": True},
        {"qk_norm": True, "norm": "rms", "log_length": 5},
        {"head_norm": True},
        {"head_norm": True, "norm": "rms", "norm_plus_one": True},
        {"log_length": 5},
        {"local": (True,), "window": 3},
        {"causal": True},
        {"causal": True, "head_norm": True, "norm": "rms"},
        {"causal": True, "local": (True,), "window": 3},
        {"causal": True, "local": (False,), "window": 3, "local_rotary": Rotary(7.0)},
    ],
    ids=str,
)
@pytest.mark.parametrize("split", [False, True])
def test_heads(kept: int | None, position: str, given: dict[str, Any], split: bool) -> None:
    torch.manual_seed(seed(1))
    places = {"num_positions": 99} if position == "absolute" else {}
    config = config_of(num_kv_heads=kept, position=position, **places, **given)
    module = Attention(config, 0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.5)
    lengths = [7, 1, 11]
    bounds, x = torch.tensor([0, 7, 8, 19]), torch.randn(19, 24, requires_grad=True)
    wanted = written_out(module, config, x, lengths)
    share = torch.randn(wanted.shape, dtype=torch.float64)
    right = torch.autograd.grad((wanted * share).sum(), x)[0]
    if split:
        rows = [n * config.head_dim for n in (config.num_heads, *(2 * [config.kv_heads]))]
        parts = []
        whole: Any = module.qkv
        for weight, bias in zip(whole.weight.split(rows), whole.bias.split(rows), strict=True):
            parts.append(Linear(24, len(weight)))
            parts[-1].weight.data, parts[-1].bias.data = weight.detach(), bias.detach()
        module.qkv = SplitLinear(parts)
    call = call_of(config, None, 19, bounds, None, True, None, None, 0)
    got = module(x, call)
    torch.testing.assert_close(got.double(), wanted, rtol=2e-5, atol=2e-5)
    (grad,) = torch.autograd.grad((got.double() * share).sum(), x)
    torch.testing.assert_close(grad.double(), right.double(), rtol=1e-4, atol=1e-4)


class Widened(torch.nn.Module):
    """In the place of a linear layer, as an adapter with float32 parameters of its own."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, backend: str | None) -> Tensor:
        return self.layer(x, backend).float()


@pytest.mark.parametrize("wide", [0, 1])
@pytest.mark.parametrize(
    "given", [{}, {"head_norm": True, "norm": "rms"}, {"qk_norm": True}, {"log_length": 5}], ids=str
)
@pytest.mark.parametrize("position", ["rotary", "absolute"])
def test_a_part_that_answers_in_another_dtype(
    position: str, given: dict[str, Any], wide: int
) -> None:
    """Queries and keys are taken in that of the values."""
    torch.manual_seed(seed(5))
    places = {"num_positions": 99} if position == "absolute" else {}
    config = config_of(num_kv_heads=2, position=position, **places, **given)
    module = Attention(config, 0).bfloat16()
    parts: list[Any] = [Linear(24, 6 * heads).bfloat16() for heads in (4, 2, 2)]
    module.qkv = SplitLinear(parts)
    call = call_of(config, None, 19, torch.tensor([0, 7, 8, 19]), None, True, None, None, 0)
    x = torch.randn(19, 24).bfloat16()
    right = module(x, call)
    module.qkv.parts[wide] = Widened(parts[wide])
    assert torch.equal(module(x, call), right)


@pytest.mark.parametrize("without", ["q_norm", "k_norm"])
@pytest.mark.parametrize("position", ["rotary", "absolute"])
def test_a_norm_that_is_taken_out_leaves_the_other(position: str, without: str) -> None:
    torch.manual_seed(seed(4))
    places = {"num_positions": 99} if position == "absolute" else {}
    config = config_of(num_kv_heads=2, position=position, head_norm=True, norm="rms", **places)
    module = Attention(config, 0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.5)
    call = call_of(config, None, 19, torch.tensor([0, 7, 8, 19]), None, True, None, None, 0)
    kept = module.k_norm if without == "q_norm" else module.q_norm
    setattr(module, without, None)
    with torch.no_grad():
        x, asked = torch.randn(19, 24), []
        before = module(x, call)
        assert kept is not None
        kept.register_forward_hook(lambda *_: asked.append(1))
        after = module(x, call)
        assert asked == [1]
        torch.testing.assert_close(before, after)
        kept.weight.mul_(3)
        assert not torch.allclose(module(x, call), after, atol=1e-3)


@pytest.mark.parametrize("local", [(), (True, False)], ids=str)
@pytest.mark.parametrize("backend", [None, "torch", "reference"])
def test_no_token_sees_one_after_it(backend: str | None, local: tuple[bool, ...]) -> None:
    """Of a whole encoder, in rows with padding on either side and with holes: what comes after a
    token changes nothing of it."""
    torch.manual_seed(seed(2))
    window = {"window": 4, "local_rotary": Rotary(7.0)} if local else {}
    config = config_of(num_layers=2, causal=True, norm_first=True, local=local, **window)
    encoder = Encoder(config, backend=backend).eval()
    ids = torch.randint(0, 9, (4, 17))
    mask = torch.ones_like(ids)
    mask[1, :5], mask[2, 12:], mask[3, [1, 2, 7]] = 0, 0, 0
    with torch.no_grad():
        whole = encoder(ids, mask)
        other = ids.clone()
        other[:, 11:] = (ids[:, 11:] + 1) % 9
        changed, begun = encoder(other, mask), encoder(ids[:, :11], mask[:, :11])
    torch.testing.assert_close(changed[:, :11], whole[:, :11], rtol=0, atol=2e-6)
    torch.testing.assert_close(begun, whole[:, :11], rtol=0, atol=2e-6)
    seen = mask[:, 11:].bool()
    assert (changed[:, 11:] - whole[:, 11:])[seen].abs().max() > 0.1
    free = Encoder(replace(config, causal=False)).eval()
    free.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert (free(ids, mask) - whole)[:, :11].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_kv_heads": 0}, "num_heads 4 must be a multiple of num_kv_heads 0"),
        ({"num_kv_heads": 3}, "num_heads 4 must be a multiple of num_kv_heads 3"),
        ({"num_kv_heads": 8}, "num_heads 4 must be a multiple of num_kv_heads 8"),
        ({"qk_norm": True, "head_norm": True}, "qk_norm and head_norm are two norms"),
        ({"term_norm": True}, "term_norm True goes with norm_first alone"),
        ({"embedding_scale": float("nan")}, "embedding_scale must be finite"),
    ],
)
def test_bad_shapes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of(**given)
