"""Precisions against formulas of their own, an integer at a time."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from pyenc.errors import InputError, InputTypeError
from tests.seeds import seed
from tests.text.texts import TEXTS

LONG = [f"{text} {i}" for i, text in enumerate(TEXTS * 20)]


def vectors(n: int, dim: int) -> np.ndarray:
    made = np.random.default_rng(seed() + n * 1000 + dim).normal(size=(n, dim))
    made[:, 0] = 0.25  # a dimension that never changes
    return made.astype(np.float32)


def byte(x: np.float32, least: np.float32, greatest: np.float32) -> int:
    step = np.float32((greatest - least) / np.float32(255)) or np.float32(1)
    return min(max(int(np.floor(np.float32((x - least) / step))), 0), 255)


def bits(row: np.ndarray) -> list[int]:
    word = "".join("1" if x > 0 else "0" for x in row)
    word += "0" * (-len(word) % 8)
    return [int(word[i : i + 8], 2) for i in range(0, len(word), 8)]


@pytest.mark.parametrize("dim", [1, 7, 8, 20])
def test_bytes_and_bits(dim: int) -> None:
    x, calibration = vectors(130, dim), vectors(101, dim)
    for given, source in (({}, x), ({"calibration": calibration}, calibration)):
        least, greatest = source.min(axis=0), source.max(axis=0)
        right = [[byte(v, a, b) for v, a, b in zip(r, least, greatest, strict=True)] for r in x]
        unsigned = pyenc.quantize(x, "uint8", **given)
        signed = pyenc.quantize(x, "int8", ranges=np.stack([least, greatest]))
        assert unsigned.dtype == np.uint8
        assert signed.dtype == np.int8
        assert unsigned.tolist() == right
        assert (signed.astype(int) + 128).tolist() == right
    packed = pyenc.quantize(x, "ubinary")
    assert packed.tolist() == [bits(row) for row in x]
    signed = pyenc.quantize(torch.from_numpy(x), "binary")
    assert signed.dtype == np.int8
    assert (signed.astype(int) + 128).tolist() == packed.tolist()
    half = pyenc.quantize(x, "float16")
    assert half.dtype == np.float16
    assert (half == x.astype(np.float16)).all()
    assert pyenc.quantize(x[3], "ubinary").tolist() == packed[3].tolist()
    assert pyenc.quantize(x[3], "float16").shape == (dim,)


@pytest.mark.parametrize("precision", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_encode_is_quantize_of_its_vectors(encoder: pyenc.TextEncoder, precision: str) -> None:
    for options in ({}, {"truncate_dim": 20}, {"normalize": True, "truncate_dim": 24}):
        plain = encoder.encode(LONG, **options)
        got = encoder.encode(LONG, precision=precision, **options)
        assert (got == pyenc.quantize(plain, precision)).all()
        tensor = encoder.encode(LONG, precision=precision, convert_to_tensor=True, **options)
        assert isinstance(tensor, torch.Tensor)
        assert tensor.device == encoder.device
        assert (tensor.cpu().numpy() == got).all()
        empty = encoder.encode([], precision=precision, **options)
        assert (empty.shape, empty.dtype) == ((0, got.shape[1]), got.dtype)


def test_calibration_by_texts_and_by_vectors(encoder: pyenc.TextEncoder) -> None:
    plain = encoder.encode(LONG, prompt="a: ")
    ranges = np.stack([plain.min(axis=0), plain.max(axis=0)])
    right = encoder.encode("why?", prompt="a: ", precision="int8", ranges=ranges)
    assert right.shape == (64,)
    for calibration in (LONG, iter(LONG), plain, list(plain), torch.from_numpy(plain)):
        got = encoder.encode("why?", prompt="a: ", precision="int8", calibration=calibration)
        assert (got == right).all()


def test_few_are_said_aloud(encoder: pyenc.TextEncoder) -> None:
    with pytest.warns(pyenc.CalibrationWarning, match="those of 6 vectors alone") as caught:
        encoder.encode(TEXTS, precision="int8")
    assert caught[0].filename == __file__
    with pytest.warns(pyenc.CalibrationWarning, match="those of 2 vectors"):
        encoder.encode(LONG, precision="uint8", calibration=["a", "b c"])
    with pytest.warns(pyenc.CalibrationWarning, match="those of 99 vectors alone; .* 100"):
        pyenc.quantize(vectors(99, 3), "uint8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyenc.quantize(vectors(100, 3), "uint8")
        encoder.encode(LONG, precision="int8")
        encoder.encode(TEXTS, precision="int8", ranges=np.stack([-np.ones(64), np.ones(64)]))
        encoder.encode(TEXTS, precision="ubinary")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision must be one of float32, .*, got 'int4'"),
        ({"precision": None}, "precision must be one of"),
        ({"precision": "int8", "texts": "one"}, "int8 needs the range of each dimension, which 1"),
        ({"precision": "int8", "output": "tokens"}, 'is of pooled vectors, not of output="tokens"'),
        ({"precision": "int8", "ranges": np.ones((2, 63))}, r"ranges must have shape \(2, 64\)"),
        ({"precision": "int8", "ranges": -np.eye(2, 64)}, "of dimension 1 the least value"),
        (
            {"precision": "int8", "ranges": np.full((2, 64), np.nan)},
            "dimension 0 is nan, which is not fin",
        ),
        ({"precision": "int8", "calibration": np.ones((5, 3))}, r"calibration must have shape"),
        ({"precision": "int8", "calibration": ["a"]}, "int8 needs the range"),
        ({"precision": "int8", "calibration": ["a", "\ud800"]}, "text 1 is not valid Unicode"),
        ({"precision": "binary", "ranges": np.ones((2, 64))}, "ranges is of int8 and uint8, not"),
        ({"calibration": ["a", "b"]}, "calibration is of int8 and uint8, not of 'float32'"),
        (
            {"precision": "int8", "calibration": ["a"], "ranges": np.ones((2, 64))},
            "give one of ranges and calibration",
        ),
    ],
)
def test_refused(encoder: pyenc.TextEncoder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.encode(**{"texts": TEXTS, **options})


def test_texts_to_calibrate_by_in_an_array(encoder: pyenc.TextEncoder) -> None:
    right = encoder.encode(TEXTS, precision="int8", calibration=LONG)
    for kind in (None, object):
        given = np.array(LONG, dtype=kind)
        assert (encoder.encode(TEXTS, precision="int8", calibration=given) == right).all()
    for wrong in (["a", None], np.array(["a", None], dtype=object)):
        with pytest.raises(InputTypeError, match=r"text 1 is None \(NoneType\), expected a string"):
            encoder.encode(TEXTS, precision="int8", calibration=wrong)


def test_kinds_that_are_refused(encoder: pyenc.TextEncoder) -> None:
    for calibration in ("a text", 3, [1, 2], np.ones((4, 64), dtype=int), ["a", 1]):
        with pytest.raises(InputTypeError, match="calibration must"):
            encoder.encode(TEXTS, precision="int8", calibration=calibration)
    with pytest.raises(InputTypeError, match="vectors must be of floating point, got int8"):
        pyenc.quantize(np.ones((3, 4), dtype=np.int8), "binary")
    with pytest.raises(InputTypeError, match="also takes texts"):
        pyenc.quantize(vectors(3, 4), "int8", calibration=["a", "b"])


def test_what_is_not_finite_is_no_bit() -> None:
    x = vectors(5, 8)
    x[3, 2] = np.nan
    for precision in ("int8", "binary", "float16"):
        with pytest.raises(InputError, match="vector 3 is not finite"):
            pyenc.quantize(x, precision, ranges=None)
    x[3, 2] = 1e6
    with pytest.raises(InputError, match="vector 3 is not finite: float16 ends at 65504"):
        pyenc.quantize(x, "float16")


def test_float32_of_wider_and_of_narrower() -> None:
    x = np.random.default_rng(seed()).normal(size=(3, 5))
    for given in (x, x.astype(np.float16), torch.from_numpy(x), torch.from_numpy(x).bfloat16()):
        made = pyenc.quantize(given, "float32")
        right = given.float().numpy() if isinstance(given, torch.Tensor) else given
        assert made.dtype == np.float32
        assert (made == right.astype(np.float32)).all()
    x[2, 1] = 1e39
    with pytest.raises(InputError, match=r"vector 2 is not finite: float32 ends at 3\.4028e\+38"):
        pyenc.quantize(x, "float32")


def test_ranges_beyond_float32() -> None:
    """Steps that are no numbers would make zeros of all: said, and not by numpy."""
    x = vectors(200, 8).astype(np.float64)
    wide = np.stack([-np.ones(8), np.ones(8)])
    wide[:, 5] *= 3e38  # each is a number of float32, and what lies between them is not
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for far in (wide, 1e3 * wide):
            with pytest.raises(InputError, match="ranges: the values of dimension 5 lie between"):
                pyenc.quantize(x, "int8", ranges=far)
            with pytest.raises(InputError, match="calibration: the values of dimension 5 lie"):
                pyenc.quantize(x, "uint8", calibration=np.concatenate([x, far]))
        assert pyenc.quantize(x, "uint8", ranges=wide / 4).std() > 0
