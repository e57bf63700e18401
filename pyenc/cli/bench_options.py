"""The options of `pyenc bench` and of every program that it starts: one set, one parser.

The programs in bench/ parse their arguments with `pyenc.cli.arguments` too, so that what is
promised here is what they take. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence

from ..errors import InputError

ALL = "all"
MODELS = "models"
"""Whole encoders."""
ACCELERATE = "accelerate"
"""sentence-transformers beside itself with `pyenc.accelerate`, on the CPU alone: not among all."""
TUNE = "tune"
"""Tries tile sizes on a GPU, products of linear layers on a CPU; compares with nobody: not among
all."""
VARIANTS = "variants"
"""Attention under the example variants, on the CPU alone: not among all."""
BESIDES = (MODELS, ACCELERATE, VARIANTS, TUNE)
"""The programs that are not of one op."""

ALONE = (ACCELERATE, VARIANTS, TUNE)
"""Not among all."""

DTYPES = ("float32", "bfloat16", "float16")

BENCH = """\
Time an op beside its peers, or whole encoders, after checking every one of them against the float64
oracle, and say what share of this machine's own measured limits each reaches. Without OP: list what
there is. The programs are in bench/ of the repository (its README says how to read the tables), so
this needs a checkout or an editable installation of one.

Exits 1 where a peer disagrees with the oracle. Results are written to bench/results/ as JSON and
drawn as SVG, named by op, processor and date; a quick look leaves no files without --out.
"""

BENCH_EXAMPLES = """\
examples:
  pyenc bench attention --quick
  pyenc bench attention --dtype bfloat16 --cases 'n=8,192*'
  pyenc bench segment_mean --device cuda
  pyenc bench models --device cuda --cases jina-base
  pyenc bench all --cases forward+backward --list
  pyenc bench models --long
  pyenc bench tune --kernel attention_forward --shape 64x8192 --write
  pyenc bench tune --kernel attention_forward --architecture sm_90
