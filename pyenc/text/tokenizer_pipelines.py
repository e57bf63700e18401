"""What a class puts its tokenizer together from: the vocabulary's model, a normaliser and a
pre-tokeniser, and the special tokens around a text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from .long_texts import QWEN2
from .tokenizer_ends import KEYS
from .tokenizer_parts import Parts
from .tokenizer_settings import Settings

Named = dict[str, Any]
"""Special tokens by their settings' names."""


def bert(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(parts.vocab, unk_token=str(named["unk_token"])))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def byte_level(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    model = models.BPE(
        parts.vocab, parts.merges, continuing_subword_prefix="", end_of_word_suffix=""
    )
    tokenizer = Tokenizer(model)
    space = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    return tokenizer


def qwen2(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    tokenizer = byte_level(parts, settings, named)
    tokenizer.normalizer = normalizers.NFC()
    space = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False),
        ]
    )
    return tokenizer


def gemma(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    model = models.BPE(
        parts.vocab, parts.merges, unk_token=str(named["unk_token"]), fuse_unk=True,
        byte_fallback=True,
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def llama(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    model = models.BPE(parts.vocab, parts.merges, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    space = settings.get("add_prefix_space")
    scheme = "always" if settings.get("legacy", False) else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme=scheme if space is None or space else "never", split=False
    )
    return tokenizer


def albert(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(parts.vocab, 1, False))
    steps: list[Any] = [normalizers.Replace(quotes, '"') for quotes in ("``", "''")]
    if not settings.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    if parts.charsmap is not None:
        steps.append(normalizers.Precompiled(parts.charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = _metaspace(bool(settings.get("add_prefix_space", True)))
    tokenizer.post_processor = template(tokenizer, named, "cls_token", "sep_token")
    return tokenizer


def deberta(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    """SentencePiece's table of characters is not among its steps, whatever the file has."""
    unknown = (str(named["unk_token"]), 0.0)
    at = settings.get("unk_id", 1)
    at = parts.vocab.index(unknown) if unknown in parts.vocab else at
    tokenizer = Tokenizer(models.Unigram(parts.vocab, at, False))
    steps: list[Any] = [normalizers.Lowercase()] if settings.get("do_lower_case") else []
    steps += [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC()]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Strip(False, True)])
    space = "always" if settings.get("add_prefix_space", True) else "first"
    words: list[Any] = [pre_tokenizers.Metaspace(prepend_scheme=space)]
    if settings.get("split_by_punct"):
        words.insert(0, pre_tokenizers.Punctuation(behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    return tokenizer


def _metaspace(space: bool) -> Any:
    """Words between white space, each with a mark before it, the first one too or not."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(prepend_scheme="always" if space else "never"),
        ]
    )


def unigram(unknown: Callable[[Parts, Named], int], prefix_by_setting: bool) -> Any:
    def build(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
        model = models.Unigram(parts.vocab, unknown(parts, named), False)
        tokenizer = Tokenizer(model)
        if parts.charsmap is not None:
            tokenizer.normalizer = normalizers.Precompiled(parts.charsmap)
        space = settings.get("add_prefix_space", True) or not prefix_by_setting
        tokenizer.pre_tokenizer = _metaspace(bool(space))
        return tokenizer

    return build


def camembert_unknown(parts: Parts, named: Named) -> int:
    unknown = str(named["unk_token"])
    return next((i for i, (token, _) in enumerate(parts.vocab) if token == unknown), 0)


def template(
    tokenizer: Tokenizer, named: Named, first: str | None, last: str | None
) -> processors.TemplateProcessing:
    pieces, special = ["$A:0"], []
    for key, at in ((first, 0), (last, 2)):
        if key is not None:
            token = str(named[key])
            pieces.insert(at, f"{token}:0")
            special.append((token, tokenizer.token_to_id(token)))
    return processors.TemplateProcessing(single=pieces, special_tokens=special)


def roberta_around(
    tokenizer: Tokenizer, named: Named, trim: bool, space: bool
) -> processors.RobertaProcessing:
    sep, cls = str(named["sep_token"]), str(named["cls_token"])
    ids = (int(tokenizer.token_to_id(token) or 0) for token in (sep, cls))
    return processors.RobertaProcessing((sep, next(ids)), (cls, next(ids)), trim, space)


def gpt2_around(tokenizer: Tokenizer, settings: Settings, named: Named) -> Any:
    for key, (name, _) in KEYS.items():
        if settings.get(key) and named.get(name) is None:
            raise settings.fault(key, f"true, but {name} is null, no token there is")
    return template(
        tokenizer,
        named,
        "bos_token" if settings.get("add_bos_token") else None,
        "eos_token" if settings.get("add_eos_token") else None,
    )
