"""A library that is not installed: an error that says what installs it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder

from ..errors import MissingPackageError

EXTRA = "integrations"


@contextmanager
def needs(module: str, package: str | None = None, extra: str = EXTRA) -> Iterator[None]:
    """Around the imports of a library: where it is missing, the error names the extra.

    >>> with needs("langchain_core", "langchain-core"):
    ...     from langchain_core.embeddings import Embeddings

    Args:
        module: the library, as it is imported.
        package: as it is installed, where that is another name.
        extra: of pyenc, that brings it.

    Raises:
        MissingPackageError: it is not there; or it is, and fails at its own imports, which the
            message tells apart.
    """
    try:
        yield
    except ImportError as error:
        name = package or module
        if isinstance(error, ModuleNotFoundError) and _is_missing(module, error.name or ""):
            story = f"{name} is not installed: pip install 'pyenc[{extra}]'"
        else:
            story = (
                f"{name} is installed but cannot be imported: {error}; the versions that "
                f"pip install 'pyenc[{extra}]' brings are tested"
            )
        raise MissingPackageError(story, name=module) from error


def _is_missing(module: str, lacking: str) -> bool:
    """Whether what lacks is the library, and not a part of one that is there in another version.

    Of a namespace (llama_index) a part may be the library, with others of that name installed.
    """
    if lacking == module or not lacking.startswith(f"{module}."):
        return lacking == module
    if sys.modules.get(module, module) is None:  # somebody's way to say that it is not there
        return True
    found = PathFinder.find_spec(module)
    return found is None or found.origin is None
