"""What a family file says: are these tensors mine, what `EncoderConfig` is it, what are the names.

A `Family` is declarative, so that one loader and one saver serve all: each parameter of the
`Encoder` is made of one or more tensors of the file, laid one under the other along their rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import CheckpointError, UnknownArchitectureError
from ..config import EncoderConfig
from ..head_config import HeadConfig

ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
"""`hidden_act` of Hugging Face configs -> our name."""

LARGEST = 2**31
"""No size in a `config.json` comes near it."""

UNSCALED: tuple[Any, ...] = (None, {}, {"rope_type": "default"}, {"type": "default"})
"""What `rope_scaling` may be where positions turn as they are: transformers takes all for none."""

LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
"""What `config.json` may call the number of layers."""

Parts = dict[str, tuple[str, ...]]
"""Parameter of `Encoder` -> the file's tensors that stand in its rows, top to bottom."""

Names = frozenset[str]
"""A file's tensor names, prefix stripped."""


@dataclass(frozen=True)
class HeadNames:
    """A masked-LM head as `config.json` describes it, and what its tensors are called, without the
    prefix of the encoder's."""

    config: HeadConfig
    """`tied` is not the family's to say: a file with the decoder in it decides."""
    decoder: str
    biases: tuple[str, ...]
    """Names of the decoder's bias: one tensor, stored under any of them or under several."""
    dense: str = ""
    norm: str = ""
    """Of a head with them: `HeadConfig.transform`."""
    tie_unsaid: bool = True
    """What `tie_word_embeddings` is where `config.json` does not say it."""


@dataclass(frozen=True)
class Published:
    """Checkpoints that people know by name, how far they were checked, and how far they reach."""

    names: str
    status: Literal["real weights", "golden", "unverified"]
    """Verified with the published weights; on small checkpoints made with the original code; or
    believed to be the same."""
    limit: str
    """Of a text's length."""
    remark: str = ""


@dataclass(frozen=True)
class Family:
    """One checkpoint family."""

    name: str
    checkpoints: tuple[Published, ...]
    """What it serves, for people: `pyenc models`, and the errors about unknown architectures."""
    signature: tuple[str, ...]
    """Tensor names (prefix stripped) that together mark the family."""
    config: Callable[[ConfigFile, Names], EncoderConfig]
    """What makes an encoder of `config.json` and the tensor names; asked through `shape`."""
    parts: Callable[[EncoderConfig, Names], Parts]
    other_signature: tuple[str, ...] = ()
    """The same, where its tensors go by two sets of names."""
    accepts: Callable[[ConfigFile], bool] = lambda config: True
    """Where names are shared: does `config.json` say that it is this family?"""
    model_types: tuple[str, ...] = ("bert",)
    """Values of `model_type` that the family's arithmetic is right for."""
    pooling: str = "mean"
    """For checkpoints without sentence-transformers files, but for language models
    (`Checkpoint.pooling`)."""
    prefixes: tuple[str, ...] = ("", "bert.", "model.", "model.bert.")
    set_aside: tuple[str, ...] = ("cls.", "classifier.", "lm_head.", "qa_outputs.")
    """Heads: not part of the encoder, kept as they are so that saving loses nothing."""
    head: Callable[[ConfigFile, Names], HeadNames] | None = None
    """The masked-LM head, where a checkpoint has its tensors (`heads.py`); they then become
    parameters. None: the family has no such head."""
    own_head: bool = False
    """Whether `config` says all about the head, which then is of the parameters like any other."""
    tied: Mapping[str, str] = field(
        default_factory=lambda: {"cls.predictions.decoder.weight": "embeddings.word.weight"}
    )
    """Head tensors that are one with a parameter; written from it when they were equal."""
    same: Mapping[str, str] = field(default_factory=dict)
    """Second names of a tensor: name -> the name that is read; refused where they differ."""
    without_adapters: Callable[[Mapping[str, Any], EncoderConfig], dict[str, Any]] | None = None
    """The `config.json` of weights that had adapters of tasks beside them and have none any more
    (`pyenc.loading.tasks`), from the one that they came with and the encoder that it described.
    None: no checkpoint of the family has such."""
    layer: str = r"encoder\.layer\.(\d+)\."
    """How the names of a layer's tensors begin."""
    layers_key: str = "num_hidden_layers"
    """What `config.json` calls the number of layers."""

    def shape(self, config: ConfigFile, names: Names) -> EncoderConfig:
        """The encoder that `config.json` and the tensor names describe.

        Raises:
            CheckpointError: `config.json` asks for what is not served.
            InputError: its numbers make no encoder.
        """
        # Of any family: transformers and the published code then hide what comes after.
        config.require("is_decoder", (False, None), False, "pyenc runs encoders only")
        self._check_layers(config, names)
        return self.config(config, names)

    def _check_layers(self, config: ConfigFile, names: Names) -> None:
        """There are no more layers than tensors; asked before anything is made for each."""
        for key in LAYERS if names and self.layers_key in LAYERS else ():
            layers = config.values.get(key)
            if isinstance(layers, int) and layers > len(names):
                raise CheckpointError(
                    f"{config.path}: {key} is {layers}, and the weights have {len(names)} tensors "
                    "in all; expected their number of layers"
                )

    @property
    def known(self) -> str:
        """Its name and its checkpoints', on one line."""
        return f"{self.name} ({', '.join(row.names for row in self.checkpoints)})"


