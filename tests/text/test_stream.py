"""encode_stream: the same vectors in the same order, no more texts in hand than it needs."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from pyenc.errors import InputError, InputTypeError
from pyenc.text import stream
from tests.conftest import GOLDEN
from tests.text.texts import TEXTS

ROOT = Path(__file__).resolve().parents[2]
MANY = [f"{text} {i}" for i, text in enumerate(TEXTS * 9)]
SMALL = {"batch_tokens": 30}


@pytest.mark.parametrize("block", [None, 1, 5, 53, 54, 99])
def test_vectors_and_order(encoder: pyenc.TextEncoder, block: int | None) -> None:
    right = encoder.encode(MANY)
    made = list(encoder.encode_stream(iter(MANY), block=block, **SMALL))
    if block is None:
        assert [v.shape for v in made] == [(64,)] * len(MANY)
        assert all(v.base is None for v in made)
        got = np.stack(made)
    else:
        assert [len(b) for b in made[:-1]] == [block] * (len(made) - 1)
        assert 1 <= len(made[-1]) <= block
        got = np.concatenate(made)
    np.testing.assert_allclose(got, right, rtol=0, atol=1e-5)
    assert list(encoder.encode_stream([], block=block)) == []


def test_options(encoder: pyenc.TextEncoder) -> None:
    (tensor,) = encoder.encode_stream(MANY, block=99, convert_to_tensor=True, truncate_dim=9)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.shape == (len(MANY), 9)
    (bits,) = encoder.encode_stream(MANY, block=99, precision="binary")
    assert (bits == encoder.encode(MANY, precision="binary")).all()
    ranges = np.stack([np.full(64, -2.0), np.full(64, 2.0)])
    int8 = np.concatenate(
        list(encoder.encode_stream(MANY, block=7, precision="int8", ranges=ranges))
    )
    assert (int8 == encoder.encode(MANY, precision="int8", ranges=ranges)).mean() > 0.99
    pairs = [["say so: ", text] for text in MANY]
    (got,) = encoder.encode_stream(iter(pairs), block=99)
    np.testing.assert_allclose(got, encoder.encode(pairs), rtol=0, atol=1e-5)
    tokens = list(encoder.encode_stream(MANY, output="tokens", **SMALL))
    for ours, right in zip(tokens, encoder.encode(MANY, output="tokens"), strict=True):
        np.testing.assert_allclose(ours.vectors, right.vectors, rtol=0, atol=1e-5)
        assert (ours.spans == right.spans).all()


def test_texts_are_pulled_when_they_are_needed(encoder: pyenc.TextEncoder) -> None:
    pulled = itertools.count()

    def texts() -> Iterator[str]:
        for number in pulled:
            yield f"text {number}"

    vectors = encoder.encode_stream(texts(), **SMALL)
    assert next(pulled) == 0  # nothing yet
    next(vectors)
    few = next(pulled)
    assert few <= stream.UNIT_BATCHES * 30 // stream.LEAST_TOKENS + 2
    for _ in range(3):
        next(vectors)
    assert next(pulled) == few + 1
    vectors.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (None, InputTypeError, "text 40 is None"),
        (["say", "a"], InputTypeError, "text 40 is .*, as those before it: pairs and plain texts"),
        ("\ud800", InputError, "text 40 is not valid Unicode: lone surrogate"),
        (OSError("the disk"), OSError, "the disk"),
    ],
)
def test_a_bad_text_names_its_index(
    encoder: pyenc.TextEncoder, bad: Any, error: type[Exception], message: str
) -> None:
    def texts() -> Iterator[Any]:
        yield from MANY[:40]
        if isinstance(bad, Exception):
            raise bad
        yield bad

    for options in ({}, SMALL):
        vectors = encoder.encode_stream(texts(), **options)
        assert len(list(itertools.islice(vectors, 40))) == 40
        with pytest.raises(error, match=message):
            next(vectors)


def test_texts_that_are_cut(encoder: pyenc.TextEncoder) -> None:
    texts = ["a"] * 30 + ["b " * 40] + ["a"] * 30 + ["c " * 30] * 2
    with pytest.warns(pyenc.TruncationWarning) as caught:
        list(encoder.encode_stream(texts, max_length=16, **SMALL))
    first, last = [str(each.message) for each in caught]
    assert first.startswith("text 30 exceeds 16 tokens and was truncated; how many more")
    assert last.startswith("3 of 63 texts exceed 16 tokens (the longest, text 30, has ")
    assert caught[0].filename == __file__
    with pytest.raises(InputError, match=r"exceed 16 tokens .*; the first is text 30"):
        list(encoder.encode_stream(texts, max_length=16, on_long="error", **SMALL))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(encoder.encode_stream(["a"] * 9, max_length=16))


def test_refused_at_once(encoder: pyenc.TextEncoder) -> None:
    for texts in ("one text", b"bytes", 3, {"a": "b"}):
        with pytest.raises(InputTypeError, match="must be an iterable of strings"):
            encoder.encode_stream(texts)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="block must be at least 1, got 0"):
        encoder.encode_stream(["a"], block=0)
    with pytest.raises(InputError, match="int8 of a stream needs ranges= or calibration="):
        encoder.encode_stream(["a"], precision="int8")
    with pytest.raises(InputTypeError, match="no argument 'progress'"):
        encoder.encode_stream(["a"], progress=True)
    with pytest.raises(InputError, match="prompt_name 'x' is unknown"):
        encoder.encode_stream(["a"], prompt_name="x")


PROGRAM = """
import sys
import pyenc, torch
torch.set_num_threads(1)
encoder = pyenc.load(sys.argv[1])
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
def texts():
    number = 0
    while True:  # each a new string; every tenth long, every other empty
        long = "word " * 30000 if number % 10 == 0 else ""
        yield long + str(number) if number % 2 == 0 else ""
        number += 1
total = 0
for count, vector in enumerate(encoder.encode_stream(texts(), max_length=32), 1):
    if count == 1000:
        begun = peak()
    if count == 5000:
        break
print(peak() - begun)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_an_endless_stream() -> None:
    """Texts that went through: 60 MB, of characters alone. What an allocator keeps for itself
    differs by some MB from run to run."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(GOLDEN / "bert_mean_h4")],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": ""},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000, f"{done.stdout} kB more"
