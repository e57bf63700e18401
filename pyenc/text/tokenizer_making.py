"""A tokenizer from its class's rules, its vocabulary and its settings."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer

from ..errors import CheckpointError
from .tokenizer_classes import TokenizerClass
from .tokenizer_ends import KEYS
from .tokenizer_parts import Parts
from .tokenizer_pipelines import Named, gpt2_around, template
from .tokenizer_settings import NAMED, Settings

PLAIN = ("GPT2Tokenizer", "Qwen2Tokenizer")
"""Classes that put nothing around a text where `tokenizer.json` does not say it."""


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
        named = {}
    named |= {key: rules.named[key] for key in NAMED if key in rules.named}
    named |= {key: settings.values[key] for key in NAMED if key in settings.values}
    for key in rules.named:
        if named[key] is None and key not in rules.may_lack:
            raise settings.fault(key, f"null, but {rules.name} needs one")
        if named[key] is not None and not str(named[key]):
            raise settings.fault(key, "empty, which is not served; expected a token, or null")
    if "mask_token" in named and rules.name == "CamembertTokenizer":
        named["mask_token"] = _marked(named["mask_token"], special=True)
    for key in rules.marked:
        named[key] = _marked(named[key], lstrip=key == "mask_token")
    if rules.model != "":
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
        tokenizer.post_processor = template(tokenizer, named, first, last)
    elif not parts.whole and (rules.name in PLAIN or settings.values.keys() & KEYS.keys()):
        tokenizer.post_processor = gpt2_around(tokenizer, settings, named)
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
