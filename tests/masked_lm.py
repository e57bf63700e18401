"""Masked-LM heads for tests: golden checkpoints that have one, or are given a random one under the
names of the family's original code, and its logits written out in float64."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import GOLDEN

NAME = "model.safetensors"


@dataclass(frozen=True)
class Naming:
    """What the original code of a family calls its head, and how it computes it."""

    dense: str | None
    norm: str | None
    bias: str | None
    decoder: str
    words: str
    eps: float
    activation: str = "gelu"
    dense_bias: bool = True
    norm_bias: bool = True


def bert(prefix: str, **changes: object) -> Naming:
    naming = {
        "dense": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
        "decoder": "cls.predictions.decoder.weight",
        "words": f"{prefix}embeddings.word_embeddings.weight",
        "eps": 1e-12,
    }
    return Naming(**(naming | changes))  # type: ignore[arg-type]


def roberta(eps: float = 1e-12, **changes: object) -> Naming:
    naming: dict[str, object] = {
        "dense": "lm_head.dense",
        "norm": "lm_head.layer_norm",
        "bias": "lm_head.bias",
        "decoder": "lm_head.decoder.weight",
        "eps": eps,
    }
    return bert("", **(naming | changes))


MODERNBERT = Naming(
    dense="head.dense", norm="head.norm", bias="decoder.bias", decoder="decoder.weight",
    words="model.embeddings.tok_embeddings.weight", eps=1e-5, dense_bias=False, norm_bias=False,
)  # fmt: skip

EUROBERT = Naming(
    dense=None, norm=None, bias=None, decoder="lm_head.weight", words="model.embed_tokens.weight",
    eps=0.0,
)  # fmt: skip

NEOBERT = Naming(
    dense=None, norm=None, bias="decoder.bias", decoder="decoder.weight",
    words="model.encoder.weight", eps=0.0,
)  # fmt: skip

ELECTRA = Naming(
    dense="generator_predictions.dense", norm="generator_predictions.LayerNorm",
    bias="generator_lm_head.bias", decoder="generator_lm_head.weight",
    words="electra.embeddings.word_embeddings.weight", eps=1e-12,
)  # fmt: skip

DEBERTA = bert("deberta.", eps=1e-5, activation="relu")

STORED = {
    "deberta_own_mlm_h4": DEBERTA,
    "electra_mlm_like_h2": ELECTRA,
    "eurobert_like_h4": EUROBERT,
    "jina_mlm_prefix_h4": bert("bert."),
    "mosaic_mlm_h4": bert("bert.", bias="cls.predictions.decoder.bias"),
    "longformer_like_h4": roberta(1e-5, words="longformer.embeddings.word_embeddings.weight"),
    "modernbert_mmbert_like_h3": MODERNBERT,
    "neobert_like_h4": NEOBERT,
}
"""Goldens whose file has the head of the original code."""

ADDED = {
    "bert_mean_h4": bert(""),
    "jina_original_h4": bert(""),
    "jina_reglu_h4": bert(""),
    "jina_qk_h6": bert(""),
    "mosaic_base_h12": bert("", bias="cls.predictions.decoder.bias"),
    "nomic_v1_like_h2": bert(
        "", norm="cls.predictions.transform.layer_norm", bias=None, dense_bias=False,
        activation="silu",
    ),
    "roberta_distil_like_h4": roberta(1e-5),
    "xlmr_bge_m3_like_h4": roberta(1e-5),
    "mpnet_base_v2_like_h4": roberta(1e-5),
    "jinav3_hf_like_h4": roberta(1e-5),
    "gte_base_like_h4": roberta(norm="lm_head.norm", bias="lm_head.decoder.bias"),
}  # fmt: skip
"""Goldens that have none: a random one is put beside them."""


def stored(folder: Path) -> dict[str, Tensor]:
    """A folder's tensors."""
    if (folder / NAME).is_file():
        return load_file(folder / NAME)
    tensors: dict[str, Tensor] = torch.load(folder / "pytorch_model.bin", weights_only=True)
    return tensors


def written(
    folder: Path, golden: str, change: Callable[[dict[str, Tensor]], object] = lambda t: None
) -> Path:
    """A golden checkpoint with its head and whatever else `change` does, as safetensors."""
    shutil.copytree(GOLDEN / golden, folder)
    tensors = stored(folder)
    (folder / "pytorch_model.bin").unlink(missing_ok=True)
    if golden in ADDED:
        tensors |= random_head(ADDED[golden], tensors)
    change(tensors)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, folder / NAME, metadata={"format": "pt"})
    return folder


def random_head(naming: Naming, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    words, width = tensors[naming.words].shape
    head = {
        f"{naming.dense}.weight": torch.randn(width, width) / math.sqrt(width),
        f"{naming.norm}.weight": 1 + torch.randn(width) / 4,
    }
    if naming.dense_bias:
        head[f"{naming.dense}.bias"] = torch.randn(width) / 4
    if naming.norm_bias:
        head[f"{naming.norm}.bias"] = torch.randn(width) / 4
    if naming.bias:
        head[naming.bias] = torch.randn(words)
    return {name: tensor.to(tensors[naming.words].dtype) for name, tensor in head.items()}


def logits(naming: Naming, tensors: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """W norm(activation(dense(x))) + b in float64, as the original codes have it; or W x + b."""

    def get(name: str | None, there: bool = True) -> Tensor | float:
        return tensors[name].double() if name and there else 0.0

    x = hidden.double()
    if naming.dense is not None:
        x = x @ tensors[f"{naming.dense}.weight"].double().T
        x = x + get(f"{naming.dense}.bias", naming.dense_bias)
        if naming.activation == "gelu":
            x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
        elif naming.activation == "relu":
            x = x.clamp(min=0)
        else:
            assert naming.activation == "silu"
            x = x / (1 + torch.exp(-x))
        x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt(x.square().mean(-1, keepdim=True) + naming.eps)
        x = x * get(f"{naming.norm}.weight") + get(f"{naming.norm}.bias", naming.norm_bias)
    decoder = tensors.get(naming.decoder, tensors[naming.words]).double()
    return x @ decoder.T + get(naming.bias)
