"""Long runs of characters of one class, found without looking at most of a text.

A run of n characters covers one of any n places in a row: only every n-th is looked at, and around
it where it is of a class. A regular expression would begin anew at every character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence


class LongRuns:
    """The runs of at least `least` characters, each of one class."""

    def __init__(self, classes: Sequence[str], least: int) -> None:
        """classes: what stands between the brackets of a regular expression; no two share one."""
        self._least = least
        self._classes = [re.compile(rf"[{characters}]+") for characters in classes]

    def __call__(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of each, in order."""
        done = 0
        for place in range(self._least - 1, len(text), self._least):
            if place < done:
                continue
            for run in self._classes:
                after = run.match(text, place)
                if after is None:
                    continue
                # A run that begins before the place looked at last covers it, and was seen there.
                before = run.match(text[max(done, place - self._least + 1) : place][::-1])
                start, done = place - (before.end() if before else 0), after.end()
                if done - start >= self._least:
                    yield start, done
                break
