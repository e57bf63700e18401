"""Where a text may be cut without changing a token.

A cut is safe where no normaliser joins what stands on its two sides, the pre-tokeniser ends a word
there, and no added token lies across: a word's tokens depend on that word alone, so the tokens of
the pieces, put together, are those of the text. `Cuts` looks for likely places, `Places` decides.
Where it cannot be known (an unusual normaliser) no text is cut.

A piece between two such places may still be long. Byte-level BPE takes a run of letters (Chinese
without punctuation), of one mark or of spaces for one word, and Unigram all between two spaces;
what follows in a word may change any token before it: `long_pieces.py`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from .long_runs import LongRuns
from .safe_places import Places

SIZE = 1 << 16
"""Characters of a piece at the most, where there is a place to cut."""

FAR = 16
"""Times the size asked for that a piece may have before no more of it is searched for a place to
cut, where its model needs none."""

TRIES = 1000
"""Likely places looked at closely before a text is left whole: one of nothing but added tokens."""

_PLAIN = "0-9A-Za-z"
_CHINESE = "\u4e00-\u9fff"

# What BERT keeps together in one word, of which no normaliser drops a character ...
_SOLID = (
    _PLAIN + "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0391-\u03a1\u03a3-\u03ff\u0400-\u0481"
    "\u048a-\u052f\u05d0-\u05ea\u0620-\u064a\u0904-\u0939\u0e01-\u0e2e\u3041-\u3096\u30a1-\u30fa\u30fc"
    "\uac00-\ud7a3\U0001f300-\U0001faff"
)
# ... and what may stand in such a word, and may be dropped.
_WORD = (
    _SOLID + "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0901-\u0903\u093c-\u094d\u0e2f-\u0e3a"
    "\u0e40-\u0e4e\u200d\ufe0f"
)
_GAP = " \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_CONTROL = "\x00-\x08\x0e-\x1f\x7f"

# Where ByteLevel's own pattern could end a word: before white space, between kinds of characters.
_CLASSES = (
    r"(?<=\S)(?=\s)|(?<=\w)(?=[^\w\s]|_)|(?<=[^\w\s])(?=\w)|(?<=_)(?=[^\W_])"
    r"|(?<=\d)(?=[^\W\d])|(?<=[^\W\d])(?=\d)"
)

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The words of Llama 3's tokenizer, and EuroBERT's.

A word ends before a space that follows anything but white space, and where letters or numbers begin
or end, but for a mark before letters: one is of their word. Numbers are counted off by three from
their first, and a newline far away decides what white space before it is, so that what is near a
place inside of such a run does not say what a cut there would do.
"""

QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
"""The words of Qwen 2's and Qwen 3's: the same, each number by itself."""

DEBERTA = r"\s{2,}|[\n\r\t]"
"""The white space that DeBERTa-v2's and v3's normaliser takes for one space."""

_LOCAL = {
    "BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt",
    "Precompiled",
}  # fmt: skip
"""Normalisers that look no further than a letter's own accents."""


