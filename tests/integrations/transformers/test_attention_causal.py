"""`attn_implementation="pyenc"` in transformers' language models, against their eager attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

import transformers as hf
from transformers import masking_utils

from pyenc.integrations.transformers.attention import attention_forward
from pyenc.integrations.transformers.mask import PaddingMask, padding_mask
from tests.integrations.transformers.register_support import registered as registered
from tests.integrations.transformers.test_attention_models import (
    SIZES,
    WORDS,
    inputs,
    padding,
    same_as_eager,
)

pytestmark = pytest.mark.usefixtures("registered")

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2, windows": (
        "Qwen2Config", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2, both sides": ("Qwen2Config", {"is_causal": False}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral, windows": ("MistralConfig", {"sliding_window": 6}),
    "gemma 2": (
        "Gemma2Config", {"head_dim": 8, "sliding_window": 5, "attn_logit_softcapping": 1.5},
    ),
    "gemma 3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 5}),
    "gemma 3, both sides": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": 5, "use_bidirectional_attention": True},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80}),
}  # fmt: skip
OF_ONE_SIDE = [name for name in MODELS if "both sides" not in name]


def pair(name: str) -> tuple[Any, Any]:
    """One model twice, eager and pyenc's."""
    kind, changes = MODELS[name]
    config = getattr(hf, kind)(**SIZES | {"num_key_value_heads": 2} | changes)
    eager = hf.AutoModel.from_config(config, attn_implementation="eager").eval()
    ours = copy.deepcopy(eager)
    ours.set_attn_implementation("pyenc")
    return eager, ours


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_eager(name: str, kind: str) -> None:
    same_as_eager(*pair(name), inputs(padding(kind)))


@pytest.mark.parametrize("name", OF_ONE_SIDE)
def test_packed_in_one_row(name: str) -> None:
    """By positions that begin again, or cumulative lengths beside: each text by itself."""
    eager, ours = pair(name)
    lengths = [7, 1, 12, 20, 1, 1]
    texts = [torch.randint(3, WORDS, (1, n)) for n in lengths]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    right = torch.cat([eager(input_ids=text).last_hidden_state for text in texts], 1)
    given: dict[str, Any] = {"input_ids": torch.cat(texts, 1), "position_ids": positions}
    given["use_cache"] = False
    beside = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 20}
    for more in ({}, beside):
        out = ours(**given, **more).last_hidden_state
        assert (out - right).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["qwen3", "gemma 2"])
def test_what_is_generated(name: str) -> None:
    """The prompt goes through it, with a cache too; the words after it attend to that cache."""
    eager, ours = pair(name)
    given = inputs(padding("left"))
    kept = given["attention_mask"] == 1
    a, b = (model(**given, use_cache=True).last_hidden_state for model in (eager, ours))
    assert (a - b)[kept].abs().max() <= 1e-5
    cache = ours(**given, use_cache=True).past_key_values
    mask = torch.nn.functional.pad(given["attention_mask"], (0, 1), value=1)
    with pytest.raises(InputError, match="1 queries and 38 keys: a cache"):
        ours(given["input_ids"][:, :1], attention_mask=mask, past_key_values=cache)


def test_memory_is_linear() -> None:
    """Under a soft cap, for which eager attention is what transformers has, and a window."""
    from tests.integrations.transformers.test_attention_calls import Largest

    length, largest = 1024, []
    kind, changes = MODELS["gemma 2"]
    sizes = SIZES | {"max_position_embeddings": length, "sliding_window": 100}
    config = getattr(hf, kind)(**changes | sizes)
    for name in ("eager", "pyenc"):
        model = hf.AutoModel.from_config(config, attn_implementation=name).eval()
        with Largest() as seen:
            model(torch.full((1, length), 7)).last_hidden_state.sum().backward()
        largest.append(seen.count)
    assert largest[0] >= 4 * length**2
    assert largest[1] < length**2 / 2


N = 21


class Layer(torch.nn.Module):
    is_causal = True


def rule(function: Any, rows: int = 1, length: int = N, **more: Any) -> PaddingMask:
    return padding_mask(rows, length, length, mask_function=function, **more)


def seen(mask: PaddingMask, size: int | None = None, softcap: float | None = None) -> Tensor:
    """The weights of each key, (N, N), where all scores are equal."""
    length = mask.shape[1]
    q = torch.zeros(1, 1, length, length)
    out, _ = attention_forward(
        Layer(), q, q, torch.eye(length)[None, None], mask, sliding_window=size, softcap=softcap
    )
    return out[0, :, 0]


