"""What tensors are called in files, and in transformers' models of the same family in memory.

transformers 5 gives the layers of several families one set of names. It converts a file's as it
loads and, unless told not to, converts them back as it saves; a state dict has those in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .parts import Names, Parts, both

Layer = Callable[..., Parts]
"""`both` or `weights`: which tensors a linear layer has."""


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

    def norms_of(self, i: int) -> Parts:
        """The two norms of a layer."""
        ours, theirs = f"layers.{i}", f"{self.layer}.{i}"
        return both(f"{ours}.attention_norm", f"{theirs}.{self.attention_norm}") | both(
            f"{ours}.feed_forward_norm", f"{theirs}.{self.feed_forward_norm}"
        )

    def qkv_of(self, i: int, of: Layer = both) -> Parts:
        """q, k and v, of one tensor or of three."""
        return of(f"layers.{i}.attention.qkv", *(f"{self.layer}.{i}.{name}" for name in self.qkv))

    def out_of(self, i: int, of: Layer = both) -> Parts:
        return of(f"layers.{i}.attention.out", f"{self.layer}.{i}.{self.out}")

    def feed_forward_of(self, i: int, up: Layer = both, down: Layer = both) -> Parts:
        theirs = f"{self.layer}.{i}"
        return up(f"layers.{i}.feed_forward.up", *(f"{theirs}.{name}" for name in self.up)) | down(
            f"layers.{i}.feed_forward.down", f"{theirs}.{self.down}"
        )


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