class Cuts:
    """The safe cuts of one tokenizer's texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._at: re.Pattern[str] | None = None
        self._runs: LongRuns | None = None
        self._keep = 0
        self.near = True
        """Whether what is near a place tells where words end there."""
        steps = steps_of(tokenizer.normalizer, "normalizers")
        words = steps_of(tokenizer.pre_tokenizer, "pretokenizers")
        llama = _is_llama3(words)
        self._any_end = isinstance(tokenizer.model, models.BPE) and not llama
        if not (all(_is_local(step, words) for step in steps) and (llama or _ends_words(words))):
            return
        first, alone = words[0], len(words) == 1
        bert = [step for step in steps if step["type"] == "BertNormalizer"]
        self._places = Places(tokenizer, added_texts(tokenizer))
        if llama:
            self.near = False
            self._places.rule, self._at = "llama", re.compile(_CLASSES)
        elif first["type"] == "BertPreTokenizer" and alone and bert:
            self._places.rule, self._at = (
                "bert",
                re.compile(rf"(?=[\W_{_CHINESE}])|(?<=[\W_{_CHINESE}])"),
            )
            if isinstance(tokenizer.model, models.WordPiece):
                self._shorten_runs(tokenizer.model, added_texts(tokenizer), bert[0])
        elif first["type"] == "ByteLevel" and alone and not first["add_prefix_space"]:
            self._places.rule, self._at = "classes", re.compile(_CLASSES)
        elif first["type"] in ("WhitespaceSplit", "Whitespace", "BertPreTokenizer"):
            self._places.rule, self._at = "white", re.compile(r"(?<=\S)(?=\s)")
        else:
            # A piece that begins with anything but a space could be given one.
            self._places.rule, self._at = "space", re.compile(r"(?<=\S)(?= )")

    def _shorten_runs(
        self, model: Any, tokens: list[tuple[Any, str]], bert: dict[str, Any]
    ) -> None:
        added = [text for _, text in tokens]
        if any(re.fullmatch(rf"[{_WORD}]+|\s+|[{_CONTROL}]+", text) for text in added):
            return
        longest = max((len(text) for text in added), default=0)
        self._keep = max(model.max_input_chars_per_word, longest) + 1
        runs = [_WORD, _GAP, _CONTROL] if bert["clean_text"] else [_WORD, _GAP]
        self._runs = LongRuns(runs, 4 * self._keep)

    @property
    def can(self) -> bool:
        return self._at is not None

    def end(self, text: str, start: int, size: int) -> int:
        """The end of the piece that begins at `start`, of `size` characters or a little more."""
        if len(text) - start <= size:
            return len(text)
        last = min(start + FAR * size, len(text)) if self._any_end else len(text)
        found = self._first(text, start + size, last)
        return len(text) if found is None else found

    def start(self, text: str, end: int, size: int) -> int:
        """The start of the piece that ends at `end`, of about `size` characters."""
        after = end
        begin = end
        while (begin := begin - size) > 0:
            found = self._first(text, begin, after)
            if found is not None:
                return found
            after = begin
        return 0

    def _first(self, text: str, begin: int, end: int) -> int | None:
        """The first safe cut from `begin` on, before `end`."""
        if self._at is None:
            return None
        tries = 0
        for found in self._at.finditer(text, max(begin, 1), end):
            at = found.start()
            if at >= end or tries == TRIES:
                return None
            if self._places.may_be(text, at):
                if self._places.is_safe(text, at):
                    return at
                tries += 1
        return None

    def shorten(self, text: str) -> tuple[str, np.ndarray]:
        """The text without the middles of its endless words and gaps, which no token shows.

        WordPiece makes one unknown token of a word beyond its limit, whatever the word, and
        nothing of white space and control characters.

        Returns:
            The shorter text, and (n, 2): where in it something is left out, and how much in all.
        """
        parts, removed, at = [], [], 0
        for start, end in self._runs(text) if self._runs else ():
            head, tail = self._keep_of(text, start, end), end - self._keep
            if head < tail:
                parts.append(text[at:head])
                at = tail
                removed.append((head, tail))
        if not removed:
            return text, np.zeros((0, 2), dtype=np.int64)
        parts.append(text[at:])
        gaps = np.array(removed, dtype=np.int64)
        total = np.cumsum(gaps[:, 1] - gaps[:, 0])
        before = np.concatenate([[0], total[:-1]])
        return "".join(parts), np.stack([gaps[:, 0] - before, total], axis=1)

    def _keep_of(self, text: str, start: int, end: int) -> int:
        """Where the head of a run ends that is as good as the run: with enough that no normaliser
        drops. The run's end where there is not so much."""
        if re.match(f"[{_GAP}{_CONTROL}]", text[start]):
            return start + self._keep
        near = re.compile(f"[{_SOLID}]").finditer(text, start, min(end, start + 8 * self._keep))
        return next((m.end() for n, m in enumerate(near, 1) if n == self._keep), end)


def steps_of(component: Any, inside: str) -> list[dict[str, Any]]:
    """A component's steps as its file would write them, sequences laid flat."""
    if component is None:
        return []
    return _flat(json.loads(component.__getstate__()), inside)


def _flat(step: dict[str, Any], inside: str) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [flat for inner in step[inside] for flat in _flat(inner, inside)]


def _is_local(step: dict[str, Any], words: list[dict[str, Any]]) -> bool:
    if step["type"] == "Replace":
        pattern, content = step["pattern"], step["content"]
        text = pattern.get("String", "")
        if pattern == {"Regex": DEBERTA}:
            # A cut is before the first of the spaces that it takes together.
            return bool(content == " ")
        if pattern == {"Regex": " {2,}"}:
            # What becomes of two spaces must end a word as well as one does.
            return content == " " or any(
                word["type"] == "Metaspace" and word.get("split", True) for word in words
                if word.get("replacement") == content
            )  # fmt: skip
        return bool(text) and not re.search("[0-9A-Za-z ]", text)
    if step["type"] == "Strip":  # a piece that is not the last ends in no white space
        return not step["strip_left"]
    return step["type"] in _LOCAL


def _is_llama3(words: list[dict[str, Any]]) -> bool:
    """Are the steps a split into Llama 3's words, or Qwen's, written as bytes?"""
    if [word["type"] for word in words] != ["Split", "ByteLevel"]:
        return False
    split, level = words
    return (
        split["pattern"] in ({"Regex": LLAMA3}, {"Regex": QWEN2})
        and split["behavior"] == "Isolated"
        and not split["invert"]
        and not level["add_prefix_space"]
        and not level["use_regex"]
    )


def _ends_words(words: list[dict[str, Any]]) -> bool:
    """Does every word end before a space, and is each step blind to what is further away?"""
    ends = bytes_written = False
    for word in words:
        kind = word["type"]
        if bytes_written and word.get("prepend_scheme") == "first":
            # It puts a space before what a text begins with, a piece's space written as bytes too.
            return False
        bytes_written |= kind == "ByteLevel"
        if kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit"):
            ends = True
        elif kind in ("ByteLevel", "Metaspace"):
            ends |= bool(word["use_regex"] if kind == "ByteLevel" else word.get("split", True))
            if not ends:
                # It writes another character for each space, so no later step sees one.
                return False
        elif kind not in ("Digits", "Punctuation"):
            return False
    return ends


def added_texts(tokenizer: Tokenizer) -> list[tuple[Any, str]]:
    """The added tokens, each with every text that it is found by."""
    tokens = tokenizer.get_added_tokens_decoder().values()
    found = [(token, token.content) for token in tokens]
    if tokenizer.normalizer is not None:
        normal = tokenizer.normalizer.normalize_str
        found += [(token, normal(token.content)) for token in tokens if token.normalized]
    return [(token, text) for token, text in found if text]
