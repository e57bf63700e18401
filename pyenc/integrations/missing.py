"""A library that is not installed: an error that says what installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == module:
            story = f"{name} is not installed: pip install 'pyenc[{extra}]'"
        else:
            story = (
                f"{name} is installed but cannot be imported: {error}; the versions that "
                f"pip install 'pyenc[{extra}]' brings are tested"
            )
        raise MissingPackageError(story, name=module) from error
