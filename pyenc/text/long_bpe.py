"""Where BPE's tokens of an endless word are certain before its end is known.

Merges are done by rank, leftmost first, and none is undone. So a place where a word's tokens end
parts it: left and right are tokenised as if alone, and every other place within them as well.

Let m be a place in the word w. Either a token of w ends at m, or a token of the vocabulary stands
across it; let F be m and the places where those begin. A token of w ends at one f of F, and what is
before f has the tokens of w[:f]. Let e be a place where a token of w[:m] ends, and t > e another,
and let a token of w[e:f] end at t for every f in F. Then a token of w ends at t. For take the first
merge of w[:f] across e or t. Until then, the parts before e, between, and after t change as if
alone. If it is across e: the first two parts go through the same states in w[:m], where no merge
is ever across e or t, and this merge would have been the next of those parts there. If it is
across t: likewise in w[e:f]. So there is none.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class LongBPE:
    """The certain places of one BPE model's words.

    Attributes:
        longest: characters of a token at the most.
        can: whether its tokens are all texts of the vocabulary, as written there.
    """

    def __init__(self, model: Any) -> None:
        self._model = Tokenizer(model)
        vocab = self._model.get_vocab(with_added_tokens=False)
        self.longest = max(map(len, vocab), default=1)
        unknown = model.unk_token
        odd = re.compile(
            "|".join(
                _within(text) for text in ("<0x[0-9A-F]{2}>", re.escape(unknown or "")) if text
            )
        )
        self.can = (
            not model.dropout
            # A word that is a token as it stands would not be merged at all.
            and not model.ignore_merges
            and not model.continuing_subword_prefix
            and not model.end_of_word_suffix
            and len(set(vocab.values())) == len(vocab)
            # What stands for a character without a token is merged with nothing.
            and not any(map(odd.search, vocab))
        )
        # Else such characters are left out, or any number of them is one token.
        self._any_letter = (model.byte_fallback and vocab.keys() >= set(_BYTES)) or (
            unknown in vocab and not model.fuse_unk
        )

    def certain(self, word: str) -> list[int]:
        """Where tokens of every word that goes on after `word` end for certain, the last first.

        None of them is among the last `longest` characters.
        """
        middle = len(word) - self.longest - 1
        if middle < self.longest:
            return []
        if not self._any_letter and any(self._id(letter) is None for letter in set(word)):
            return []
        begun = self._ends(word[:middle])
        at = range(middle - self.longest + 1, middle)
        across = [
            start
            for start in at
            if any(
                self._id(word[start:end]) is not None
                for end in range(middle + 1, start + self.longest + 1)
            )
        ]
        reach = 4 * self.longest
        while True:
            first = max((end for end in begun if end <= middle - reach), default=0)
            same = {end for end in begun if end > first}
            for end in across:
                same &= {first + place for place in self._ends(word[first:end])}
            if same or first == 0 or reach > 64 * self.longest:
                return sorted(same, reverse=True)
            reach *= 4

    def _id(self, text: str) -> int | None:
        found = self._model.token_to_id(text)
        return None if found is None else int(found)

    def _ends(self, word: str) -> set[int]:
        spans = self._model.encode(word).offsets
        ends = {end for (_, end), (start, _) in pairwise(spans) if start >= end}
        return ends | {len(word)}


def _within(text: str) -> str:
    """A pattern of what holds this and more."""
    return rf"(?s:.{text}|{text}.)"
