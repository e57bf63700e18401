"""The attention kernels of AVX-512 with bfloat16 dot products, on a processor that has neither.

Compiled here with the width, the tiles and the pairs of that instruction set, but for the
instructions themselves (PYENC_EMULATE_BF16_DOT in csrc/shared/simd.h), and put in the extension's
place.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.csrc.attention import emulated


@pytest.mark.slow
@emulated.needs_compiler
def test_pairs_and_wide_tiles_agree_with_the_oracle(tmp_path: Path) -> None:
    extension = emulated.build(tmp_path, ["-DPYENC_EMULATE_BF16_DOT"])
    emulated.check(extension, "pairs")
