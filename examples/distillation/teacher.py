"""The teacher's last hidden states for windows, computed once and kept in a file in float16.

A target for every token says far more than one vector a text, and their mean is that vector.
A long window is read in chunks of 254 tokens, as the published model would be used on it: the
target of a token is its state in its chunk, so that the mean of a window's targets is the mean of
the chunks' means, weighted by their tokens. The first chunk's [CLS] and the last one's [SEP] are
the targets of the window's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyenc import Encoder

from .tokens import Corpus
from .windows import CHUNK, Windows


class Teacher:
    """States by windows, from the file or, at first, from the model.

    Args:
        model: what is imitated.
        corpus, windows: what is read.
        special: ids of [CLS] and [SEP].
        path: of the file, as large as all states; it fills as windows are asked for. None: no file.
    """

    def __init__(
        self, model: Encoder, corpus: Corpus, windows: Windows, special: tuple[int, int],
        path: Path | None,
    ) -> None:  # fmt: skip
        self.model, self.corpus, self.windows, self.special = model, corpus, windows, special
        width = model.config.hidden_size
        self.places = np.concatenate([[0], np.cumsum(windows.lengths + 2)])
        self.states = self.known = None
        if path is not None:
            shape = (int(self.places[-1]), width)
            made = path.is_file() and path.stat().st_size == shape[0] * width * 2
            path.parent.mkdir(parents=True, exist_ok=True)
            self.states = np.memmap(path, np.float16, "r+" if made else "w+", shape=shape)
            # A window's flag is set after its states are written.
            flags = path.with_suffix(".known")
            there = made and flags.is_file() and flags.stat().st_size == len(windows.lengths)
            self.known = np.memmap(
                flags, np.uint8, "r+" if there else "w+", shape=(len(windows.lengths),)
            )

    def __call__(self, batch: Sequence[int]) -> Tensor:
        """(T, C) float16 states of a batch's tokens, side by side."""
        missing = [w for w in batch if self.known is None or not self.known[w]]
        made = dict(zip(missing, self._compute(missing), strict=True)) if missing else {}
        rows = []
        for window in batch:
            if window in made:
                rows.append(made[window])
                if self.states is not None and self.known is not None:
                    self.states[self.places[window] : self.places[window + 1]] = made[window]
                    self.known[window] = 1
            elif self.states is not None:
                rows.append(np.array(self.states[self.places[window] : self.places[window + 1]]))
        return torch.from_numpy(np.concatenate(rows))

    def _compute(self, batch: Sequence[int]) -> list[np.ndarray]:
        """States of each window, from all their chunks in one packed call."""
        cls, sep = self.special
        chunks: list[np.ndarray] = []
        counts: list[int] = []
        for window in batch:
            start, length = int(self.windows.starts[window]), int(self.windows.lengths[window])
            ids = self.corpus.ids[start : start + length]
            pieces = [ids[at : at + CHUNK] for at in range(0, length, CHUNK)]
            chunks += [np.concatenate([[cls], piece, [sep]]) for piece in pieces]
            counts.append(len(pieces))
        bounds = np.cumsum([0, *map(len, chunks)])
        with torch.inference_mode():
            states = self.model.forward_packed(
                torch.from_numpy(np.concatenate(chunks).astype(np.int64)), torch.from_numpy(bounds)
            )
        states_TC = states.half().numpy()
        found: list[np.ndarray] = []
        chunk = 0
        for count in counts:
            inner = []
            for i in range(count):
                first, last = bounds[chunk + i], bounds[chunk + i + 1]
                inner.append(states_TC[first + (i > 0) : last - (i < count - 1)])
            found.append(np.concatenate(inner))
            chunk += count
        return found
