"""Batches by token budget: everything once, longest first, within the budget."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyenc.errors import InputError
from pyenc.text.batching import token_batches


@given(st.lists(st.integers(0, 50)), st.integers(1, 120))
def test_batches(lengths: list[int], budget: int) -> None:
    batches = list(token_batches(lengths, budget))
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)
    for batch in batches:
        assert batch
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget
    for batch, after in pairwise(batches):  # none is cut short
        assert sum(lengths[i] for i in batch) + lengths[after[0]] > budget


def test_a_batch_may_be_as_large_as_the_budget() -> None:
    assert list(token_batches([2, 3, 1, 0], 5)) == [[1, 0], [2, 3]]


def test_budget_out_of_range() -> None:
    with pytest.raises(InputError, match="batch_tokens must be at least 1, got 0"):
        list(token_batches([1], 0))
