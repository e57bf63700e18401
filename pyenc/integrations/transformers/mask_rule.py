"""What a mask function of transformers says: which keys a query sees.

Shapes: N tokens of a padded row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

Right = Callable[[Tensor, Tensor], Tensor]
"""Which keys are seen, by the positions of queries and keys."""


@dataclass(frozen=True)
class MaskRule:
    """Whether it is one that windows and packed rows make, by what it says of some pairs: it has no
    name to ask.

    Args:
        function: (batch, head, i, j) -> whether the query at i sees the key at j, of tensors.
        rows: B, each of which is asked.
        length: N.
        local_size: the distance that is said beside it.
        device: of the pairs.
    """

    function: Callable[..., Any] | None
    rows: int
    length: int
    local_size: int | None
    device: torch.device

    def of_a_models_own(self) -> tuple[bool, int | None] | None:
        """Whether it is causal, and its window on a side, of a function with a model's rule in it
        (embeddinggemma's); None: it is another rule. All pairs of all rows are asked."""
        size = self.local_size
        before: Right = lambda i, j: j <= i  # noqa: E731
        kinds: list[tuple[bool, int | None, Right]] = [
            (False, None, lambda i, j: torch.ones_like(j > i)), (True, None, before),
        ]  # fmt: skip
        if size is not None:
            kinds.append((False, size - 1, lambda i, j: (j - i).abs() < size))
            kinds.append((True, size - 1, self._before))
        for causal, window, right in kinds:
            if self._says_all(right):
                return causal, window
        return None

    def is_one_token(self) -> bool:
        """Rows of one token, which sees itself whatever the rule, or of none."""
        return self.length <= 1 and self._says(lambda i, j: i == j)

    def is_window(self) -> bool:
        """|i - j| <= local_size."""
        size = self.local_size
        return size is not None and self._says(lambda i, j: (j - i).abs() <= size)

    def is_causal(self) -> bool:
        """j <= i, and within local_size where there is one."""
        if self.function is masking_utils.causal_mask_function:
            return self.local_size is None
        if self.function is None or self.local_size is None or not self.length:
            return False
        unbroken = self.local_size == 1 or bool(self._sees(-1).all())
        return self._says(self._before) and unbroken and not bool(self._sees(1).any())

    def starts(self) -> Tensor | None:
        """Where sequences of the one row begin, (number of them,) int64; None: another rule."""
        # A token that does not see the one before it is a sequence's first.
        if self.function is None or self.rows != 1 or self.local_size == 1 or not self.length:
            return None
        first = torch.nn.functional.pad(~self._sees(-1)[0], (1, 0), value=True)
        number = first.cumsum(0)
        starts = first.nonzero().squeeze(-1)
        ends = (starts - 1)[1:9].tolist()
        same = self._says(lambda i, j: self._before(i, j) & (number[i] == number[j]), ends)
        return starts if same and not bool(self._sees(1).any()) else None

    def _before(self, i: Tensor, j: Tensor) -> Tensor:
        near = True if self.local_size is None else i - j < self.local_size
        return (j <= i) & near

    def _sees(self, step: int) -> Tensor:
        """Whether tokens see the next (1), or the one before (-1), of all that have one."""
        assert self.function is not None
        at = torch.arange(self.length, device=self.device)
        i, j = (at[:-1], at[1:]) if step > 0 else (at[1:], at[:-1])
        seen = self.function(*self._row_and_head(), i, j)
        return torch.as_tensor(seen, dtype=torch.bool, device=self.device).expand(self.rows, len(i))

    def _row_and_head(self) -> tuple[Tensor, Tensor]:
        zero = torch.zeros((), dtype=torch.int64, device=self.device)
        return torch.arange(self.rows, device=self.device)[:, None], zero

    def _says_all(self, right: Right) -> bool:
        """Of every query and key of every row, some million pairs at a time."""
        if self.function is None:
            return False
        keys = torch.arange(self.length, device=self.device)
        zero = torch.zeros((), dtype=torch.int64, device=self.device)
        for queries in keys.split(max(1, 2**22 // max(1, self.length))):
            i, j = queries[:, None], keys[None]
            expected = right(i, j)
            for row in range(self.rows):
                try:
                    seen = self.function(zero + row, zero, i, j)
                    seen = torch.as_tensor(seen, dtype=torch.bool, device=self.device)
                    if not bool((seen == expected).all()):
                        return False
                except (RuntimeError, TypeError, ValueError, IndexError):
                    return False  # it is not made for many pairs at once
        return True

    def _says(self, right: Right, more: Iterable[int] = ()) -> bool:
        """By three of its rows, and more."""
        if self.function is None:
            return False
        keys = torch.arange(self.length, device=self.device)
        for query in {0, self.length // 2, self.length - 1, *more} if self.length else ():
            sees = self.function(*self._row_and_head(), keys[query], keys)
            if not bool((sees == right(keys[query], keys)).all()):
                return False
        return True
