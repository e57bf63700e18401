"""Finding and loading the C++ extension ``pyenc._C``, and nothing else.

The extension is optional: without a compiler the package installs without it and torch serves. The
result of the first attempt is kept, since an import that failed once will fail again in the same
process, and callers ask on every dispatch.

Environment:
    PYENC_REQUIRE_EXTENSION=1  a missing extension raises ImportError (CI sets it, so that a broken
                               build cannot pass the tests through the fallback).
    PYENC_CPU_ISA=NAME         forces one of the instruction sets that were compiled in ("generic",
                               "x86-64-v3", "x86-64-v4", "x86-64-v4-bf16", "x86-64-v4-amx"); read
                               once, by the extension, as it loads. One that cannot run here is an
                               error where a built extension is looked for. The last one, Intel's
                               matrix units, needs the kernel's permission too, which is asked for
                               when it is chosen.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

from ..callers import stacklevel
from ..errors import BackendError
from .constant import constant_result
from .sources import sources_digest

REQUIRE_VARIABLE = "PYENC_REQUIRE_EXTENSION"

ISA_VARIABLE = "PYENC_CPU_ISA"

REBUILD = "rebuild it: pip install . (in a checkout: python setup.py build_ext --inplace)"


class ExtensionWarning(UserWarning):
    """The C++ kernels are not there, and torch serves on the CPU in their place."""


def _stale(module: ModuleType) -> str | None:
    """Why the extension is not that of the Python around it: its arguments may have changed."""
    # The package's own module, there since before this one; importing it here would be a cycle.
    version = sys.modules["pyenc"].__version__
    built = getattr(module, "version", "unknown")
    if built != version:
        return f"it was built for pyenc {built}, and this is {version}"
    csrc = Path(__file__).resolve().parents[2] / "csrc"
    # Only a checkout has the sources; reading them takes a millisecond.
    if (csrc / "bindings.cpp").is_file() and module.sources != sources_digest(csrc):
        return f"it was built from other sources than {csrc} holds now"
    return None


@functools.cache
def _attempt() -> tuple[ModuleType | None, str]:
    """(module, "") or (None, why it could not be imported)."""
    try:
        module = importlib.import_module("pyenc._C")
    except ModuleNotFoundError as error:
        return None, f"the C++ extension pyenc._C is not built: {error}"
    except Exception as error:
        # Built, yet unusable: a shared library it needs is missing, PYENC_CPU_ISA cannot run here.
        return None, f"the C++ extension pyenc._C does not load: {error}"
    stale = _stale(module)
    if stale is not None:
        return None, f"the C++ extension pyenc._C is stale: {stale}; {REBUILD}"
    return module, ""


def required() -> bool:
    """Whether the environment makes a missing extension an error."""
    return os.environ.get(REQUIRE_VARIABLE, "") not in ("", "0")


def load() -> ModuleType | None:
    """The extension module, or None where it is missing (``why_missing`` says why).

    Raises:
        BackendError: PYENC_CPU_ISA names an instruction set that cannot serve here.
        ImportError: it is missing, and PYENC_REQUIRE_EXTENSION=1.
    """
    module, reason = _attempt()
    if module is None and f"{ISA_VARIABLE}=" in reason:
        # As a backend that was asked for by name: torch in its place would be a choice unheard.
        raise BackendError(reason[reason.index(f"{ISA_VARIABLE}=") :])
    if module is None and required():
        raise ImportError(f"{reason} ({REQUIRE_VARIABLE} is set)")
    return module


def why_missing() -> str:
    """Why ``load`` gives None, in one line; empty when the extension is there."""
    return _attempt()[1]


@constant_result
def missing() -> str | None:
    """None, or why the extension is missing: one answer a process, which torch.compile takes as it
    is instead of tracing an import."""
    return None if load() is not None else why_missing()


def tell_missing() -> None:
    """Warn, once a process, where the extension is missing: vectors are the same, and slower.

    Raises:
        BackendError: as of `load`.
    """
    load()
    why = why_missing()
    if why and not _told:
        _told.append(why)
        remedy = "" if REBUILD in why else "; with a C++ compiler, pip install . builds it"
        warnings.warn(
            f"{why}{remedy}. torch serves on the CPU in its place, slower and in more memory "
            '(backend="torch" asks for that without this warning)',
            ExtensionWarning,
            stacklevel=stacklevel(),
        )


_told: list[str] = []


def isa() -> str:
    """The instruction set whose kernels serve, e.g. "x86-64-v3"; "none" without the extension."""
    module, _ = _attempt()
    return "none" if module is None else str(module.isa())
