"""Where a warning belongs: at the line of the user's that called us, however deep it arose."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = str(Path(__file__).parent) + os.sep


def stacklevel() -> int:
    """`stacklevel` of a `warnings.warn` on the caller's line: the first frame outside pyenc.

    Those of torch are none of the caller's: an `nn.Module` is called through it.
    """
    torch = sys.modules.get("torch")  # not imported for this
    inside = HERE, *((str(Path(path)) + os.sep) for path in getattr(torch, "__path__", ()))
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    return level
