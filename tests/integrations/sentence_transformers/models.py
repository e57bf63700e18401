"""Models for these tests: what transformers loads of tests/golden, and two classes of its own."""

from __future__ import annotations

import functools
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.conftest import GOLDEN

CHECKPOINTS = (
    "albert_mlm_like_h2", "albert_small_like_h4",
    "bert_cls_h2", "bert_mean_h4", "deberta_own_mlm_h4", "deberta_rerank_like_h2",
    "deberta_v2_conv_like_h4", "deberta_v3_like_h4", "distilbert_h4",
    "electra_base_like_h2", "electra_mlm_like_h2",
    "electra_small_like_h4", "eurobert_like_h4", "gemma2_bge_like_h4",
    "gemma_embed_like_h3",
    "jinav3_hf_like_h4", "llama_encoder_like_h6", "longformer_like_h4", "mistral_e5_like_h4",
    "modernbert_embed_like_h2", "modernbert_gte_like_h4", "modernbert_mmbert_like_h3",
    "mpnet_base_v2_like_h4", "qwen2_code_like_h6", "qwen2_gte_like_h4", "qwen3_embed_like_h4",
    "roberta_distil_like_h4", "t5_instructor_gated_h6", "t5_instructor_relu_h4", "t5_mean_relu_h4",
    "xlmr_bge_m3_like_h4", "xlmr_e5_like_h2",
)  # fmt: skip
CLASSES = ("GteModel", "NomicBertModel")
"""Those whose parameters are called otherwise than their files; random weights."""

NAMES = (*CHECKPOINTS, *CLASSES)

TEXTS = [
    "a", "", "two words", "The quick brown fox jumps over the lazy dog. " * 20, "日本語 text 🙂",
    "x " * 7, "a little longer than the others, but not by much", "\n\t ", "Zwölf Boxkämpfer",
    "again " * 31,
]  # fmt: skip
"""Empty, long beyond every limit, and in several scripts."""


def loaded(name: str, **given: Any) -> Any:
    """A SentenceTransformer in float32, on the CPU, in eval mode."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if name in CLASSES:
        return of_class(name)
    model = SentenceTransformer(
        str(GOLDEN / name), device="cpu", local_files_only=True,
        model_kwargs={"dtype": torch.float32, **given},
    )  # fmt: skip
    # Some of these files name no limit, and position tables end.
    model.max_seq_length = min(model.max_seq_length or 60, 60)
    return model


def of_class(name: str, **values: Any) -> Any:
    """A class of transformers by random weights, BERT's tokenizer, mean pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    module = Transformer(str(_class_folder(name, tuple(sorted(values.items())))))
    module.max_seq_length = 60
    return SentenceTransformer(modules=[module, Pooling(64)], device="cpu").eval()


@functools.cache
def _class_folder(name: str, values: tuple[tuple[str, Any], ...]) -> Path:
    import transformers

    folder = Path(tempfile.mkdtemp(prefix="pyenc-test-"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(GOLDEN / "bert_mean_h4")
    tokenizer.save_pretrained(folder)
    kind = getattr(transformers, name)
    torch.manual_seed(3)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 96, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    model = kind(kind.config_class(**(sizes | dict(values))))
    with torch.no_grad():
        for parameter in model.parameters():
            # Far from where it begins, so that every term of the arithmetic is seen.
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    return folder
