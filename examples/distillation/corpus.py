"""English documentation that Python, its packages and the system ship, as deduplicated documents.

What is read: docstrings of Python's sources (parsed, never imported), pydoc's topics, Markdown,
reStructuredText and plain texts, HTML, packages' METADATA, manual and Info pages, Perl's PODs. The
same files give the same documents in the same order. Files are held out by a hash of their names,
and come first, so that a paragraph of theirs which stands in another file too is left out there: of
what is held out nothing is trained, not by way of a copy either.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyenc.errors import InputError

from . import readers

MIN_CHARACTERS, MAX_CHARACTERS = 400, 400_000
PER_OWNER = 1_000_000
"""Characters of one package or program at the most, so that none is most of the corpus."""
HELD_OUT = 16
"""One file in so many is for the last measurement, and one for the curve."""
SHINGLE = 8
"""Words of what is looked for again."""
SEEN_BEFORE = 0.3
"""Share of a paragraph's shingles beyond which it is a copy."""
COMMON = frozenset(
    [
        "the", "of", "and", "to", "a", "in", "is", "for", "that", "this", "be", "are", "or", "with",
        "as", "it", "if", "by", "on", "not", "can", "from", "an",
    ]
)  # fmt: skip
ENGLISH = 0.12
"""Share of common words below which a text is code, a table or another language."""

_SPACES = re.compile(r"[ \t]+")
_GAP = re.compile(r"\n\s*\n")
_WORD = re.compile(r"[a-z0-9_]+")


class Document(NamedTuple):
    """A file's prose."""

    name: str
    """Root and path, as "python:json/decoder.py"."""
    part: str
    """"train", "curve" or "test"."""
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


class Root(NamedTuple):
    """A folder to look in."""

    name: str
    folder: Path
    kind: str = ""
    """How it is laid out, where that is known: "python", "man" or "info"."""


def default_roots() -> list[Root]:
    """Python's standard library, its packages, and the system's documentation, where there are."""
    paths = sysconfig.get_paths()
    roots = [
        Root("python", Path(paths["stdlib"]), "python"),
        Root("packages", Path(paths["purelib"])),
        *(Root(name, Path("/usr/share") / name, name) for name in ("doc", "man", "info", "perl")),
        *(Root(path.name, path) for path in sorted(Path("/usr/share").glob("cmake-*"))),
    ]
    return [root for root in roots if root.folder.is_dir()]


def given_roots(folders: Sequence[str]) -> list[Root]:
    """Folders of somebody's own.

    Raises:
        InputError: one is not there, or no folder.
    """
    for folder in map(Path, folders):
        if not folder.is_dir():
            what = "no folder" if folder.exists() else "not there"
            raise InputError(f"--folder {folder}: {what}; it is where texts are looked for")
    return [Root(Path(folder).name, Path(folder)) for folder in folders]


def collect(roots: list[Root], say: Callable[[str], object] = print) -> list[Document]:
    """Documents of all roots: those held out first, each part in the order of a hash of the names.

    Args:
        roots: where to look; a folder inside of an earlier one's is read once.
        say: told what was found.
    """
    files = sorted(_files(roots), key=lambda f: (PARTS.index(f.part), f.order, f.name))
    seen: set[int] = set()
    owned: dict[str, int] = {}
    found: list[Document] = []
    dropped = kept = 0
    for file in files:
        if owned.get(file.owner, 0) >= PER_OWNER:
            continue
        try:
            text = file.read(file.path)
        except (OSError, ValueError, SyntaxError, RecursionError, EOFError, zlib.error):
            continue
        whole = paragraphs_of(text[:MAX_CHARACTERS])
        fresh = [paragraph for paragraph in whole if not seen_before(paragraph, seen)]
        dropped += len(whole) - len(fresh)
        kept += len(fresh)
        size = sum(map(len, fresh))
        if size < MIN_CHARACTERS or not is_english(" ".join(fresh)):
            continue
        owned[file.owner] = owned.get(file.owner, 0) + size
        found.append(Document(file.name, file.part, tuple(fresh)))
    counts = {part: [d for d in found if d.part == part] for part in PARTS}
    for part, documents in counts.items():
        characters = sum(len(d.text) for d in documents)
        say(f"{part}: {len(documents):,} documents, {characters / 1e6:.1f} M characters")
    say(f"{dropped:,} paragraphs of {dropped + kept:,} had been seen before and were left out")
    return found


def is_english(text: str) -> bool:
    """Whether common English words make up as much of a text as they do of prose."""
    words = _WORD.findall(text[:20_000].lower())
    return len(words) > 30 and sum(w in COMMON for w in words) >= ENGLISH * len(words)


