"""What examples/long_minilm.py reads: what is taken of which files, and what is held out."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from examples import long_minilm
from examples.distillation import corpus, readers
from examples.distillation.progress import Curve
from examples.distillation.tokens import Corpus, cached, tokenized
from pyenc.errors import InputError


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
    assert found[0] == corpus.Document(f"docs:{held}", "test", tuple(ours.split("\n\n")))
    trained = "\n".join(d.text for d in found if d.part == "train")
    assert "apple" not in trained
    assert "return x" not in trained
    assert all(trained.count(f"so it is {w} ") == 1 for w in ("tin", "zinc", "copper"))
    again = corpus.collect([corpus.Root("docs", tmp_path)], said.append)
    assert again == found


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


@pytest.mark.parametrize("name", ["man", "info", "python", "packages"])
def test_a_folder_of_ones_own_is_read_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    """As any folder, and nothing beside it."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "page.txt").write_text(page("apple pear plum"))
    found = corpus.collect(corpus.given_roots([str(folder)]), lambda line: None)
    assert [document.name for document in found] == [f"{name}:page.txt"]


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"--folder .*missing: not there"):
        corpus.given_roots([str(tmp_path), str(tmp_path / "missing")])
    with pytest.raises(InputError, match=r"--folder .*file: no folder"):
        corpus.given_roots([str(tmp_path / "file")])
    with pytest.raises(InputError, match=r'of 0 English documents .* none is of the part "test"'):
        tokenized([], None)


def test_a_corpus_of_other_folders_is_not_taken(tmp_path: Path) -> None:
    array = np.zeros(1, np.int64)
    made = Corpus(array.astype(np.int32), array, array, ["a"], ["train"])
    path, ours, others = tmp_path / "c.npz", str(tmp_path / "a"), str(tmp_path / "b")

    def never() -> Corpus:
        raise AssertionError("made again")

    cached(path, lambda: made, [ours, others])
    assert cached(path, never, [others, f"{ours}/../a"]).names == ["a"]
    with pytest.raises(
        InputError, match=r"c.npz was made of .*a, .*b, not of .*a: give another --"
    ):
        cached(path, never, [ours])
    with pytest.raises(InputError, match="not of what was found on this machine"):
        cached(path, never)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "0", "'0': expected a whole number from 1 on"),
        ("--factor-steps", "-1", "expected a whole number from 0 on"),
        ("--batch-tokens", "0", "expected a whole number from 1 on"),
        ("--tokens", "1e6", "expected a whole number from 1 on"),
        ("--documents", "-3", "expected a whole number from 1 on"),
        ("--threads", "0", "expected a whole number from 1 on"),
        ("--rate", "nan", "expected a number above 0"),
        ("--rate", "0", "expected a number above 0"),
        ("--work", "file", "a file stands where the folder should be"),
        ("--export", "missing/x.safetensors", "there is no folder missing"),
        ("--export", ".", "is a folder, and should be a file"),
    ],
)
def test_options_that_are_refused(
    option: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Before anything is read or trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(long_minilm, "Work", lambda options: pytest.fail("work began"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit) as ended:
        long_minilm.main([option, value])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_curve_whose_last_line_was_cut(tmp_path: Path) -> None:
    """By the end of the process that wrote it."""
    curve = Curve(tmp_path / "curve.jsonl")
    for step in (1, 2, 3):
        curve.add(step, "training", {"loss": 0.5})
    whole = curve.path.read_text()
    curve.path.write_text(whole[:-9])
    assert [point["step"] for point in curve.points()] == [1, 2]
    curve.cut(2)
    curve.add(3, "training", {"loss": 0.5})
    assert curve.path.read_text() == whole
