"""ERNIE: ernie-3.0-*-zh, ernie-1.0 and 2.0, and text2vec-base-chinese-sentence, made of it.

Sun et al., ERNIE 2.0, arXiv 1907.12412, and ERNIE 3.0, arXiv 2107.02137, as transformers has the
published ones: BERT's names and arithmetic, and with `use_task_id` a table of tasks, of which a
text is given the first row where no task is named.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import EncoderConfig
from . import bert
from .config_file import ConfigFile
from .family import Family, Published
from .parts import Names

CLASSES = ("ErnieModel", "ErnieFor")


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    tasks = config.size("task_type_vocab_size", 3) if config.flag("use_task_id", False) else 0
    return replace(bert.shape(config, names), task_vocab_size=tasks)


FAMILY = Family(
    name="ERNIE",
    checkpoints=(
        Published(
            "ernie-3.0-base-zh, text2vec-base-chinese-sentence, -paraphrase",
            "golden",
            "2,048 and less (position table)",
        ),
    ),
    signature=bert.FAMILY.signature,
    accepts=lambda config: config.says(("ernie",), CLASSES),
    config=_config,
    parts=bert.FAMILY.parts,
    head=bert.FAMILY.head,
    model_types=("ernie",),
    prefixes=("", "ernie.", "model.", "model.ernie."),
)
