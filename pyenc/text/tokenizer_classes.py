"""From a vocabulary and settings to a tokenizer, by its class's rules.

Most of transformers' classes take the vocabulary alone from `tokenizer.json` and build the rest
(normaliser, pre-tokeniser, special tokens around a text) from `tokenizer_config.json`; only
`PreTrainedTokenizerFast`, also called `TokenizersBackend`, takes `tokenizer.json` as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from ..errors import CheckpointError
from .long_texts import QWEN2
from .tokenizer_ends import KEYS
from .tokenizer_parts import Parts
from .tokenizer_settings import NAMED, Settings

Named = dict[str, Any]


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


def _bert(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(parts.vocab, unk_token=str(named["unk_token"])))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _byte_level(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    model = models.BPE(
        parts.vocab, parts.merges, continuing_subword_prefix="", end_of_word_suffix=""
    )
    tokenizer = Tokenizer(model)
    space = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    return tokenizer


def _qwen2(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    tokenizer = _byte_level(parts, settings, named)
    tokenizer.normalizer = normalizers.NFC()
    space = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False),
        ]
    )
    return tokenizer


def _gemma(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    model = models.BPE(
        parts.vocab, parts.merges, unk_token=str(named["unk_token"]), fuse_unk=True,
        byte_fallback=True,
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def _llama(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
    model = models.BPE(parts.vocab, parts.merges, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    space = settings.get("add_prefix_space")
    scheme = "always" if settings.get("legacy", False) else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme=scheme if space is None or space else "never", split=False
    )
    return tokenizer


def _albert(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
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
    tokenizer.post_processor = _template(tokenizer, named, "cls_token", "sep_token")
    return tokenizer


def _deberta(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
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


def _unigram(unknown: Callable[[Parts, Named], int], prefix_by_setting: bool) -> Any:
    def build(parts: Parts, settings: Settings, named: Named) -> Tokenizer:
        model = models.Unigram(parts.vocab, unknown(parts, named), False)
        tokenizer = Tokenizer(model)
        if parts.charsmap is not None:
            tokenizer.normalizer = normalizers.Precompiled(parts.charsmap)
        space = settings.get("add_prefix_space", True) or not prefix_by_setting
        tokenizer.pre_tokenizer = _metaspace(bool(space))
        return tokenizer

    return build


def _camembert_unknown(parts: Parts, named: Named) -> int:
    unknown = str(named["unk_token"])
    return next((i for i, (token, _) in enumerate(parts.vocab) if token == unknown), 0)


def _template(
    tokenizer: Tokenizer, named: Named, first: str | None, last: str | None
) -> processors.TemplateProcessing:
    pieces, special = ["$A:0"], []
    for key, at in ((first, 0), (last, 2)):
        if key is not None:
            token = str(named[key])
            pieces.insert(at, f"{token}:0")
            special.append((token, tokenizer.token_to_id(token)))
    return processors.TemplateProcessing(single=pieces, special_tokens=special)


def _roberta_around(
    tokenizer: Tokenizer, named: Named, trim: bool, space: bool
) -> processors.RobertaProcessing:
    sep, cls = str(named["sep_token"]), str(named["cls_token"])
    ids = (int(tokenizer.token_to_id(token) or 0) for token in (sep, cls))
    return processors.RobertaProcessing((sep, next(ids)), (cls, next(ids)), trim, space)


def _gpt2_around(tokenizer: Tokenizer, settings: Settings, named: Named) -> Any:
    for key, (name, _) in KEYS.items():
        if settings.get(key) and named.get(name) is None:
            raise settings.fault(key, f"true, but {name} is null, no token there is")
    return _template(
        tokenizer,
        named,
        "bos_token" if settings.get("add_bos_token") else None,
        "eos_token" if settings.get("add_eos_token") else None,
    )


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
            "BertTokenizer", "WordPiece", BERT, _bert,
            lambda t, s, n: _template(t, n, "cls_token", "sep_token"),
        ),
        TokenizerClass(
            "MPNetTokenizer", "WordPiece", ROBERTA | {"unk_token": "[UNK]"}, _bert,
            lambda t, s, n: _roberta_around(t, n, True, False), marked=NAMED,
        ),
        TokenizerClass(
            "RobertaTokenizer", "BPE", ROBERTA, _byte_level,
            lambda t, s, n: _roberta_around(
                t, n, s.get("trim_offsets", True), bool(s.get("add_prefix_space", False))
            ),
        ),
        TokenizerClass(
            "GPT2Tokenizer", "BPE", dict.fromkeys(("unk_token", "bos_token", "eos_token"), END),
            _byte_level, None,
        ),
        TokenizerClass(
            "Qwen2Tokenizer", "BPE", dict.fromkeys(("unk_token", "eos_token", "pad_token"), END),
            _qwen2, None, may_lack=NAMED, plain=True,
        ),
        TokenizerClass(
            "LlamaTokenizer", "BPE", LLAMA, _llama, None, lists=False, may_lack=NAMED,
        ),
        TokenizerClass("AlbertTokenizer", "Unigram", ALBERT, _albert, None),
        TokenizerClass(
            "DebertaV2Tokenizer", "Unigram", DEBERTA, _deberta,
            lambda t, s, n: _template(t, n, "cls_token", "sep_token"), lists=False,
            may_lack=("bos_token", "eos_token", "mask_token", "pad_token"),
        ),
        TokenizerClass("GemmaTokenizer", "BPE", GEMMA, _gemma, None, lists=False),
        TokenizerClass(
            "XLMRobertaTokenizer", "Unigram", ROBERTA, _unigram(lambda *_: 3, True),
            lambda t, s, n: _template(t, n, "bos_token", "eos_token"),
        ),
        TokenizerClass(
            "CamembertTokenizer", "Unigram", ROBERTA, _unigram(_camembert_unknown, True),
            lambda t, s, n: _template(t, n, "bos_token", "eos_token"), extra=_camembert_extra,
        ),
        TokenizerClass(
            "T5Tokenizer", "Unigram", T5, _unigram(lambda *_: 2, False),
            lambda t, s, n: _template(t, n, None, "eos_token"),
            extra=_t5_extra,
        ),
    )
}  # fmt: skip


def make_tokenizer(rules: TokenizerClass, parts: Parts, settings: Settings) -> Tokenizer:
    """The tokenizer of a class, from its vocabulary and settings.

    Raises:
        CheckpointError: the vocabulary does not fit the class, lacks a special token, or gives an
            added token another id than the files say.
    """
    if rules.model == "":
        tokenizer = Tokenizer.from_file(str(parts.path))
        if getattr(tokenizer.model, "dropout", None):
            raise CheckpointError(
                f"{parts.path}: model.dropout {tokenizer.model.dropout}: tokens by chance are not "
                "served; expected null"
            )
        named: Named = {"pad_token": tokenizer.padding["pad_token"]} if tokenizer.padding else {}
    else:
        named = {key: rules.named[key] for key in NAMED if key in rules.named}
    named |= {key: settings.values[key] for key in NAMED if key in settings.values}
    for key in rules.named:
        if named[key] is None and key not in rules.may_lack:
            raise settings.fault(key, f"null, but {rules.name} needs one")
    if rules.model != "":
        if "mask_token" in named and rules.name == "CamembertTokenizer":
            named["mask_token"] = _marked(named["mask_token"], special=True)
        for key in rules.marked:
            named[key] = _marked(named[key], lstrip=key == "mask_token")
        tokenizer = rules.build(parts, settings, named)
        if parts.post_processor is not None:
            tokenizer.post_processor = parts.post_processor
    known = {token.content for token in settings.added.values()} | set(tokenizer.get_vocab())
    if parts.whole is False:
        for key in rules.named:
            if named[key] is not None and str(named[key]) not in known and _required(rules, key):
                raise CheckpointError(f"{parts.path}: special token {str(named[key])!r} is missing")
    _add(tokenizer, settings, named, rules)
    for number, (path, token) in settings.declared.items():
        got = tokenizer.token_to_id(token.content)
        if got != number:
            raise CheckpointError(
                f"{path}: added token {token.content!r} is said to be {number}, but the vocabulary "
                f"({parts.path.name}) makes it {got}"
            )
    if rules.around is not None:
        tokenizer.post_processor = rules.around(tokenizer, settings, named)
    elif parts.whole and settings.told & KEYS.keys():
        # What `tokenizer_args` say comes before tokenizer.json; what they leave out is not added.
        first, last = (
            name if key in settings.told and settings.get(key) and named.get(name) else None
            for key, (name, _) in KEYS.items()
        )
        tokenizer.post_processor = _template(tokenizer, named, first, last)
    elif rules.name in ("GPT2Tokenizer", "Qwen2Tokenizer") and not parts.whole:
        tokenizer.post_processor = _gpt2_around(tokenizer, settings, named)
    tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens", False))
    return tokenizer


def _required(rules: TokenizerClass, key: str) -> bool:
    """A vocabulary of its own must have these: a made-up id is not among the embeddings."""
    return key in ("unk_token", "cls_token", "sep_token")


def _marked(token: Any, lstrip: bool = True, special: bool = False) -> Any:
    if not isinstance(token, str):
        return token
    return AddedToken(token, lstrip=lstrip, rstrip=False, special=special)


def _add(tokenizer: Tokenizer, settings: Settings, named: Named, rules: TokenizerClass) -> None:
    """Adds the tokens that the files list and the special ones, in transformers' order."""
    there = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    adding: list[Any] = [t for _, t in sorted(settings.added.items()) if repr(t) not in there]
    known = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
    known |= {str(_text(t)) for t in adding}
    ordered = [named.get(key) for key in NAMED] + list(settings.more.values())
    extra = settings.get("extra_special_tokens")
    if "extra_special_tokens" not in settings.values:
        extra = rules.extra(settings) if rules.extra else settings.get("additional_special_tokens")
    for token in [*ordered, *(extra or [])]:
        if token is not None and _text(token) not in known and token not in adding:
            adding.append(token)
    names = {_text(t) for t in ordered if t is not None}
    tokens = []
    for token in adding:
        if isinstance(token, str):
            token = AddedToken(token, special=True)
        elif not token.special and token.content in names:
            token.special = True
        tokens.append(token)
    if tokens:
        tokenizer.add_tokens(tokens)
    if rules.plain:
        special = {_text(t) for t in [*ordered, *(extra or [])] if t is not None}
        tokenizer.add_tokens([AddedToken(token, special=True) for token in sorted(special)])


def _text(token: Any) -> str:
    return token if isinstance(token, str) else str(token.content)
