"""Small tokenizers of every kind as folders, and what transformers makes of the same folder."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from pyenc.text import TextTokenizer
from tests.conftest import GOLDEN

BERT_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = [
    "the", "quick", "Brown", "naïve", "CAFÉ", "你好吗世界", "[SEP]", "[MASK]", "</s>", "<mask>",
    "newtok", "x" * 150, "y" * 450, "\u2028", "a\x00b", "\0" * 450, "🦊👩\u200d👩\u200d👧", "İ",
    "ﬁ", "e\u0301" * 3, "12,34;5", "don't", "f(x)=[y]", "한국어", "हिन्दी", "العربية", "สวัสดี" * 90,
    "カ\u3099", "字" * 40, " " * 450, "\n" * 30, "...", "__init__", "é" * 460,
    "これはテスト。", "ジー" * 300, "\u00a0" * 450, "\u0301", "´", "👍🏽", "🇩🇪", "½²", "ﾊﾞ",
    "\u1112\u1161\u11ab", "''s", "\u00ad", "\ufeff", "\u0600", "が", "ா", "\U000e0100",
]  # fmt: skip
GAPS = [" ", " ", " ", "  ", "\n", "\t", "", " \n ", "\u3000", "\x85", "\x0b"]
TEXTS = [
    "The quick, Brown fox!", "", "naïve CAFÉ 你好 newtok [NEW]", "a\u2028b\x85c\x0bd\x0ce\x00f",
    "[SEP] stays <mask> one </s> token [MASK]", " lead  and trail \n",
]  # fmt: skip


def odd_texts(count: int, words: int, seed: int = 0) -> list[str]:
    """Texts of every script and every kind of gap, the same each time."""
    some = random.Random(seed)
    return [
        "".join(some.choice(WORDS) + some.choice(GAPS) for _ in range(some.randint(0, words)))
        for _ in range(count)
    ]


def bert(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in BERT_FILES:
        (folder / file).write_bytes((GOLDEN / "bert_mean_h4" / file).read_bytes())
    (folder / "config.json").write_text('{"model_type": "bert"}')
    edit(folder / "tokenizer_config.json", lambda old: old | config)
    return folder


def roberta(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    whole.train_from_iterator(["def add(a, b): return a + b", "the quick brown fox"] * 5, trainer)
    whole.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    whole.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "RobertaTokenizer"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    return folder


def charsmap(old: str, new: str) -> str:
    """SentencePiece's table of characters with one entry: `old`, of one byte, becomes `new`.

    A count of bytes, a double array (https://github.com/s-yata/darts-clone) with one key, and the
    texts that its values point to.
    """
    (byte,) = old.encode()
    units = [0] * 256  # of the root: no offset, so the key's byte stands at its own number
    units[byte] = byte | 1 << 8 | 1 << 10  # label, "a value follows", and where: at byte ^ 1
    units[byte ^ 1] = 0  # the value: where in the texts
    trie = struct.pack("<256I", *units)
    return base64.b64encode(struct.pack("<I", len(trie)) + trie + new.encode() + b"\0").decode()


def unigram(folder: Path, model_type: str, special: list[str], **config: Any) -> Path:
    """A Unigram tokenizer whose file has SentencePiece's normalizer: here "Q" becomes "q"."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [(token, 0.0) for token in special]
    pieces += [(c, -6.0) for c in "▁abcdefghijklmnopqrstuvwxyz,.'你好世界"]
    pieces += [("▁the", -2.0), ("quick", -2.5), ("ick", -3.0), ("▁qu", -3.0), ("ow", -3.5)]
    pieces += [("<mask>", 0.0)]
    unknown = next(i for i, token in enumerate(special) if token in ("<unk>", "[UNK]"))
    whole = Tokenizer(models.Unigram(pieces, unknown, False))
    whole.pre_tokenizer = pre_tokenizers.Metaspace()
    whole.add_special_tokens([token for token in SPECIAL if token in dict(pieces)])
    whole.save(str(folder / "tokenizer.json"))
    table = {"type": "Precompiled", "precompiled_charsmap": charsmap("Q", "q")}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    steps = {"type": "Sequence", "normalizers": [table, spaces]}
    edit(folder / "tokenizer.json", lambda old: old | {"normalizer": steps})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def xlm_roberta(folder: Path, **config: Any) -> Path:
    config = {"tokenizer_class": "XLMRobertaTokenizer"} | config
    return unigram(folder, "xlm-roberta", SPECIAL[:4], **config)


def camembert(folder: Path, **config: Any) -> Path:
    config = {"tokenizer_class": "CamembertTokenizer"} | config
    first = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    return unigram(folder, "camembert", first, **config)


def albert(folder: Path, **config: Any) -> Path:
    config = {"tokenizer_class": "AlbertTokenizer"} | config
    first = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    folder = unigram(folder, "albert", first, **config)
    around = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            token: {"id": token, "ids": [i], "tokens": [token]}
            for i, token in ((2, "[CLS]"), (3, "[SEP]"))
        },
    }  # fmt: skip
    edit(folder / "tokenizer.json", lambda whole: whole | {"post_processor": around})
    return folder


