"""`attn_implementation="pyenc"`: the attention of transformers' own models, packed.

Under a padding mask the tokens alone are computed, and no (N, N) tensor is made, forward or
backward. What the function cannot do (a cache, cross-attention, masks of a caller's own) it
refuses.

Shapes as suffixes: B rows, N padded length, T packed tokens, H heads, D head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...models.places import places
from ...ops import SoftCap, attention
from ...ops.attention.soft_cap import soft_cap
from .mask import NAME, ONLY, PaddingMask

IGNORED = frozenset({
    "output_hidden_states", "return_dict", "use_cache", "deterministic", "num_items_in_batch",
    "cu_seq_lens_k", "max_length_q", "max_length_k", "cache_position", "labels", "shift_labels",
})  # fmt: skip
"""What reaches the attention and changes nothing in it."""

__all__ = ["NAME", "attention_forward"]


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers' `AttentionInterface`.

    Args:
        module: the layer that asks.
        query: (B, H, N, D).
        key, value: (B, H or a divisor of it, N, D).
        attention_mask: what `padding_mask` made; None: no padding.
        dropout: of the attention weights.
        scaling: factor of the scores; default D ** -0.5.
        sliding_window: keys nearer than this on each side, as flash attention is told it.
        softcap: scores become softcap * tanh(score / softcap).
        is_causal: the mask decides, as in eager attention. Refused where true and the mask is not,
            or where there is none, as is then a layer that says so of itself.
        position_bias: (1, H, N, N), added to the scores (T5, which makes it).
        position_ids, cu_seq_lens_q: of packed sequences in one row, those that begin anew and
            cumulative lengths; either says where they are.
        kwargs: what changes nothing; others are refused.

    Returns:
        (B, N, H, D), zeros where there is padding, and None in the place of the weights.

    Raises:
        InputError: the call asks for what is not served.
    """
    _check_call(module, query, key, attention_mask, is_causal, kwargs)
    rows, _, length, _ = query.shape
    window = _window(attention_mask, sliding_window, length)
    bias = _bias(softcap, position_bias, attention_mask, query)
    index = positions = None
    if isinstance(attention_mask, PaddingMask):
        packed = attention_mask.packed
        index, cu_seqlens = packed.index, packed.cu_seqlens
        # Distances count where a window ends somewhere; before and after are the packed order's.
        near = window is not None and max(window) > 0
        positions = packed.positions if packed.has_holes and near else None
    else:
        cu_seqlens = torch.arange(rows + 1, device=query.device) * length
    joined = _joined(rows, length, cu_seq_lens_q, position_ids, index is not None)
    if joined is not None:
        if position_bias is not None:
            raise InputError(f"{ONLY}; a position_bias of packed sequences is not served")
        cu_seqlens = joined

    def tokens(x: Tensor) -> Tensor:
        x_THD = x.transpose(1, 2).flatten(0, 1)
        if index is not None:
            x_THD = x_THD.index_select(0, index)
        return x_THD

    out_THD = attention(
        tokens(query),
        tokens(key),
        tokens(value),
        cu_seqlens,
        bias=bias,
        positions=positions,
        scale=scaling,
        window=window,
        dropout_p=dropout,
    )
    assert isinstance(out_THD, Tensor)
    if index is not None:
        out_THD = out_THD.new_zeros(rows * length, *out_THD.shape[1:]).index_copy(0, index, out_THD)
    return out_THD.unflatten(0, (rows, length)), None


