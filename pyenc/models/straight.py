"""A layer in eager inference on Triton's kernels: launches, and little else.

At 512 tokens a card waits for Python. The modules' calls and what each op asks of its arguments
take longer than the launches, and come out the same in every layer of a batch; here they are one
list of conditions. A layer that fails any goes the ordinary way, module by module and op by op:
that is every other kind of layer or module, one that somebody listens to, and every mistake.

Shapes as suffixes: T packed tokens, C channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.modules import module as torch_module

from ..ops import triton_launch
from ..ops.norm import WIDEST
from ..ops.registered import on_card_of, plain
from .call import Call
from .layers import Layer, PreNormLayer
from .straight_parts import (
    AttentionPart,
    FeedForwardPart,
    NormPart,
    attended,
    attention_of,
    fed_forward,
    feed_forward_of,
    made_for,
    norm_of,
    normed,
    silent,
)

PostNormParts = tuple[AttentionPart, NormPart, FeedForwardPart, NormPart]
PreNormParts = tuple[NormPart | None, AttentionPart, NormPart, FeedForwardPart]


def straight(layer: Any, x_TC: Tensor, call: Call) -> Tensor | None:
    """What a post-norm layer gives, (T, C); None where it is to be asked itself."""
    if not _serves(call, x_TC) or (parts := post_norm_parts(layer, x_TC)) is None:
        return None
    attention, attention_norm, feed_forward, feed_forward_norm = parts
    if (made := made_for(attention, x_TC, call)) is None:
        return None
    with on_card_of(x_TC):
        a_TC = attended(attention, x_TC, call, made)
        h_TC, _ = normed(attention_norm, a_TC, x_TC, made, read=False)
        f_TC = fed_forward(feed_forward, h_TC, call, made)
        y_TC, _ = normed(feed_forward_norm, f_TC, h_TC, made, read=False)
    return y_TC


def straight_pre_norm(
    layer: Any, x_TC: Tensor, term_TC: Tensor | None, call: Call
) -> tuple[Tensor, Tensor] | None:
    """What a pre-norm layer gives, (x (T, C), the term (T, C) that is to be added to it); None
    where it is to be asked itself."""
    if not _serves(call, x_TC, x_TC if term_TC is None else term_TC):
        return None
    if (parts := pre_norm_parts(layer, x_TC)) is None:
        return None
    attention_norm, attention, feed_forward_norm, feed_forward = parts
    if (made := made_for(attention, x_TC, call)) is None:
        return None
    with on_card_of(x_TC):
        y_TC = x_TC
        if attention_norm is not None:
            y_TC, x_TC = normed(attention_norm, x_TC, term_TC, made, read=True)
        a_TC = attended(attention, y_TC, call, made)
        y_TC, x_TC = normed(feed_forward_norm, x_TC, a_TC, made, read=True)
        f_TC = fed_forward(feed_forward, y_TC, call, made)
    return x_TC, f_TC


def _serves(call: Call, *given_TC: Tensor) -> bool:
    """Whether the kernels take what a layer is given."""
    if call.positions is not None or call.query_scale is not None:
        return False
    if not plain(*given_TC, call.cu_seqlens):
        return False
    x_TC, other_TC = given_TC[0], given_TC[-1]
    if not triton_launch.serves(x_TC, call.backend):
        return False
    if x_TC.ndim != 2 or not 0 < x_TC.shape[1] <= WIDEST:
        return False
    if other_TC.shape != x_TC.shape or other_TC.dtype != x_TC.dtype:
        return False
    if other_TC.get_device() != x_TC.get_device():
        return False
    return x_TC.is_contiguous() and other_TC.is_contiguous()


def post_norm_parts(layer: Any, x: Tensor) -> PostNormParts | None:
    """Those of a layer that is what `straight` computes, to which nothing listens and whose
    parameters the kernels can read beside x (T, C); else None."""
    if torch_module._has_any_global_hook() or not silent(layer, Layer):
        return None
    of: Any = layer._modules
    if of.get("second_norm") is not None or (layer.training and layer.dropout):
        return None
    attention, attention_norm = attention_of(of["attention"], x), norm_of(of["attention_norm"], x)
    feed_forward = feed_forward_of(of["feed_forward"], x)
    last = norm_of(of["feed_forward_norm"], x)
    if attention is None or attention_norm is None or feed_forward is None or last is None:
        return None
    return attention, attention_norm, feed_forward, last


def pre_norm_parts(layer: Any, x: Tensor) -> PreNormParts | None:
    """As `post_norm_parts`, of what `straight_pre_norm` computes."""
    if torch_module._has_any_global_hook() or not silent(layer, PreNormLayer):
        return None
    of: Any = layer._modules
    if layer.training and layer.dropout:
        return None
    if of.get("attention_term_norm") is not None or of.get("feed_forward_term_norm") is not None:
        return None
    first, attention_norm = of.get("attention_norm"), None
    if first is not None and (attention_norm := norm_of(first, x)) is None:
        return None
    attention, feed_forward = (
        attention_of(of["attention"], x),
        feed_forward_of(of["feed_forward"], x),
    )
    last = norm_of(of["feed_forward_norm"], x)
    if attention is None or feed_forward is None or last is None:
        return None
    return attention_norm, attention, last, feed_forward
