"""The rules by which each class makes a tokenizer from a vocabulary and settings.

Most of transformers' classes take the vocabulary alone from `tokenizer.json` and build the rest
(normaliser, pre-tokeniser, special tokens around a text) from `tokenizer_config.json`; only
`PreTrainedTokenizerFast`, also called `TokenizersBackend`, takes `tokenizer.json` as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from .tokenizer_parts import Parts
from .tokenizer_pipelines import (
    Named,
    albert,
    bert,
    byte_level,
    camembert_unknown,
    deberta,
    gemma,
    llama,
    qwen2,
    roberta_around,
    template,
    unigram,
)
from .tokenizer_settings import NAMED, Settings


@dataclass(frozen=True)
class TokenizerClass:
    """The rules of one class."""

    name: str
    model: str
    """What its vocabulary must be: WordPiece, BPE or Unigram."""
    named: dict[str, str]
    """Its special tokens where no file names them."""
    build: Callable[[Parts, Settings, Named], Tokenizer]
    around: Callable[[Tokenizer, Settings, Named], Any] | None
    """The post-processor: special tokens around a text. None: that of `tokenizer.json`."""
    marked: tuple[str, ...] = ()
    """Named tokens that are ordinary ones in text: found after normalising; mask takes a space."""
    extra: Callable[[Settings], list[Any]] | None = None
    """Further special tokens of its own."""
    lists: bool = True
    """Whether lists of words and merges will do, or `tokenizer.json` alone."""
    may_lack: tuple[str, ...] = ("mask_token", "pad_token")
    """Its special tokens that a file may say there are none of."""
    plain: bool = False
    """Whether its special tokens are found as they are written, whatever a file says of spaces."""


def _t5_extra(settings: Settings) -> list[Any]:
    given, count = settings.get("additional_special_tokens"), settings.get("extra_ids", 100)
    sentinels = [f"<extra_id_{i}>" for i in range(count)]
    if given is None:
        return sentinels
    found = [token for token in given if "<extra_id_" in str(token)]
    if found and count and len(found) != count:
        raise settings.fault("extra_ids", f"{count}, but {len(found)} of them are listed")
    return given if found else [*given, *sentinels]


def _camembert_extra(settings: Settings) -> list[Any]:
    given = settings.get("additional_special_tokens")
    return ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"] if given is None else given


BERT = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}  # fmt: skip
ROBERTA = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>",
    "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>",
}  # fmt: skip
ALBERT = ROBERTA | {
    "bos_token": "[CLS]", "eos_token": "[SEP]", "sep_token": "[SEP]", "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}  # fmt: skip
DEBERTA = BERT | {"bos_token": "[CLS]", "eos_token": "[SEP]"}
GEMMA = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
END = "<|endoftext|>"

CLASSES = {
    rules.name: rules
    for rules in (
        TokenizerClass("PreTrainedTokenizerFast", "", {}, lambda *_: None, None),  # type: ignore
        TokenizerClass(
            "BertTokenizer", "WordPiece", BERT, bert,
            lambda t, s, n: template(t, n, "cls_token", "sep_token"),
        ),
        TokenizerClass(
            "MPNetTokenizer", "WordPiece", ROBERTA | {"unk_token": "[UNK]"}, bert,
            lambda t, s, n: roberta_around(t, n, True, False), marked=NAMED,
        ),
        TokenizerClass(
            "RobertaTokenizer", "BPE", ROBERTA, byte_level,
            lambda t, s, n: roberta_around(
                t, n, s.get("trim_offsets", True), bool(s.get("add_prefix_space", False))
            ),
        ),
        TokenizerClass(
            "GPT2Tokenizer", "BPE", dict.fromkeys(("unk_token", "bos_token", "eos_token"), END),
            byte_level, None,
        ),
        TokenizerClass(
            "Qwen2Tokenizer", "BPE", dict.fromkeys(("unk_token", "eos_token", "pad_token"), END),
            qwen2, None, may_lack=NAMED, plain=True,
        ),
        TokenizerClass(
            "LlamaTokenizer", "BPE", LLAMA, llama, None, lists=False, may_lack=NAMED,
        ),
        TokenizerClass("AlbertTokenizer", "Unigram", ALBERT, albert, None),
        TokenizerClass(
            "DebertaV2Tokenizer", "Unigram", DEBERTA, deberta,
            lambda t, s, n: template(t, n, "cls_token", "sep_token"), lists=False,
            may_lack=("bos_token", "eos_token", "mask_token", "pad_token"),
        ),
        TokenizerClass("GemmaTokenizer", "BPE", GEMMA, gemma, None, lists=False),
        TokenizerClass(
            "XLMRobertaTokenizer", "Unigram", ROBERTA, unigram(lambda *_: 3, True),
            lambda t, s, n: template(t, n, "bos_token", "eos_token"),
        ),
        TokenizerClass(
            "CamembertTokenizer", "Unigram", ROBERTA, unigram(camembert_unknown, True),
            lambda t, s, n: template(t, n, "bos_token", "eos_token"), extra=_camembert_extra,
        ),
        TokenizerClass(
            "T5Tokenizer", "Unigram", T5, unigram(lambda *_: 2, False),
            lambda t, s, n: template(t, n, None, "eos_token"),
            extra=_t5_extra,
        ),
    )
}  # fmt: skip
