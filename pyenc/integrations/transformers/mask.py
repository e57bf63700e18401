"""A padding mask on its way to `attention_forward`: what was padded, as packing has it.

transformers makes masks once a call, of the size of the scores where an implementation asks for it.
Here it stays the (B, N) that it was, and each layer finds beside it where the tokens are.

Shapes as suffixes: B rows, N padded length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from ...errors import InputError
from ...models.packing import Packed, pack
from .mask_rule import MaskRule

NAME = "pyenc"
"""Of the attention. One with "flash" in it sentence-transformers takes for a package's."""

ONLY = (
    f"attn_implementation={NAME!r} serves texts read as a whole, whose tokens all see one another, "
    "or those before them, but for padding and windows"
)

DECODER = ("is_decoder", "is_encoder_decoder", "add_cross_attention")
"""Any of them in a config: its causal layers stand beside others that attend to an encoder."""

_PROPERTIES = ("shape", "ndim", "dtype", "device", "is_cuda", "is_cpu", "requires_grad", "layout")
_METHODS = ("size", "dim", "numel", "is_floating_point", "__len__", "__repr__")
_READ = frozenset(
    {vars(torch._C.TensorBase)[name].__get__ for name in _PROPERTIES}
    | {getattr(Tensor, name) for name in _METHODS}
)
"""What may be asked of a mask."""


class PaddingMask(Tensor):
    """A (B, N) mask, ones where there are tokens, that is handed on and not computed with.

    A model whose layers add masks to scores of their own, and do not ask transformers for its
    attention (MPNet), would add these ones and get other vectors: it gets an error.
    """

    packed: Packed
    causal: bool
    """Whether no token sees one after it."""
    window: int | None
    """Keys a query sees on each side, or before it where it is causal; None: all."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in _READ:
            raise InputError(
                f"{ONLY}; this model computes with its mask ({getattr(func, '__name__', func)}), "
                "so its attention is its own, or torch.compile is around it: leave "
                "attn_implementation out, or use pyenc.load"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str | None = None,
    config: object = None,
    **kwargs: Any,
) -> PaddingMask:
    """The mask function of transformers' `AttentionMaskInterface`.

    Args:
        mask_function: which key a query sees: all, those before it, or of either those within a
            distance; or those before it of the same sequence, of several in one row.
        attention_mask: (B, N) bool; None: no padding.
        local_size: that distance; where a query sees those before it, counted with itself.
        use_vmap: whether the model has put a rule of its own into `mask_function`.
        config: of the model, which says whether it is a decoder of an encoder's.
        kwargs: how other implementations would make it.

    Raises:
        InputError: the mask is of a cache or of two sequences, or has other rules.
    """
    if q_length != kv_length or not isinstance(q_offset, int) or q_offset or kv_offset:
        raise InputError(
            f"{ONLY}; got {q_length} queries and {kv_length} keys: a cache, or cross-attention"
        )
    ones = torch.ones(batch_size, q_length, dtype=torch.int64, device=device)
    padded = attention_mask is not None and not bool(attention_mask.all())
    kept = attention_mask.to(torch.int64) if padded and attention_mask is not None else None
    mask = (ones if kept is None else kept).as_subclass(PaddingMask)
    mask.packed = pack(ones, kept, None)
    mask.causal, mask.window = False, None
    if mask_function is masking_utils.bidirectional_mask_function:
        return mask
    rule = MaskRule(mask_function, batch_size, q_length, local_size, ones.device)
    if use_vmap:
        if (kind := rule.of_a_models_own()) is None:
            raise InputError(f"{ONLY}; this model's mask has a rule of its own")
        mask.causal, mask.window = kind
    elif rule.is_one_token():
        mask.causal = True  # the stricter of what it may be
    elif rule.is_window():
        mask.window = local_size
    else:
        if not rule.is_causal():
            starts = rule.starts() if attention_mask is None else None
            if starts is None:
                name = getattr(mask_function, "__qualname__", repr(mask_function)).partition(".")[0]
                raise InputError(f"{ONLY}; this model's mask is {name}")
            bounds = torch.cat([starts, starts.new_tensor([q_length])])
            mask.packed = replace(mask.packed, cu_seqlens=bounds)
        mask.causal = True
        mask.window = None if local_size is None else local_size - 1
    if mask.causal and any(getattr(config, key, False) for key in DECODER):
        raise InputError(f"{ONLY}; this model is causal beside an encoder, by its config")
    return mask
