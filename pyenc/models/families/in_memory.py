"""What tensors are called in files, and in transformers' models of the same family in memory.

transformers 5 gives the layers of several families one set of names. It converts a file's as it
loads and, unless told not to, converts them back as it saves; a state dict has those in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from .parts import Names


@dataclass(frozen=True)
class LayerNames:
    """What the tensors outside of the word embeddings are called."""

    embedding_norm: str
    layer: str
    qkv: tuple[str, ...]
    out: str
    attention_norm: str
    feed_forward_norm: str
    up: tuple[str, ...]
    down: str


IN_MEMORY = LayerNames(
    "embeddings.LayerNorm", "layers", tuple(f"self_attn.{x}_proj" for x in "qkv"),
    "self_attn.o_proj", "post_attention_layernorm", "post_mlp_layernorm",
    ("mlp.up_proj", "mlp.gate_proj"), "mlp.down_proj",
)  # fmt: skip

SIGNATURE = (
    "embeddings.LayerNorm.weight", "layers.0.mlp.gate_proj.weight",
    "layers.0.post_mlp_layernorm.weight",
)  # fmt: skip


def called(names: Names, in_files: LayerNames, in_memory: LayerNames = IN_MEMORY) -> LayerNames:
    """By which of the two sets the tensors of a file (prefix stripped) go."""
    # By all layers: a tensor that is missing is to be told by what it is called beside the others.
    files, memory = (
        any(name.startswith(f"{said.layer}.") for name in names) for said in (in_files, in_memory)
    )
    return in_memory if memory and not files else in_files
