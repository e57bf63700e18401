"""Masked-LM heads: where a checkpoint has a whole one, and which tensors it is.

Families compute logits = W norm(activation(dense(x))) + b (BERT's, Devlin et al., arXiv 1810.04805)
or W x + b; they differ in names, in biases, and in whether W is stored beside the word embeddings.
A head that lacks a tensor is none: its tensors stay set aside, and `EncoderConfig.no_lm_head` says
what is missing.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import CheckpointError
from ..config import EncoderConfig
from ..head_config import HeadConfig
from .config_file import ConfigFile
from .family import Family, HeadNames
from .parts import Names, Parts, both, weights


def predictions(config: ConfigFile, names: Names) -> HeadNames:
    """As BERT and its descendants name it."""
    eps = config.number("layer_norm_eps", 1e-12)
    return HeadNames(
        HeadConfig(activation=config.activation(), norm_eps=eps),
        dense="cls.predictions.transform.dense",
        norm="cls.predictions.transform.LayerNorm",
        decoder="cls.predictions.decoder",
        biases=("cls.predictions.bias", "cls.predictions.decoder.bias"),
    )


def roberta_head(config: ConfigFile, names: Names) -> HeadNames:
    """As RoBERTa and MPNet name it; their code has GELU there, whatever `hidden_act` says."""
    eps = config.number("layer_norm_eps", 1e-12)
    return HeadNames(
        HeadConfig(activation="gelu", norm_eps=eps),
        dense="lm_head.dense",
        norm="lm_head.layer_norm",
        decoder="lm_head.decoder",
        biases=("lm_head.bias", "lm_head.decoder.bias"),
    )


def tie_wanted(head: HeadNames, config: ConfigFile) -> bool:
    """Whether a decoder that equals the word embeddings is one with them."""
    return config.flag("tie_word_embeddings", head.tie_unsaid)


def with_head(
    family: Family, config: ConfigFile, shape: EncoderConfig, names: Names
) -> EncoderConfig:
    """The encoder and, where these tensor names have a whole one, its masked-LM head.

    Args:
        family: whose names they are.
        config: `config.json`.
        shape: the encoder without a head.
        names: without prefix; a second name of a tensor is not among them.
    """
    if family.own_head:
        return shape
    if family.head is None:
        return replace(shape, no_lm_head=f"pyenc knows no such head of {family.name}")
    try:
        head = family.head(config, names)
        lacking = _lacking(head, config, names)
    except CheckpointError as error:
        return replace(shape, no_lm_head=str(error))
    if lacking:
        return replace(shape, no_lm_head=lacking)
    return replace(shape, lm_head=replace(head.config, tied=f"{head.decoder}.weight" not in names))


def head_parts(family: Family, config: ConfigFile, shape: EncoderConfig, names: Names) -> Parts:
    """The head's parameters, of a shape that `with_head` gave for the same names."""
    if family.head is None or shape.lm_head is None:
        return {}
    head, said = family.head(config, names), shape.lm_head
    parts: Parts = {}
    for ours, theirs, biased in (
        ("lm_head.dense", head.dense, said.dense_bias),
        ("lm_head.norm", head.norm, said.norm_bias),
    ):
        if said.transform:
            parts |= both(ours, theirs) if biased else weights(ours, theirs)
    if not said.tied:
        parts["lm_head.decoder.weight"] = (f"{head.decoder}.weight",)
    if said.bias:
        parts["lm_head.bias"] = (next(name for name in head.biases if name in names),)
    return parts


def tensors(head: HeadNames) -> Names:
    """Every name that a tensor of the head may have."""
    layers = filter(None, (head.dense, head.norm, head.decoder))
    return frozenset(f"{layer}.{w}" for layer in layers for w in ("weight", "bias")) | frozenset(
        head.biases
    )


def _lacking(head: HeadNames, config: ConfigFile, names: Names) -> str:
    """What keeps these names from being a whole head; "" where nothing does."""
    said = head.config
    stored_bias = next((name for name in head.biases if name in names), head.biases[0])
    described = {}
    if said.transform:
        described = {
            f"{head.dense}.weight": True,
            f"{head.dense}.bias": said.dense_bias,
            f"{head.norm}.weight": True,
            f"{head.norm}.bias": said.norm_bias,
        }
    described[stored_bias] = said.bias
    if not tie_wanted(head, config):
        described[f"{head.decoder}.weight"] = True
    missing = [name for name, there in described.items() if there and name not in names]
    if missing:
        return f"the weights lack {', '.join(missing)}"
    strange = [name for name, there in described.items() if not there and name in names]
    if strange:
        return f"{config.path} describes one without {', '.join(strange)}, which the weights have"
    return ""