def test_which_keys_are_seen() -> None:
    at = torch.arange(N)
    before = at[None] <= at[:, None]
    near = at[:, None] - at[None] < 4
    windows, alone = map(masking_utils.sliding_window_causal_mask_function, (4, 1))
    for mask, size, right in (
        (rule(masking_utils.causal_mask_function), None, before),
        (rule(masking_utils.causal_mask_function), N, before),
        (rule(windows, local_size=4), None, before & near),
        (rule(windows, local_size=4), 4, before & near),
        (rule(alone, local_size=1), None, at[None] == at[:, None]),
    ):
        assert mask.causal
        assert torch.equal(seen(mask, size) > 0, right)
    for mask, story in (
        (rule(windows, local_size=4), "a window of 3 before it"),
        (rule(masking_utils.causal_mask_function), "no window before it"),  # as OLMoE's
    ):
        with pytest.raises(InputError, match=f"the mask has {story}, and the call of 4"):
            seen(mask, 5)
    assert rule(masking_utils.causal_mask_function, length=0).causal


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_one_token(name: str, rows: int) -> None:
    """Which sees itself, whatever the window."""
    eager, ours = pair(name)
    ids = torch.randint(3, WORDS, (rows, 1))
    right, got = (model(ids).last_hidden_state for model in (eager, ours))
    assert (right - got).abs().max() <= 1e-5


def test_a_row_that_is_packed_beside_one_that_is_not() -> None:
    """Each row is asked."""
    _, ours = pair("mistral, windows")
    positions = torch.stack([torch.arange(12), torch.arange(12) % 5])
    ids = torch.randint(3, WORDS, (2, 12))
    for order in ([0, 1], [1, 0]):
        with pytest.raises(InputError, match="this model's mask is and_masks"):
            ours(ids, position_ids=positions[order], use_cache=False)


@pytest.mark.parametrize("length", [1, 2])
def test_short_rows(length: int) -> None:
    for function, size in (
        (masking_utils.causal_mask_function, None),
        (masking_utils.sliding_window_causal_mask_function(2), 2),
    ):
        mask = rule(function, length=length, local_size=size)
        assert torch.equal(seen(mask) > 0, torch.ones(length, length).tril() > 0)


def packed(function: Any, numbers: Tensor) -> Any:
    """As transformers makes it of positions that begin again."""
    positions = torch.cat([torch.arange(int(n)) for n in numbers.bincount()])[None]
    moved = masking_utils.remap_positions_for_packed_sequence(function, positions)
    apart = masking_utils.packed_sequence_mask_function(numbers[None])
    return masking_utils.and_masks(moved, apart)


def test_masks_of_other_rules() -> None:
    numbers, chunks = torch.tensor([0] * 6 + [1] * 2 + [2] * 13), torch.arange(N) // 7
    causal = masking_utils.causal_mask_function
    chunked = masking_utils.chunked_causal_mask_function(7, torch.zeros(2, dtype=torch.int64))
    for mask, number in (
        (rule(packed(causal, numbers)), numbers),
        (rule(chunked, local_size=7), chunks),  # which are sequences, as Llama 4 has them
    ):
        right = (number[:, None] == number) & (torch.ones(N, N).tril() > 0)
        assert torch.equal(seen(mask) > 0, right)
    blocks = torch.full((1, N), -1)
    blocks[0, 9:12] = 0
    pairs = masking_utils.or_masks(causal, masking_utils.blockwise_overlay(blocks))
    for function, more in (
        (pairs, {}),
        (packed(pairs, numbers), {}),
        (packed(causal, numbers), {"rows": 2}),
        (packed(causal, numbers), {"attention_mask": torch.ones(1, N, dtype=torch.bool)}),
        (packed(masking_utils.bidirectional_mask_function, numbers), {}),
        (chunked, {"local_size": 7, "rows": 2}),
        (chunked, {"local_size": 7, "rows": 2, "length": 14}),
        (masking_utils.sliding_window_causal_mask_function(4), {"local_size": 5}),
        (masking_utils.sliding_window_causal_mask_function(4), {}),
        (lambda b, h, i, j: j >= i, {}),
    ):
        with pytest.raises(InputError, match="this model's mask is"):
            rule(function, **more)


