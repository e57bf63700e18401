"""Scripts in processes of their own, forked from one that has imported torch and done no more.

To import torch takes longer than most of these scripts, and what they are started for (the choice
of an instruction set, made once a process) is not made by importing it. Elsewhere than on Linux
each is started anew: other systems' libraries do not take to being forked.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from tests.allocator import KEEPING

ROOT = Path(__file__).resolve().parents[1]


def run_script(file: str, *arguments: str, **own: str) -> subprocess.CompletedProcess[str]:
    """`python file *arguments`, which sees this checkout, awaited, with what it wrote.

    own: what its environment has over this process's, of which nothing may be read as torch is
    imported; with LD_PRELOAD among it, the script is started anew.
    """
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | KEEPING | {"PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("PYTEST_CURRENT_TEST", None)  # or each test has a starter of its own
    command = [sys.executable, file, *arguments]
    if sys.platform != "linux" or "LD_PRELOAD" in own:
        return subprocess.run(
            command, env=environment | own, capture_output=True, text=True, check=False
        )
    starter = _starter(tuple(sorted(environment.items())))
    assert starter.stdin is not None
    assert starter.stdout is not None
    starter.stdin.write(json.dumps([file, arguments, own]) + "\n")
    starter.stdin.flush()
    answer = starter.stdout.readline()
    assert answer, f"what starts scripts has ended: {starter.communicate()[1]}"
    return subprocess.CompletedProcess(command, *json.loads(answer))


@functools.cache
def _starter(environment: tuple[tuple[str, str], ...]) -> subprocess.Popen[str]:
    """Ends when this process does, and its standard input with it."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, __file__], env=dict(environment), stdin=pipe, stdout=pipe, stderr=pipe,
        text=True,
    )  # fmt: skip


def _forked(file: str, arguments: list[str], own: dict[str, str]) -> tuple[int, str, str]:
    """(status, standard output, standard error) of a script in a fork of this process."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os._exit(_run(file, arguments, own, out.fileno(), err.fileno()))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        written = []
        for stream in (out, err):
            stream.seek(0)
            written.append(stream.read().decode(errors="replace"))
    return status, written[0], written[1]


def _run(file: str, arguments: list[str], own: dict[str, str], out: int, err: int) -> int:
    """The script, as this process, which is done with it."""
    for descriptor, place in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(descriptor, place)
    os.environ.update(own)
    sys.argv = [file, *arguments]
    sys.path[0] = str(Path(file).parent)
    status = 0
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def main() -> None:
    import pytest  # noqa: F401
    import torch  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_forked(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
