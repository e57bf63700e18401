"""One loss through everything that an encoder has, for the gradient of every parameter."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyenc.loading import Checkpoint, load_checkpoint
from pyenc.models import Encoder, EncoderConfig
from pyenc.models.packing import Packed, pack
from pyenc.text.pooling import pool
from pyenc.text.recipe import Recipe, read_recipe
from tests.conftest import GOLDEN

EACH_FAMILY = (
    "albert_mlm_like_h2", "albert_small_like_h4",
    "bert_cls_h2", "deberta_own_mlm_h4", "deberta_v2_conv_like_h4", "distilbert_h4",
    "dpr_ctx_like_h4",
    "electra_mlm_like_h2", "electra_small_like_h4", "ernie_like_h4", "eurobert_like_h4",
    "gemma1_like_h2", "gemma2_bge_like_h4", "gemma_embed_like_h3",
    "gte_multilingual_like_h4", "jina_geglu_h6", "jina_mlm_prefix_h4", "jina_original_h4",
    "jina_qk_h4", "jinav3_hf_like_h4", "llama_encoder_like_h6", "longformer_like_h4",
    "mistral_e5_like_h4",
    "modernbert_mmbert_like_h3", "mosaic_mlm_h4", "mpnet_base_v2_like_h4", "neobert_like_h4",
    "nomic_v1_like_h2", "qwen2_code_like_h6", "qwen3_embed_like_h4", "roberta_distil_like_h4",
    "t5_instructor_gated_h6",
)  # fmt: skip
"""A golden checkpoint of each family; between them poolers, masked-LM heads, dense layers, a mean
and first tokens."""

LENGTHS = [7, 1, 26, 2, 13]
"""Of one token, and past a window on both sides."""


class Case(NamedTuple):
    """A checkpoint and what to run it on."""

    checkpoint: Checkpoint
    recipe: Recipe
    packed: Packed
    share: tuple[Tensor, ...]
    """Of each answer, (T, C), (B, C) twice, and of the heads."""


def padded(config: EncoderConfig) -> tuple[Tensor, Tensor, Tensor | None]:
    """(ids, mask, types): rows padded by turns on the right and on the left; no id that may be
    padding."""
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    mask[1::2] = mask[1::2].flip(1)
    ids = torch.randint(5, 100, mask.shape) * mask
    types = torch.randint(0, config.type_vocab_size, mask.shape) if config.type_vocab_size else None
    return ids, mask, types


def case_of(name: str) -> Case:
    checkpoint = load_checkpoint(GOLDEN / name, skip_eps=0)
    config = checkpoint.encoder.config
    recipe = read_recipe(GOLDEN / name, checkpoint.pooling)
    packed = pack(*padded(config), config.padding_id)
    with torch.no_grad():
        answers = answers_of(checkpoint.encoder, packed, recipe)
    share = tuple(torch.randn(a.shape, dtype=torch.float64) for a in answers)
    return Case(checkpoint, recipe, packed, share)


def answers_of(encoder: Encoder, packed: Packed, recipe: Recipe) -> list[Tensor]:
    """States, vectors, the same of unit length; pooler and logits, where it has them."""
    hidden_TC = encoder.hidden(packed)
    first_BC = hidden_TC[packed.cu_seqlens[:-1]]
    pooled = pool(hidden_TC, packed.cu_seqlens, recipe, backend=encoder.backend)
    answers = [hidden_TC, pooled, F.normalize(pooled, dim=-1)]
    if encoder.pooler is not None:
        answers.append(encoder.pooler_output(first_BC))
    if encoder.lm_head is not None:
        answers.append(encoder.logits(first_BC))
    return answers


def loss_of(encoder: Encoder, case: Case) -> Tensor:
    """A random share of every number."""
    answers = answers_of(encoder, case.packed, case.recipe)
    terms = [(a * s.to(a.dtype)).sum() for a, s in zip(answers, case.share, strict=True)]
    return torch.stack(terms).sum()


def gradients(encoder: Encoder, case: Case) -> dict[str, Tensor]:
    """Of every parameter; one that no term of the loss reaches is an error."""
    parameters = dict(encoder.named_parameters())
    found = torch.autograd.grad(loss_of(encoder, case), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))
