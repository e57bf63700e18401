"""Long texts of Llama 3's pre-tokeniser, EuroBERT's, and Qwen's: cut where its words end for
certain."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from pyenc.text import LongWordWarning, TextTokenizer, text_pieces
from pyenc.text.long_texts import LLAMA3, SIZE, Cuts
from tests.seeds import seed
from tests.text.test_long_texts import Uncut
from tests.text.tokenizer_folders import edit, llama3, odd_texts, qwen2


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fox (and) hound, " * 9_000, 0),
        ("你好，世界。" * 25_000, 0),
        ("字" * 140_000, 140_000),
        ("1" * 140_000, 140_000),  # counted off by three from its first
        ("fox" + " \n" * 70_000 + "fox", 140_006),
        ("(fox" * 35_000, 0),
    ],
    ids=["words", "Chinese", "a word", "a number", "white space", "marks"],
)
@pytest.mark.parametrize("kind", [llama3, qwen2])
def test_long_texts_of_llama_3(
    kind: Callable[..., Path],
    text: str,
    told: int,
    side: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut where a word ends, and tokenised whole, with a warning, where none does.

    Each is longer than what the library may be given at once of a text that can be cut.
    """
    assert len(text) > text_pieces.FEW * SIZE
    monkeypatch.setattr(text_pieces, "WHOLE", text_pieces.FEW * SIZE)
    folder = kind(tmp_path, truncation_side=side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LongWordWarning)
        (right,) = Uncut(folder)([text], 40, True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (got,) = TextTokenizer(folder)([text], 40, True)
    assert got.ids.tolist() == right.ids.tolist()
    assert np.array_equal(got.spans, right.spans)  # type: ignore[arg-type]
    assert got.exact == bool(told)
    assert [w.message.characters for w in caught if isinstance(w.message, LongWordWarning)] == (
        [told] if told else []
    )


@pytest.mark.parametrize("kind", [llama3, qwen2])
def test_every_place_of_llama_3(kind: Callable[..., Path], tmp_path: Path) -> None:
    """The words of the two sides are those of the whole."""
    folder = kind(tmp_path)
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    places, seen = Cuts(whole)._places, 0

    def words(text: str) -> list[str]:
        return [word for word, _ in whole.pre_tokenizer.pre_tokenize_str(text)]

    more = [
        "(fox", ",\n\n", "fox(", "12345a", ",12", "it's", "'S ", " \n a", "。\r\n", "\tfox",
        "e\u0301a",
    ]  # fmt: skip
    some = random.Random(seed())
    mixed = ["".join(some.choices(more, k=40)) for _ in range(30)]
    for text in [*mixed, *(text[:400] for text in odd_texts(30, 60, seed=7))]:
        for at in range(1, len(text)):
            if places.is_safe(text, at):
                assert words(text[:at]) + words(text[at:]) == words(text), (text, at)
                seen += 1
    assert seen > 1000


@pytest.mark.parametrize("more", [0, 1, 2])
def test_numbers_are_counted_off_from_their_first(more: int, tmp_path: Path) -> None:
    """By threes: what stands near a place, as many characters as an added token makes it, would
    mislead."""
    folder = llama3(tmp_path)
    old, new = "<|reserved_special_token_5|>", "<|reserved_special_token_5" + "5" * more + "|>"
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace(old, new))

    def threes(whole: dict[str, Any]) -> dict[str, Any]:
        model = whole["model"]
        longest = max(model["vocab"], key=len)
        vocab = {("111" if token == longest else token): i for token, i in model["vocab"].items()}
        whole["model"] = model | {"vocab": vocab, "merges": []}
        whole["added_tokens"][-1]["content"] = new
        return whole

    edit(folder / "tokenizer.json", threes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LongWordWarning)
        (right,), (got,) = (kind(folder)(["1" * 200_000], 10**6) for kind in (Uncut, TextTokenizer))
    assert len(right.ids) == 66_666 + 2 + 2
    assert np.array_equal(got.ids, right.ids)


@pytest.mark.parametrize(
    "change",
    [
        {"pattern": {"Regex": LLAMA3.replace("{1,3}", "{1,2}")}},
        {"behavior": "MergedWithNext"},
        {"invert": True},
    ],
    ids=str,
)
def test_another_split_is_not_cut(change: dict[str, Any], tmp_path: Path) -> None:
    folder = llama3(tmp_path)
    assert TextTokenizer(folder)(["fox " * 50_000], 9)[0].exact is False

    def other(whole: dict[str, Any]) -> dict[str, Any]:
        whole["pre_tokenizer"]["pretokenizers"][0] |= change
        return whole

    edit(folder / "tokenizer.json", other)
    assert TextTokenizer(folder)(["fox " * 50_000], 9)[0].exact is True
