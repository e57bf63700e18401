"""NeoBERT: 28 narrow layers for texts of up to 4,096 tokens.

Le Breton et al., arXiv 2502.19587. Pre-norm with RMSNorm and no biases, rotary positions, a gated
feed-forward whose first rows are the gate. Its rotary turns neighbouring channels, and one matrix
has the queries, keys and values of the first head, then of the second, and so on: both are an order
of rows (`_row_order`), since a score is a sum over channels in whatever order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import EncoderConfig
from ..head_config import HeadConfig
from ..rotary import Rotary
from .config_file import ConfigFile
from .family import Family, HeadNames, Published
from .llama import optional
from .parts import Names, Parts, weights

MODEL_TYPE = "neobert"

NOT_SERVED = {
    "rms_norm": True, "rope": True, "ngpt": False, "rope_theta": 10_000.0,
}  # fmt: skip
"""What the code that trains NeoBERT has beside, and the published one has not."""

GATED = ("SwiGLU", "swiglu", None)


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    words, hidden = config.size("vocab_size", 30_522), config.size("hidden_size", 768)
    heads = config.size("num_attention_heads", 12)
    for key, value in NOT_SERVED.items():
        config.require(key, (value, None), None, "the published code has it otherwise")
    config.require("hidden_act", GATED, None, "the published code has SwiGLU alone")
    config.require("dropout", (0.0, None), None, "the published code drops nothing")
    config.require(
        "dim_head", (hidden // heads, None), None,
        "NeoBERT's are hidden_size / num_attention_heads",
    )  # fmt: skip
    return EncoderConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_layers=config.size("num_hidden_layers", 28),
        num_heads=heads,
        intermediate_size=_intermediate(config.size("intermediate_size", 3072)),
        position="rotary",
        max_length=config.size("max_length", 1024),
        rotary=Rotary(10_000.0),
        padding_row=optional(config, "pad_token_id", 0),
        activation="silu",
        gated=True,
        qkv_bias=False,
        out_bias=False,
        up_bias=False,
        down_bias=False,
        norm="rms",
        norm_eps=config.number("norm_eps", 1e-6),
        norm_first=True,
        embedding_norm=False,
    )


def _intermediate(said: int) -> int:
    """Two thirds, as many numbers as without a gate, and then up to a multiple of 8."""
    return -(-int(2 * said / 3) // 8) * 8


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts: Parts = {"embeddings.word.weight": ("encoder.weight",)}
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"transformer_encoder.{i}"
        parts |= weights(f"{ours}.attention_norm", f"{theirs}.attention_norm")
        parts |= weights(f"{ours}.attention.qkv", f"{theirs}.qkv")
        parts |= weights(f"{ours}.attention.out", f"{theirs}.wo")
        parts |= weights(f"{ours}.feed_forward_norm", f"{theirs}.ffn_norm")
        parts |= weights(f"{ours}.feed_forward.up", f"{theirs}.ffn.w12")
        parts |= weights(f"{ours}.feed_forward.down", f"{theirs}.ffn.w3")
    return parts | weights("final_norm", "layer_norm")


def _row_order(config: EncoderConfig, parameter: str) -> Tensor | None:
    """Ours are all queries, all keys, all values; of a head's channels in pairs, all first ones
    come before all second ones, where pairs are turned."""
    if not parameter.endswith(".attention.qkv.weight"):
        return None
    heads, dim = config.num_heads, config.head_dim
    theirs = torch.arange(3 * heads * dim, dtype=torch.int64, device="cpu")
    q, k, v = theirs.view(heads, 3, dim).unbind(1)
    turned = [x.view(heads, dim // 2, 2).transpose(1, 2).reshape(-1) for x in (q, k)]
    return torch.cat([*turned, v.reshape(-1)])


def _head(config: ConfigFile, names: Names) -> HeadNames:
    return HeadNames(
        HeadConfig(transform=False),
        decoder="decoder",
        biases=("decoder.bias",),
        tie_unsaid=False,
    )


FAMILY = Family(
    name="NeoBERT",
    checkpoints=(
        Published("NeoBERT", "golden", "4,096 by its files; rotary positions have no table"),
    ),
    signature=("transformer_encoder.0.qkv.weight", "transformer_encoder.0.ffn.w12.weight"),
    config=_config,
    parts=_parts,
    row_order=_row_order,
    head=_head,
    model_types=(MODEL_TYPE,),
    prefixes=("", "model."),
    set_aside=("decoder.", "dense.", "classifier."),
    tied={"decoder.weight": "embeddings.word.weight"},
    layer=r"transformer_encoder\.(\d+)\.",
)
