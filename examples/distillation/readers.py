"""How the prose of a file is read, by its kind: each takes a path and gives text."""

from __future__ import annotations

import ast
import gzip
import html
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path


def _text(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return data.decode("utf-8", "replace")


def plain(path: Path) -> str:
    text = _text(path)
    return "" if text[:2000].count("\ufffd") > 5 else text


def docstrings(path: Path) -> str:
    """Docstrings of a source's module, classes and functions, each under its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes in old string literals
        tree = ast.parse(path.read_bytes())
    pieces = [ast.get_docstring(tree) or ""]

    def inside(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                name = f"{prefix}{child.name}"
                text = ast.get_docstring(child)
                if text and len(text) > 40:
                    pieces.append(f"{name}: {text}")
                if isinstance(child, ast.ClassDef):
                    inside(child, f"{name}.")

    inside(tree, "")
    return "\n\n".join(pieces)


def markup(path: Path) -> str:
    text = plain(path)
    text = re.sub(r"<!--.*?-->", " ", text, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|^\.\. (image|_|\|).*$", " ", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)\s]*\)", "]", text)
    return re.sub(r"^[=\-~^*#+\"'`]{3,}\s*$", "", text, flags=re.MULTILINE)


def description(path: Path) -> str:
    """The description, which comes after the first empty line."""
    return _text(path).partition("\n\n")[2]


class _Prose(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in ("script", "style", "nav")
        if tag in ("p", "div", "h1", "h2", "h3", "h4", "li", "pre", "tr", "dt", "dd", "section"):
            self.pieces.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style", "nav")

    def handle_data(self, data: str) -> None:
        if self.hidden <= 0:
            self.pieces.append(data)


def web_page(path: Path) -> str:
    parser = _Prose()
    parser.feed(_text(path))
    return "".join(parser.pieces)


def pod(path: Path) -> str:
    text = re.sub(r"^=(?:head\d|item|over|back|cut|pod|encoding)\b", "", _text(path), flags=re.M)
    return html.unescape(re.sub(r"[A-Z]<+\s?([^<>]*?)\s?>+", r"\1", text))


ESCAPES = {
    r"\-": "-", r"\(bu": "*", r"\(em": " - ", r"\(aq": "'", r"\e": "\\", r"\&": "", r"\ ": " ",
    r"\(dq": '"', r"\(cq": "'", r"\(oq": "'", r"\(lq": '"', r"\(rq": '"', r"\|": "",
}  # fmt: skip
UNREAD = ('.\\"', "'\\\"", ".TH", ".so", ".ie", ".el", ".de", ".ds", ".if", ".nr")
PARTING = frozenset(["SH", "SS", "Sh", "Ss", "PP", "P", "LP", "Pp", "TP", "IP", "It", "sp", "HP"])
"""Macros between paragraphs; an argument is the next one's beginning."""
WORDS = frozenset(
    [
        "B", "I", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "Nm", "Ar", "Fl", "Nd", "Dq", "Sq",
        "Pa", "Xr", "Em", "Sy", "Li", "Op", "Cm", "Ev", "Va",
    ]
)  # fmt: skip
"""Macros whose arguments are a line's words."""


def manual_page(path: Path) -> str:
    """A manual page without its macros: roff and mdoc, as far as prose needs it."""
    lines: list[str] = []
    for line in _text(path).splitlines():
        if line.startswith(
            ('.\\"', "'\\\"", ".TH", ".so", ".ie", ".el", ".de", ".ds", ".if", ".nr")
        ):
            continue
        if match := re.match(r"[.']\s*(\w+)\s*(.*)", line):
            macro, rest = match.groups()
            if macro in (
                "SH",
                "SS",
                "Sh",
                "Ss",
                "PP",
                "P",
                "LP",
                "Pp",
                "TP",
                "IP",
                "It",
                "sp",
                "HP",
            ):
                lines.append("")
            elif macro not in WORDS:
                continue
            line = rest.replace('"', "")
        line = re.sub(r"\\f(?:\[\w*\]|\(\w\w|\w)|\\s[+-]?\d", "", line)
        for escape, plain in ESCAPES.items():
            line = line.replace(escape, plain)
        lines.append(re.sub(r"\\[(\[]\w+\]?|\\.", "", line))
    return "\n".join(lines)