@dataclass(frozen=True)
class ConfigFile:
    """A parsed `config.json`, read with errors that name file and key."""

    path: str
    values: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < LARGEST:
            raise CheckpointError(
                f"{self.path}: {key} must be a whole number from {least} to {LARGEST - 1}, got "
                f"{value!r}"
            )
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number of which there is at least one."""
        return self.integer(key, default, 1)

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        # Python compares exactly: a whole number too large for a float is larger than any.
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 <= value <= sys.float_info.max
        ):
            raise CheckpointError(
                f"{self.path}: {key} must be a number, finite and >= 0, got {value!r}"
            )
        return float(value)

    def positive(self, key: str, default: float) -> float:
        if not (value := self.number(key, default)):
            raise CheckpointError(f"{self.path}: {key} must be positive, got 0")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise CheckpointError(f"{self.path}: {key} must be a string, got {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key} must be true or false, got {value!r}")
        return value

    def section(self, key: str) -> ConfigFile:
        """An object inside of the file; null and absent are empty."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{self.path}: {key} must be an object or null, got {value!r}")
        return ConfigFile(f"{self.path}: {key}", value or {})

    def spelled(self, *keys: str) -> str:
        """Which of several spellings of one setting is there: the first, where none is.

        Raises:
            CheckpointError: two are there and differ.
        """
        there = [key for key in keys if self.values.get(key) is not None]
        for key in there[1:]:
            if self.values[key] != self.values[there[0]]:
                raise CheckpointError(
                    f"{self.path}: {there[0]} is {self.values[there[0]]!r} and {key} is "
                    f"{self.values[key]!r}, two spellings of one setting"
                )
        return there[0] if there else keys[0]

    def says(self, model_types: tuple[str, ...], classes: tuple[str, ...]) -> bool:
        """Whether it is of one of these `model_type`s, or, where it has none, of a class whose name
        begins so: files older than that key name the class alone."""
        kind = self.values.get("model_type")
        if kind is not None:
            return kind in model_types
        named = self.values.get("architectures") or []
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise CheckpointError(
                f"{self.path}: architectures must be a list of class names, got {named!r:.80}"
            )
        return any(name.startswith(classes) for name in named)

    def activation(self, key: str = "hidden_act", default: str = "gelu") -> str:
        name = self.text(key, default)
        if name not in ACTIVATION_NAMES:
            raise CheckpointError(
                f"{self.path}: {key} {name!r} is unknown; known: {', '.join(ACTIVATION_NAMES)}"
            )
        return ACTIVATION_NAMES[name]

    def require(self, key: str, allowed: tuple[Any, ...], default: Any, why: str) -> None:
        """Refuse a checkpoint whose config contradicts the family its tensors belong to."""
        value = self.values.get(key, default)
        if value not in allowed:
            raise UnknownArchitectureError(
                f"{self.path}: {key} is {value!r}, but {why} (expected {allowed[0]!r})"
            )


