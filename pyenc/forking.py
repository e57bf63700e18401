"""Forked processes: one thread and one warning, never a wait for threads that a fork left behind.

fork() copies the calling thread alone. GNU's OpenMP runtime, which torch and the C++ kernels share,
keeps the team of a thread from loop to loop; in a child that team is a list of threads that are
not there, and the first parallel loop waits for them for ever. So, from the moment that pyenc is
imported:

- before a fork, the forking thread's team is sent home (`omp_pause_resource_all`; the next loop
  calls a new one), so that the child has none to wait for, in torch's own operations either;
- in the child torch is set to one thread: forked workers are as many as there are processors, as a
  rule. What first computes there warns once. Who wants more threads sets them again;
- locks of pyenc that another thread held are free again in the child.

A runtime that cannot send its team home (GCC before 9) leaves the child with one thread for good.
LLVM's and Intel's runtimes look after forks by themselves. Where pyenc is imported only after the
fork, nothing of this has happened: import it, or set one thread, before the first parallel loop.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from typing import Any

from .callers import stacklevel

_LOCKS = (type(threading.Lock()), type(threading.RLock()))

_child = False
_dismissed = True
"""Whether the last fork left no team behind."""
_untold = 0
"""Threads that there were before the fork, as long as nobody has been told of it."""


class ForkWarning(UserWarning):
    """This process was forked from one that computed on several threads, and has one now."""


def is_forked() -> bool:
    """Whether this process was forked from one that had pyenc imported."""
    return _child


def check_forked() -> None:
    """Called before anything is computed; in a forked child it warns, the first time.

    Where the runtime's threads could not be sent home before the fork, it also takes back what
    `torch.set_num_threads` may have said since.
    """
    if _child:
        _check_child()


def _check_child() -> None:
    global _untold
    import torch

    if torch.compiler.is_compiling():
        return
    threads = torch.get_num_threads()
    if not _dismissed and threads > 1:
        torch.set_num_threads(1)
        _untold = threads
    if not _untold:
        return
    before, _untold = _untold, 0
    if threads > 1 and _dismissed:
        return  # somebody has chosen since
    more = (
        "torch.set_num_threads asks for more"
        if _dismissed
        else "more would wait for ever here: start processes by 'spawn' for them"
    )
    warnings.warn(
        f"process {os.getpid()} was forked from one that computed on {before} threads; pyenc "
        f"computes on one thread in it; {more}",
        ForkWarning,
        stacklevel=stacklevel(),
    )


def _before_fork() -> None:
    """Send home the team of the thread that forks; each copy of the runtime has its own."""
    global _dismissed
    import ctypes

    _dismissed = True
    for path in _runtimes():
        try:
            # 1 is omp_pause_soft. Refused inside a parallel loop, where nobody forks.
            paused = ctypes.CDLL(path, mode=os.RTLD_NOLOAD).omp_pause_resource_all(1) == 0
        except (OSError, AttributeError):
            paused = False
        _dismissed = _dismissed and paused


def _runtimes() -> set[str]:
    """GNU's OpenMP runtimes that this process has loaded; wheels bring theirs under other names."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            paths = {line.rstrip("\n").partition("/")[2] for line in maps if "libgomp" in line}
    except OSError:
        return set()
    return {f"/{path}" for path in paths if path.rpartition("/")[2].startswith("libgomp")}


def _in_child() -> None:
    global _child, _untold
    _child = True
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("pyenc", "pyenc_kernels"):
            for value in list(vars(module).values()):
                if isinstance(value, _LOCKS):
                    value._at_fork_reinit()  # type: ignore[union-attr]
    torch: Any = sys.modules.get("torch")
    # Without them torch is only being imported, and has no team.
    if hasattr(torch, "set_num_threads") and hasattr(torch, "get_num_threads"):
        threads = torch.get_num_threads()
        if threads > 1:
            _untold = threads
            torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)
