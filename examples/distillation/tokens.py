"""The corpus as token ids, made once and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyenc.errors import InputError

from .corpus import HELD_OUT, MIN_CHARACTERS, PARTS, Document

FORMAT = 1


class Corpus(NamedTuple):
    """Documents as ids of their words, without special tokens."""

    ids: np.ndarray  # (T,) int32, all documents side by side
    bounds: np.ndarray  # (D + 1,) int64
    paragraph_ends: np.ndarray  # (P,) int64, places in ids, rising; each document ends one
    names: list[str]
    parts: list[str]

    def document(self, index: int) -> np.ndarray:
        return self.ids[self.bounds[index] : self.bounds[index + 1]]

    def ends_of(self, index: int) -> np.ndarray:
        """Where the paragraphs of a document end, counted from its beginning."""
        first, last = np.searchsorted(self.paragraph_ends, self.bounds[index : index + 2], "right")
        return self.paragraph_ends[first:last] - self.bounds[index]

    def of_part(self, part: str) -> list[int]:
        return [i for i, p in enumerate(self.parts) if p == part]


def tokenized(documents: Sequence[Document], tokenizer: Any) -> Corpus:
    """Ids of documents, a paragraph at a time, which for words cut at spaces is the same.

    Raises:
        InputError: a part has no document.
    """
    for part in PARTS:
        if not any(document.part == part for document in documents):
            raise InputError(
                f"of {len(documents)} English documents that were found none is of the part "
                f'"{part}": one file in {HELD_OUT} is for the curve and one for the last '
                f"measurement, by a hash of its name; give more files, of at least "
                f"{MIN_CHARACTERS} characters"
            )
    paragraphs = [p for document in documents for p in document.paragraphs]
    rows = [t.ids[1:-1] for t in tokenizer(paragraphs, 1_000_000)]
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    counts = np.cumsum([0, *(len(d.paragraphs) for d in documents)])
    return Corpus(
        ids=np.concatenate(rows).astype(np.int32),
        bounds=np.concatenate([[0], ends])[counts],
        paragraph_ends=ends,
        names=[d.name for d in documents],
        parts=[d.part for d in documents],
    )


def cached(path: Path, make: Callable[[], Corpus], folders: Sequence[str] = ()) -> Corpus:
    """The corpus of a file, or made and written there whole.

    Args:
        folders: what it is made of; none: of what was found. An older file does not say.

    Raises:
        InputError: the file's is made of others, or there is nothing in one of the parts.
    """
    folders = sorted(str(Path(folder).resolve()) for folder in folders)
    if path.is_file():
        with np.load(path) as stored:
            said = json.loads(str(stored["said"]))
            if said["format"] == FORMAT:
                before = said.get("folders", folders)
                if before != folders:
                    raise InputError(
                        f"{path} was made of {_named(before)}, not of {_named(folders)}: give "
                        "another --work, or what it was made of"
                    )
                arrays = (stored[name] for name in ("ids", "bounds", "paragraph_ends"))
                return Corpus(*arrays, said["names"], said["parts"])
    corpus = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    said = json.dumps(
        {"format": FORMAT, "names": corpus.names, "parts": corpus.parts, "folders": folders}
    )
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial, ids=corpus.ids, bounds=corpus.bounds, paragraph_ends=corpus.paragraph_ends,
        said=said,
    )  # fmt: skip
    partial.replace(path)
    return corpus


def _named(folders: Sequence[str]) -> str:
    return ", ".join(folders) or "what was found on this machine"
