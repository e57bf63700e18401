"""Every golden checkpoint's tokenizer against transformers: odd texts, and texts without a space.

WordPiece, Unigram, byte-level BPE and BPE that falls back to bytes, each with its family's rules.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from pyenc.text import TextTokenizer
from tests.conftest import CHECKPOINTS, GOLDEN
from tests.seeds import seed
from tests.text.tokenizer_folders import GAPS, WORDS, as_transformers

TEXTS = 3000
"""Of all these tokenizers together."""

SPECIAL = [
    "<pad>", "<s>", "<unk>", "<bos>", "<eos>", "[CLS]", "[PAD]", "[UNK]", "<extra_id_0>", "<0x41>",
    "</s>NOTUSED", "|||IP_ADDRESS|||", "x</s>y", "<PAD>", "< pad >", "<mask>.", " <mask> ",
]  # fmt: skip
STRAY = [
    "▁", "▁the", "Ġthe", "Ａ１", "①", "ﬀ", "ﬃ", "½", "ß", "ẞ", "Σς", "\r\n", "\u200b", "\u200e",
    "\ufffd", "\uffff", "\U0010ffff", "\ue000", "\x1c", "\x7f", "\x01", "\x85", "\u1680", "\u180e",
    "\u2029", "𝔘", "🏴\U000e0067\U000e007f", "a\u0300\u0323", "क्ष", "ﷺ", "\u3099", "ｶﾞ", "'t",
    " 's", "\t\t", "     ", "0123456789" * 4, "Represent the sentence: ", "the quick brown fox",
]  # fmt: skip


def by_tokenizer() -> list[str]:
    """The first golden checkpoint of each set of tokenizer files."""
    first: dict[str, str] = {}
    for name in CHECKPOINTS:
        paths = [GOLDEN / name / file for file in ("tokenizer.json", "tokenizer_config.json")]
        first.setdefault(hashlib.sha256(b"".join(p.read_bytes() for p in paths)).hexdigest(), name)
    return list(first.values())


DIFFERENT = by_tokenizer()
OF_EACH_KIND = [
    "bert_mean_h4", "mpnet_base_v2_like_h4", "xlmr_e5_like_h2", "t5_mean_relu_h4",
    "roberta_distil_like_h4", "modernbert_mmbert_like_h3",
]  # fmt: skip


def stray_texts(count: int) -> list[str]:
    some = random.Random(seed())
    words = [*WORDS, *SPECIAL, *SPECIAL, *STRAY]

    def any_character() -> str:
        ranges = [(0, 128), (32, 0xD800), (0xE000, 0x110000)]
        return chr(some.randrange(*some.choice(ranges)))

    texts = []
    for _ in range(count):
        if some.random() < 0.1:
            texts.append("".join(any_character() for _ in range(some.randint(0, 30))))
        else:
            count = some.randint(0, 10)
            texts.append("".join(some.choice(words) + some.choice(GAPS) for _ in range(count)))
    return texts


@pytest.mark.parametrize("name", DIFFERENT)
def test_odd_texts(name: str) -> None:
    as_transformers(GOLDEN / name, stray_texts(TEXTS // len(DIFFERENT)))


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_without_a_space(name: str) -> None:
    """100 kB: whole, and cut, where only the beginning may be looked at."""
    transformers = pytest.importorskip("transformers", minversion="5")
    some = random.Random(seed())
    glued = "".join(some.choice([*WORDS, *SPECIAL]).replace(" ", "") for _ in range(9000))
    texts = [
        "".join(some.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(100_000)),
        "".join(some.choice("你好世界早上字") for _ in range(33_000)),
        glued[:60_000],
    ]
    theirs = transformers.AutoTokenizer.from_pretrained(GOLDEN / name)
    ours = TextTokenizer(GOLDEN / name)
    whole = theirs(texts)["input_ids"]
    assert [t.ids.tolist() for t in ours(texts, 10**6)] == whole
    cut = theirs(texts, truncation=True, max_length=300)["input_ids"]
    assert [t.ids.tolist() for t in ours(texts, 300)] == cut


def test_a_normalizer_that_the_class_does_not_have(tmp_path: Path) -> None:
    """XLM-R's class keeps of tokenizer.json's normalizer SentencePiece's table alone: the goldens'
    NFKC goes, there and here. The file as it is would have it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in ("tokenizer.json", "config.json"):
        (folder / file).write_bytes((GOLDEN / "xlmr_e5_like_h2" / file).read_bytes())
    settings = folder / "tokenizer_config.json"
    ids = {}
    for name in ("XLMRobertaTokenizer", "PreTrainedTokenizerFast"):
        settings.write_text(f'{{"tokenizer_class": "{name}"}}')
        tokens = TextTokenizer(folder)(["ﬁve ２", "five 2"], 99)
        ids[name] = [t.ids.tolist() for t in tokens]
        as_transformers(folder, ["ﬁve ２ fox", "½² ﬃ"])
    assert ids["PreTrainedTokenizerFast"][0] == ids["PreTrainedTokenizerFast"][1]
    assert ids["XLMRobertaTokenizer"][0] != ids["XLMRobertaTokenizer"][1]
