"""What examples/long_minilm.py reads: what is taken of which files, and what is held out."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from examples.distillation import corpus, readers


def page(words: str) -> str:
    """A paragraph about each word, in words drawn by it."""
    paragraphs = []
    for word in words.split():
        rng = np.random.default_rng(list(word.encode()))
        common = sorted(corpus.COMMON)
        drawn = [
            common[rng.integers(len(common))] if i % 3 == 0 else f"{word}{rng.integers(999)}"
            for i in range(36)
        ]
        paragraphs.append(" ".join(drawn) + f" so it is {word} that counts.")
    return "\n\n".join(paragraphs)


def test_nothing_of_a_held_out_file_is_trained(tmp_path: Path) -> None:
    names = [f"page{i}.txt" for i in range(200)]
    held = next(n for n in names if corpus.part_of(f"docs:{n}") == "test")
    kept = [n for n in names if corpus.part_of(f"docs:{n}") == "train"][:4]
    ours = page("apple pear plum")
    (tmp_path / held).write_text(ours)
    # A copy with another ending, in a file that is trained on, beside what is its own.
    (tmp_path / kept[0]).write_text(ours.replace("counts.", "matters.") + "\n\n" + page("tin zinc"))
    (tmp_path / kept[1]).write_text(page("tin zinc copper iron"))
    (tmp_path / kept[2]).write_text("def f(x):\n    return x + 1\n\n" * 40)
    (tmp_path / f"{kept[3]}.gz").write_bytes(gzip.compress(page("gold silver").encode()))
    said: list[str] = []
    found = corpus.collect([corpus.Root("docs", tmp_path)], said.append)
    found = [d for d in found if d.name.startswith("docs:")]
    assert found[0] == corpus.Document(f"docs:{held}", "test", tuple(ours.split("\n\n")))
    trained = "\n".join(d.text for d in found if d.part == "train")
    assert "apple" not in trained
    assert "return x" not in trained
    assert all(trained.count(f"so it is {w} ") == 1 for w in ("tin", "zinc", "copper"))
    again = corpus.collect([corpus.Root("docs", tmp_path)], said.append)
    assert [d for d in again if d.name.startswith("docs:")] == found


def test_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        '"""About it."""\nclass A:\n    """' + "An A is what holds all things of it." * 2 + '"""\n'
    )
    assert readers.docstrings(tmp_path / "m.py").startswith("About it.\n\nA: An A is what")
    (tmp_path / "p.1.gz").write_bytes(
        gzip.compress(b".TH P 1\n.SH NAME\np \\- \\fBdoes\\fR it\n.PP\nSee\n.BR q (1)\n.if x y\n")
    )
    words = readers.manual_page(tmp_path / "p.1.gz").split()
    assert " ".join(words) == "NAME p - does it See q (1)"
    (tmp_path / "h.html").write_text("<p>One <b>two</b></p><script>x()</script><p>three</p>")
    assert corpus.paragraphs_of(readers.web_page(tmp_path / "h.html") + " and some more words") == [
        "three and some more words"
    ]
    root = corpus.Root("packages", tmp_path)
    for name in ("LICENSE.txt", "tests/a.md", ".hidden/a.md", "_private/a.md", "a.c"):
        assert corpus.reader_of(root, tmp_path / name) is None, name
    for name in ("README.md", "a/b.rst", "x.dist-info/METADATA", "a.txt.gz"):
        assert corpus.reader_of(root, tmp_path / name) is not None, name
