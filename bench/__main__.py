"""`python bench OP ...` in a checkout: what `pyenc bench` starts, with the same parser."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run by its path: what is imported is `bench.op`, from the checkout
    sys.path[:1] = [str(ROOT), str(ROOT / "kernels")]

from pyenc.cli import bench as command
from pyenc.cli.arguments import parse
from pyenc.cli.bench_options import ALL, BESIDES, refuse, tunes_a_processor
from pyenc.cli.signals import PIPE_CLOSED, status_of
from pyenc.cli.streams import abandon, printing
from pyenc.errors import PyencError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one program, or what `pyenc bench` itself does with none or all.

    Returns:
        0; 1 where a peer disagrees with the oracle; 2 for mistakes in the arguments;
        `NO_SUCH_CASE` for a program among all that has none of the cases; 130 interrupted, which
        `pyenc bench` says; 141 the reader of standard output went away.
    """
    try:
        status = _run(argv)
        with printing():
            return status
    except BrokenPipeError:
        abandon(sys.stdout)
        return PIPE_CLOSED
    except KeyboardInterrupt as stop:
        return status_of(stop)
    except OSError as error:
        return _say(error)


def _run(argv: Sequence[str] | None) -> int:
    from bench.chosen import NoSuchCase  # imports torch, in whose time an interruption may come

    try:
        options = parse(["bench", *(sys.argv[1:] if argv is None else argv)])
        there = command.programs()
        if options.op in (None, ALL) or options.op not in there:
            return command.run(options)
        refuse(options, (name for name in there if name not in BESIDES))
        if options.op in BESIDES:
            # On a CPU the products of linear layers are tuned, and Triton need not be there.
            program = "tune_linear" if tunes_a_processor(options) else options.op
            status: int = importlib.import_module(f"bench.{program}").main(options)
            return status
        from bench import op

        return op.main(options)
    except NoSuchCase as error:
        if not options.among_all:
            return _say(error)
        print(f"left out: {str(error).partition('; there')[0]}", flush=True)
        return command.NO_SUCH_CASE
    except PyencError as error:
        return _say(error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("bench", "pyenc"):
            raise  # a defect of ours: all of its trace is wanted
        return _say(f"{options.op} needs {error.name}, which is not installed")
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


def _say(error: Exception | str) -> int:
    print(f"pyenc: error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
