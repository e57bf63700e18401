"""Which of a program's cases are run, and where: by --cases, --dtype and --device, the same way in
every program."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import torch

from pyenc.errors import InputError

Listed = TypeVar("Listed")


class NoSuchCase(InputError):
    """A program has none of the cases asked for."""


def chosen(
    listed: Sequence[Listed],
    described: Callable[[Listed], tuple[str, Collection[str]]],
    options: argparse.Namespace,
) -> list[Listed]:
    """Those asked for, in their order.

    Args:
        listed: all of the program's cases.
        described: the name of one, and the dtypes that it is timed in.
        options: of the command line; a pattern without * ? [ is looked for within the names.

    Raises:
        NoSuchCase: there are none; it names what there is.
    """
    of_dtype, names = [], []
    for case in listed:
        name, dtypes = described(case)
        if not options.dtype or not set(options.dtype).isdisjoint(dtypes):
            of_dtype.append(case)
            names.append(name)
    if not of_dtype:
        there = dict.fromkeys(dtype for case in listed for dtype in described(case)[1])
        raise NoSuchCase(
            f"--dtype {' '.join(options.dtype)}: {options.op} is timed in {', '.join(there)}"
        )
    patterns = [
        pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*"
        for pattern in options.cases or ("*",)
    ]
    found = [
        case
        for case, name in zip(of_dtype, names, strict=True)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]
    if not found:
        raise NoSuchCase(
            f"--cases {' '.join(map(repr, options.cases))}: {options.op} has no case of that name; "
            f"there are: {'; '.join(dict.fromkeys(names))}"
        )
    return found


def chosen_device(options: argparse.Namespace) -> torch.device:
    """The device asked for, the CPU by default; a card is torch's current one from then on.

    Raises:
        InputError: there is no such device.
    """
    name = options.device or "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r}: expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name!r}: expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            raise InputError(f"--device {name!r}: torch sees {count} CUDA devices here")
        torch.cuda.set_device(device.index or 0)
    return device
