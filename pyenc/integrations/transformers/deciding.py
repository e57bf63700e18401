"""Which checkpoints pyenc serves inside of transformers: what that loads wrongly, or not at all.

Of the families that pyenc knows, transformers 5.24 without remote code

- makes a BertModel with random tensors, and no error, of JinaBert v2 and MosaicBERT, which call
  themselves "bert" (of JinaBert qk-post-norm it does not get so far: its config.json names an
  attention that is unknown);
- makes an XLMRobertaModel with random tensors of jina-embeddings-v3, which calls itself
  "xlm-roberta" (jina-embeddings-v3-hf it loads right), and knows nothing of jina-reranker-v2, which
  has its layers and no `model_type`;
- knows no `model_type` "new" (GTE as Alibaba-NLP published it), "neobert", "llama_bidirec" and
  "bidirectional_pplx_qwen3" (pplx-embed);
- reads nomic-bert's `config.json` by other names than it was published with, and takes defaults for
  what it does not find.

All others it loads right, and they are left to it: the tensor names decide (a `config.json` can be
wrong, and four families say "bert"), `config.json` only where there are none to be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from ...errors import CheckpointError, InputError
from ...models import EncoderConfig
from ...models.families import ConfigFile, Family, Names, by_name, recognise
from .naming import names_of

SERVED = frozenset({
    "JinaBert v2", "JinaBert v2, original feed-forward", "JinaBert qk-post-norm", "MosaicBERT",
    "GTE v1.5", "Llama", "NeoBERT", "Qwen3", "nomic-bert", "jina-embeddings-v3",
})  # fmt: skip
"""Families that transformers gets wrong; nomic-bert sometimes, Llama and Qwen3 by other types."""

CLASSES = {"bert": "a BertModel", "xlm-roberta": "an XLMRobertaModel"}
"""What transformers makes of types that are others' too, with random tensors and no error."""

UNKNOWN = {
    "new": "GTE v1.5",
    "neobert": "NeoBERT",
    "llama_bidirec": "Llama",
    "bidirectional_pplx_qwen3": "Qwen3",
}
"""Types that transformers does not know -> the family that they are of."""

TYPES = (*CLASSES, *UNKNOWN, "nomic_bert")
"""What they call themselves. Other types are never looked at."""

XLM_CODE = "configuration_xlm_roberta."
"""What `auto_map` calls the original code of jina-embeddings-v3 and jina-reranker-v2."""

MARKS = ("auto_map", "alibi_starting_size", "feed_forward_type")
"""Keys that no config.json of a plain BERT or XLM-RoBERTa has."""


def decide(
    name: str, said: Mapping[str, Any], hub: Mapping[str, Any], trusted: bool = False
) -> tuple[Family, Names] | None:
    """The family of a checkpoint that pyenc serves, and its tensor names; None: transformers does.

    Args:
        name: a folder or a Hub name.
        said: its `config.json`.
        hub: revision, subfolder, token, cache_dir and local_files_only, as they were given.
        trusted: whether remote code may take what pyenc refuses.

    Raises:
        CheckpointError: pyenc refuses it, and transformers would make random tensors of it.
    """
    kind = said.get("model_type")
    # They may be someone's own, or a later transformers may know them.
    if kind is not None and (kind not in TYPES or (kind in UNKNOWN and kind in CONFIG_MAPPING)):
        return None
    if kind is None and XLM_CODE not in str(said.get("auto_map")):
        return None
    if kind in CLASSES and not _marked(said) and not Path(name).is_dir():
        return None  # on the Hub a plain BERT is one, and is not asked about twice
    found = recognised(name, said, hub)
    if found is None or found[0].name not in SERVED:
        return None
    family, bare = found
    try:
        shape = family.shape(ConfigFile(f"{name}: config.json", said), bare)
    except (CheckpointError, InputError) as error:
        if kind in CLASSES and not trusted:
            raise CheckpointError(
                f"{name}: {family.name}, of which transformers would make {CLASSES[kind]} with "
                f"random tensors, and not as pyenc serves it: {error}"
            ) from error
        return None  # transformers has something to say about it
    return None if kind == "nomic_bert" and _reads_it_right(said, shape) else found


def recognised(
    name: str, said: Mapping[str, Any], hub: Mapping[str, Any]
) -> tuple[Family, Names] | None:
    """A checkpoint's family, and its tensor names without prefix, as far as they can be seen.

    Args:
        name, said, hub: as of `decide`.

    Returns:
        None: of no family that pyenc knows.
    """
    names = names_of(name, hub)
    reader = ConfigFile(f"{name}: config.json", said)
    if names is None:
        family = _by_config(reader)
        return None if family is None else (family, frozenset())
    try:
        family, prefix = recognise(names, reader)
    except CheckpointError:
        return None
    return family, frozenset(n.removeprefix(prefix) for n in names)


def _marked(said: Mapping[str, Any]) -> bool:
    """Whether a config.json has what a plain BERT's, or XLM-RoBERTa's, has not."""
    if said.get("position_embedding_type", "absolute") != "absolute":
        return True
    return any(said.get(key) is not None for key in MARKS)


def _by_config(reader: ConfigFile) -> Family | None:
    """The family by config.json alone; the tensors are held to it when they are loaded."""
    said = reader.values
    if (kind := said.get("model_type")) in (*UNKNOWN, "nomic_bert"):
        return by_name(UNKNOWN.get(kind, "nomic-bert"))
    if kind == "xlm-roberta" or (kind is None and XLM_CODE in str(said.get("auto_map"))):
        own = said.get("position_embedding_type") == "rotary" or kind is None
        return by_name("jina-embeddings-v3") if own else None
    if said.get("alibi_starting_size") is not None:
        return by_name("MosaicBERT")
    if said.get("position_embedding_type") == "alibi":
        return by_name("JinaBert v2")
    return None


def _reads_it_right(said: Mapping[str, Any], shape: EncoderConfig) -> bool:
    """Whether transformers' own nomic-bert makes the same encoder of a config.json."""
    try:
        theirs = CONFIG_MAPPING["nomic_bert"].from_dict(dict(said))
        rope = theirs.rope_parameters
        rotary = shape.rotary
        assert rotary is not None
        factor = rope["factor"] if rope["rope_type"] == "dynamic" else None
        return (
            shape.gated  # theirs always is, without biases and experts
            and not (shape.qkv_bias or shape.up_bias or shape.down_bias)
            and theirs.vocab_size == shape.vocab_size
            and theirs.hidden_size == shape.hidden_size
            and theirs.num_hidden_layers == shape.num_layers
            and theirs.num_attention_heads == shape.num_heads
            and theirs.intermediate_size == shape.intermediate_size
            and theirs.type_vocab_size == shape.type_vocab_size
            and theirs.layer_norm_eps == shape.norm_eps
            and theirs.hidden_act == shape.activation
            and float(rope["rope_theta"]) == rotary.theta
            and rope["rope_type"] in ("default", "dynamic")
            and factor == rotary.dynamic_factor
            and (factor is None or theirs.max_position_embeddings == rotary.trained_length)
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
