"""Longformer: longformer-base-4096, -large-4096, and sentence encoders made of them.

Beltagy et al., arXiv 2004.05150. RoBERTa's layers, each token of which sees a window on both sides.
Tokens that see all others, and are seen by them, are chosen by an argument of a call
(`global_attention_mask`), which sentence-transformers never gives and which is not here; their own
projections stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import CheckpointError
from ..config import EncoderConfig
from . import bert, roberta
from .config_file import LARGEST, ConfigFile
from .family import Family, Published
from .parts import Names


def _window(config: ConfigFile, layers: int) -> int:
    """Keys on each side: half of a number that all layers share."""
    said = config.values.get("attention_window", 512)
    each = said if isinstance(said, list) else [said] * layers
    if len(each) != layers:
        raise CheckpointError(
            f"{config.path}: attention_window must be a number or a list of {layers} of them, got "
            f"{len(each)}"
        )
    for width in each:
        if type(width) is not int or not 2 <= width < LARGEST or width % 2:
            raise CheckpointError(
                f"{config.path}: attention_window must be of even numbers from 2 to "
                f"{LARGEST - 2}, got {width!r:.80}"
            )
    if len(set(each)) > 1:
        raise CheckpointError(
            f"{config.path}: attention_window {each} differs by layer, which is not served; "
            "expected one number for all layers"
        )
    return int(each[0]) // 2


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    layers = config.size("num_hidden_layers")
    for key, plain in (("attention_mode", "longformer"), ("ignore_attention_mask", False)):
        config.require(key, (plain, None), None, "transformers' class knows no other")
    config.require("attention_dilation", ([1] * layers, None), None, "windows have no gaps here")
    shape = roberta.shape(config, names)
    return replace(shape, local=(True,) * layers, window=_window(config, layers))


FAMILY = Family(
    name="Longformer",
    checkpoints=(
        Published(
            "longformer-base-4096, -large-4096",
            "golden",
            "4,096 (position table)",
            "without global attention, as transformers runs it without global_attention_mask",
        ),
    ),
    signature=bert.FAMILY.signature,
    accepts=lambda config: config.says(("longformer",), ("Longformer",)),
    config=_config,
    parts=bert.FAMILY.parts,
    head=roberta.FAMILY.head,
    model_types=("longformer",),
    prefixes=("", "longformer."),
    unused=r"encoder\.layer\.\d+\.attention\.self\.(query|key|value)_global\.(weight|bias)$",
    tied={"lm_head.decoder.weight": "embeddings.word.weight"},
)
