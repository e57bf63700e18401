"""What a family file says: are these tensors mine, what `EncoderConfig` is it, what are the names.

A `Family` is declarative, so that one loader and one saver serve all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import CheckpointError
from ..config import EncoderConfig
from ..head_config import HeadConfig
from .config_file import ConfigFile
from .parts import Names, Parts, RowOrder

LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
"""What `config.json` may call the number of layers."""


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
class ClassifierNames:
    """What the layers of a classifier of texts are called, outside of the encoder's prefix: logits
    are W d + b of the first token's state, d = tanh(dense(state)), as in BERT (Devlin et al., arXiv
    1810.04805)."""

    out: str
    dense: str = ""
    """Empty: the encoder's pooler."""


POOLED = ClassifierNames("classifier")
DENSE = ClassifierNames("classifier.out_proj", "classifier.dense")
"""RoBERTa's, beside an encoder without a pooler."""


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
    own_vectors: bool = False
    """Whether its class answers with vectors of texts, so that nothing is assumed where no file
    says how they are made: pooled as above, of no certain length."""
    prefixes: tuple[str, ...] = ("", "bert.", "model.", "model.bert.")
    set_aside: tuple[str, ...] = ("cls.", "classifier.", "lm_head.", "qa_outputs.")
    """Heads: not part of the encoder, kept as they are so that saving loses nothing."""
    unused: str = r"(?!)"
    """A pattern of tensors of the encoder's that are not used here, kept like heads."""
    head: Callable[[ConfigFile, Names], HeadNames] | None = None
    """The masked-LM head, where a checkpoint has its tensors (`heads.py`); they then become
    parameters. None: the family has no such head."""
    classifier: ClassifierNames | None = None
    """Of a classifier, such as a reranker; None: the family has none, or one that is not known."""
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
    row_order: RowOrder = lambda config, parameter: None
    """Where rows of a parameter stand in another order than in the file."""
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
        why = "pyenc's layers are alike but for what their family says"
        config.require("per_layer_config", (None, {}), None, why)
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

    def is_aside(self, name: str) -> bool:
        """Whether a tensor (prefix stripped) belongs to a file, and is no part of the encoder."""
        return name.startswith(self.set_aside) or re.match(self.unused, name) is not None

    @property
    def known(self) -> str:
        """Its name and its checkpoints', on one line."""
        return f"{self.name} ({', '.join(row.names for row in self.checkpoints)})"
