"""Unigram's tokens of an endless word, a part of the word at a time.

The tokens of a word are the path of the largest score through its places (Viterbi). Every path goes
through one of the last places, as many as a token has characters at the most: what the best paths
to them share is certain. The scores are added in the order of the library's, in float64, from the
start of the word, for where two paths are as good the rounding of the sums decides.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

REMEMBERED = 1 << 16
"""Parts of words whose score is kept."""

_PIECE = re.compile(rb'\["((?:[^"\\]|\\.)*)",\s*(-?[0-9.eE+-]+)\]')
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class LongToken(NamedTuple):
    """A token of a word, and where in the word's text its first and last character stand."""

    number: int
    begin: int
    end: int


class LongUnigram:
    """One Unigram model's tokens of endless words.

    Attributes:
        longest: characters of a token at the most.
        letters: those of its tokens; any other is unknown.
        can: whether its tokens are not drawn by chance.
    """

    def __init__(self, model: Any) -> None:
        self._id = model.token_to_id
        state = model.__getstate__()
        self._scores, self.longest, self.letters = array("d"), 1, set[str]()
        for piece in _PIECE.finditer(state, state.index(b'"vocab":[')):
            self._scores.append(float(piece[2]))
            letters = json.loads(b'"' + piece[1] + b'"')
            self.longest = max(self.longest, len(letters))
            self.letters.update(letters)
        head = state[: state.index(b'"vocab":[')]
        unknown = re.search(rb'"unk_id":(\d+)', head)
        self._unknown = None if unknown is None else int(unknown[1])
        self._worst = min(self._scores, default=0.0) - 10.0
        bytes_ = [self._id(byte) for byte in _BYTES]
        falls_back = re.search(rb'"byte_fallback":true', state[-64:]) is not None
        self._bytes = bytes_ if falls_back else [None] * 256
        # Older tokenizers (0.21) draw no pieces at random, and have no such settings.
        drawn = getattr(model, "alpha", None) or getattr(model, "nbest_size", None)
        self.can = self._unknown is not None and not drawn

    def score(self, text: str) -> float | None:
        number = self._id(text)
        return None if number is None else self._scores[number]

    def is_unknown(self, text: str) -> bool:
        return self._id(text) in (None, self._unknown)

    def ids(self, text: str) -> Iterator[int]:
        """The tokens of one part of a path, or of unknown parts in a row, taken together."""
        number = self._id(text) if len(text) <= self.longest else None
        if number is not None:
            yield int(number)
            return
        content = text.encode()
        if any(self._bytes[byte] is None for byte in set(content)):
            assert self._unknown is not None
            yield self._unknown
        else:
            yield from (int(self._bytes[byte] or 0) for byte in content)

    @property
    def unknown_score(self) -> float:
        return self._worst


class UnigramWord:
    """One word on its way.

    Args:
        model: whose tokens they are.
    """

    def __init__(self, model: LongUnigram) -> None:
        self._model = model
        self._known: dict[str, float | None] = {}
        self._text = ""  # what is not decided
        self._start = 0  # where in the word that begins
        self._sizes = array("i", [0])  # of the token that ends best at each place of it
        self._best = [0.0]  # the scores of the last places
        self._unknown: list[str] = []  # unknown parts in a row, and where they begin
        self._unknown_start = 0
        self._due = 0

    def add(self, text: str) -> Iterator[LongToken]:
        """The next part of the word; gives the tokens that are certain by now."""
        self._go(text)
        if len(self._text) >= self._due:
            yield from self._give(self._shared())
            self._due = 2 * len(self._text)

    def end(self) -> Iterator[LongToken]:
        """The word ends here; gives the rest of its tokens."""
        yield from self._give(len(self._text))
        yield from self._close()

    def _go(self, text: str) -> None:
        longest, known, best, sizes = self._model.longest, self._known, self._best, self._sizes
        before = len(self._text)
        text = self._text = self._text + text
        offset = before + 1 - len(best)  # of the first score
        letters, unknown = self._model.letters, self._model.unknown_score
        for end in range(before + 1, len(text) + 1):
            if text[end - 1] not in letters:
                best.append(unknown + best[-1])
                sizes.append(1)
                continue
            top, size = None, 0
            for start in range(max(end - longest, 0), end):
                part = text[start:end]
                try:
                    score = known[part]
                except KeyError:
                    score = known[part] = self._model.score(part)
                if score is None:
                    if start + 1 < end:
                        continue
                    score = unknown
                total = score + best[start - offset]
                if top is None or total > top:
                    top, size = total, end - start
            assert top is not None
            best.append(top)
            sizes.append(size)
            if len(known) > REMEMBERED:
                known.clear()
        del best[: -longest - 1]

    def _shared(self) -> int:
        """The last place that the best paths to all of the last places go through."""
        end = len(self._text)
        live = set(range(max(end - self._model.longest + 1, 0), end + 1))
        while len(live) > 1:
            place = max(live)
            live.remove(place)
            live.add(place - self._sizes[place])
        return live.pop()

    def _give(self, end: int) -> Iterator[LongToken]:
        places = array("i", [end])
        while places[-1] > 0:
            places.append(places[-1] - self._sizes[places[-1]])
        places.reverse()
        text, start, letters = self._text, self._start, self._model.letters
        self._text, self._start = text[end:], start + end
        self._sizes = self._sizes[end:]
        row = None  # where unknown parts in a row begin
        for a, b in pairwise(places):
            part = text[a:b]
            if (b == a + 1 and part not in letters) or self._model.is_unknown(part):
                row = a if row is None else row
                continue
            if row is not None:
                self._keep(text[row:a], start + row)
                row = None
            yield from self._close()
            yield from self._tokens(part, start + a)
        if row is not None:
            self._keep(text[row:end], start + row)

    def _keep(self, unknown: str, start: int) -> None:
        if not self._unknown:
            self._unknown_start = start
        self._unknown.append(unknown)

    def _close(self) -> Iterator[LongToken]:
        if self._unknown:
            text = "".join(self._unknown)
            self._unknown = []
            yield from self._tokens(text, self._unknown_start)

    def _tokens(self, text: str, begin: int) -> Iterator[LongToken]:
        for number in self._model.ids(text):
            yield LongToken(number, begin, begin + len(text))
