"""Models with heads for these tests: encoders of tests/golden under heads of random numbers."""

from __future__ import annotations

import copy
import functools
import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import GOLDEN
from tests.integrations.sentence_transformers.models import TEXTS

PAIRS = [
    *zip(TEXTS, TEXTS[::-1], strict=True),
    ("", ""), ("a question?", ""), ("", "an answer"), ("q", "word " * 45),
]  # fmt: skip
"""Ragged: empty on one side, on both, and beyond every limit."""

FIRST = (
    "bert_mean_h4", "xlmr_bge_m3_like_h4", "roberta_distil_like_h4", "distilbert_h4",
    "modernbert_gte_like_h4:cls", "mpnet_base_v2_like_h4", "albert_small_like_h4",
    "deberta_own_mlm_h4", "deberta_rerank_like_h2", "deberta_v2_conv_like_h4",
    "deberta_v3_like_h4", "electra_base_like_h2",
    "electra_small_like_h4", "jinav3_hf_like_h4", "Gte", "NomicBert",
)  # fmt: skip
"""Whose classifiers read the first token; those without a folder are random weights."""

MEAN = ("modernbert_embed_like_h2:mean", "eurobert_like_h4:late", "eurobert_like_h4:mean")
"""A way of pooling behind the name."""

LANGUAGE = (
    "gemma2_bge_like_h4", "gemma_embed_like_h3", "llama_encoder_like_h6", "mistral_e5_like_h4",
    "qwen2_code_like_h6", "qwen2_gte_like_h4", "qwen3_embed_like_h4",
)  # fmt: skip
"""Language models, whose classifiers read the last token, which they find by its id."""

RERANKERS = (*FIRST, *MEAN, *LANGUAGE)

MASKED = (
    "bert_mean_h4", "albert_mlm_like_h2", "deberta_own_mlm_h4", "distilbert_h4",
    "electra_mlm_like_h2",
    "mpnet_base_v2_like_h4", "modernbert_embed_like_h2", "roberta_distil_like_h4",
    "xlmr_e5_like_h2", "NomicBert",
)  # fmt: skip


def quiet() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def reranker(name: str, labels: int = 1, **given: Any) -> Any:
    """A CrossEncoder in float32, on the CPU, in eval mode."""
    from sentence_transformers import CrossEncoder

    folder = folder_of("SequenceClassification", name, labels)
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True, **given)
    model.max_seq_length = 60
    # Numbers in a file begin anywhere, and where they begin decides the last bits: not in a copy.
    return copy.deepcopy(model.eval())


def generative(name: str, yes: int = 5, no: int | None = 6, **given: Any) -> Any:
    """A CrossEncoder by the logits of two words after the last token, as Qwen3-Reranker's."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    quiet()
    said = {"dtype": torch.float32, "local_files_only": True}
    module = Transformer(
        str(GOLDEN / name), transformer_task="text-generation", model_kwargs=said, **given
    )
    model = CrossEncoder(modules=[module, LogitScore(yes, no)], device="cpu")
    model.max_seq_length = 60
    return copy.deepcopy(model.eval())


def splade(name: str) -> Any:
    """A SparseEncoder, the same."""
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(folder_of("MaskedLM", name)), device="cpu", local_files_only=True)
    model.max_seq_length = 60
    return copy.deepcopy(model.eval())


def keep_in_float32(model: Any, *layers: str) -> None:
    """sentence-transformers' own setting, which 6.0 and 6.1 have not."""
    if not hasattr(model, "set_keep_in_fp32_modules"):
        pytest.skip("this sentence-transformers keeps no layers in float32")
    model.set_keep_in_fp32_modules(list(layers))


def without_dropout(model: Any) -> Any:
    """In training, with nothing that is dropped: beneath the head and in it."""
    config = model[0].model.config
    for key in vars(config):
        if "drop" in key and isinstance(getattr(config, key), float):
            setattr(config, key, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for key, value in vars(module).items():
            if "dropout" in key and isinstance(value, float):
                setattr(module, key, 0.0)
    return model.train()


@functools.cache
def folder_of(head: str, name: str, labels: int = 1) -> Path:
    """The files of a model; head: as transformers names it in its classes."""
    import transformers

    quiet()
    folder = Path(tempfile.mkdtemp(prefix="pyenc-test-"))
    name, _, pooling = name.partition(":")
    torch.manual_seed(7)
    said: dict[str, Any] = {} if head == "MaskedLM" else {"num_labels": labels}
    if pooling:
        said["classifier_pooling"] = pooling
    source = GOLDEN / (name if (GOLDEN / name).is_dir() else "bert_mean_h4")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    if name in LANGUAGE:
        said["pad_token_id"] = tokenizer.pad_token_id
        # Of nothing some make that id alone, before which no padding may stand.
        tokenizer.padding_side = "right"
    if source.name == name:
        kind = getattr(transformers, f"AutoModelFor{head}")
        # One has a classifier, which may be of another number of labels.
        model = kind.from_pretrained(
            source, dtype=torch.float32, ignore_mismatched_sizes=True, **said
        )
        own = {id(p) for p in model.base_model.parameters()}
    else:
        kind = getattr(transformers, f"{name}For{head}")
        sizes = {
            "vocab_size": len(tokenizer), "hidden_size": 64, "embedding_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
            "pad_token_id": tokenizer.pad_token_id, "type_vocab_size": 2,
        }  # fmt: skip
        model, own = kind(kind.config_class(**sizes, **said)), set()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if id(parameter) not in own:
                # Far from where it begins, so that scores differ. (Logits near those of words.)
                spread = 0.02 if head == "MaskedLM" and "decoder" in key else 0.2
                parameter.add_(torch.randn(parameter.shape) * spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