def _check_call(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None,
    kwargs: dict[str, Any],
) -> None:
    name = type(module).__name__
    if isinstance(attention_mask, PaddingMask):
        if is_causal and not attention_mask.causal:
            raise InputError(f"{ONLY}; {name} is causal, and its mask is not")
    elif getattr(module, "is_causal", False) if is_causal is None else is_causal:
        raise InputError(f"{ONLY}; {name} is causal without a mask that says so")
    # BLIP-2's attention says of itself neither that it is of two sequences nor that it is of one.
    cross = "Cross" in name or "QFormer" in name or getattr(module, "is_cross_attention", False)
    if cross or query.shape[-2] != key.shape[-2]:
        raise InputError(f"{ONLY}; {name} attends to another sequence, or to a cache")
    if attention_mask is not None and not isinstance(attention_mask, PaddingMask):
        raise InputError(
            f"{ONLY}; {name} got a mask of {tuple(attention_mask.shape)} made by its caller: give "
            "the model zeros and ones of (B, N)"
        )
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise InputError(
            f"{ONLY}; {name} has {query.shape[1]} heads of queries and {key.shape[1]} of keys"
        )
    for argument, value in kwargs.items():
        if argument not in IGNORED and value is not None and value is not False:
            raise InputError(f"{ONLY}; {name} asks for {argument}, which is not served")


def _window(mask: Tensor | None, sliding_window: int | None, length: int) -> tuple[int, int] | None:
    """What a query sees on each side: said by the mask, by the call, or by both alike."""
    padding = mask if isinstance(mask, PaddingMask) else None
    by_mask = None if padding is None else padding.window
    by_call = None if sliding_window is None else sliding_window - 1
    causal = padding is not None and padding.causal
    # A causal mask without a window is whole: its model's other attentions would not agree.
    cut = causal and by_mask is None and by_call is not None and by_call < length - 1
    if cut or (None not in (by_mask, by_call) and by_mask != by_call):
        of_mask = "no window" if by_mask is None else f"a window of {by_mask}"
        where = "before it" if causal else "on each side"
        raise InputError(f"{ONLY}; the mask has {of_mask} {where}, and the call of {by_call}")
    window = by_mask if by_call is None else by_call
    if causal:
        return (-1 if window is None else window, 0)
    return None if window is None else (window, window)


def _bias(
    softcap: float | None, position_bias: Tensor | None, mask: Tensor | None, query: Tensor
) -> Tensor | SoftCap | None:
    """What is done to scores."""
    if softcap is None:
        if position_bias is None:
            return None
        _check_position_bias(position_bias, mask, len(query))
        return position_bias[0].to(query.dtype)
    if position_bias is not None:
        raise InputError(f"{ONLY}; a softcap beside a position_bias is not served")
    if not 0 < softcap < math.inf:
        raise InputError(f"{ONLY}; softcap must be positive and finite, got {softcap}")
    return soft_cap(softcap, query.shape[1], query.device)


def _check_position_bias(bias: Tensor, mask: Tensor | None, rows: int) -> None:
    """It is looked up by places among the tokens, where it was made for columns of the rows."""
    why = None
    if bias.shape[0] != 1:
        why = "of a row's own"
    elif isinstance(mask, PaddingMask):
        packed = mask.packed
        if packed.has_holes:
            why = "under a mask with holes"
        elif len(packed.cu_seqlens) != rows + 1:
            why = "of packed sequences"
        elif packed.index is not None:
            moved = packed.positions != places(packed.cu_seqlens, len(packed.positions))
            if bool(moved.any()) and not bool((bias[..., 1:, 1:] == bias[..., :-1, :-1]).all()):
                why = "of more than the distance, under padding on the left,"
    if why is not None:
        raise InputError(f"{ONLY}; a position_bias {why} is not served")


def _joined(
    rows: int,
    length: int,
    cu_seq_lens: Tensor | None,
    position_ids: Tensor | None,
    padded: bool,
) -> Tensor | None:
    """Cumulative lengths of sequences that stand in one row, if they do."""
    if cu_seq_lens is None:
        if position_ids is None or rows != 1 or padded or position_ids.shape[-1] != length:
            return None
        starts = (position_ids.reshape(-1) == 0).nonzero().squeeze(-1)
        if len(starts) < 2:
            return None
        cu_seq_lens = torch.cat([starts, starts.new_tensor([length])])
        restored = places(cu_seq_lens, length)
        if int(starts[0]) or not bool((restored == position_ids.reshape(-1)).all()):
            return None  # positions of another kind
        return cu_seq_lens
    if rows != 1 or padded:
        raise InputError(f"{ONLY}; cu_seq_lens_q goes with one row without padding, not {rows}")
    return cu_seq_lens