def deberta(folder: Path, **config: Any) -> Path:
    """Whose class leaves out SentencePiece's normalizer; [MASK] is beyond its vocabulary."""
    config = {"tokenizer_class": "DebertaV2Tokenizer"} | config
    folder = unigram(folder, "deberta-v2", ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], **config)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def t5(folder: Path, **config: Any) -> Path:
    config = {"tokenizer_class": "T5Tokenizer"} | config
    return unigram(folder, "t5", ["<pad>", "</s>", "<unk>"], **config)


def gemma(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((GOLDEN / "gemma_embed_like_h3" / file).read_bytes())
    (folder / "config.json").write_text('{"model_type": "gemma3_text"}')
    config = {"tokenizer_class": "GemmaTokenizer"} | config
    edit(folder / "tokenizer_config.json", lambda old: old | config)
    return folder


def llama3(folder: Path, **config: Any) -> Path:
    """EuroBERT's."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((GOLDEN / "eurobert_like_h4" / file).read_bytes())
    edit(folder / "tokenizer_config.json", lambda old: old | config)
    return folder


def qwen2(folder: Path, **config: Any) -> Path:
    """As Qwen3-Embedding's: what ends every text is said in tokenizer.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((GOLDEN / "qwen3_embed_like_h4" / file).read_bytes())
    edit(folder / "tokenizer_config.json", lambda old: old | config)
    return folder


def llama2(folder: Path, **config: Any) -> Path:
    """Whose class writes the first space otherwise than tokenizer.json, which alone says what is
    around a text."""
    around = ("add_bos_token", "add_eos_token")
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((GOLDEN / "llama_encoder_like_h6" / file).read_bytes())
    (folder / "config.json").write_text('{"model_type": "llama"}')
    edit(
        folder / "tokenizer_config.json",
        lambda old: {k: v for k, v in old.items() if k not in around} | config,
    )
    return folder


def mistral(folder: Path, **config: Any) -> Path:
    """Taken as it is."""
    folder = llama2(folder, **config)
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    return folder


def around(folder: Path, single: str) -> None:
    """What Llama's or Mistral's tokenizer.json puts around a text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


KINDS: dict[str, Callable[..., Path]] = {
    "albert": albert,
    "bert": bert,
    "mpnet": lambda folder, **config: bert(
        folder, **{"tokenizer_class": "MPNetTokenizer", "cls_token": "[CLS]", "sep_token": "[SEP]",
                   "bos_token": "[CLS]", "eos_token": "[SEP]", **config},
    ),
    "roberta": roberta,
    "xlm-roberta": xlm_roberta,
    "camembert": camembert,
    "deberta": deberta,
    "t5": t5,
    "gemma": gemma,
    "llama 2": llama2,
    "llama 3": llama3,
    "mistral": mistral,
    "qwen 2": qwen2,
    "as it is": lambda folder, **config: bert(
        folder, **{"tokenizer_class": "PreTrainedTokenizerFast", **config}
    ),
}  # fmt: skip


def edit(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != key}


def ids(folder: Path, text: str) -> list[int]:
    return TextTokenizer(folder)([text], 999)[0].ids.tolist()


def as_transformers(folder: Path, texts: list[str]) -> None:
    """Ours must give the ids and spans that transformers gives."""
    transformers = pytest.importorskip("transformers", minversion="5")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = TextTokenizer(folder)
    encoded = theirs(texts, return_offsets_mapping=True)
    got = ours(texts, 10**6, spans=True)
    for text, ids, spans, tokens in zip(
        texts, encoded["input_ids"], encoded["offset_mapping"], got, strict=True
    ):
        assert tokens.ids.tolist() == ids, text
        assert tokens.spans is not None
        assert tokens.spans.tolist() == [list(span) for span in spans], text
    assert ours.truncation_side == theirs.truncation_side
    cut = theirs(texts, truncation=True, max_length=9)["input_ids"]
    assert [t.ids.tolist() for t in ours(texts, 9)] == cut
