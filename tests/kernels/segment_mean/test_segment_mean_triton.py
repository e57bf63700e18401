"""The Triton kernels of the segment mean against the float64 oracle of the C++ ones' tests."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("triton")

from pyenc_kernels import interpreting
from pyenc_kernels import segment_mean as kernels
from tests.ops.segment_mean.test_segment_mean_kernels import DTYPES, LENGTHS, check, make_case

OPTIONS = list(itertools.product((7, 100, 1, 384), DTYPES, (False, True), (True, False)))


@pytest.mark.parametrize("name", LENGTHS)
def test_against_the_oracle(name: str, device: str) -> None:
    lengths, chosen = LENGTHS[name], OPTIONS
    if interpreting():
        # It takes milliseconds a program: few cases, and the longest cut short.
        chosen = OPTIONS[list(LENGTHS).index(name) : 24 : 7]
        lengths = [min(length, 300) for length in lengths[:20]]
    for n_channels, dtype, weighted, normalize in chosen:
        case = make_case(lengths, n_channels, dtype, weighted, device)
        check(kernels, case, normalize, rounds=not interpreting())
