"""How a stream's texts are cut into units, how many are under way, and what is closed after."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import numpy as np
import pytest

import pyenc
from pyenc import forking
from pyenc.errors import CheckpointError, InputError
from pyenc.text import encoding, stream
from pyenc.text.arguments import checked_texts
from pyenc.text.options import Options, checked_call
from tests.text.test_stream import MANY, SMALL


def sizes(encoder: Any, texts: list[Any], **options: Any) -> list[int]:
    """Texts of each unit."""
    call = checked_call(encoder, Options(**options))
    units = list(stream._units(iter(texts), encoder, call))
    starts = list(itertools.accumulate(len(unit.texts[0]) for unit in units))
    assert [unit.first for unit in units] == [0, *starts[:-1]]
    assert [text for unit in units for text in unit.texts[0]] == checked_texts(texts)[0]
    return [len(unit.texts[0]) for unit in units]


def test_units_of_so_many_characters(
    encoder: pyenc.TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sizes(encoder, ["four"] * 8) == [8]
    monkeypatch.setattr(stream, "UNIT_CHARACTERS", 12)
    assert sizes(encoder, ["four"] * 8) == [3, 3, 2]
    assert sizes(encoder, ["x" * 99] * 2) == [1, 1]
    assert sizes(encoder, [["four", "eight888"]] * 3) == [1, 1, 1]


def test_units_of_so_many_bytes_of_vectors(
    encoder: pyenc.TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "UNIT_BYTES", 4 * 64 * 12)
    assert sizes(encoder, ["four"] * 30) == [12, 12, 6]
    assert sizes(encoder, ["four"] * 30, truncate_dim=32) == [24, 6]
    # Of states a row a token: five of each text, by its characters.
    assert sizes(encoder, ["four"] * 8, output="tokens") == [3, 3, 2]


def test_units_of_so_many_tokens(encoder: pyenc.TextEncoder) -> None:
    assert sizes(encoder, ["four"] * 30, batch_tokens=15) == [12, 12, 6]
    assert sizes(encoder, ["four" * 99] * 12, batch_tokens=10, max_length=8) == [5, 5, 2]


class Start:
    """As many units under way as a team would have; notes which were set about and closed."""

    ahead = 2

    def __init__(self, encoder: Any) -> None:
        self.run = encoding._Here(encoder)
        self.begun = 0
        self.closed: list[int] = []

    def __call__(self, prepared: Any) -> Any:
        number, made, start = self.begun, self.run(prepared), self
        self.begun += 1

        class Results:
            def __iter__(self) -> Iterator[Any]:
                return made

            def close(self) -> None:
                start.closed.append(number)

        return Results()


def started(encoder: Any, texts: Any, **options: Any) -> tuple[Start, Any]:
    start = Start(encoder)
    chosen = Options(**(SMALL | options))
    return start, stream.stream(encoder, texts, chosen, nullcontext(start))


def test_units_under_way_are_closed(encoder: pyenc.TextEncoder) -> None:
    right = encoder.encode(MANY)
    start, vectors = started(encoder, MANY)
    np.testing.assert_allclose(next(vectors), right[0], rtol=0, atol=1e-5)
    assert (start.begun, start.closed) == (3, [0])
    vectors.close()
    assert (start.begun, start.closed) == (3, [0, 1, 2])
    start, vectors = started(encoder, MANY)
    np.testing.assert_allclose(np.stack(list(vectors)), right, rtol=0, atol=1e-5)
    assert start.closed == list(range(start.begun))


def test_a_unit_that_fails_is_closed_too(
    encoder: pyenc.TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, vectors = started(encoder, MANY)
    monkeypatch.setattr(encoding, "run_packed", mock.Mock(side_effect=MemoryError("no room")))
    with pytest.raises(MemoryError, match="no room"):
        next(vectors)
    assert sorted(start.closed) == [0, 1, 2]


def test_a_bad_text_waits_for_those_before_it(encoder: pyenc.TextEncoder) -> None:
    def texts() -> Iterator[str]:
        yield from MANY[:40]
        raise KeyError("the next row")

    start, vectors = started(encoder, texts())
    assert len(list(itertools.islice(vectors, 40))) == 40
    with pytest.raises(KeyError, match="the next row"):
        next(vectors)
    assert start.closed == list(range(start.begun))


def test_a_vector_that_is_not_finite_is_counted_from_the_beginning(
    encoder: pyenc.TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = stream.collect
    monkeypatch.setattr(stream, "collect", lambda *a: collect(*a) / (0 if given else 1))
    given: list[Any] = []
    vectors = encoder.encode_stream(MANY, precision="float16", **SMALL)
    with pytest.raises(InputError, match=r"vector \d+ is not finite") as caught:
        given.extend(vector for vector in vectors)
    assert f"vector {len(given)} is" in str(caught.value)
    assert given


def test_who_leaves_a_stream_is_told_how_many_were_cut(encoder: pyenc.TextEncoder) -> None:
    texts = ["b " * 40, "a", *("c " * 40 for _ in range(99))]
    vectors = encoder.encode_stream(texts, max_length=16, batch_tokens=4)
    with pytest.warns(pyenc.TruncationWarning, match="text 0 exceeds 16 tokens"):
        next(vectors)
    next(vectors)
    next(vectors)
    with pytest.warns(pyenc.TruncationWarning, match="2 of 3 texts exceed 16 tokens"):
        vectors.close()  # type: ignore[attr-defined]


def test_one_text_that_is_cut_is_told_of_once(encoder: pyenc.TextEncoder) -> None:
    with pytest.warns(pyenc.TruncationWarning) as caught:
        list(encoder.encode_stream(["a", "fox " * 50_000, "a"], max_length=12, batch_tokens=4))
    (message,) = (each.message for each in caught)
    assert isinstance(message, pyenc.TruncationWarning)
    # The rest of it was not tokenised.
    assert (message.count, message.longest > 12, message.exact) == (1, True, False)


def test_others_beside_the_first_that_is_cut_are_told_of(encoder: pyenc.TextEncoder) -> None:
    """At the end, though all of them came before the warning of the first."""
    with pytest.warns(pyenc.TruncationWarning) as caught:
        list(encoder.encode_stream(["b " * 40] * 3 + ["a"] * 500, max_length=16))
    first, last = (str(each.message) for each in caught)
    assert "text 0 exceeds 16 tokens" in first
    assert "3 of 503 texts exceed 16 tokens" in last


def test_blocks_share_no_memory(encoder: pyenc.TextEncoder) -> None:
    for block in (5, 53, 99):
        assert all(each.base is None for each in encoder.encode_stream(MANY, block=block, **SMALL))


def test_blocks_of_tokens(encoder: pyenc.TextEncoder) -> None:
    blocks = list(encoder.encode_stream(MANY, block=7, output="tokens", **SMALL))
    assert [len(block) for block in blocks] == [7] * (len(MANY) // 7) + [len(MANY) % 7] * (
        len(MANY) % 7 > 0
    )
    got = [one for block in blocks for one in block]
    for ours, right in zip(got, encoder.encode(MANY, output="tokens"), strict=True):
        np.testing.assert_allclose(ours.vectors, right.vectors, rtol=0, atol=1e-5)


def test_ranges_of_a_calibration(encoder: pyenc.TextEncoder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyenc.CalibrationWarning)
        right = encoder.encode(MANY, precision="int8", calibration=MANY[:9])
        (got,) = encoder.encode_stream(MANY, block=99, precision="int8", calibration=MANY[:9])
    assert (got == right).mean() > 0.99


def test_what_is_told_before_a_text_is_asked_for(
    encoder: pyenc.TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = pyenc.TextEncoder(encoder.checkpoint, None, encoder.recipe)
    with pytest.raises(CheckpointError, match="no tokenizer files, so texts cannot be encoded"):
        bare.encode_stream(["a"])
    for name, value in {"_child": True, "_dismissed": True, "_untold": 4}.items():
        monkeypatch.setattr(forking, name, value)
    with pytest.warns(pyenc.ForkWarning, match="computed on 4 threads"):
        encoder.encode_stream(["a"])
