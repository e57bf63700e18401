"""One run at a time for one output, held by a lock of the system, which ends with its process."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK, getattr(errno, "EDEADLOCK", errno.EDEADLK)}
"""What systems say of a lock that somebody else has."""

OURS = re.compile(rb"(pid \d+\n)?")
"""What a file of ours holds; anything else is somebody's own."""

FAR = 1 << 20
"""Windows lets nobody read a byte that is locked: one behind the content is."""


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """Hold OUT.partial.lock, so that no other run touches OUT or OUT.partial.

    A killed run leaves the file and not its lock: the next run takes the file up, and removes it at
    its end. On a file system without locks, every run goes on; `Parts.check` finds what comes of
    that.

    Raises:
        InputError: another run has it, or a file of somebody else stands there.
    """
    path = output.with_name(output.name + ".partial.lock")
    number = _taken(path, output)
    try:
        yield
    finally:
        _let_go(path, number)


def _taken(path: Path, output: Path) -> int:
    """The descriptor of the file, locked."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            content = os.read(number, 64)
            if not OURS.fullmatch(content):
                raise InputError(f"{path}: a file that pyenc did not make stands in its way")
            if not _locked(number):
                by = f" ({content.decode().strip()})" if content else ""
                raise InputError(
                    f"{output} is in use by another run{by}; wait for its end, or write to "
                    "another file"
                )
            # Whoever had it before may have removed the file since it was opened here.
            if _stands(path, number):
                with contextlib.suppress(OSError):  # a full disk: the lock is what counts
                    os.ftruncate(number, 0)
                    os.lseek(number, 0, os.SEEK_SET)
                    os.write(number, b"pid %d\n" % os.getpid())
                return number
        except BaseException:
            os.close(number)
            raise
        os.close(number)


def _let_go(path: Path, number: int) -> None:
    """Removed while it is locked, so that it is nobody else's; Windows removes no open file."""
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(number)
    if os.name == "nt":
        with contextlib.suppress(OSError):
            path.unlink()


def _stands(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except FileNotFoundError:
        return False


def _locked(number: int) -> bool:
    """Whether nobody else has the lock: it is ours now, or the file system has none."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(number, FAR, os.SEEK_SET)
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in HELD
    return True