def test_rules_of_a_models_own() -> None:
    """All pairs of every row are asked, so that one that differs is seen."""
    at = torch.arange(N)
    far = at[:, None] - at
    before, near = far >= 0, far.abs() < 4
    causal = masking_utils.causal_mask_function
    windows = masking_utils.sliding_window_causal_mask_function(4)

    def own(function: Any, **more: Any) -> PaddingMask:
        return rule(function, use_vmap=True, **more)

    whole = own(lambda *_: torch.tensor(True))
    assert (whole.causal, whole.window) == (False, None)
    both = own(
        masking_utils.or_masks(windows, lambda b, h, i, j: abs(i - j) < 4), local_size=4, rows=3
    )
    assert (both.causal, both.window) == (False, 3)
    assert torch.equal(seen(own(windows, local_size=4), 4) > 0, before & near)
    assert torch.equal(seen(own(causal)) > 0, before)
    for function in (
        lambda b, h, i, j: (j <= i) | ((i == 11) & (j == 12)),
        lambda b, h, i, j: (j <= i) | ((b == 2) & (i == 3)),
        lambda b, h, i, j: j <= i if int(b) < 2 else j <= i + 1,
        lambda b, h, i, j: True if i == j else j < i,  # of one pair at a time
        lambda b, h, i, j: (i - j).abs() < 5,
    ):
        with pytest.raises(InputError, match="mask has a rule of its own"):
            own(function, rows=3, local_size=4)


@pytest.mark.parametrize("key", ["is_decoder", "is_encoder_decoder", "add_cross_attention"])
def test_decoders_beside_an_encoder(key: str) -> None:
    config = hf.BertConfig(**{key: True})
    with pytest.raises(InputError, match="causal beside an encoder"):
        rule(masking_utils.causal_mask_function, config=config)
    rule(masking_utils.bidirectional_mask_function, config=config)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("inf"), float("nan")])
def test_caps_that_cap_nothing(cap: float) -> None:
    mask = rule(masking_utils.causal_mask_function)
    with pytest.raises(InputError, match="softcap must be positive and finite"):
        seen(mask, softcap=cap)


def test_what_contradicts() -> None:
    mask = rule(masking_utils.bidirectional_mask_function)
    assert (seen(mask) > 0).all()  # the layer says causal, and the mask decides
    q = torch.zeros(1, 1, N, 8)
    with pytest.raises(InputError, match="Layer is causal, and its mask is not"):
        attention_forward(Layer(), q, q, q, mask, is_causal=True)
    with pytest.raises(InputError, match="Layer is causal without a mask"):
        attention_forward(Layer(), q, q, q, None)
    with pytest.raises(InputError, match="softcap beside a position_bias"):
        attention_forward(
            Layer(), q, q, q, mask, softcap=2.0, position_bias=torch.zeros(1, 1, N, N)
        )


def test_biases_of_more_than_the_distance() -> None:
    """As Inkling's, made of its queries: it is looked up by places among the tokens."""
    function = masking_utils.bidirectional_mask_function
    q, own = torch.zeros(1, 1, N, N), torch.randn(1, 1, N, N)
    kept = torch.ones(1, N, dtype=torch.bool)
    right, left = kept.clone(), kept.clone()
    right[0, 15:], left[0, :4] = False, False
    at = torch.arange(N)
    distance = torch.randn(2 * N)[at[:, None] - at + N][None, None]
    for bias, mask in ((own, right), (distance, right), (distance, left)):
        given = rule(function, attention_mask=mask)
        out, _ = attention_forward(
            Layer(), q, q, torch.eye(N)[None, None], given, position_bias=bias
        )
        wanted = bias[0, 0].masked_fill(~mask, -torch.inf).softmax(-1)
        assert (out[0, :, 0] - wanted)[mask[0]].abs().max() < 1e-6
    parts = torch.tensor([0] * 6 + [1] * 15)
    apart = packed(masking_utils.causal_mask_function, parts)
    for bias, mask, story in (
        (own, rule(function, attention_mask=left), "of more than the distance, under padding on"),
        (own.expand(3, -1, -1, -1), rule(function, rows=3), "of a row's own"),
        (own, rule(apart), "of packed sequences"),
    ):
        x = q.expand(len(mask), -1, -1, -1)
        with pytest.raises(InputError, match=f"a position_bias {story}"):
            attention_forward(Layer(), x, x, x, mask, position_bias=bias)


def test_an_attention_that_says_nothing_of_itself() -> None:
    """BLIP-2's, which is of two sequences in every other layer."""

    class Blip2QFormerMultiHeadAttention(Layer):
        pass

    q, mask = torch.zeros(1, 1, N, 8), rule(masking_utils.bidirectional_mask_function)
    with pytest.raises(InputError, match="attends to another sequence"):
        attention_forward(Blip2QFormerMultiHeadAttention(), q, q, q, mask)
