"""How many tokens a text may have: the files' word, the caller's, and longer texts."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from pyenc.errors import InputError
from tests.conftest import GOLDEN
from tests.text.texts import TEXTS

# One golden checkpoint has no sentence-transformers files; test_assumed.py has what is said of it.
pytestmark = pytest.mark.filterwarnings("ignore::pyenc.AssumptionWarning")


def test_too_long(encoder: pyenc.TextEncoder) -> None:
    long, short = "fox " * 50, "fox"
    with pytest.warns(pyenc.TruncationWarning) as caught:
        cut = encoder.encode([short, long, long + "x"], max_length=12)
    assert len(caught) == 1
    assert "2 of 3 texts exceed 12 tokens (the longest, text 2" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert isinstance(caught[0].message, pyenc.TruncationWarning)
    assert (caught[0].message.count, caught[0].message.longest) == (2, 153)
    with pytest.raises(InputError, match=r"1 of 2 texts exceed 12 tokens .*the first is text 1"):
        encoder.encode([short, long], max_length=12, on_long="error")
    # The cut text is its first tokens between the special ones.
    with pytest.warns(pyenc.TruncationWarning):
        rows = encoder.encode([long], max_length=12, output="tokens", on_long="truncate")
    np.testing.assert_allclose(rows[0].vectors.mean(0), cut[1], atol=1e-5)
    assert len(rows[0].vectors) == 12
    assert rows[0].spans[0].tolist() == rows[0].spans[-1].tolist() == [0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode([short, long])


@pytest.mark.parametrize("length", [2, 3, np.int64(4)])
def test_hardly_any_room(encoder: pyenc.TextEncoder, length: int) -> None:
    with pytest.warns(pyenc.TruncationWarning):
        rows = encoder.encode("The quick brown fox", max_length=length, output="tokens")
    assert len(rows.vectors) == length


def test_limits(bert: pyenc.TextEncoder, encoder: pyenc.TextEncoder) -> None:
    """ALiBi goes beyond its own word; a position table does not."""
    assert encoder.max_length == 8192
    with pytest.warns(pyenc.TruncationWarning, match="exceed 9000 tokens"):
        assert encoder.encode("fox " * 9000, max_length=9000).shape == (64,)
    assert bert.max_length == 256
    with pytest.warns(pyenc.TruncationWarning):
        bert.encode("fox " * 500, max_length=320)
    with pytest.raises(InputError, match="max_length 321 is beyond this checkpoint's 320 position"):
        bert.encode("fox", max_length=321)


@pytest.mark.parametrize(
    ("golden", "by_tokenizer", "sentence", "right"),
    [
        ("jina_geglu_h4", {"model_max_length": 100000}, None, 64),
        ("jina_geglu_h4", {"max_len": 100000}, None, 64),
        ("jina_geglu_h4", {"model_max_length": 65}, {"max_seq_length": None}, 64),
        ("jina_geglu_h4", {"model_max_length": 63}, None, 63),
        ("jina_geglu_h4", {"model_max_length": 10**30}, None, 64),
        ("jina_geglu_h4", {"model_max_length": 63}, {"max_seq_length": 8192}, 8192),
        # What the recipe hands to the tokenizer is the recipe's word.
        ("jina_geglu_h4", {}, {"tokenizer_args": {"model_max_length": 100000}}, 100000),
        # It starts at 64 and states 512 positions.
        ("mosaic_mlm_h4", {"model_max_length": 100000}, None, 512),
        ("bert_mean_h4", {"model_max_length": 100000}, None, 320),
        # T5 has no positions to run out of; without a word it is n_positions.
        ("t5_mean_relu_h4", {"model_max_length": 1024}, None, 1024),
        ("t5_mean_relu_h4", {}, None, 512),
    ],
)
def test_the_tokenizers_limit_stays_within_the_models(
    tmp_path: Path, golden: str, by_tokenizer: dict[str, int], sentence: Any, right: int
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / golden, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("model_max_length")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | by_tokenizer))
    (folder / "sentence_bert_config.json").unlink(missing_ok=True)
    if sentence is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(sentence))
    assert pyenc.load(folder, pooling="mean", normalize=False).max_length == right


FROM_PADDING = ["xlmr_e5_like_h2", "roberta_distil_like_h4", "mpnet_base_v2_like_h4"]


def limited(folder: Path, golden: str, by_tokenizer: int | None, sentence: int | None) -> Path:
    """A golden checkpoint whose files name these limits."""
    shutil.copytree(GOLDEN / golden, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["model_max_length"] = by_tokenizer
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": sentence}))
    return folder


@pytest.mark.parametrize("golden", FROM_PADDING)
@pytest.mark.parametrize(
    ("by_tokenizer", "sentence", "right"),
    [
        (None, None, 320),
        (322, None, 320),
        (10**30, None, 320),
        (17, None, 17),
        (None, 322, 320),
        (17, 10000, 320),
        (17, 19, 19),
    ],
)
def test_a_table_counted_from_the_padding_id(
    tmp_path: Path, golden: str, by_tokenizer: int | None, sentence: int | None, right: int
) -> None:
    """Of 322 rows the first two belong to no token, whatever the files say."""
    encoder = pyenc.load(limited(tmp_path / "model", golden, by_tokenizer, sentence))
    assert (encoder.model.config.num_positions, encoder.model.config.padding_id) == (322, 1)
    assert encoder.max_length == right


@pytest.mark.parametrize("golden", FROM_PADDING)
def test_longer_than_a_table_counted_from_the_padding_id(tmp_path: Path, golden: str) -> None:
    encoder = pyenc.load(limited(tmp_path / "model", golden, None, None))
    with pytest.warns(pyenc.TruncationWarning, match="1 of 2 texts exceed 320 tokens"):
        rows = encoder.encode(["the quick " * 400, "ok"], output="tokens")
    assert len(rows[0].vectors) == 320
    assert np.isfinite(rows[0].vectors).all()
    assert encoder.tokenizer is not None
    ids = encoder.tokenizer(["the quick " * 400], 320)[0].ids
    with pytest.raises(InputError, match="position 322 at packed token 320 is out of range"):
        encoder.model(torch.from_numpy(np.r_[ids, 5])[None])
    with pytest.raises(InputError, match=r"max_length 321 is beyond this .* 320 position embed"):
        encoder.encode("ok", max_length=321)
    with pytest.raises(InputError, match="322 rows, counted from after the padding id"):
        encoder.max_length = 322


@pytest.mark.parametrize("own", [None, 1024])
def test_a_borrowed_tokenizer_sets_no_limit(own: int | None, tmp_path: Path) -> None:
    """Its words are borrowed, not its limit, also once saved; the checkpoint's own limit stays."""
    source, folder, words = GOLDEN / "mosaic_mlm_h4", tmp_path / "model", tmp_path / "words"
    folder.mkdir()
    shutil.copy(source / "pytorch_model.bin", folder)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"alibi_starting_size": 2048}))
    if own is not None:  # a tokenizer of its own, whose files must not be mixed with the other's
        (folder / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n")
        (folder / "added_tokens.json").write_text('{"newtok": 3}')
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": own}))
    words.mkdir()
    shutil.copy(source / "vocab.txt", words)
    cased = {"model_max_length": 77, "max_len": 76, "do_lower_case": False}
    (words / "tokenizer_config.json").write_text(json.dumps(cased))
    (words / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 78}')
    (words / "sentence_bert_config.json").write_text('{"max_seq_length": 9, "do_lower_case": true}')
    encoder = pyenc.load(folder, tokenizer=words)
    assert encoder.max_length == (own or 2048)
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert again.max_length == (own or 2048)
    assert (again.encode(TEXTS) == encoder.encode(TEXTS)).all()
    assert not (tmp_path / "saved/added_tokens.json").exists()
    assert (encoder.encode("The sky") != encoder.encode("the sky")).any()
    assert pyenc.load(folder, tokenizer=tmp_path / "saved").max_length == (own or 2048)
