"""The vocabulary that a tokenizer's class makes of a SentencePiece model.

A class has its own ids: XLM-RoBERTa's and CamemBERT's put special tokens of theirs in the place of
the model's first pieces, as fairseq did, and T5's puts sentinels behind the last. What the model
says of spaces and bytes counts for SentencePiece's library alone: transformers' classes have rules
of their own for the former and no bytes, so that what no piece covers is unknown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from ..errors import CheckpointError
from .sentencepiece_model import CONTROL, NORMAL, USER_DEFINED, SentencePieceModel
from .tokenizer_classes import TokenizerClass
from .tokenizer_parts import Parts
from .tokenizer_settings import NAMED, Settings


@dataclass(frozen=True)
class Layout:
    """Where a class has the pieces of a model."""

    file: str
    """The model's file by transformers' name."""
    unknown: int | None
    """Which piece of the model must be the unknown one; None: any, its id is taken."""
    dropped: int = 0
    """Pieces at the beginning whose places are taken by `first`."""
    first: tuple[str, ...] = ()
    """Tokens before the others: settings' names, or tokens themselves."""
    last: str = ""
    """The setting of the token behind the others."""
    sentinels: bool = False
    """Whether T5's come behind them, the highest first."""


LAYOUTS = {
    "AlbertTokenizer": Layout("spiece.model", 1),
    "CamembertTokenizer": Layout(
        "sentencepiece.bpe.model", 0, 1,
        ("<s>NOTUSED", "pad_token", "</s>NOTUSED", "unk_token", "<unk>NOTUSED"), "mask_token",
    ),
    "DebertaV2Tokenizer": Layout("spm.model", None),
    "T5Tokenizer": Layout("spiece.model", 2, sentinels=True),
    "XLMRobertaTokenizer": Layout(
        "sentencepiece.bpe.model", 0, 3, ("bos_token", "pad_token", "eos_token", "unk_token"),
        "mask_token",
    ),
}  # fmt: skip
"""By the class's name."""

FILES = tuple(dict.fromkeys(layout.file for layout in LAYOUTS.values()))
NEVER = {"<unk>NOTUSED": -100.0}
"""Scores of a class's own tokens, where they are not 0."""


def file_of(rules: TokenizerClass, found: Path) -> Path:
    """The model's file that a class reads of a folder.

    Args:
        rules: the class.
        found: a SentencePiece model of that folder.

    Raises:
        CheckpointError: the class is made of none, or of one by another name, which is not there.
    """
    layout = LAYOUTS.get(rules.name)
    path = found if layout is None else found.with_name(layout.file)
    if layout is not None and path.is_file():
        return path
    wanted = "tokenizer.json" if layout is None else f"{layout.file}, or tokenizer.json"
    raise CheckpointError(
        f"{found}: tokenizer_class {rules.name} cannot be made of it; expected {wanted}"
    )


def pieces_of(model: SentencePieceModel, rules: TokenizerClass, settings: Settings) -> Parts:
    """A class's vocabulary, with the table of characters to normalise.

    Args:
        model: of the file that `file_of` says.
        rules: the class.
        settings: what the files beside it say; the model's control pieces and the id of its
            unknown one are put among them, as transformers does.

    Raises:
        CheckpointError: the model is none of this class, or has a token that the class adds.
    """
    layout = LAYOUTS[rules.name]
    if layout.unknown not in (None, model.unknown):
        raise CheckpointError(
            f"{model.path}: its unknown piece is {model.unknown}, but {rules.name} has it at "
            f"{layout.unknown}; expected a model made for that class"
        )
    for (piece, _), kind in zip(
        model.pieces[: layout.dropped], model.types[: layout.dropped], strict=True
    ):
        if kind in (NORMAL, USER_DEFINED):
            raise CheckpointError(
                f"{model.path}: piece {piece!r:.40} is one of the first {layout.dropped}, which "
                f"{rules.name} leaves out; expected special ones there"
            )
    own = [_named(name, rules, settings, model.path) for name in layout.first]
    vocab = [(token, NEVER.get(token, 0.0)) for token in own]
    vocab += model.pieces[layout.dropped :]
    if layout.last:
        vocab.append((_named(layout.last, rules, settings, model.path), 0.0))
    if layout.sentinels:
        count = settings.get("extra_ids", 100)
        vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(count))]
    if twice := [token for token, count in Counter(t for t, _ in vocab).items() if count > 1]:
        raise CheckpointError(
            f"{model.path}: the token {twice[0]!r:.40} would have two ids: {rules.name} adds it to "
            "the pieces; expected it once, there or among the settings beside the file"
        )
    settings.values["additional_special_tokens"] = [
        AddedToken(piece, normalized=False, special=True) for piece in model.of_type(CONTROL)
    ]
    settings.values["unk_id"] = model.unknown
    return Parts(model.path, vocab, charsmap=model.charsmap)


def cut_otherwise(model: SentencePieceModel) -> str:
    """Which tokens are taken otherwise than transformers 5 does; empty: none are."""
    own = model.of_type(USER_DEFINED)
    if not own:
        return ""
    some = " ".join(own[:8]) + (" ..." if len(own) > 8 else "")
    return (
        f"{model.path.name} has pieces that its maker defined ({some}): they are found inside of "
        "words, as SentencePiece finds them, which the model was trained with; transformers 5 "
        "cuts words there first"
    )


def _named(name: str, rules: TokenizerClass, settings: Settings, path: Path) -> str:
    """A token by its setting, or as it is."""
    if name not in NAMED:
        return name
    token: Any = settings.get(name, rules.named[name])
    if token is None:
        raise settings.fault(name, f"null, but {rules.name} needs one where it reads {path.name}")
    return str(token)
