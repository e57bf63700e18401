"""A long text is cut before it is tokenised, and not one token or span is another for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import pyenc
from pyenc.errors import InputError
from pyenc.text import TextTokenizer, text_pieces
from pyenc.text.long_unigram import LongUnigram
from tests.conftest import GOLDEN
from tests.scripts import run_script
from tests.text.tokenizer_folders import KINDS, bert, edit, odd_texts, roberta, xlm_roberta


class Uncut(TextTokenizer):
    """Tokenises every text whole: the answer to compare with."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        whole: Any = self._pieces
        whole.first = lambda text, *_: text_pieces.Text(text)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_cut_as_if_whole(
    kind: str, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [KINDS[kind](tmp_path / "plain", truncation_side=side)]
    if kind == "roberta":
        folders.append(KINDS[kind](tmp_path / "b", truncation_side=side, add_prefix_space=True))
    cuts = 0
    for folder in folders:
        whole, pieces = Uncut(folder), TextTokenizer(folder)
        for i, text in enumerate(odd_texts(25, 250, seed=3)):
            monkeypatch.setattr(text_pieces, "SHORT", 0)
            monkeypatch.setattr(text_pieces, "A_TOKEN", 1 + i % 3)
            monkeypatch.setattr(text_pieces, "SIZE", (40, 200, 1000)[i % 3])
            limit = (2, 3, 17, 64, 300)[i % 5]
            (a,) = whole([f"why: {text}"], limit, spans=True)
            (b,) = pieces([f"why: {text}"], limit, spans=True)
            assert a.ids.tolist() == b.ids.tolist()
            assert a.spans is not None
            assert b.spans is not None
            assert a.spans.tolist() == b.spans.tolist()
            if b.exact:
                assert a.full_length == b.full_length
            else:
                assert limit < b.full_length <= a.full_length
            cuts += not b.exact
    # Some write another character for a space, and what is between two added tokens is one word.
    assert cuts > 8 if kind not in ("gemma", "llama 2", "mistral") else cuts == 0


@pytest.mark.parametrize(
    "token",
    [
        {"content": "New York"},
        {"content": "newtok", "lstrip": True, "normalized": True, "special": False},
        {"content": "quick", "rstrip": True, "normalized": True, "special": False},
        {"content": "yy"},
        {"content": "你好"},
        {"content": ",3"},
        {"content": "fox", "single_word": True, "normalized": False},
    ],
)
def test_added_tokens_across_a_cut(
    token: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = TextTokenizer(GOLDEN / "bert_mean_h4").vocab_size
    folder = bert(tmp_path, added_tokens_decoder={str(size): token})
    monkeypatch.setattr(text_pieces, "SHORT", 0)
    monkeypatch.setattr(text_pieces, "A_TOKEN", 1)
    monkeypatch.setattr(text_pieces, "SIZE", 50)
    texts = [*odd_texts(25, 200, seed=5), "New York " * 90, "a,34 b" * 90]
    texts += ["a,3  \n  newtok b " * 60, *("b" * i + " fox你" * 90 for i in range(5))]
    whole, pieces = Uncut(folder)(texts, 40, True), TextTokenizer(folder)(texts, 40, True)
    for a, b in zip(whole, pieces, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert np.array_equal(a.spans, b.spans)  # type: ignore[arg-type]


def test_pieces_that_no_setting_draws_at_random(tmp_path: Path) -> None:
    """tokenizers 0.21 has no such settings."""

    class Older:
        def __init__(self, model: Any) -> None:
            self.__getstate__ = model.__getstate__
            self.token_to_id = model.token_to_id

    model = Tokenizer.from_file(str(xlm_roberta(tmp_path) / "tokenizer.json")).model
    assert LongUnigram(Older(model)).can
    model.alpha = 0.1
    assert not LongUnigram(model).can


def test_what_the_warning_says() -> None:
    """The count is exact, the length a lower bound where the rest was not tokenised."""
    encoder = pyenc.load(GOLDEN / "jina_geglu_h4")
    with pytest.warns(
        pyenc.TruncationWarning, match=r"1 of 2 texts .*has at least \d+\)"
    ) as caught:
        vectors = encoder.encode(["fox", "fox " * 50_000], max_length=12)
    message = caught[0].message
    assert isinstance(message, pyenc.TruncationWarning)
    assert (message.count, 12 < message.longest <= 150_002) == (1, True)
    with pytest.warns(pyenc.TruncationWarning):
        assert (encoder.encode("fox " * 90, max_length=12) == vectors[1]).all()
    with pytest.raises(InputError, match="1 of 2 texts exceed 12 tokens"):
        encoder.encode(["fox", "fox " * 50_000], max_length=12, on_long="error")
    with pytest.raises(InputError, match=r"text 1 is not valid Unicode: .* at character 200000"):
        encoder.encode(["fox", "fox " * 50_000 + "\ud800"], max_length=12)


def test_left_keeps_the_end(tmp_path: Path) -> None:
    folder = bert(tmp_path, truncation_side="left")
    whole = Uncut(folder)(["the quick brown fox"], 99)[0].ids.tolist()
    for text in ("the quick brown fox", "fox " * 9000 + "the quick brown fox"):
        cut = TextTokenizer(folder)([text], 7)[0].ids.tolist()
        assert cut == [whole[0], *whole[-6:]]


TEXTS = {
    "words": (lambda: ["the quick brown fox " * 200_000], 512, 50),
    "words, all of them kept": (lambda: ["the quick brown fox " * 200_000], 10**7, 100),
    "one word": (lambda: ["x" * 4_000_000], 512, 50),
    "Chinese": (lambda: ["你好世界" * 1_000_000], 512, 50),
    "nothing": (lambda: [" " * 4_000_000], 512, 50),
    "accents": (lambda: ["été naïve " * 400_000], 512, 50),
    "Russian": (lambda: ["привет мир " * 360_000], 512, 50),
    "Hindi": (lambda: ["नमस्ते दुनिया " * 280_000], 512, 50),
    "Japanese": (lambda: ["これはテストです。" * 440_000], 512, 50),
    "Korean": (lambda: ["안녕하세요 세계 " * 440_000], 512, 50),
    "combining": (lambda: ["e\u0301 " * 1_300_000], 512, 50),
    "hard spaces": (lambda: ["a\u00a0b" * 1_300_000], 512, 50),
    "underscores": (lambda: ["_" * 4_000_000], 512, 50),
    "code": (lambda: ["a.b(c, d);\n" * 350_000], 512, 50),
    "letters": (lambda: ["xyz" * 1_333_333], 512, 100),
    "spaces": (lambda: [" " * 4_000_000], 512, 100),
    "marks": (lambda: ["!" * 4_000_000], 512, 100),
    "foxes": (lambda: ["\U0001f98a" * 1_000_000], 512, 100),
    "Chinese, one word": (lambda: ["你好世界" * 333_333], 512, 100),
    "240 of 50 kB": (lambda: [f"{i}" + " quick brown fox" * 3100 for i in range(240)], 64, 60),
}
"""Texts, tokens kept, megabytes beyond the texts at the most."""
WORDS = ("accents", "Russian", "Hindi", "Korean", "combining", "hard spaces", "words", "code")
ENDLESS = ("one word", "Chinese, one word", "letters", "spaces", "marks", "foxes")
MEASURED = {
    "bert": (
        lambda folder: GOLDEN / "bert_mean_h4",
        tuple(name for name in TEXTS if name == "one word" or name not in ENDLESS),
    ),
    "roberta": (roberta, (*WORDS, "Japanese", *ENDLESS)),
    "xlm-roberta": (xlm_roberta, (*WORDS[:-1], "Chinese, one word", "letters", "spaces")),
}
"""Tokenizers, and those of `TEXTS` that each can cut."""


def measure(folder: str, *names: str) -> None:
    """Prints the megabytes that each text takes; in a process of its own, for a clean heap."""

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().split("\n")
        return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024

    tokenize = TextTokenizer(Path(folder))
    tokenize(["the quick brown fox " * 20], 64)
    for name in names:
        make, limit, _ = TEXTS[name]
        texts = make()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = status("VmRSS")
        tokens = tokenize(texts, limit)
        print(f"{name}: {status('VmHWM') - before}", flush=True)
        del texts, tokens


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", MEASURED)
def test_memory_beyond_the_texts(kind: str, tmp_path: Path) -> None:
    """It was 958 MB for 240 texts of 50 kB, and 570 MB for 4 MB of Hindi."""
    make, names = MEASURED[kind]
    done = run_script(__file__, str(make(tmp_path)), *names)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(": ") for line in done.stdout.strip().split("\n"))
    assert found.keys() == set(names)
    for name in names:
        assert float(found[name]) < TEXTS[name][2], (name, found)


def test_a_tokenizer_that_cannot_be_cut_is_not(tmp_path: Path) -> None:
    folder = KINDS["as it is"](tmp_path)
    edit(folder / "tokenizer.json", lambda whole: whole | {"pre_tokenizer": None})
    (tokens,) = TextTokenizer(folder)(["fox " * 9000], 9)
    assert tokens.exact


META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DOUBLE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
WHITE = {"type": "WhitespaceSplit"}


@pytest.mark.parametrize(
    ("normalizer", "steps", "cut"),
    [
        (None, [META, BYTES], False),
        (None, [META, WHITE], False),
        (None, [BYTES | {"use_regex": False}, META | {"split": True}], False),
        (None, [{"type": "Digits", "individual_digits": False}, META, BYTES], False),
        (None, [WHITE, META], True),
        (None, [BYTES, META], False),
        (DOUBLE, [WHITE], False),
        (DOUBLE, [WHITE, META | {"split": True}], True),
        (DOUBLE | {"content": " "}, [WHITE], True),
    ],
)
def test_spaces_that_a_later_step_does_not_see(
    normalizer: Any, steps: list[Any], cut: bool, tmp_path: Path
) -> None:
    """A step that writes another character for each space leaves none to end a word."""
    words = "-) ▁Ġaokxfe" if BYTES not in steps else "-)▁Ġoâĸģkfxe"
    vocab = {c: i for i, c in enumerate(dict.fromkeys(words))}
    merges = ["- Ġ", "a ▁", "▁ -", "Ġ )", "- â", ") â", ") ▁", ") Ġ", "- ▁"]
    merges = [m for m in merges if set(m.split()) <= set(vocab)]
    vocab |= {m.replace(" ", ""): len(vocab) + i for i, m in enumerate(merges)}
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    whole = Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0", "added_tokens": [], "model": model, "normalizer": normalizer,
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            }
        )
    )  # fmt: skip
    whole.save(str(tmp_path / "tokenizer.json"))
    pieces = TextTokenizer(tmp_path)
    assert pieces._pieces.cuts.can == cut
    texts = ["- ) ) " * 33_333, "-  a  -)  " * 20_000]
    for a, b in zip(Uncut(tmp_path)(texts, 10**6), pieces(texts, 10**6), strict=True):
        assert a.ids.tolist() == b.ids.tolist()


if __name__ == "__main__":
    measure(*sys.argv[1:])
