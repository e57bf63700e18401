"""Classifiers that need remote code elsewhere, as folders of small checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from tests.integrations.transformers.register_support import copied
from tests.seeds import seed

POOLED = (
    "gte_base_like_h4", "gte_multilingual_like_h4", "jina_geglu_h4", "jina_original_h4",
    "jina_qk_h4", "jina_reglu_h4", "mosaic_base_h12", "mosaic_mlm_h4",
)  # fmt: skip
"""Families whose classifier stands behind a pooler, as BERT's."""


def drawn(*shape: int, more: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed() + sum(shape) + more)
    return torch.randn(shape, generator=generator) / 4


def classifier(folder: Path, name: str, labels: int = 1, **config: Any) -> Path:
    """A golden checkpoint with a pooler and a classifier among its tensors."""
    said = {"id2label": {str(i): f"L{i}" for i in range(labels)}, "label2id": None}
    copied(name, folder, architectures=["AForSequenceClassification"], **(said | config))
    pickled = folder / "pytorch_model.bin"
    if pickled.is_file():
        tensors = torch.load(pickled, weights_only=True)
        pickled.unlink()
    else:
        tensors = load_file(folder / "model.safetensors")
    word = next(n for n in tensors if n.endswith("embeddings.word_embeddings.weight"))
    prefix, width = word.removesuffix("embeddings.word_embeddings.weight"), tensors[word].shape[1]
    tensors[f"{prefix}pooler.dense.weight"] = drawn(width, width)
    tensors[f"{prefix}pooler.dense.bias"] = drawn(width)
    tensors["classifier.weight"], tensors["classifier.bias"] = drawn(labels, width), drawn(labels)
    tensors = {n: t.clone() for n, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def reranker(folder: Path, **said: Any) -> XLMRobertaForSequenceClassification:
    """jina-reranker-v2's layout, of a model of transformers' XLM-RoBERTa, which computes the same:
    tensors by the names of its original code, a `config.json` without `model_type`."""
    torch.manual_seed(seed())
    sizes: dict[str, Any] = {
        "vocab_size": 384, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 96, "max_position_embeddings": 66, "type_vocab_size": 1,
        "layer_norm_eps": 1e-5, "pad_token_id": 1, "id2label": {"0": "LABEL_0"},
    }  # fmt: skip
    model = XLMRobertaForSequenceClassification(XLMRobertaConfig(**sizes)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) / 5
    renamed = {
        "embeddings.LayerNorm": "emb_ln", "encoder.layer.": "encoder.layers.",
        "attention.output.dense": "mixer.out_proj", "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1", "output.LayerNorm": "norm2", ".output.dense": ".mlp.fc2",
    }  # fmt: skip
    tensors = {}
    for name, tensor in model.state_dict().items():
        for theirs, its in renamed.items():
            name = name.replace(theirs, its)
        tensors[name] = tensor.clone()
    for i in range(2):
        layer = f"roberta.encoder.layers.{i}"
        for end in ("weight", "bias"):
            parts = [
                tensors.pop(f"{layer}.attention.self.{x}.{end}") for x in ("query", "key", "value")
            ]
            tensors[f"{layer}.mixer.Wqkv.{end}"] = torch.cat(parts)
    copied("xlmr_e5_like_h2", folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code = "xlm_roberta.XLMRobertaFor"
    config = sizes | {
        "architectures": ["XLMRobertaForSequenceClassification"], "num_labels": 1,
        "auto_map": {
            "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModelForSequenceClassification": f"modeling_{code}SequenceClassification",
        },
        "classifier_dropout": None, "emb_pooler": None, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "use_flash_attn": True,
        "position_embedding_type": "absolute", "torch_dtype": "float32",
    } | said  # fmt: skip
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not ...})
    )
    return model


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed() + 1)
    ids = torch.randint(3, 380, (3, 20), generator=generator)
    mask = torch.ones_like(ids)
    ids[:, 0], ids[1, 9:], mask[1, 9:] = 0, 1, 0
    return {"input_ids": ids, "attention_mask": mask}
