"""Parameters of a transformers model -> tensor names as its published files have them.

Most classes call their parameters as the files do. Of two families transformers converts the names
as it loads, and back as it saves; the families of pyenc know those of the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spelling:
    """How the parameters of one class are called."""

    words: dict[str, str]
    """In the model -> in the file, wherever it stands in a name."""
    joined: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """A tensor of the file -> the parameters that are its rows, top to bottom."""


MARK = "layers.0.self_attn.q_proj.weight"
"""A model whose names are converted has it; no file does."""

SPELLINGS = {
    "gte": Spelling(
        words={
            "layers.": "encoder.layer.",
            "self_attn.": "attention.",
            "post_attention_layernorm": "attn_ln",
            "post_mlp_layernorm": "mlp_ln",
        },
        joined={"mlp.up_gate_proj": ("mlp.up_proj", "mlp.gate_proj")},
    ),
    "nomic_bert": Spelling(
        words={
            "layers.": "encoder.layers.",
            "embeddings.LayerNorm": "emb_ln",
            "self_attn.o_proj": "attn.out_proj",
            "post_attention_layernorm": "norm1",
            "post_mlp_layernorm": "norm2",
            "mlp.up_proj": "mlp.fc11",
            "mlp.gate_proj": "mlp.fc12",
            "mlp.down_proj": "mlp.fc2",
        },
        joined={
            "attn.Wqkv": tuple(f"self_attn.{x}_proj" for x in "qkv"),
        },
    ),
}
"""By `model_type`."""


def as_in_files(names: Iterable[str], model_type: object) -> dict[str, tuple[str, ...]]:
    """Tensor of the file -> the parameters that are its rows, top to bottom."""
    names = list(names)
    spelling = SPELLINGS.get(str(model_type))
    if spelling is None or MARK not in names:
        return {name: (name,) for name in names}
    found: dict[str, tuple[str, ...]] = {}
    there = set(names)
    for name in names:
        stored = name
        parts: tuple[str, ...] = (name,)
        for whole, pieces in spelling.joined.items():
            piece = next((p for p in pieces if f".{p}." in name), None)
            if piece is not None:
                parts = tuple(name.replace(piece, p) for p in pieces)
                stored = name.replace(piece, whole) if there.issuperset(parts) else name
        for ours, theirs in spelling.words.items():
            stored = stored.replace(ours, theirs)
        found[stored] = parts
    return found
