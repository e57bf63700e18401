"""Under `make sanitize`: the sanitized extension is what runs, and it finds faults."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyenc.ops import extension

pytestmark = pytest.mark.skipif(
    os.environ.get("PYENC_SANITIZE", "") in ("", "0"), reason="only under `make sanitize`"
)

CALL = """
import sys, torch
from pyenc.ops import extension
x, bounds, out, stats = torch.ones(4, 8), torch.tensor([0, 4]), torch.ones(1, 8), torch.ones(1, 2)
extension.load().segment_mean_forward(
    x=x.data_ptr() + int(sys.argv[2]), dtype=0, cu_seqlens=bounds.data_ptr(), wide=True, weights=0,
    n_segments=1, n_channels=int(sys.argv[1]), normalize=False, out=out.data_ptr(),
    stats=stats.data_ptr(), threads=1)
"""


def test_the_tests_run_on_the_sanitized_build() -> None:
    module = extension.load()
    assert module is not None
    assert "sanitize" in str(module.__file__)


@pytest.mark.parametrize(
    ("channels", "shift", "finding"),
    [
        (8, 0, None),
        (9, 0, "AddressSanitizer: heap-buffer-overflow"),
        (4, 1, "runtime error: .*misaligned address"),
    ],
)
def test_it_finds(channels: int, shift: int, finding: str | None) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CALL, str(channels), str(shift)],
        cwd=Path(extension.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if finding is None:
        assert result.returncode == 0, result.stderr
    else:
        assert result.returncode != 0
        assert re.search(finding, result.stderr), result.stderr