def there(names: Names, layer: str) -> bool:
    """Is a layer in the file? Told by weight and bias, so that either is missed by its name."""
    return f"{layer}.weight" in names or f"{layer}.bias" in names


def own_head_size(config: ConfigFile) -> int | None:
    """Channels of a head where `config.json` says them, as transformers 5 writes for some."""
    return None if config.values.get("head_dim") is None else config.size("head_dim")


def common_fields(config: ConfigFile, names: Names) -> dict[str, Any]:
    """The fields that every BERT-descended `config.json` spells alike."""
    return {
        "vocab_size": config.size("vocab_size"),
        "hidden_size": config.size("hidden_size"),
        "num_layers": config.size("num_hidden_layers"),
        "num_heads": config.size("num_attention_heads"),
        "intermediate_size": config.size("intermediate_size"),
        "type_vocab_size": config.integer("type_vocab_size", 2),
        "norm_eps": config.number("layer_norm_eps", 1e-12),
        "hidden_dropout": config.number("hidden_dropout_prob", 0.1),
        "pooler": there(names, "pooler.dense"),
    }


def both(parameter: str, *tensors: str) -> Parts:
    """Weight and bias of a layer, of one tensor each or of several, one below the other."""
    return {
        f"{parameter}.{w}": tuple(f"{tensor}.{w}" for tensor in tensors) for w in ("weight", "bias")
    }


def rows_of(config: EncoderConfig, parameter: str, rows: int, count: int) -> tuple[int, ...]:
    """How many rows of a parameter each of its `count` tensors has: of queries, keys and values
    as their heads are, of others as many each."""
    if count == 3 and ".attention.qkv." in parameter:
        unit = rows // (config.num_heads + 2 * config.kv_heads)
        return config.num_heads * unit, config.kv_heads * unit, config.kv_heads * unit
    return (rows // count,) * count


def embedding_parts(config: EncoderConfig) -> Parts:
    """Embeddings and pooler as all BERT descendants name them."""
    parts: Parts = {"embeddings.word.weight": ("embeddings.word_embeddings.weight",)}
    if config.type_vocab_size:
        parts["embeddings.token_type.weight"] = ("embeddings.token_type_embeddings.weight",)
    if config.position == "absolute":
        parts["embeddings.position.weight"] = ("embeddings.position_embeddings.weight",)
    parts |= both("embeddings.norm", "embeddings.LayerNorm")
    if config.pooler:
        parts |= both("pooler", "pooler.dense")
    return parts


def weights(parameter: str, *tensors: str) -> Parts:
    """As `both`, of a layer without bias."""
    return {f"{parameter}.weight": tuple(f"{tensor}.weight" for tensor in tensors)}


def separate_qkv(ours: str, theirs: str) -> Parts:
    """q, k, v stored apart, held as one matrix."""
    own = (f"{theirs}.attention.self.{x}" for x in ("query", "key", "value"))
    return both(f"{ours}.attention.qkv", *own)


def attention_output(ours: str, theirs: str) -> Parts:
    """The output projection and its norm."""
    return both(f"{ours}.attention.out", f"{theirs}.attention.output.dense") | both(
        f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm"
    )


def plain_feed_forward(ours: str, theirs: str) -> Parts:
    """BERT's two linear layers and norm."""
    return (
        both(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
        | both(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
        | both(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm")
    )


def gated_feed_forward(ours: str, theirs: str) -> Parts:
    """JinaBert's and MosaicBERT's gated layers: gate rows first, no bias."""
    return (
        {f"{ours}.feed_forward.up.weight": (f"{theirs}.mlp.gated_layers.weight",)}
        | both(f"{ours}.feed_forward.down", f"{theirs}.mlp.wo")
        | both(f"{ours}.feed_forward_norm", f"{theirs}.mlp.layernorm")
    )
