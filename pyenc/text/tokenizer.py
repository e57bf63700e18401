"""Text to token ids through the `tokenizers` library: checked, cut to length, with spans.

The library's own truncation and padding stay off: they are state of a shared object, and they hide
how many texts were cut.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ..errors import CheckpointError, InputError
from ..forking import is_forked
from ..loading import read_json

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json",
    "special_tokens_map.json",
)  # fmt: skip

NO_LIMIT = 10**6
"""A `model_max_length` beyond this is transformers' way of saying that it does not know."""


@dataclass(frozen=True)
class Tokens:
    """One text's tokens."""

    ids: np.ndarray  # (n,) int64
    spans: np.ndarray | None  # (n, 2) int32, characters of the text; (0, 0) for special tokens
    full_length: int
    """Tokens before cutting to the maximum length."""


class TextTokenizer:
    """A checkpoint's tokenizer.

    Args:
        folder: holds `tokenizer.json`, or `vocab.txt` (WordPiece), or `vocab.json` and
            `merges.txt` (byte-level BPE).
        lower_case: lower the text first, as `sentence_bert_config.json` may ask.

    Raises:
        CheckpointError: no tokenizer files, or damaged ones.
    """

    def __init__(self, folder: Path, lower_case: bool = False) -> None:
        config_path = folder / "tokenizer_config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        self._tokenizer = _read_tokenizer(folder, config)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if lower_case:
            steps = [normalizers.Lowercase()]
            if self._tokenizer.normalizer is not None:
                steps.append(self._tokenizer.normalizer)
            self._tokenizer.normalizer = normalizers.Sequence(steps)
        limit = config.get("model_max_length")
        self.max_length: int | None = None
        if isinstance(limit, int) and 0 < limit < NO_LIMIT:
            self.max_length = limit

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def num_special(self) -> int:
        """Special tokens that every text is given."""
        return int(self._tokenizer.num_special_tokens_to_add(False))

    def __call__(
        self, texts: Sequence[str], max_length: int, spans: bool = False, first: int = 0
    ) -> list[Tokens]:
        """Tokenise texts, special tokens included, each cut to `max_length` tokens.

        Raises:
            InputError: a text holds lone surrogates; the message counts from `first`.
        """
        encode = self._tokenizer.encode_batch if spans else self._tokenizer.encode_batch_fast
        try:
            if is_forked():
                # Their threads stayed behind too; under TOKENIZERS_PARALLELISM=true the library
                # waits for them.
                encodings = [self._tokenizer.encode(text) for text in texts]
            else:
                encodings = encode(list(texts))
        except Exception as error:  # the library raises bare Exception too
            raise InputError(
                _not_unicode(texts, first) or f"the tokenizer failed: {error}"
            ) from error
        return [self._cut(encoding, max_length, spans) for encoding in encodings]

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt takes at the start of a text: all but a closing special token."""
        encoding = self._tokenizer.encode(prompt)
        closing = encoding.special_tokens_mask[-1:] == [1]
        return len(encoding.ids) - int(closing)

    def _cut(self, encoding: Any, max_length: int, spans: bool) -> Tokens:
        ids = np.asarray(encoding.ids, dtype=np.int64)
        where = np.asarray(encoding.offsets, dtype=np.int32).reshape(-1, 2) if spans else None
        full = len(ids)
        if full > max_length:
            # The closing special tokens stay: a cut text still ends as the model expects.
            special = encoding.special_tokens_mask
            closing = full - 1 - max((i for i in range(full) if not special[i]), default=full - 1)
            closing = min(closing, max_length)
            keep = np.r_[0 : max_length - closing, full - closing : full]
            ids = ids[keep]
            where = None if where is None else where[keep]
        return Tokens(ids, where, full)


def surrogate_in(text: str) -> str | None:
    """Where a text has a lone surrogate, which is no character; None if it has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"lone surrogate {text[error.start]!r} at character {error.start}"
    return None


def _not_unicode(texts: Sequence[str], first: int) -> str | None:
    for index, text in enumerate(texts, first):
        if (fault := surrogate_in(text)) is not None:
            return f"text {index} is not valid Unicode: {fault}"
    return None


def has_tokenizer(folder: Path) -> bool:
    """Are there files to make a tokenizer of?"""
    sets = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
    return any(all((folder / name).is_file() for name in files) for files in sets)


def _read_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path))
        if (path := folder / "vocab.txt").is_file():
            return _word_piece(path, config)
        if (path := folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return _byte_level_bpe(path, folder / "merges.txt", config)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception on files it cannot parse
        raise CheckpointError(f"{path}: not a readable tokenizer: {error}") from error
    raise CheckpointError(
        f"{folder}: no tokenizer: expected tokenizer.json, vocab.txt, or vocab.json + merges.txt"
    )


def _word_piece(path: Path, config: dict[str, Any]) -> Tokenizer:
    """BERT's tokenizer from its word list, one token a line."""
    words = path.read_text("utf-8").splitlines()
    vocab = {word: i for i, word in enumerate(words)}
    special = {
        key: _token(config, key, default)
        for key, default in (("unk_token", "[UNK]"), ("cls_token", "[CLS]"), ("sep_token", "[SEP]"))
    }
    for token in special.values():
        if token not in vocab:
            raise CheckpointError(f"{path}: special token {token!r} is missing")
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.BertProcessing((sep, vocab[sep]), (cls, vocab[cls]))
    # A special token written out in a text is that token, as in the published tokenizers.
    tokenizer.add_special_tokens([t for t in (*special.values(), "[PAD]", "[MASK]") if t in vocab])
    return tokenizer


def _byte_level_bpe(vocab_path: Path, merges: Path, config: dict[str, Any]) -> Tokenizer:
    """RoBERTa's tokenizer (jina-embeddings-v2-base-code and -de) from vocabulary and merges."""
    vocab = json.loads(vocab_path.read_text("utf-8"))
    cls, sep = _token(config, "cls_token", "<s>"), _token(config, "sep_token", "</s>")
    for token in (cls, sep):
        if token not in vocab:
            raise CheckpointError(f"{vocab_path}: special token {token!r} is missing")
    space = bool(config.get("add_prefix_space", False))
    tokenizer = Tokenizer(models.BPE.from_file(str(vocab_path), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.post_processor = processors.RobertaProcessing(
        (sep, vocab[sep]), (cls, vocab[cls]), trim_offsets=True, add_prefix_space=space
    )
    named = (_token(config, key, "") for key in ("unk_token", "pad_token", "mask_token"))
    tokenizer.add_special_tokens(
        [t for t in (cls, sep, *named, "<pad>", "<unk>", "<mask>") if t in vocab]
    )
    return tokenizer


def _token(config: dict[str, Any], key: str, default: str) -> str:
    """A special token's text: a string, or the object that older files store."""
    value = config.get(key, default)
    if isinstance(value, dict):
        value = value.get("content", default)
    return str(value)
