"""Encoders with linear layers in eight bits: how an encoder comes to have them.

Attention's output product and the feed-forward's first (with its gate, where it has one) are
quantised. Embeddings, norms, biases, the other linear layers (those of distances too), mixtures of
experts, the products of q with k and of weights with v, the pooler and the masked-LM head stay in
the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError
from .encoder import Encoder
from .meta import on_meta
from .modules import Int8Linear as Int8Linear
from .modules import Linear

QUANTIZED = ("int8",)
"""Names that `quantize` may have."""

WIDE = ("attention.qkv", "feed_forward.down")
"""Layers that are not quantised: with these in eight bits too, the nearest of 2,000 sentences was
another one for 5.6% of MiniLM's vectors and 7.5% of MPNet's, without them for 2.9% and 3.8%; what
they would gain in time stands in bench/NOTES.md."""


OF_DISTANCES = ("distances.query", "distances.key")
"""Nor are these, ever: what a layer makes of a table is as good as its queries and keys, and takes
its few rows a call."""


def quantized_names(encoder: Encoder, wide: tuple[str, ...] = WIDE) -> Iterator[str]:
    """The names of the linear layers that are quantised, or would be: all but those whose names end
    in one of `wide`, and but those of distances."""
    for name, module in encoder.layers.named_modules():
        if isinstance(module, (Linear, Int8Linear)) and not name.endswith((*wide, *OF_DISTANCES)):
            yield f"layers.{name}"


def quantized_tensors(encoder: Encoder) -> Iterator[str]:
    """The names of weights and biases that are parameters where nothing is quantised."""
    for name in quantized_names(encoder):
        layer = encoder.get_submodule(name)
        if isinstance(layer, Int8Linear):
            yield f"{name}.weight"
            if layer.bias is not None:
                yield f"{name}.bias"


def quantize_layers(
    encoder: Encoder,
    known: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    wide: tuple[str, ...] = WIDE,
) -> None:
    """Quantise an encoder where it is; nothing of it takes a gradient from then on.

    Args:
        encoder: of floating point; one that is quantised stays as it is.
        known: name of a layer -> its int8 (F, C) and scale (F,), of a checkpoint that has them.
        wide: ends of the names of layers that stay as they are. What is saved has the default's.
    """
    for name in list(quantized_names(encoder, wide)):
        outer, _, own = name.rpartition(".")
        parent, linear = encoder.get_submodule(outer), encoder.get_submodule(name)
        if isinstance(linear, Linear):
            setattr(parent, own, Int8Linear(linear, *(known or {}).get(name, ())).train(False))
    encoder.requires_grad_(False)


def dequantize_layers(encoder: Encoder) -> None:
    """Quantised layers become floating-point ones of the same weights, in the model's dtype; an
    encoder without any stays as it is."""
    for name in list(quantized_names(encoder)):
        outer, _, own = name.rpartition(".")
        layer = encoder.get_submodule(name)
        if isinstance(layer, Int8Linear):
            rows, columns = layer.weight.shape
            with on_meta():
                linear = Linear(columns, rows, bias=layer.bias is not None, dtype=layer.dtype)
            wide = torch.promote_types(layer.dtype, torch.float32)
            weight = (layer.weight.to(wide) * layer.scale.to(wide)[:, None]).to(layer.dtype)
            state = {"weight": weight} | ({} if layer.bias is None else {"bias": layer.bias})
            linear.load_state_dict(state, assign=True)
            setattr(encoder.get_submodule(outer), own, linear.eval().requires_grad_(False))


def quantization(encoder: nn.Module) -> str | None:
    """What the encoder's linear layers are quantised to, or None."""
    found = any(isinstance(module, Int8Linear) for module in encoder.modules())
    return QUANTIZED[0] if found else None


def check_quantize(quantize: str | None) -> None:
    """Refuse a name that is none.

    Raises:
        InputError: it names what is right.
    """
    if quantize is not None and quantize not in QUANTIZED:
        raise InputError(
            f"quantize must be None or {' or '.join(map(repr, QUANTIZED))} (linear layers, on a "
            f"CPU), got {quantize!r:.80}; the vectors' own bits are `precision` of `encode`"
        )
