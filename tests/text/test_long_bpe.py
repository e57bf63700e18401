"""Where tokens of an endless word of BPE's end for certain, and which models tell."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from pyenc.text import TextTokenizer, text_pieces
from pyenc.text.long_bpe import LongBPE
from tests.text.test_long_texts import Uncut
from tests.text.test_long_words import bpe


def test_places_that_are_certain_are_so_whatever_follows() -> None:
    """Words of few letters over and over, so that many tokens may stand across a place."""
    some = random.Random(torch.initial_seed())
    seen = 0
    for _ in range(150):
        letters = list("abc"[: some.choice([1, 2, 2, 3])])
        made = [*letters]
        merges: list[tuple[str, str]] = []
        for _ in range(some.choice([1, 2, 4, 8])):
            a, b = some.choice(made[-4:]), some.choice(made[-4:])
            if len(a + b) <= 8 and (a, b) not in merges:
                merges.append((a, b))
                made.append(a + b)
        if some.random() < 0.5:
            some.shuffle(merges)
        vocab = {token: i for i, token in enumerate(dict.fromkeys(made))}
        model = models.BPE(vocab, merges)
        whole, ours = Tokenizer(model), LongBPE(model)
        assert ours.can
        assert ours.longest == max(map(len, vocab))
        turn = "".join(some.choice(letters) for _ in range(some.choice([1, 2, 3, 5, 40])))
        word = (turn * 90)[: some.randint(1, 14 * ours.longest)]
        places = ours.certain(word)
        assert places == sorted(places, reverse=True)
        assert all(0 < place <= len(word) - ours.longest for place in places)
        seen += len(places)
        for _ in range(4):
            size = some.randint(0, 2 * ours.longest)
            more = (turn * 90)[len(word) :][:size] if some.random() < 0.5 else ""
            more += "".join(some.choice(letters) for _ in range(size))
            ends = {end for _, end in whole.encode(word + more).offsets}
            assert ends.issuperset(places), (merges, word, more)
    assert seen > 150


@pytest.mark.parametrize(
    ("more", "options", "can"),
    [
        ({}, {}, True),
        ({}, {"dropout": 0.1}, False),
        ({}, {"ignore_merges": True}, False),
        ({}, {"continuing_subword_prefix": "##"}, False),
        ({}, {"end_of_word_suffix": "</w>"}, False),
        ({"c": 2}, {}, False),
        ({"<unk>": 9}, {"unk_token": "<unk>"}, True),
        ({"<unk>": 9, "a<unk>": 10}, {"unk_token": "<unk>"}, False),
        ({"<0x41>": 9}, {"byte_fallback": True}, True),
        ({"<0x41>": 9, "<0x41>a": 10}, {"byte_fallback": True}, False),
    ],
    ids=str,
)
def test_models_whose_tokens_are_not_merged_texts(
    more: dict[str, int], options: dict[str, Any], can: bool
) -> None:
    vocab = {"a": 0, "b": 1, "ab": 2, "##b": 3, "a##b": 4} | more
    assert LongBPE(models.BPE(vocab, [("a", "##b")], **options)).can == can


@pytest.mark.parametrize("unknown", [None, "<unk>"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("fallback", [True, False])
def test_letters_that_are_no_tokens(
    fallback: bool,
    fused: bool,
    unknown: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """They are left out, or one token each, or one of any number of them; where bytes may stand for
    them, but are no tokens, too."""
    some = random.Random(torch.initial_seed())
    model = bpe(some, list("ab"), [], unk_token=unknown, fuse_unk=fused, byte_fallback=fallback)
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(text_pieces, "SHORT", 0)
    monkeypatch.setattr(text_pieces, "A_TOKEN", 1)
    whole, ours = Uncut(tmp_path), TextTokenizer(tmp_path)
    for word in ("z" * 900, "ab" * 300 + "z" * 900 + "ba" * 300, "abz" * 500, "abzz" * 400):
        for size in (40, 41, 100):
            monkeypatch.setattr(text_pieces, "SIZE", size)
            (a,), (b,) = whole([word], 10**6, spans=True), ours([word], 10**6, spans=True)
            assert a.ids.tolist() == b.ids.tolist()
            assert np.array_equal(a.spans, b.spans)  # type: ignore[arg-type]
