"""`main`: parse, run the command, and turn every error into one line and an exit status."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from ..errors import PyencError
from .arguments import parse
from .failing import one_line, out_of_memory, warning_in_a_line
from .signals import PIPE_CLOSED, Stopped, status_of, stopping
from .streams import STDOUT, BestEffort, abandon, printing


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; default those of the process.

    Returns:
        0 done; 1 `verify` or `bench` found wrong results;
        2 bad arguments, input, checkpoint or backend, said in one line on standard error;
        130 interrupted; 143 ended by SIGTERM, 129 by SIGHUP; 141 the reader of standard output
        went away.
    """
    # Closed by whoever started this (2>&-); print and tqdm expect something there.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (until the process ends)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A checkpoint's prompts may hold what an ASCII terminal cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")
    with contextlib.redirect_stderr(BestEffort(sys.stderr)):  # type: ignore[type-var]
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    try:
        with stopping(), warning_in_a_line():
            args = parse(argv)
            # Imported here: a command brings torch, which `--help` has no need of.
            command = importlib.import_module(f".{args.command}", __package__)
            status: int = command.run(args)
            with printing():
                return status
    except SystemExit as stop:  # argparse, after --help or --version
        return int(stop.code or 0)
    except (PyencError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            abandon(sys.stdout)  # `pyenc info ... | head`: quietly
            return PIPE_CLOSED
        if isinstance(error, OSError) and error.filename == STDOUT:
            abandon(sys.stdout)
            return _say(f"error: {STDOUT}: {error.strerror}", 2)
        return _say(f"error: {one_line(error)}", 2)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise  # a defect of ours: all of its trace is wanted
        return _say("error: out of memory; fewer --batch-tokens or shorter texts need less", 2)
    except KeyboardInterrupt as stop:
        word = "terminated" if isinstance(stop, Stopped) else "interrupted"
        return _say("; ".join((word, *stop.args)), status_of(stop))


def _say(message: str, status: int) -> int:
    print(f"pyenc: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
