"""Folders whose tokenizer is a SentencePiece model alone, and such models byte by byte."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from tests.conftest import GOLDEN

MODELS = GOLDEN / "sentencepiece"
KINDS = {
    "albert": ("albert", "spiece.model", "albert"),
    "camembert": ("fairseq", "sentencepiece.bpe.model", "camembert"),
    "deberta": ("deberta", "spm.model", "deberta-v2"),
    "t5": ("t5", "spiece.model", "t5"),
    "t5 with bytes": ("bytes", "spiece.model", "t5"),
    "xlm-roberta": ("fairseq", "sentencepiece.bpe.model", "xlm-roberta"),
}
"""By kind: the golden model, its name in a folder, `model_type`."""


def sentencepiece(folder: Path, kind: str, **config: Any) -> Path:
    """A folder of a kind.

    Args:
        folder: to make.
        kind: of `KINDS`.
        config: of `tokenizer_config.json`; what ends in `.json` is a file beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, name, model_type = KINDS[kind]
    (folder / name).write_bytes((MODELS / f"{model}.model").read_bytes())
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    beside = {name: config.pop(name) for name in list(config) if name.endswith(".json")}
    for name, content in {"tokenizer_config.json": config, **beside}.items():
        (folder / name).write_text(json.dumps(content), "utf-8")
    return folder


def checkpoint(folder: Path) -> Path:
    """DeBERTa's golden one, with a model in the place of its tokenizer.json."""
    shutil.copytree(GOLDEN / "deberta_v3_like_h4", folder)
    (folder / "tokenizer.json").unlink()
    shutil.copyfile(MODELS / "deberta.model", folder / "spm.model")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    return folder


def varint(value: int) -> bytes:
    """A whole number as protocol buffers write it."""
    low = value & 0x7F
    return bytes([low]) if value < 0x80 else bytes([low | 0x80]) + varint(value >> 7)


def field(number: int, value: int | float | bytes) -> bytes:
    """A field of a message: a whole number, a float of four bytes, or bytes."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text: str | bytes, score: float = -5.0, kind: int = 1) -> bytes:
    """A piece of a model, as the field of it."""
    text = text.encode() if isinstance(text, str) else text
    return field(1, field(1, text) + field(2, score) + field(3, kind))


SPECIAL = piece("<pad>", 0.0, 3) + piece("</s>", 0.0, 3) + piece("<unk>", 0.0, 2)
"""T5's first pieces."""
SPECS = field(2, field(3, 1)) + field(3, b"")
"""Of a unigram model that normalises nothing."""
