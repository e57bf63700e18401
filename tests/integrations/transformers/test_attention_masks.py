"""Which keys the masks of transformers' models let be seen by `attn_implementation="pyenc"`, and
what it refuses."""

from __future__ import annotations

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
