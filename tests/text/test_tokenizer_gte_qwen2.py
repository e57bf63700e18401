"""gte-Qwen2's tokenizer: what ends a text is said by a class of its own, which is not run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

import pyenc
from pyenc.errors import CheckpointError
from pyenc.loading import own_checkpoint
from pyenc.text import TextTokenizer
from tests.conftest import GOLDEN
from tests.loading.test_strict import copied
from tests.text.tokenizer_folders import as_transformers, edit

NAME, END = "qwen2_gte_like_h4", 376
TEXTS = ["a fox", "", " two  words", "<|endoftext|>ab", "日本語 e\u0301", "12345 it's"]
FAST = "tokenization_qwen.Qwen2TokenizerFast"


def ids(folder: Path, text: str = "a") -> list[int]:
    return TextTokenizer(folder)([text], 999)[0].ids.tolist()


def published(folder: Path) -> Path:
    """As the published tokenizer.json, which ends no text."""
    folder = copied(NAME, folder)
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    edit(folder / "tokenizer.json", lambda old: old | {"post_processor": bytes_alone})
    return folder


def told(folder: Path, **settings: Any) -> Path:
    """tokenizer_config.json changed: `...` takes a key out."""
    edit(
        folder / "tokenizer_config.json",
        lambda old: {k: v for k, v in (old | settings).items() if v is not ...},
    )
    return folder


def ending(folder: Path, single: str) -> None:
    """What tokenizer.json puts around a text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<|endoftext|>", END)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("saved", [None, "$A", "$A <|endoftext|>"])
def test_a_text_ends_by_the_setting(saved: str | None, tmp_path: Path) -> None:
    """Where it is there; whatever tokenizer.json has, which that class overwrites."""
    for said in (True, False, ..., None):
        folder = told(published(tmp_path / str(said)), add_eos_token=said)
        if saved is not None:
            ending(folder, saved)
        has = saved is not None and saved != "$A"
        ends = said if isinstance(said, bool) else has
        tokenizer = TextTokenizer(folder)
        got = ids(folder)
        assert (got[-1] == END, tokenizer.num_special) == (ends, int(ends))
        assert bool(tokenizer.disputed) == (ends != has)
        cut = tokenizer(["word " * 90, "a"], 5)[0].ids.tolist()
        assert (len(cut), cut[-1] == END) == (5, ends)
        if ends == has:
            as_transformers(folder, TEXTS)


def test_as_transformers_is_told(tmp_path: Path) -> None:
    """The words are those of Qwen 2's class, told to end a text."""
    transformers = pytest.importorskip("transformers", minversion="5")
    folder = published(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, add_eos_token=True)
    for text in TEXTS:
        assert ids(folder, text) == ids(GOLDEN / NAME, text) == theirs(text)["input_ids"]
    assert TextTokenizer(folder).max_length == 32_768


@pytest.mark.parametrize(
    "named",
    [
        {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", FAST]},
        {"AutoTokenizer": [None, FAST]},
        {"AutoTokenizer": "tokenization_qwen.Qwen2Tokenizer"},
        {"AutoTokenizer": [f"Alibaba-NLP/gte-Qwen2-7B-instruct--{FAST}", None]},
        ["tokenization_qwen.Qwen2Tokenizer", FAST],
    ],
    ids=str,
)
def test_its_class_is_known_by_name(named: Any, tmp_path: Path) -> None:
    assert ids(told(published(tmp_path), auto_map=named))[-1] == END


@pytest.mark.parametrize(
    ("words", "layers"),
    [
        ({"AutoTokenizer": ["tokenization_own.Qwen2Tokenizer", None]}, "modeling_qwen.Qwen2Model"),
        (..., "modeling_qwen.Qwen2Model"),
        ({"AutoTokenizer": [FAST, None]}, None),
        ({"AutoTokenizer": [FAST, None]}, "modeling_own.Qwen2Model"),
    ],
)
def test_others_end_a_text_as_their_file_does(words: Any, layers: Any, tmp_path: Path) -> None:
    """Where not both are gte-Qwen2's: KaLM has its tokenizer, and asks for no code."""
    folder = told(published(tmp_path), auto_map=words)
    code = {} if layers is None else {"auto_map": {"AutoModel": layers}}
    edit(
        folder / "config.json",
        lambda old: {k: old[k] for k in old if k != "auto_map"} | code,
    )
    tokenizer = TextTokenizer(folder)
    assert (tokenizer.num_special, tokenizer.disputed) == (0, "")
    as_transformers(folder, TEXTS)


def test_the_token_where_no_file_names_it(tmp_path: Path) -> None:
    """Is that of the class, and not Llama's."""
    assert ids(told(published(tmp_path / "a"), eos_token=...))[-1] == END
    folder = told(published(tmp_path / "b"), eos_token=None)
    with pytest.raises(CheckpointError, match="add_eos_token: true, but eos_token is None"):
        TextTokenizer(folder)


def test_tokenizer_args(tmp_path: Path) -> None:
    """Are followed in what its class knows; what it would pass over is refused."""
    folder = published(tmp_path)
    for ends in (True, False):
        got = TextTokenizer(folder, overrides={"add_eos_token": ends})
        assert (got.num_special, got.disputed) == (int(ends), "")
    edit(
        folder / "sentence_bert_config.json",
        lambda old: old | {"tokenizer_args": {"add_bos_token": True}},
    )
    with pytest.raises(CheckpointError, match=r"add_bos_token: .*class takes no notice of it"):
        pyenc.load(folder)
    plain = told(published(tmp_path / "said"), add_bos_token=True, bos_token="<|im_start|>")
    assert ids(plain) == ids(GOLDEN / NAME)


def test_vectors_and_the_warning(tmp_path: Path) -> None:
    """Said once a load; the vectors are those of a tokenizer.json that ends a text, also saved."""
    said = "tokenizer_config.json says add_eos_token true, and tokenizer.json otherwise: .*is not r"
    folder = published(tmp_path / "published")
    with pytest.warns(pyenc.AssumptionWarning, match=said) as caught:
        encoder = pyenc.load(folder)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agree = pyenc.load(GOLDEN / NAME)
    vectors = encoder.encode(TEXTS)
    assert (agree.encode(TEXTS) == vectors).all()
    encoder.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["is_causal"] is False
    with pytest.warns(pyenc.AssumptionWarning, match=said):
        assert (pyenc.load(tmp_path / "saved").encode(TEXTS) == vectors).all()
    with pytest.raises(CheckpointError, match=r"cannot be borrowed: .*add_eos_token"):
        pyenc.load(GOLDEN / "qwen3_embed_like_h4", tokenizer=folder)
    encoder.checkpoint = own_checkpoint(encoder.model)
    encoder.save(tmp_path / "own")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (pyenc.load(tmp_path / "own").encode(TEXTS) == vectors).all()
