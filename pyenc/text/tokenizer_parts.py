"""What a tokenizer's vocabulary files hold, whatever is made of it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..errors import CheckpointError

VERSION = "1.0"
"""The format of `tokenizer.json` that there is."""

KEYS = (
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
    "post_processor", "decoder", "model",
)  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """What the vocabulary's files hold."""

    path: Path
    """The file, for messages."""
    vocab: Any = None  # {token: id}; Unigram: [(token, score)]
    merges: list[tuple[str, str]] = field(default_factory=list)
    charsmap: bytes | None = None
    """SentencePiece's table of characters to normalise."""
    whole: bool = False
    """Read from `tokenizer.json`?"""
    post_processor: Any = None


def parts_of(whole: dict[str, Any], path: Path, name: str, kind_wanted: str) -> Parts:
    """The vocabulary of a `tokenizer.json`.

    Raises:
        CheckpointError: the file has another format, a key that nobody knows, or the vocabulary is
            of another kind than the class wants.
    """
    if whole.get("version", VERSION) != VERSION:
        raise CheckpointError(
            f"{path}: version {whole['version']!r:.40} is not served; expected {VERSION!r}"
        )
    if strange := [key for key in whole if key not in KEYS]:
        raise CheckpointError(f"{path}: {strange[0]}: an unknown setting; known: {', '.join(KEYS)}")
    if kind_wanted == "":
        return Parts(path, whole=True)
    model, kind = whole["model"], model_kind(whole)
    if kind != kind_wanted:
        raise CheckpointError(
            f"{path}: model.type {kind!r}, but tokenizer_class {name} (by the configuration "
            f"beside it) wants {kind_wanted}; PreTrainedTokenizerFast takes the file as it is"
        )
    vocab = model["vocab"]
    if kind == "Unigram":
        vocab = [(token, float(score)) for token, score in vocab]
    merges = [m.split(" ") if isinstance(m, str) else m for m in model.get("merges") or []]
    # The processor alone, on an empty vocabulary: the library has no reader for one part.
    light: dict[str, Any] = {"added_tokens": [], "post_processor": whole.get("post_processor")}
    light["model"] = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    return Parts(
        path,
        vocab,
        [(a, b) for a, b in merges],
        _charsmap(whole.get("normalizer")),
        whole=True,
        post_processor=Tokenizer.from_str(json.dumps(light)).post_processor,
    )


def model_kind(whole: dict[str, Any]) -> str:
    """WordPiece, BPE, Unigram or WordLevel; the oldest files do not say it."""
    model = whole["model"]
    if "type" in model:
        return str(model["type"])
    if "merges" in model:
        return "BPE"
    return "Unigram" if "unk_id" in model else "WordPiece"


def _charsmap(normalizer: dict[str, Any] | None) -> bytes | None:
    steps = [normalizer] if normalizer else []
    if normalizer and normalizer.get("type") == "Sequence":
        steps = normalizer["normalizers"]
    for step in steps:
        if step.get("type") == "Precompiled" and "precompiled_charsmap" in step:
            return base64.b64decode(step["precompiled_charsmap"])
    return None
