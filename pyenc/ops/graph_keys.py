"""Graphs that torch.compile keeps on disk are found again by the pyenc that they are of alone.

A graph names an op and what it is given, not what stands behind it: how many numbers a forward
keeps for its backward, and which the backward asks for. With torch's keys alone another pyenc on
the same machine would be handed graphs of this one.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from torch.compiler import config

from .sources import sources_digest


@functools.cache
def _mine() -> str:
    # The package's own module, there since before this one; importing it here would be a cycle.
    version = sys.modules["pyenc"].__version__
    return f"pyenc {version} {sources_digest(Path(__file__).parents[1], ('.py',))}"


def say_whose() -> None:
    """Make this package's version and sources part of the key of whatever is compiled next.

    For a function that is called while a graph with an op of this package is traced, and so before
    its key is made, in the thread that makes it: settings of torch's compiler are a thread's own.
    """
    said = config.cache_key_tag
    if _mine() not in said:
        config.cache_key_tag = f"{said} {_mine()}".strip()