"""


def add_to(parser: argparse.ArgumentParser) -> None:
    """All of them; `refuse` says which a program has not."""
    parser.add_argument(
        "op",
        metavar="OP",
        nargs="?",
        help="attention, ..., models, or all; accelerate, variants, tune",
    )
    parser.add_argument(
        "--device",
        help="cpu, cuda, cuda:1, ...; default: cpu (tune: cuda); accelerate, variants: cpu",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, action="append",
        help="may be repeated; default: all that are timed (tune: bfloat16)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="small cases (tune: few candidates): does it work?"
    )
    parser.add_argument(
        "--cases", metavar="PATTERN", action="append",
        help="only cases whose name matches, or holds, PATTERN; may be repeated",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="the JSON file; default: in bench/results/")
    parser.add_argument(
        "--plot", action=argparse.BooleanOptionalAction,
        help="draw the JSON file as SVG (default: yes; tune draws nothing)",
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="time alone, no child processes")
    parser.add_argument(
        "--list", action="store_true", help="list programs, or an OP's cases; run nothing"
    )
    parser.add_argument(
        "--warm", action="store_true", help="ops, tune: compile what will be timed, time nothing"
    )
    parser.add_argument(
        "--long", action="store_true", help="models: attention's memory at 32,768 tokens instead"
    )
    parser.add_argument(
        "--kernel", metavar="NAME", action="append", help="tune: which; may be repeated"
    )
    parser.add_argument(
        "--shape", metavar="WIDTH[xLENGTH]", type=_shape, action="append",
        help="tune: head dim and tokens of a sequence, or columns; with --kernel",
    )  # fmt: skip
    parser.add_argument(
        "--architecture", metavar="NAME",
        help="tune: as sm_90; what candidates take there by the compiler, without a card",
    )  # fmt: skip
    parser.add_argument(
        "--write", action="store_true",
        help="tune: the best into configs.json; with --device cpu into choices.json",
    )  # fmt: skip
    # Between this command and its programs.
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--among-all", action="store_true", help=argparse.SUPPRESS)


def _shape(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a width or WIDTHxLENGTH, as 64x8192")
    return text


def words(options: argparse.Namespace, op: str | None = None) -> list[str]:
    """The arguments that parse into these options, with another OP where one is given."""
    op = options.op if op is None else op
    found = [] if op is None else [op]
    for name in ("device", "out", "architecture"):
        value = getattr(options, name)
        found += [] if value is None else [f"--{name}={value}"]
    for name in ("dtype", "cases", "kernel", "shape"):
        found += [f"--{name}={value}" for value in getattr(options, name) or ()]
    flags = "quick", "no_memory", "list", "warm", "long", "write", "child", "among_all"
    found += [f"--{name.replace('_', '-')}" for name in flags if getattr(options, name)]
    found += [] if options.plot is None else ["--plot" if options.plot else "--no-plot"]
    return found


def refuse(options: argparse.Namespace, ops: Iterable[str]) -> None:
    """What the program asked for has not, in a line that says which programs have it.

    Raises:
        InputError
    """
    op, ops = options.op, tuple(ops)
    if op is None:
        given = [word for word in words(options) if word != "--list"]
        if given:
            raise InputError(f"{given[0].partition('=')[0]} is of a program: name an OP, or all")
        return
    of_tune, of_models, but_models = (TUNE,), (MODELS,), (*ops, TUNE)
    have: dict[str, tuple[str, ...]] = {
        "kernel": of_tune,
        "shape": of_tune,
        "architecture": of_tune,
        "write": of_tune,
        "long": of_models,
    }
    have |= {"warm": (*but_models, ALL)}
    for name, programs in have.items():
        if getattr(options, name) and op not in programs:
            raise InputError(f"{op} has no --{name}: {_these(programs)}")
    if op == ALL and options.out is not None:
        raise InputError("--out names one file: give one OP, or leave out --out")
    if op in (ACCELERATE, VARIANTS) and (options.device or "cpu") != "cpu":
        raise InputError(
            f"{op} {'is' if op == ACCELERATE else 'are'} measured on the CPU alone: --device "
            f"{options.device} is of {', '.join((*ops, MODELS, TUNE))}"
        )
    if op == MODELS and options.long:
        _refuse_beside_long(options)
    if options.plot and op in (TUNE, ACCELERATE):
        raise InputError(f"{op} has no --plot: {_these((*ops, MODELS, VARIANTS, ALL))}")
    if options.plot and options.quick and options.out is None:
        raise InputError("--plot draws the JSON file, and --quick writes none without --out")
    if tunes_a_processor(options):
        _refuse_on_a_processor(options)
    if options.architecture is not None:
        for name in ("device", "warm", "write"):
            if getattr(options, name):
                raise InputError(
                    f"--architecture needs no card and times nothing: no --{name} beside it"
                )
    if options.shape and not options.kernel:
        raise InputError("--shape is of one kind of kernel: say which with --kernel")


def tunes_a_processor(options: argparse.Namespace) -> bool:
    """Whether it is linear layers on the CPU that are tuned, not kernels on a card."""
    return options.op == TUNE and str(options.device).partition(":")[0] == "cpu"


def _refuse_on_a_processor(options: argparse.Namespace) -> None:
    for name in ("kernel", "shape", "warm"):
        if getattr(options, name):
            raise InputError(
                f"--{name} is of Triton kernels: no --{name} beside tune --device cpu, which "
                "times linear layers"
            )
    if options.write and (options.quick or options.cases or options.dtype):
        raise InputError("an entry of choices.json is of all cases: --write alone, after a look")


def _refuse_beside_long(options: argparse.Namespace) -> None:
    if (options.device or "cpu") != "cpu":
        raise InputError(
            f"--long measures memory on the CPU alone: no --device {options.device} beside it"
        )
    for name in ("dtype", "cases", "no_memory", "list", "plot"):
        if getattr(options, name):
            raise InputError(
                f"--long measures memory alone, in two cases of float32: no "
                f"--{name.replace('_', '-')} beside it"
            )


def _these(programs: Sequence[str]) -> str:
    return f"{', '.join(programs)} {'has' if len(programs) == 1 else 'have'} it"
