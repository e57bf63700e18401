"""A checkpoint of BERT's kind, made here: random weights, a WordPiece tokenizer, and the files that
say how sentence-transformers pools. It takes no network, and no package but transformers.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

from bench.workloads import LICENSE

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 512

MODULES = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (path, kind) in enumerate(
        [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    )
]


def write(folder: Path, values: dict[str, Any]) -> None:
    """All of it; values: of transformers' `BertConfig`, the vocabulary's size among them."""
    import transformers

    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**values)).save_pretrained(folder)
    _tokenizer(values["vocab_size"]).save(str(folder / "tokenizer.json"))
    width = values["hidden_size"]
    files: dict[str, Any] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH,
            "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
            "sep_token": "[SEP]", "mask_token": "[MASK]",
        },
        "modules.json": MODULES,
        "sentence_bert_config.json": {"max_seq_length": MAX_LENGTH, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": width, "pooling_mode_mean_tokens": True
        },
    }  # fmt: skip
    (folder / "2_Normalize").mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1), "utf-8")


def _tokenizer(size: int) -> Any:
    """BERT's rules, lower case; of so many words: those of the texts, and letters for others."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    rules = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    plain = rules[0].normalize_str(LICENSE.read_text("utf-8"))
    words = sorted({word for word, _ in rules[1].pre_tokenize_str(plain)})
    letters = string.ascii_lowercase + string.digits
    known = dict.fromkeys([*SPECIAL, *letters, *(f"##{each}" for each in letters), *words])
    unused = (f"[unused{i}]" for i in range(size - len(known)))
    vocabulary = {word: i for i, word in enumerate([*known, *unused])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[call-arg]
    made.normalizer, made.pre_tokenizer = rules
    made.decoder = decoders.WordPiece()
    ends = [(word, vocabulary[word]) for word in ("[SEP]", "[CLS]")]
    made.post_processor = processors.BertProcessing(*ends)
    made.add_special_tokens(list(SPECIAL))
    return made
