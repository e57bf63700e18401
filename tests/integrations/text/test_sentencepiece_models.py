"""SentencePiece models that its library trains here, each alone in a folder, beside transformers'
tokenizers of the same folders."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyenc
from tests.conftest import GOLDEN
from tests.text.sentencepiece_folders import KINDS, checkpoint, sentencepiece
from tests.text.test_sentencepiece import fitting
from tests.text.test_tokenizers_as_transformers import stray_texts
from tests.text.tokenizer_folders import as_transformers, odd_texts

sentencepiece_library = pytest.importorskip("sentencepiece")
pytest.importorskip("transformers", minversion="5")
pytest.importorskip("google.protobuf")

FIRST: dict[str, dict[str, Any]] = {
    "albert": {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1,
               "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]},
    "camembert": {},
    "deberta": {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]",
                "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "t5 with bytes": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "byte_fallback": True},
    "xlm-roberta": {},
}  # fmt: skip
"""How each kind numbers its special pieces."""


def trained(folder: Path, kind: str, **options: Any) -> None:
    """A model in the place of that of a folder."""
    (path,) = folder.glob("*.model")
    pages = [*GOLDEN.parent.parent.glob("*.md"), *GOLDEN.glob("*.md")]
    lines = [line for page in sorted(pages) for line in page.read_text("utf-8").splitlines()]
    lines += [" ".join(odd_texts(1, 40, seed=number)[0].split()) for number in range(40)]
    model = io.BytesIO()
    options = {"vocab_size": 900, "character_coverage": 0.999} | FIRST[kind] | options
    sentencepiece_library.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in lines if line.strip()]), model_writer=model,
        model_type="unigram", hard_vocab_limit=False, minloglevel=2, num_threads=1, **options,
    )  # fmt: skip
    path.write_bytes(model.getvalue())


@pytest.mark.parametrize("rules", ["nmt_nfkc", "nmt_nfkc_cf", "identity"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_transformers(tmp_path: Path, kind: str, rules: str) -> None:
    """With SentencePiece's own tables of characters, and without one."""
    folder = sentencepiece(tmp_path, kind)
    trained(folder, kind, normalization_rule_name=rules)
    as_transformers(folder, [*stray_texts(150), *odd_texts(60, 12), "", " "])


@pytest.mark.parametrize("kind", KINDS)
def test_spaces_are_the_class_s_own(tmp_path: Path, kind: str) -> None:
    """Whatever a model says of those that are too many."""
    folder = sentencepiece(tmp_path, kind)
    trained(folder, kind, remove_extra_whitespaces=False)
    as_transformers(folder, ["  a   b ", "a\n\n b\t\tc  ", *stray_texts(60)])


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("deberta", {"do_lower_case": True, "split_by_punct": True}),
        ("deberta", {"added_tokens.json": {"[MASK]": 900}, "add_prefix_space": False}),
        ("albert", {"keep_accents": True, "do_lower_case": False, "add_bos_token": True}),
        ("xlm-roberta", {"add_eos_token": True, "additional_special_tokens": ["quick"]}),
        ("t5", {"extra_ids": 7, "eos_token": "</s>", "model_max_length": 512}),
    ],
)
def test_settings_beside_it(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    folder = sentencepiece(tmp_path, kind, **config)
    trained(folder, kind)
    as_transformers(folder, [*stray_texts(150), "a quick [MASK] <mask> é."])


def test_saved(tmp_path: Path) -> None:
    """The folder that is written gives sentence-transformers the same vectors."""
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
    encoder = pyenc.load(checkpoint(tmp_path / "model"))
    encoder.save(tmp_path / "saved")
    as_transformers(tmp_path / "saved", [*stray_texts(50), "the quick brown fox"])
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    texts = [fitting(text, encoder) for text in ("the quick brown fox jumps", "Naïve CAFÉ", "")]
    assert np.abs(theirs.encode(texts) - encoder.encode(texts)).max() <= 2e-5
