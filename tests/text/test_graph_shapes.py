"""Which shapes batches are filled up to, and with what."""

from __future__ import annotations

import numpy as np

from pyenc.text.graph_shapes import Shape, bucket, filled


def test_a_bucket_holds_its_batch_and_little_more() -> None:
    seen = set()
    for tokens in range(1, 5000):
        shape = bucket(tokens, 1)
        assert shape.tokens >= tokens
        assert shape.tokens - tokens <= max(tokens // 8, 64 - tokens)
        assert bucket(shape.tokens, 1).tokens == shape.tokens
        seen.add(shape.tokens)
    assert len(seen) < 64
    assert [bucket(1, n).sequences for n in (1, 2, 3, 4, 5, 64, 65)] == [
        1, 2, 4, 4, 8, 64, 128,
    ]  # fmt: skip


def test_filling_adds_padding_ids_and_empty_sequences() -> None:
    ids, bounds = filled(np.array([5, 6, 7]), np.array([0, 1, 3]), Shape(8, 4), padding_id=1)
    assert ids.tolist() == [5, 6, 7, 1, 1, 1, 1, 1]
    assert bounds.tolist() == [0, 1, 3, 3, 3]
    # A model without a padding id has some token all the same.
    ids, _ = filled(np.array([5]), np.array([0, 1]), Shape(2, 1), padding_id=None)
    assert ids.tolist() == [5, 0]
