"""The attention function by itself: what it is asked for it does, or refuses by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyenc
from pyenc.errors import InputError

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DebertaV2Config,
    MPNetConfig,
    T5Config,
    masking_utils,
)

from pyenc.integrations.transformers.attention import attention_forward
from pyenc.integrations.transformers.mask import padding_mask
from tests.integrations.transformers.register_support import registered as registered

B, H, N, D = 3, 4, 21, 8
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "vocab_size": 60,
}  # fmt: skip


class Layer(nn.Module):
    is_causal = False


def heads(count: int = H, rows: int = B) -> Tensor:
    return torch.randn(rows, count, N, D)


def mask(kept: Tensor | None = None, **changes: Any) -> Tensor:
    rows = B if kept is None else len(kept)
    given: dict[str, Any] = {
        "q_length": N,
        "kv_length": N,
        "mask_function": masking_utils.bidirectional_mask_function,
        "attention_mask": kept,
    }
    return padding_mask(rows, **given | changes)


def window(size: int, **changes: Any) -> Tensor:
    function = masking_utils.sliding_window_bidirectional_mask_function(size)
    return mask(**{"mask_function": function, "local_size": size} | changes)


def dense(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float, bias: Tensor | float = 0.0
) -> Tensor:
    """(B, N, H, D) in float64; allowed broadcasts to (B, H, N, N)."""
    q, k, v = (x.double() for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2) * scale + bias).masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def off(got: Tensor, right: Tensor, kept: Tensor | None = None) -> float:
    difference = (got.double() - right).abs()
    return float((difference if kept is None else difference[kept]).max())


def test_scaling_and_grouped_heads() -> None:
    q, k, v = heads(), heads(2), heads(2)
    got, weights = attention_forward(Layer(), q, k, v, None, scaling=0.7)
    assert weights is None
    wide = (x.repeat_interleave(2, 1) for x in (k, v))
    assert off(got, dense(q, *wide, torch.ones(N, N, dtype=torch.bool), 0.7)) <= 1e-5


@pytest.mark.parametrize("kind", ["right", "left", "holes"])
def test_window_under_padding(kind: str) -> None:
    """Distances are of columns; said by the mask alone, by the call alone, or by both."""
    kept = torch.ones(B, N, dtype=torch.bool)
    kept[1, 12:] = kind != "right"
    kept[1, :7] = kind != "left"
    kept[2, 4:9:2] = kind != "holes"
    q, k, v = (heads() for _ in range(3))
    columns = torch.arange(N)
    near = (columns[:, None] - columns).abs() <= 3
    right = dense(q, k, v, kept[:, None, None] & near, D**-0.5)
    for given, size in ((window(3, kept=kept), None), (mask(kept), 4), (window(3, kept=kept), 4)):
        got, _ = attention_forward(Layer(), q, k, v, given, sliding_window=size)
        assert off(got, right, kept) <= 1e-5
        assert not got[~kept].any()
    with pytest.raises(InputError, match="window of 3 on each side, and the call of 5"):
        attention_forward(Layer(), q, k, v, window(3), sliding_window=6)


def test_position_bias() -> None:
    q, k, v = (heads() for _ in range(3))
    bias = torch.randn(1, H, N, N)
    got, _ = attention_forward(Layer(), q, k, v, mask(), position_bias=bias, scaling=1.0)
    everything = torch.ones(N, N, dtype=torch.bool)
    assert off(got, dense(q, k, v, everything, 1.0, bias.double())) <= 1e-5


def test_positions_that_begin_anew() -> None:
    q, k, v = (heads(rows=1) for _ in range(3))
    lengths = torch.tensor([5, 1, 15])
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()])[None]
    number = torch.repeat_interleave(torch.arange(3), lengths)
    right = dense(q, k, v, number[:, None] == number, D**-0.5)
    for given in ({"position_ids": positions}, {"cu_seq_lens_q": bounds}):
        got, _ = attention_forward(Layer(), q, k, v, None, **given)
        assert off(got, right) <= 1e-5
    # Positions of another kind say nothing about sequences: eager has one.
    whole = dense(q, k, v, torch.ones(N, N, dtype=torch.bool), D**-0.5)
    for other in (torch.arange(N)[None], torch.arange(N)[None] + 3, torch.arange(N)[None] // 2):
        got, _ = attention_forward(Layer(), q, k, v, None, position_ids=other)
        assert off(got, whole) <= 1e-5


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"is_causal": True}, "Layer is causal"),
        ({"s_aux": torch.zeros(H)}, "s_aux"),
        ({"head_mask": torch.ones(H)}, "head_mask"),
        ({"output_attentions": True}, "output_attentions"),
        ({"attention_mask": torch.zeros(B, 1, N, N)}, r"\(3, 1, 21, 21\) made by its caller"),
        ({"attention_mask": torch.ones(B, N)}, "made by its caller"),
        ({"key": torch.randn(B, H, N + 1, D)}, "another sequence, or to a cache"),
        ({"key": heads(3), "value": heads(3)}, "4 heads of queries and 3 of keys"),
        ({"cu_seq_lens_q": torch.tensor([0, N])}, "cu_seq_lens_q goes with one row"),
        ({"value": heads().double()}, "dtype"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_refused(given: dict[str, Any], named: str) -> None:
    call: dict[str, Any] = {"query": heads(), "key": heads(), "value": heads()}
    with pytest.raises(InputError, match=named):
        attention_forward(Layer(), **{"attention_mask": None} | call | given)


def test_a_layer_that_says_it_is_causal() -> None:
    layer = Layer()
    layer.is_causal = True
    x = heads()
    with pytest.raises(InputError, match="causal"):
        attention_forward(layer, x, x, x, None)
    attention_forward(layer, x, x, x, None, is_causal=False)  # the call counts


def test_cross_attention_of_equal_lengths() -> None:
    class CrossAttention(Layer):
        pass

    x = heads()
    with pytest.raises(InputError, match="CrossAttention attends to another sequence"):
        attention_forward(CrossAttention(), x, x, x, mask())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mask_function": masking_utils.sliding_window_causal_mask_function(4)}, "mask is"),
        (
            {"mask_function": masking_utils.causal_mask_function, "local_size": 4},
            "mask is causal_mask_function",
        ),
        ({"mask_function": masking_utils.sliding_window_bidirectional_mask_function(4)}, "mask is"),
        (
            {"mask_function": masking_utils.sliding_window_bidirectional_mask_function(4),
             "local_size": 5},
            "mask is",
        ),
        ({"mask_function": None}, "mask is None"),
        ({"use_vmap": True, "mask_function": None}, "a rule of its own"),
        ({"kv_length": N + 2}, "21 queries and 23 keys"),
        ({"q_offset": 3}, "a cache"),
    ],
)  # fmt: skip
def test_masks_that_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        mask(**changes)


def test_a_mask_is_not_computed_with() -> None:
    """A model that adds masks to scores of its own would take ones for an addition."""
    given = mask(torch.ones(B, N, dtype=torch.bool))
    assert given.shape == (B, N)
    assert given.device.type == "cpu"
    for compute in (
        lambda: torch.zeros(B, H, N, N) + given[:, None, None],
        lambda: torch.zeros(N, N) + given,
        lambda: given.to(torch.float32),
        lambda: 1.0 - given,
    ):
        with pytest.raises(InputError, match="this model computes with its mask"):
            compute()


@pytest.mark.usefixtures("registered")
class TestModels:
    def test_mpnet(self) -> None:
        """Its attention is its own."""
        config = MPNetConfig(**SMALL)
        model = AutoModel.from_config(config, attn_implementation="pyenc")
        with pytest.raises(InputError, match="this model computes with its mask"):
            model(torch.full((2, 2), 5), attention_mask=torch.tensor([[1, 1], [1, 0]]))

    def test_who_takes_no_notice_of_the_name(self) -> None:
        """As the page says: DeBERTa asks transformers neither for its attention nor for a mask."""
        ids, mask = torch.full((2, 2), 5), torch.tensor([[1, 1], [1, 0]])
        model = AutoModel.from_config(DebertaV2Config(**SMALL)).eval()
        named = AutoModel.from_config(DebertaV2Config(**SMALL), attn_implementation="pyenc").eval()
        named.load_state_dict(model.state_dict())
        answers = [each(ids, attention_mask=mask).last_hidden_state for each in (model, named)]
        assert torch.equal(*answers)

    def test_decoders(self) -> None:
        ids = torch.full((2, 5), 7)
        bert = BertModel._from_config(
            BertConfig(**SMALL, is_decoder=True), attn_implementation="pyenc"
        )
        with pytest.raises(InputError, match="causal"):
            bert(ids)
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        config = T5Config(**sizes, vocab_size=60, decoder_start_token_id=0)
        t5 = AutoModel.from_config(config, attn_implementation="pyenc")
        with pytest.raises(InputError, match="causal"):
            t5(input_ids=ids, decoder_input_ids=ids)

    def test_a_mask_of_the_callers_own(self) -> None:
        bert = AutoModel.from_config(BertConfig(**SMALL), attn_implementation="pyenc")
        with pytest.raises(InputError, match="made by its caller"):
            bert(torch.full((2, 5), 7), attention_mask=torch.zeros(2, 1, 5, 5))

    def test_attention_weights(self) -> None:
        bert = AutoModel.from_config(BertConfig(**SMALL), attn_implementation="pyenc")
        with pytest.raises(ValueError, match="output_attentions"):
            bert(torch.full((2, 5), 7), output_attentions=True)


def test_only_while_registered() -> None:
    pyenc.unregister()
    with pytest.raises(ValueError, match='attn_implementation="pyenc"'):
        AutoModel.from_config(BertConfig(**SMALL), attn_implementation="pyenc")


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation gives."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor) and each.layout == torch.strided:
                # What is expanded takes the memory of what it is a view of.
                self.count = max(self.count, each.untyped_storage().nbytes())
        return out


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("padded", [False, True])
def test_memory_is_linear(padded: bool) -> None:
    """No (N, N) tensor, forward or backward: of eager's there is one as a control."""
    length = 1024
    config = BertConfig(**SMALL, max_position_embeddings=length)
    ids = torch.full((1, length), 7)
    kept = torch.ones(1, length, dtype=torch.long)
    kept[0, length - 100 :] = not padded
    largest = {}
    for name in ("eager", "pyenc"):
        model = AutoModel.from_config(config, attn_implementation=name).eval()
        with Largest() as seen:
            model(ids, attention_mask=kept).last_hidden_state.sum().backward()
        largest[name] = seen.count
    assert largest["eager"] >= 4 * length**2
    assert largest["pyenc"] < length**2 / 2