def paragraphs_of(text: str) -> list[str]:
    """Paragraphs with their lines' spaces tidied; rules and what has no words are left out."""
    tidy = (
        "\n".join(_SPACES.sub(" ", line).strip() for line in paragraph.strip().splitlines())
        for paragraph in _GAP.split(text.replace("\r\n", "\n").replace("\x00", ""))
    )
    return [paragraph for paragraph in tidy if sum(map(str.isalpha, paragraph)) >= 12]


def seen_before(paragraph: str, seen: set[int]) -> bool:
    """Whether a paragraph is a copy, nearly, of what is in `seen`, which then has it too."""
    shingles = shingles_of(paragraph)
    again = sum(s in seen for s in shingles) > SEEN_BEFORE * len(shingles)
    seen.update(shingles)
    return again


def shingles_of(paragraph: str) -> list[int]:
    """Hashes of every run of `SHINGLE` words, one in four of them for a long paragraph; of a short
    one, of all its words together."""
    words = _WORD.findall(paragraph.lower())
    hashes = np.array([zlib.crc32(w.encode()) for w in words], np.uint64)
    runs = max(1, len(words) - SHINGLE + 1)
    total = np.zeros(runs, np.uint64)
    for place in range(min(SHINGLE, len(words))):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[place : place + runs]
        total ^= total >> np.uint64(29)
    # By their values, so that a passage has the same ones wherever it begins.
    chosen = total[total % np.uint64(4) == 0] if runs > 40 else total
    return [int(x) for x in chosen]


# Which files, and whose


class File(NamedTuple):
    name: str
    path: Path
    owner: str
    part: str
    order: int
    read: Callable[[Path], str]


PARTS = ("test", "curve", "train")


def part_of(name: str) -> str:
    """Held out by a hash of the name, whatever other files there are."""
    return {0: "test", 1: "curve"}.get(zlib.crc32(name.encode()) % HELD_OUT, "train")


def _files(roots: list[Root]) -> Iterator[File]:
    done: set[Path] = set()
    for root in roots:
        for path in sorted(root.folder.rglob("*")):
            read = reader_of(root, path)
            if read is None or path.is_symlink() or not path.is_file():
                continue
            if root.kind == "python" and "site-packages" in path.parts:
                continue
            if (real := path.resolve()) in done:
                continue
            done.add(real)
            inside = path.relative_to(root.folder)
            name = f"{root.name}:{inside.as_posix()}"
            owner = f"{root.name}:{inside.parts[0] if len(inside.parts) > 1 else ''}"
            if root.kind in ("info", "python"):
                owner = name
            elif root.kind == "man":  # by its first word, as of git-add or gcloud_compute
                owner = f"man:{re.split('[-_.]', path.name)[0]}"
            yield File(name, path, owner, part_of(name), zlib.crc32(name.encode()[::-1]), read)
    if any(root.kind == "python" for root in roots):
        yield from _topics()


def reader_of(root: Root, path: Path) -> Callable[[Path], str] | None:
    """How the prose of a file is read, by its name; None where there is none to be expected."""
    parts = path.relative_to(root.folder).parts
    if any(p.startswith((".", "_")) or p in LEFT_OUT for p in parts[:-1]):
        return None
    if root.kind == "man":
        return (
            readers.manual_page
            if re.fullmatch(r"man\d", parts[0]) and path.suffix == ".gz"
            else None
        )
    name = path.name.removesuffix(".gz")
    if re.search(r"licen[cs]e|copying|copyright|authors|changelog|\bnews\b", name, re.IGNORECASE):
        return None
    if root.kind == "info":
        return readers.plain
    if name in ("METADATA", "PKG-INFO"):
        return readers.description
    kinds = {
        ".py": readers.docstrings,
        ".md": readers.markup,
        ".rst": readers.markup,
        ".txt": readers.plain,
        ".html": readers.web_page,
        ".htm": readers.web_page,
        ".pod": readers.pod,
    }
    return kinds.get(Path(name).suffix)


LEFT_OUT = frozenset(
    [
        "test", "tests", "testing", "idle_test", "lib2to3", "pydoc_data", "locale", "locales",
        "site-packages", "vendor", "third_party", "licenses", "node_modules", "include",
    ]
)  # fmt: skip
"""Folders without prose, or with somebody else's."""


def _topics() -> Iterator[File]:
    """pydoc's topics: chapters of the language reference."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for topic, text in sorted(topics.items()):
        name = f"pydoc:{topic}"
        order = zlib.crc32(name.encode()[::-1])
        yield File(name, Path(topic), name, part_of(name), order, lambda _, text=text: text)


def main() -> int:
    """Print what is found."""
    roots = given_roots(sys.argv[1:]) or default_roots()
    for document in collect(roots):
        print(document.part, len(document.text), document.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
