"""DPR: dpr-question_encoder-* and dpr-ctx_encoder-*, a BERT each for questions and for passages.

Karpukhin et al., arXiv 2004.04906: BERT's tensors and arithmetic, and the state of the first token
is the vector, which is said by the class. What `encode_proj` would make of it is not served, and
not published. The reader is no encoder.
"""

from __future__ import annotations

from ..config import EncoderConfig
from . import bert
from .config_file import ConfigFile
from .family import Family, Published
from .parts import Names

CLASSES = ("DPRQuestionEncoder", "DPRContextEncoder")


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    config.require("projection_dim", (0, None), 0, "vectors of pyenc's DPR are not projected")
    return bert.shape(config, names)


FAMILY = Family(
    name="DPR",
    checkpoints=(
        Published(
            "dpr-question_encoder-single-nq-base, dpr-ctx_encoder-single-nq-base, -multiset-base",
            "golden",
            "512 (position table)",
            "the first token's state, as their class has it, without a warning; they are meant to "
            "be compared by their inner product",
        ),
    ),
    signature=bert.FAMILY.signature,
    accepts=lambda config: config.says(("dpr",), CLASSES),
    config=_config,
    parts=bert.FAMILY.parts,
    model_types=("dpr",),
    pooling="cls",
    own_vectors=True,
    prefixes=("question_encoder.bert_model.", "ctx_encoder.bert_model."),
)
