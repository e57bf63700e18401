"""The first piece of a long text and what is said of the last one; tokenizers of few characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from pyenc.errors import InputError
from pyenc.text import LongWordWarning, TextTokenizer, text_pieces
from tests.conftest import GOLDEN
from tests.text.test_long_texts import Uncut

BERT = GOLDEN / "bert_mean_h4"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of fifty characters."""
    for name, value in {"SHORT": 0, "A_TOKEN": 1, "SIZE": 50}.items():
        monkeypatch.setattr(text_pieces, name, value)


def same(folder: Path, texts: list[str], limit: int) -> list[text_pieces.Tokens]:
    """As if they had been tokenised whole."""
    whole, pieces = Uncut(folder)(texts, limit, True), TextTokenizer(folder)(texts, limit, True)
    for a, b in zip(whole, pieces, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert np.array_equal(a.spans, b.spans)  # type: ignore[arg-type]
    return pieces


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_first_piece_is_no_longer_than_a_piece(side: str) -> None:
    text = "fox " * 100_000
    pieces = TextTokenizer(BERT)._pieces
    for limit in (9, 10**7):
        piece = pieces.first(text, limit, side).piece
        assert piece is not None
        size = min(max(text_pieces.SHORT, text_pieces.A_TOKEN * limit), text_pieces.SIZE)
        assert size <= piece[1] - piece[0] <= size + 4
    assert pieces.first(text[: text_pieces.SHORT], 9, side).piece is None


def test_a_text_that_ends_in_the_piece_that_is_too_much_is_counted_whole(tiny: None) -> None:
    text = "fox " * 20  # a piece and a half
    (full,) = same(BERT, [text], 99)
    (cut,) = same(BERT, [text], full.full_length - 2)
    assert (cut.exact, cut.full_length) == (True, full.full_length)
    (cut,) = same(BERT, [text], 9)
    assert not cut.exact


def test_the_text_at_fault_is_named_among_long_ones() -> None:
    texts = ["fox " * 9000, "fox", "fox \ud800"]
    with pytest.raises(InputError, match="text 5 is not valid Unicode: lone surrogate"):
        TextTokenizer(BERT)(texts, 9, first=3)


def test_so_many_characters_at_once_are_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    text_pieces.check_whole(3, text_pieces.WHOLE)
    assert not recwarn.list
    with pytest.warns(LongWordWarning, match=f"text 3 has {text_pieces.WHOLE + 1} characters"):
        text_pieces.check_whole(3, text_pieces.WHOLE + 1)


def few(folder: Path, letters: str) -> Path:
    """Byte-level BPE of some letters, which makes nothing of the others."""
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *letters])}
    made: Any = Tokenizer(models.BPE(vocab, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), True, False)
    made.add_special_tokens(["<s>", "</s>"])
    made.add_tokens([AddedToken(" x", normalized=False)])
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("letters", "around"),
    [("a", ([0], [1])), ("0", ([0], [1])), (".", ([0], [1])), ("A", ([0], [1])), ("q", None)],
)
def test_what_stands_around_every_text(
    letters: str, around: Any, tiny: None, tmp_path: Path
) -> None:
    """Is told by any of a few texts; where by none, no text is cut."""
    folder = few(tmp_path, letters + "Ġ" * (around is not None))
    assert TextTokenizer(folder)._pieces.around == around
    text = f"{letters} zz " * 40
    for limit in (9, 10**6):
        same(folder, [text], limit)
    assert (TextTokenizer(folder)._pieces.first(text, 9, "right").piece is None) == (around is None)


def test_pieces_without_a_token(tiny: None, tmp_path: Path) -> None:
    text, folder = "a " * 40 + "zz " * 60 + "a " * 40, few(tmp_path, "a")
    for limit in (9, 45, 10**6):
        # Where the library has the spans of such tokens is its own affair.
        whole, pieces = Uncut(folder)([text], limit), TextTokenizer(folder)([text], limit, True)
        assert whole[0].ids.tolist() == pieces[0].ids.tolist()


def test_an_added_token_that_begins_with_a_space(tiny: None, tmp_path: Path) -> None:
    """Is all there, where a word would be without its space."""
    folder = few(tmp_path, "abĠ")
    assert TextTokenizer(folder)._pieces._first_space
    for limit in (9, 45, 10**6):
        same(folder, ["aa x" * 60, "a b" * 60], limit)


def test_pieces_in_a_forked_process(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one; no special tokens are put around them either."""
    monkeypatch.setattr(text_pieces, "is_forked", lambda: True)
    for limit in (9, 10**6):
        same(BERT, ["fox " * 60, "fox"], limit)
    assert TextTokenizer(BERT)(["fox " * 60], 9)[0].ids[[0, -1]].tolist() == [
        TextTokenizer(BERT)(["fox"], 9)[0].ids[at] for at in (0, -1)
    ]


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_less_room_than_what_is_around_a_text(limit: int) -> None:
    """Which is then cut too, of long texts as of short ones."""
    long, short = TextTokenizer(BERT)(["fox " * 9000, "fox fox fox"], limit)
    assert long.ids.tolist() == short.ids.tolist()
    assert len(long.ids) == limit
