"""Where a warning belongs: at the line of the user's that called us, however deep it arose."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)


def stacklevel() -> int:
    """`stacklevel` of a `warnings.warn` on the caller's line: the first frame outside pyenc."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(HERE):
        level, frame = level + 1, frame.f_back
    return level
