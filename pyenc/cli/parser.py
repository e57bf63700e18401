"""The parser of the command line: argparse with the errors of the house, which name the nearest."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from ..errors import InputError
from .nearest import WORDS, bare, nearest, suggestion
from .streams import printing

ONE_TOO_MANY = {
    "embed": "several files go through one stream: cat FILES | pyenc embed MODEL - --format ...",
    "info": "info takes MODEL alone",
    "models": "models takes no argument",
    "verify": "verify takes MODEL alone, and a file of texts as --texts FILE",
    "bench": "give one OP, or all",
}
"""What to do instead, by the command."""

NEGATIVE = re.compile(r"-(\d+|\d*\.\d+)")


class Parser(argparse.ArgumentParser):
    """Mistakes in the arguments leave by the same door as every other error, naming the nearest."""

    beside: Mapping[str, Parser] = MappingProxyType({})
    """Those of the other commands."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message, file=None):  # type: ignore[no-untyped-def, override]
        # argparse's own lets errors of the disk pass, so that --help of a full disk is a success.
        with printing():
            print(message, end="", file=file)

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def, override]
        found, more = self.parse_known_args(args, namespace)
        more = more[1:] if more[:1] == ["--"] else more
        # argparse gives an optional argument up where options stand before it.
        if len(more) == 1 and getattr(found, "input", None) == "-":
            found.input = more.pop()
        if more:
            raise InputError(
                f"one argument too many: {shown(more[0])}; {ONE_TOO_MANY[found.command]} "
                f"(see {self.prog} {found.command} --help)"
            )
        return found

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def, override]
        # Before argparse complains of what is missing: a mistyped -o is missing too.
        self._check_options(list(args or ()))
        return super().parse_known_args(args, namespace)

    def _check_options(self, words: list[str]) -> None:
        """Refuse options that this parser does not have."""
        known = self._option_string_actions
        commands = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        for word in words:
            if word == "--" or (commands and not word.startswith("-")):
                return  # the rest are arguments, or the command's
            # What argparse takes for a value though it begins with a dash.
            if not word.startswith("-") or word == "-" or " " in word or NEGATIVE.fullmatch(word):
                continue
            name = word.partition("=")[0]
            if word.startswith("--"):
                if any(option.startswith(name) for option in known):
                    continue
            elif word[:2] in known:
                continue
            places = [a.metavar for a in self._actions if not a.option_strings and a.metavar]
            there = [*known, *map(str, places)]
            hint = suggestion(name, there, list(map(str, places)))
            for action in commands:
                hint = _behind(name, words, action.choices) or hint
            owners = [c for c, other in self.beside.items() if name in other._option_string_actions]
            if owners:
                hint = f"; it is an option of pyenc {' and pyenc '.join(owners)}{hint}"
            self.error(f"unknown option {name if len(name) < 80 else shown(name)}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is None or value in choices:
            return
        names = list(map(str, choices))
        near = suggestion(str(value), names, ())
        message = f"invalid choice: {shown(value)} (choose from {', '.join(names)}){near}"
        raise argparse.ArgumentError(action, message)


def shown(value: object) -> str:
    """As Python writes it, of a length that a message can hold."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:40]}... ({len(str(value)):,} characters)"


def _behind(name: str, words: Sequence[str], commands: Mapping[str, Parser]) -> str:
    """Where an option before the command belongs; empty if no command has one like it."""
    # That of the command which is given; else of whichever has it.
    first = [word for word in words if word in commands]
    order = list(dict.fromkeys([*first, *commands]))
    for command in order:
        if name in commands[command]._option_string_actions:
            return f"; it goes behind the command: pyenc {command} {name}"
    if WORDS.get(bare(name)):
        return ""
    for command in order:
        near = nearest(name, commands[command]._option_string_actions)
        if near is not None:
            return f"; did you mean {near}? It goes behind the command: pyenc {command} {near}"
    return ""
