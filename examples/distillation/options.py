"""The options of examples/long_minilm.py, looked at before the hours that they decide over."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def parse(arguments: Sequence[str] | None, description: str) -> argparse.Namespace:
    """The options; what is wrong with them ends the program with a line that says it."""
    made = parser(description)
    options = made.parse_args(arguments)
    if options.work.exists() and not options.work.is_dir():
        made.error(f"--work {options.work}: a file stands where the folder should be")
    if options.export is not None:
        if options.export.is_dir():
            made.error(f"--export {options.export}: is a folder, and should be a file")
        if not options.export.parent.is_dir():
            made.error(f"--export {options.export}: there is no folder {options.export.parent}")
    return options


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--work", type=Path, default=Path("build/long-minilm"), help="default: %(default)s"
    )
    made.add_argument(
        "--folder", action="append", default=[], help="where texts are, instead of what was found"
    )
    made.add_argument(
        "--steps", type=whole(1), default=1900, help="of all layers; default: %(default)s"
    )
    made.add_argument(
        "--factor-steps", type=whole(0), default=2600, help="of the factors afterwards; %(default)s"
    )
    made.add_argument("--batch-tokens", type=whole(1), default=3072, help="of a step; %(default)s")
    made.add_argument("--rate", type=rate, default=2.5e-4, help="the peak's; %(default)s")
    made.add_argument(
        "--tokens",
        type=whole(1),
        default=5_000_000,
        help="of the windows drawn; default: %(default)s",
    )
    made.add_argument(
        "--documents",
        type=whole(1),
        default=300,
        help="that recall is of, at the most; %(default)s",
    )
    made.add_argument(
        "--bfloat16", action="store_true",
        help="matrix products in bfloat16: twice as fast where a processor has them (AMX)",
    )  # fmt: skip
    made.add_argument("--threads", type=whole(1), default=torch.get_num_threads())
    made.add_argument("--now", action="store_true", help="of the checkpoints as they are")
    made.add_argument("--export", type=Path, help="the file to write; default: in --work")
    return made


def whole(least: int) -> Callable[[str], int]:
    """A number that is at least so much."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {least} on")
        return value

    return number


def rate(text: str) -> float:
    """A learning rate."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value
