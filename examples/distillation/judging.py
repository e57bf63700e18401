"""Figures on held-out texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyenc import Encoder
from pyenc.ops import segment_mean
from pyenc.text.batching import token_batches

from .tokens import Corpus
from .windows import CHUNK, draw, packed

PUBLISHED = 256
"""Tokens of a text that MiniLM reads, as it is published."""


def vectors_of(model: Encoder, rows: Sequence[np.ndarray], budget: int = 4096) -> np.ndarray:
    """(B, C) float32 means of token ids with their special tokens, of unit length."""
    found = np.zeros((len(rows), model.config.hidden_size), np.float32)
    for batch in token_batches([len(row) for row in rows], budget):
        bounds = torch.tensor([0, *(len(rows[i]) for i in batch)]).cumsum(0)
        ids = torch.from_numpy(np.concatenate([rows[i] for i in batch]).astype(np.int64))
        with torch.inference_mode():
            states: Tensor = model.forward_packed(ids, bounds)
            found[batch] = segment_mean(states, bounds, normalize=True).numpy()
    return found


def agreement(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Of unit vectors (B, C): mean cosine, share whose nearest neighbour is the same, and the
    correlation of all cosines among them."""
    a, b = ours @ ours.T, theirs @ theirs.T
    for matrix in (a, b):
        np.fill_diagonal(matrix, -2.0)
    upper = np.triu_indices(len(a), 1)
    return {
        "cosine": float((ours * theirs).sum(-1).mean()),
        "top-1": float((a.argmax(1) == b.argmax(1)).mean()),
        "correlation": float(np.corrcoef(a[upper], b[upper])[0, 1]),
    }


class Retrieval(NamedTuple):
    """Documents, and paragraphs of theirs to find them by."""

    documents: list[np.ndarray]  # of token ids, without special tokens
    without: list[np.ndarray]
    """The same, each without its paragraph."""
    paragraphs: list[np.ndarray]
    at: list[int]
    """Where in its document each begins, in tokens."""


def retrieval_of(
    corpus: Corpus, documents: Sequence[int], most: int, seed: int,
    shortest: int = 1000, longest: int = 8000,
) -> Retrieval:  # fmt: skip
    """A paragraph, of 24 to 200 tokens, of each document, which begins after its token 256 and
    anywhere from there to its end; it is held out of `without`."""
    rng = np.random.default_rng(seed)
    found = Retrieval([], [], [], [])
    for index in rng.permutation(np.asarray(documents)):
        ids = corpus.document(int(index))
        if not shortest <= len(ids) <= longest or len(found.documents) == most:
            continue
        ends = corpus.ends_of(int(index))
        begins = np.concatenate([[0], ends[:-1]])
        sizes = ends - begins
        good = np.flatnonzero((begins > PUBLISHED) & (sizes >= 24) & (sizes <= 200))
        if not len(good):
            continue
        chosen = int(rng.choice(good))
        begin, end = int(begins[chosen]), int(ends[chosen])
        found.documents.append(ids)
        found.without.append(np.concatenate([ids[:begin], ids[end:]]))
        found.paragraphs.append(ids[begin:end])
        found.at.append(begin)
    return found


def recall(paragraphs: np.ndarray, documents: np.ndarray) -> float:
    """Share of paragraphs (B, C) whose nearest of the documents (B, C) is their own."""
    return float(((paragraphs @ documents.T).argmax(1) == np.arange(len(documents))).mean())


def special(rows: Sequence[np.ndarray], cls: int, sep: int) -> list[np.ndarray]:
    """Token ids with the special tokens around them."""
    return [np.concatenate([[cls], row, [sep]]).astype(np.int64) for row in rows]


def chunk_means(model: Encoder, rows: Sequence[np.ndarray], cls: int, sep: int) -> np.ndarray:
    """(B, C) of unit length: the mean over chunks of 254 tokens of their vectors of unit length."""
    pieces = [[row[at : at + CHUNK] for at in range(0, len(row), CHUNK)] for row in rows]
    flat = vectors_of(model, special([p for row in pieces for p in row], cls, sep))
    places = np.cumsum([0, *map(len, pieces)])
    means = np.stack([flat[a:b].mean(0) for a, b in pairwise(places)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


class Pairs(NamedTuple):
    """Passages side by side, and how related they are by where they stand."""

    first: list[np.ndarray]
    second: list[np.ndarray]
    grade: np.ndarray
    """2: neighbours; 1: of one document, further apart; 0: of two documents."""


def pairs_of(corpus: Corpus, documents: Sequence[int], count: int, seed: int) -> Pairs:
    """`count` pairs of passages of 24 to 120 tokens, a third of each grade."""
    rng = np.random.default_rng(seed)
    passages = []
    for index in documents:
        ids, ends = corpus.document(index), corpus.ends_of(index)
        begins = np.concatenate([[0], ends[:-1]])
        good = [ids[a : min(b, a + 120)] for a, b in zip(begins, ends, strict=True) if b - a >= 24]
        if len(good) >= 6:
            passages.append(good)
    first, second, grades = [], [], []
    for turn in range(count if len(passages) > 1 else 0):
        grade = turn % 3
        own, other = (int(x) for x in rng.choice(len(passages), 2, replace=False))
        a = int(rng.integers(len(passages[own]) - 4))
        first.append(passages[own][a])
        if grade == 0:
            second.append(passages[other][int(rng.integers(len(passages[other])))])
        else:
            b = a + 1 if grade == 2 else int(rng.integers(a + 4, len(passages[own])))
            second.append(passages[own][b])
        grades.append(grade)
    return Pairs(first, second, np.array(grades))


def spearman(scores: np.ndarray, grades: np.ndarray) -> float:
    """Correlation of ranks, those of equals shared."""
    return float(np.corrcoef(ranks(scores), ranks(grades))[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, of equal values their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]


def evaluate(
    teacher: Encoder, student: Encoder, corpus: Corpus, marks: tuple[int, int],
    texts: int = 400, documents: int = 300, pairs: int = 1002,
    known: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All figures, on the part of the corpus that nothing else saw; recall once more with the part
    that the curve is of, for it hangs on few documents.

    Args:
        teacher, student: what is compared.
        corpus: its part "test" is read, and "curve".
        marks: ids of [CLS] and [SEP].
        texts, documents, pairs: how many of each.
        known: the teacher's vectors by what they are of; filled where they are not there.
    """
    held_out = corpus.of_part("test")
    known = {} if known is None else known

    def of_teacher(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        if name not in known:
            known[name] = make()
        return known[name]

    drawn = draw(corpus, held_out, 400 * texts, 0.0, seed=2)
    chosen = np.random.default_rng(3).permutation(len(drawn.lengths))[:texts]
    rows = [packed(corpus, drawn, [int(i)], *marks) for i in chosen]
    found: dict[str, Any] = {"texts": {"count": len(rows)}}
    found["texts"] |= agreement(
        vectors_of(student, rows), of_teacher("texts", lambda: vectors_of(teacher, rows))
    )
    related = pairs_of(corpus, held_out, pairs, seed=4)
    found["pairs"] = {"count": len(related.grade)}
    for name, model in (("MiniLM", teacher), ("long-minilm", student)):

        def sides(model: Encoder = model) -> np.ndarray:
            both = special([*related.first, *related.second], *marks)
            return vectors_of(model, both)

        vectors = of_teacher("pairs", sides) if model is teacher else sides()
        a, b = np.split(vectors, 2)
        found["pairs"][f"Spearman, {name}"] = spearman((a * b).sum(1), related.grade)
    both = [*held_out, *corpus.of_part("curve")]
    for name, parts in (("documents", held_out), ("documents of both parts", both)):
        long = retrieval_of(corpus, parts, documents * (2 if parts is both else 1), seed=5)
        found[name] = _recalls(teacher, student, long, marks, name, of_teacher)
    return found


def _recalls(
    teacher: Encoder, student: Encoder, long: Retrieval, marks: tuple[int, int], name: str,
    of_teacher: Callable[[str, Callable[[], np.ndarray]], np.ndarray],
) -> dict[str, Any]:  # fmt: skip
    lengths = [len(d) for d in long.documents]
    asked = special(long.paragraphs, *marks)
    cut = special([row[:CHUNK] for row in long.without], *marks)
    kept = name.removeprefix("documents")  # in the names of what is known from earlier runs
    theirs = of_teacher("paragraphs" + kept, lambda: vectors_of(teacher, asked))
    by_cut = of_teacher("cut" + kept, lambda: vectors_of(teacher, cut))
    by_chunks = of_teacher("chunks" + kept, lambda: chunk_means(teacher, long.without, *marks))
    ours, whole = (vectors_of(student, rows) for rows in (asked, special(long.without, *marks)))
    return {
        "count": len(lengths),
        "tokens": int(sum(lengths)),
        "median paragraph begins at": float(np.median(long.at)),
        "recall@1, MiniLM cut at 256": recall(theirs, by_cut),
        "recall@1, MiniLM over chunks": recall(theirs, by_chunks),
        "recall@1, long-minilm": recall(ours, whole),
    }


def table(found: Mapping[str, Any]) -> list[str]:
    """The figures of `evaluate` beside what is wanted, as docs/long-minilm.md has them."""
    texts, pairs = found["texts"], found["pairs"]
    theirs, ours = (pairs[f"Spearman, {name}"] for name in ("MiniLM", "long-minilm"))

    def verdict(value: float, wanted: float) -> str:
        return "reached" if value >= wanted else "**missed**"

    rows = (
        (f"{texts['count']} texts of at most 256 tokens: mean cosine to MiniLM", "1",
         f"{texts['cosine']:.3f}", ".97", verdict(texts["cosine"], 0.97)),
        ("their nearest neighbour is the same", "1",
         f"{texts['top-1']:.3f}", ".85", verdict(texts["top-1"], 0.85)),
        (f"{pairs['count']:,} pairs of passages: Spearman with how near they stood",
         f"{theirs:.3f}", f"{ours:.3f}", f"{theirs - 0.01:.3f}", verdict(ours, theirs - 0.01)),
    )  # fmt: skip
    more: list[tuple[str, ...]] = []
    for name, of in (("documents", ""), ("documents of both parts", ", with those of the curve's")):
        documents = found[name]
        cut, chunks, own = (
            documents[f"recall@1, {model}"]
            for model in ("MiniLM cut at 256", "MiniLM over chunks", "long-minilm")
        )
        what = f"{documents['count']} documents{of}, each found by a paragraph left out of it"
        more += [
            (f"{what}: recall@1", f"{cut:.3f}, cut at 256 tokens", f"{own:.3f}",
             f"{1.15 * cut:.3f}", verdict(own, 1.15 * cut)),
            ("the same", f"{chunks:.3f}, over chunks", f"{own:.3f}", f"{chunks:.3f}",
             verdict(own, chunks)),
        ]  # fmt: skip
    head = ("", "MiniLM", "long-minilm", "wanted", "")
    lines = [head, ("---", "---:", "---:", "---:", "---"), *rows, *more]
    return ["| " + " | ".join(line) + " |" for line in lines]
